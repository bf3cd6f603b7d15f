"""The seam between speech engines and everything else: what an engine takes and returns, and who calls it.

An engine is one model that turns sound into text. It owns no threads and no queue: `speech.scheduler` makes a `replica`
for each of its worker threads and calls it there, one call at a time. Sound is always `Samples`.
"""

import string
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, Protocol, Self, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from whisper_byoc.speech.transcript import Confidence, Transcription

Samples: TypeAlias = NDArray[np.float32]
"""Mono sound at 16 kHz: float32, shape (n,), n > 0, full scale is [-1, 1)."""

T = TypeVar("T")

MOST_BEAM = 8
"""Limit of `DecodeOptions.beam`: every text costs as much again, and those beyond the fifth are hardly ever the
best."""

IsCancelled: TypeAlias = Callable[[], bool]
"""Whether an engine should stop. It is called from the engine's thread, many times a second, so it must be cheap."""


Scores: TypeAlias = Mapping[str, float]
"""Language -> how likely it is that some sound ends in it: its log-probability minus that of the likeliest language.
Languages not listed are as unlikely as any may be (`language.CHANGE`). Empty before any speech."""

Pauses: TypeAlias = Sequence[tuple[float, float]]
"""Where nobody speaks, according to voice activity: begin and end in seconds, in order."""

SECONDS_PER_POSITION = 0.02
"""Two hops of 10 ms make one position of Whisper's encoder."""


class Cancelled(Exception):  # not an error, so it does not belong to the tree in errors.py
    """The work was stopped because nobody wants its result any more."""


def never() -> bool:
    """Let the work go on to its end."""
    return False


@dataclass(frozen=True, eq=False)
class Before:
    """What was said just before; new sound may continue its last sentence."""

    samples: Samples
    """Its sound, up to the first sample of the new sound, including the pause between them."""
    text: str
    """Its text, not empty."""


@dataclass(frozen=True)
class DecodeOptions:
    """How to decode one piece of sound."""

    language: str | None = "en"
    """ISO 639-1 code, or None to let the model decide, for each stretch of the sound."""
    spoken: Scores = field(default_factory=dict)
    """How likely each language is after the preceding speech; for sound too short to tell by itself."""
    task: Literal["transcribe", "translate"] = "transcribe"
    """Text in the language spoken, or in English."""
    prompt: str = ""
    """Words to expect: names, spellings. It never appears in the text itself."""
    hotwords: str = ""
    """Names and spellings to expect, separated by commas; like a prompt, but not text that came before."""
    words: bool = False
    """Whether to find the time of every word, which costs another pass through the decoder."""
    beam: int | None = None
    """How many texts to follow at once, taking the best (beam search); 1 takes the likeliest tokens. None leaves it to
    the scheduler, which knows how busy the machine is."""
    guess: tuple[int, ...] = ()
    """`Draft.tokens` of the beginning of the same sound; saves time without changing the text."""
    pauses: Pauses | None = None
    """The sound's pauses; None if unknown."""
    before: Before | None = None
    """Makes `Transcription.goes_on` possible, with an engine that `continues`, at about twice the cost."""

    @property
    def initial_prompt(self) -> str:
        """Prompt and hotwords, as passed to the model; may be empty."""
        return " ".join(filter(None, (self.glossary, self.context)))

    @property
    def glossary(self) -> str:
        """Hotwords, as passed to the model; may be empty."""
        return _plain(f"Glossary: {self.hotwords}." if self.hotwords else "")

    @property
    def context(self) -> str:
        """Prompt, as passed to the model; may be empty."""
        return _plain(self.prompt)


def _plain(text: str) -> str:
    return text.replace("<|", "< |")  # Whisper's tokenizer refuses text that looks like one of its special tokens


@dataclass(frozen=True)
class DraftWord:
    """A word of a draft."""

    text: str
    """With the space before it, if the language has spaces, and the punctuation after it."""
    end: float
    """Seconds into the sound: where the decoder's attention was when it wrote the end of the word."""


