"""Which language a stream is in: decided once, and not by the first doubtful word."""

from collections.abc import Awaitable, Callable

SURE_PROBABILITY = 0.8
SURE_SECONDS = 1.5
"""A language this probable in sound this long is decided on at once; otherwise two utterances in a row must agree."""


class LanguageChoice:
    """The language of one stream; `fixed` is what the client asked for, None for `auto`."""

    def __init__(self, fixed: str | None) -> None:
        self.decided = fixed
        self._guess: str | None = None
        self._utterance: object = None  # that the guess is about
        self._previous: str | None = None  # the guess for the utterance before it

    @property
    def likely(self) -> str | None:
        """The decision, or else the latest guess; None before there is one."""
        return self.decided or self._guess

    async def choose(
        self, detect: Callable[[], Awaitable[tuple[str, float]]], utterance: object, seconds: float
    ) -> str:
        """Return the language for an utterance of so many seconds; call `detect` as long as nothing is decided.

        `utterance` identifies it: one that comes again, longer now, does not agree with itself.
        """
        if self.decided is not None:
            return self.decided
        language, probability = await detect()
        if utterance != self._utterance:
            self._previous, self._utterance = self._guess, utterance
        if language == self._previous or (probability >= SURE_PROBABILITY and seconds >= SURE_SECONDS):
            self.decided = language
        self._guess = language
        return language
