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
        self._number: object = None  # the utterance of that guess
        self._before: str | None = None  # the guess for the utterance before

    @property
    def present(self) -> str | None:
        """What is known so far: the decision, or the best guess."""
        return self.decided or self._last

    async def choose(
        self, detect: Callable[[], Awaitable[tuple[str, float]]], utterance: object, seconds: float
    ) -> str:
        """Give the language for an utterance of so many seconds; `detect` is asked until a decision is made.

        An utterance may come again, by the same number, when more of it is known: it does not agree with itself.
        """
        if self.decided is not None:
            return self.decided
        language, probability = await detect()
        if utterance != self._number:
            self._before, self._number = self._last, utterance
        if language == self._before or (probability >= SURE and seconds >= SECONDS):
            self.decided = language
        self._last = language
        return language
