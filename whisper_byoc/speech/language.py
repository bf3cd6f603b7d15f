"""Which language a stream is in: decided once, and not by the first doubtful word."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

__all__ = ["LanguageChoice"]

SURE = 0.8
SECONDS = 1.5
"""A language that is this probable for this long is taken at once; else two utterances in a row must agree."""


class LanguageChoice:
    """The language of one stream; `fixed` is what the client asked for, None for `auto`."""

    def __init__(self, fixed: str | None) -> None:
        self.decided = fixed
        self._last: str | None = None

    @property
    def present(self) -> str | None:
        """What is known so far: the decision, or the best guess."""
        return self.decided or self._last

    async def choose(self, detect: Callable[[], Awaitable[tuple[str, float]]], seconds: float) -> str:
        """Give the language for an utterance of so many seconds; `detect` is asked until a decision is made."""
        if self.decided is None:
            language, probability = await detect()
            if language == self._last or (probability >= SURE and seconds >= SECONDS):
                self.decided = language
            self._last = language
            return language
        return self.decided
