"""What an engine is: a model that turns sound into text. Called from worker threads only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from whisper_byoc.speech.transcript import Transcription

__all__ = ["DecodeOptions", "Draft", "DraftWord", "Dropped", "Engine", "never"]


class Dropped(Exception):  # nothing is wrong, so it is no error and does not stand in their tree
    """The work was broken off, for nobody wants it any more."""


def never() -> bool:
    """Whether work is to be broken off: it is not."""
    return False


@dataclass(frozen=True)
class DecodeOptions:
    """How one piece of sound is to be decoded."""

    language: str | None = "en"
    """ISO 639-1 code, or None to let the model decide."""
    task: Literal["transcribe", "translate"] = "transcribe"
    """Text in the language spoken, or in English."""
    prompt: str = ""
    """Words to expect: names, spellings. Never appears in the text itself."""
    hotwords: str = ""
    """Names and spellings to expect, with commas between; like a prompt, but of no text that came before."""
    words: bool = False
    """Whether to find the time of every word, which costs a second pass through the decoder."""

    @property
    def expected(self) -> str:
        """What the model is told before it hears anything; empty for nothing."""
        glossary = f"Glossary: {self.hotwords}." if self.hotwords else ""
        told = " ".join(filter(None, (glossary, self.prompt)))
        return told.replace("<|", "< |")  # Whisper's tokenizer refuses text that looks like a token of its own


@dataclass(frozen=True)
class DraftWord:
    """A word of a draft."""

    text: str
    """With the space before it, where the language has one, and punctuation behind it."""
    until: float
    """Seconds into the sound at which the decoder looked when it wrote the word's end."""


@dataclass(frozen=True)
class Draft:
    """What an utterance seems to say so far."""

    words: tuple[DraftWord, ...]
    language: str

    @property
    def text(self) -> str:
        """All words."""
        return "".join(word.text for word in self.words).strip()


class Engine(Protocol):
    """One model, used by one thread at a time.

    The reference is openai-whisper (`OpenAIEngine`); any other must give the same text on the fixtures.
    """

    @property
    def multilingual(self) -> bool:
        """Whether the model knows languages other than English."""
        ...

    def transcribe(
        self, samples: NDArray[np.float32], options: DecodeOptions, dropped: Callable[[], bool] = never
    ) -> Transcription:
        """Turn 16 kHz mono float32 samples (n,) of any length into text with times.

        Raises `Dropped` soon after `dropped`, which is asked many times a second, has become true. So does `draft`.
        """
        ...

    def draft(self, samples: NDArray[np.float32], options: DecodeOptions, dropped: Callable[[], bool] = never) -> Draft:
        """Turn at most 30 s of an utterance that is still going on into words; one try, no times of segments."""
        ...

    def language_of(self, samples: NDArray[np.float32]) -> tuple[str, float]:
        """Give the language of the first 30 s, as an ISO 639-1 code, and its probability."""
        ...

    def replica(self) -> Engine:
        """Give an engine for another thread, on the same weights."""
        ...
