"""A processor of one's own: the pitch of a voice, ten times a second. whisper-byoc run examples/pitch_processor.py"""

import numpy as np

RATE = 16_000
LOWEST, HIGHEST = 70, 400
"""Hertz: the range of speaking voices."""


class Pitch:
    media = "audio"
    content_type = "text/plain; charset=utf-8"

    async def process(self, frame: bytes) -> bytes:
        """Return a line with a number for each tenth of a second: the pitch in hertz, 0 where there is no voice."""
        samples = np.frombuffer(frame, "<i2").astype(np.float64)
        pieces = samples[: len(samples) // 1600 * 1600].reshape(-1, 1600)
        return " ".join(f"{pitch(piece):.0f}" for piece in pieces).encode()


def pitch(samples: np.ndarray) -> float:
    """Find the shift at which the sound is most like itself."""
    samples = samples - samples.mean()
    likeness = np.correlate(samples, samples, "full")[len(samples) - 1 :]
    shortest, longest = RATE // HIGHEST, RATE // LOWEST
    best = shortest + int(np.argmax(likeness[shortest:longest]))
    return RATE / best if likeness[best] > 0.5 * likeness[0] > 0 else 0.0
