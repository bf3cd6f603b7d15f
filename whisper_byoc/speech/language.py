"""Which language a stream is in: decided once, and not by the first doubtful word."""

from collections.abc import Awaitable, Callable

_CODES = (
    "en zh de es ru ko fr ja pt tr pl ca nl ar sv it id hi fi vi he uk el ms cs ro da hu ta no th ur hr bg lt la mi ml "
    "cy sk te fa lv bn sr az sl kn et mk br eu is hy ne mn bs kk sq sw gl mr pa si km sn yo so af oc ka be tg sd gu am "
    "yi lo uz fo ht ps tk nn mt sa lb my bo tl mg as tt haw ln ha ba jw su yue"
)
LANGUAGES = tuple(_CODES.split())
"""ISO 639-1 codes (two are longer) in the order of Whisper's tokens (openai-whisper, `tokenizer.LANGUAGES`)."""
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