def draft_words(pieces: Iterable[str], ends: Iterable[float]) -> tuple[DraftWord, ...]:
    """Make words from pieces of text and their end times; punctuation belongs to the word before it."""
    words: list[DraftWord] = []
    for piece, end in zip(pieces, ends, strict=True):
        if words and piece.strip() in string.punctuation:
            words[-1] = DraftWord(words[-1].text + piece, end)
        elif piece.strip():
            words.append(DraftWord(piece, end))
    return tuple(words)


@dataclass(frozen=True)
class Draft:
    """What an unfinished utterance seems to say so far."""

    words: tuple[DraftWord, ...]
    language: str
    tokens: tuple[int, ...] = ()
    """The tokens that the engine wrote."""
    confidence: Confidence | None = None
    """None for a draft without words."""

    @property
    def text(self) -> str:
        """All words."""
        return "".join(word.text for word in self.words).strip()


class Inference(Generic[T]):
    """One piece of an engine's work, done step by step, so that several pieces can share each step."""

    def __init__(self, engine: "Engine", work: Generator[Any, Any, T]) -> None:
        """`work` yields its requests to the engine, and returns its result."""
        self._engine = engine
        self._work = work
        self._result: list[T] = []
        self._error: BaseException | None = None
        self.asked: Any = None
        """What the work is waiting for; None before it has begun."""

    @property
    def done(self) -> bool:
        """Whether there is a result, or an error in its place."""
        return bool(self._result) or self._error is not None

    def result(self) -> T:
        """Return the result, or raise the error, after making any remaining steps by itself."""
        while not self.done:
            self._engine.advance([self])
        if self._error is not None:
            raise self._error
        return self._result[0]

    def send(self, answer: Any = None) -> None:
        """Resume with what was asked for, up to the next request; for engines."""
        try:
            self.asked = self._work.send(answer)
        except StopIteration as end:
            self._result.append(end.value)
        except BaseException as error:
            self._error = error

    def fail(self, error: BaseException) -> None:
        """End the work because what it asked for failed; for engines."""
        self._work.close()
        self._error = error


class Engine(Protocol):
    """One model, used by one thread.

    openai-whisper (`OpenAIEngine`) is the reference: any other engine must give the same text on `fixtures/`.
    """

    batch: int
    """How many inferences gain from running together; 1 for an engine that runs one at a time."""
    beam: int
    """`DecodeOptions.beam` when there is time for it."""
    continues: bool
    """Whether it makes use of `DecodeOptions.before`."""

    @property
    def languages(self) -> Sequence[str]:
        """Codes of the languages that the model knows, as in `languages.LANGUAGES`. Asked from any thread."""

    def replica(self) -> Self:
        """Return an engine for another thread, on the same weights. Called before any inference."""

    def fresh(self) -> Self:
        """Return an engine on the same weights that shares neither replicas nor threads with this one."""

    def use_threads(self, number: int) -> None:
        """Compute with `number` CPU threads. Called once, in the thread that makes all the calls below."""

    def rehearse(self, samples: Samples, tokens: int, texts: int = 1) -> Inference[None]:
        """Do the work for sound with a text of `tokens` tokens, whatever it says, as if there were `texts` of them.

        If the engine works in steps, each is one decoder step; the first includes the encoder.
        """

    def transcribe(
        self, samples: Samples, options: DecodeOptions, is_cancelled: IsCancelled = never
    ) -> Inference[Transcription]:
        """Transcribe sound of any length. Times are in seconds and lie within the sound.

        The inference ends with `Cancelled` soon after `is_cancelled` has become true.
        """

    def draft(self, samples: Samples, options: DecodeOptions, is_cancelled: IsCancelled = never) -> Inference[Draft]:
        """Decode at most 30 s of an unfinished utterance: one quick attempt, without segment times.

        The inference ends with `Cancelled` soon after `is_cancelled` has become true.
        """

    def advance(self, inferences: Sequence[Inference[Any]]) -> None:
        """Make the next step of each inference, none of which may be done; raises nothing."""
