"""What an engine is: a model that turns sound into text. Called from worker threads only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from whisper_byoc.speech.transcript import Transcription

__all__ = ["DecodeOptions", "Engine"]


@dataclass(frozen=True)
class DecodeOptions:
    """How one piece of sound is to be decoded."""

    language: str | None = "en"
    """ISO 639-1 code, or None to let the model decide."""
    task: Literal["transcribe", "translate"] = "transcribe"
    """Text in the language spoken, or in English."""
    prompt: str = ""
    """Words to expect: names, spellings. Never appears in the text itself."""
    words: bool = False
    """Whether to find the time of every word, which costs a second pass through the decoder."""


class Engine(Protocol):
    """One model, used by one thread at a time.

    The reference is openai-whisper (`OpenAIEngine`); any other must give the same text on the fixtures.
    """

    @property
    def multilingual(self) -> bool:
        """Whether the model knows languages other than English."""
        ...

    def transcribe(self, samples: NDArray[np.float32], options: DecodeOptions) -> Transcription:
        """Turn 16 kHz mono float32 samples (n,) of any length into text with times."""
        ...

    def replica(self) -> Engine:
        """Give an engine for another thread, on the same weights."""
        ...
