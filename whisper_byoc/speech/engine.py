"""The seam between speech engines and everything else: what an engine takes and returns, and who calls it.

An engine is one model that turns sound into text. It owns no threads and no queue: `speech.scheduler` makes a `replica`
for each of its worker threads and calls it there, one call at a time. Sound is always `Samples`.
"""

import string
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, Protocol, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from whisper_byoc.speech.transcript import Transcription

Samples: TypeAlias = NDArray[np.float32]
"""Mono sound at 16 kHz: float32, shape (n,), n > 0, full scale is [-1, 1)."""

IsCancelled: TypeAlias = Callable[[], bool]
"""Tells an engine whether to stop. It is called from the engine's thread, many times a second, so it must be cheap."""


SECONDS_PER_POSITION = 0.02
"""Two hops of 10 ms make one position of Whisper's encoder."""


class Cancelled(Exception):  # not an error, so it does not belong to the tree in errors.py
    """The work was stopped because nobody wants its result any more."""


def never() -> bool:
    """Let the work go on to its end."""
    return False


@dataclass(frozen=True)
class DecodeOptions:
    """How one piece of sound is to be decoded."""

    language: str | None = "en"
    """ISO 639-1 code, or None to let the model decide."""
    task: Literal["transcribe", "translate"] = "transcribe"
    """Text in the language spoken, or in English."""
    prompt: str = ""
    """Words to expect: names, spellings. It never appears in the text itself."""
    hotwords: str = ""
    """Names and spellings to expect, separated by commas; like a prompt, but not text that came before."""
    words: bool = False
    """Whether to find the time of every word, which costs a second pass through the decoder."""

    @property
    def initial_prompt(self) -> str:
        """Prompt and hotwords as the model gets them; may be empty."""
        glossary = f"Glossary: {self.hotwords}." if self.hotwords else ""
        text = " ".join(filter(None, (glossary, self.prompt)))
        return text.replace("<|", "< |")  # Whisper's tokenizer refuses text that looks like one of its special tokens


@dataclass(frozen=True)
class DraftWord:
    """A word of a draft."""

    text: str
    """With the space before it, where the language has one, and the punctuation behind it."""
    end: float
    """Seconds into the sound: where the decoder's attention was when it wrote the end of the word."""


def draft_words(pieces: Iterable[str], ends: Iterable[float]) -> tuple[DraftWord, ...]:
    """Make words of pieces of text and the times of their ends: punctuation belongs to the word before it."""
    words: list[DraftWord] = []
    for piece, end in zip(pieces, ends, strict=True):
        if words and piece.strip() in string.punctuation:
            words[-1] = DraftWord(words[-1].text + piece, end)
        elif piece.strip():
            words.append(DraftWord(piece, end))
    return tuple(words)


@dataclass(frozen=True)
class Draft:
    """What an utterance that is still going on seems to say so far."""

    words: tuple[DraftWord, ...]
    language: str

    @property
    def text(self) -> str:
        """All words."""
        return "".join(word.text for word in self.words).strip()


class Engine(Protocol):
    """One model, used by one thread.

    openai-whisper (`OpenAIEngine`) is the reference: any other engine must give the same text on `fixtures/`.
    """

    @property
    def multilingual(self) -> bool:
        """Whether the model knows languages other than English. Asked from any thread."""

    def replica(self) -> Self:
        """Return an engine for another thread, on the same weights. Called before any inference."""

    def use_threads(self, number: int) -> None:
        """Compute with so many CPU threads. Called once, in the thread that makes all the calls below."""

    def transcribe(self, samples: Samples, options: DecodeOptions, is_cancelled: IsCancelled = never) -> Transcription:
        """Transcribe sound of any length. Times are in seconds and lie within the sound.

        Raises `Cancelled` soon after `is_cancelled` has become true.
        """

    def draft(self, samples: Samples, options: DecodeOptions, is_cancelled: IsCancelled = never) -> Draft:
        """Decode at most 30 s of an utterance that is still going on: one quick attempt, without segment times.

        Raises `Cancelled` soon after `is_cancelled` has become true.
        """

    def detect_language(self, samples: Samples) -> tuple[str, float]:
        """Return the language of the first 30 s, as an ISO 639-1 code, and its probability."""
