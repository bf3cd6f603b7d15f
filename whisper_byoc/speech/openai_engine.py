"""The reference engine: openai-whisper itself, greedy, no text carried from one window to the next."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import numpy as np
import whisper
from numpy.typing import NDArray

from audio.pcm import SAMPLE_RATE
from whisper_byoc.speech.engine import DecodeOptions
from whisper_byoc.speech.transcript import TextSegment, Transcription, Word

if TYPE_CHECKING:
    from whisper.model import Whisper

__all__ = ["OpenAIEngine"]


class OpenAIEngine:
    """Defines what is right. Sound over 30 s goes through openai-whisper's own windows."""

    def __init__(self, model: Whisper) -> None:
        self._model = model

    @property
    def multilingual(self) -> bool:
        """Whether the model knows languages other than English."""
        return bool(self._model.is_multilingual)

    def transcribe(self, samples: NDArray[np.float32], options: DecodeOptions) -> Transcription:
        """Turn 16 kHz mono float32 samples (n,) into text; segment times never leave the sound."""
        found = whisper.transcribe(
            self._model,
            samples,
            language=options.language,
            task=options.task,
            initial_prompt=options.prompt or None,
            word_timestamps=options.words,
            temperature=0.0,  # greedy, and no ladder of retries
            condition_on_previous_text=False,
            fp16=False,  # a CPU has no half-precision kernels for this
            verbose=None,
        )
        length = len(samples) / SAMPLE_RATE

        def words_of(segment: dict[str, Any]) -> tuple[Word, ...]:
            return tuple(
                Word(at(each["start"]), at(each["end"]), each["word"].strip(), float(each["probability"]))
                for each in segment.get("words", ())
            )

        def at(seconds: float) -> float:
            return min(float(seconds), length)

        segments = tuple(
            TextSegment(at(each["start"]), at(each["end"]), each["text"].strip(), words_of(each))
            for each in found["segments"]
            if each["text"].strip()
        )
        return Transcription(found["text"].strip(), str(found["language"]), segments)

    def replica(self) -> OpenAIEngine:
        """Give an engine for another thread. Decoding hangs hooks on the modules, so only the weights are shared."""
        tensors = [*self._model.parameters(), *self._model.buffers()]
        return OpenAIEngine(copy.deepcopy(self._model, {id(tensor): tensor for tensor in tensors}))
