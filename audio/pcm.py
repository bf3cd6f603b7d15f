"""PCM16 bytes to float32 samples and back, and how loud they are.

PCM16 here is always signed, 16 bits, little endian, one channel: what a BYOC segment holds.
"""

import math

import numpy as np
from numpy.typing import NDArray

from audio.errors import PcmError

__all__ = [
    "FULL_SCALE",
    "SAMPLE_RATE",
    "SAMPLE_WIDTH",
    "PcmDecoder",
    "dbfs",
    "decode",
    "duration_ms",
    "encode",
    "is_silence",
]

SAMPLE_RATE = 16_000
"""Samples per second. Whisper is trained on this rate (`SAMPLE_RATE` in openai-whisper's `audio.py`)."""

SAMPLE_WIDTH = 2
"""Bytes per sample: PCM16 is what live senders and the tutorial's segments carry."""

FULL_SCALE = 32_768
"""What float 1.0 is in PCM16, 2**15; the same divisor as openai-whisper's `load_audio`."""


def decode(data: bytes | bytearray | memoryview) -> NDArray[np.float32]:
    """Turn PCM16 bytes into samples.

    Args:
        data: whole little-endian samples; may be empty.

    Returns:
        float32, shape (len(data) / 2,), in [-1, 1): exactly x / 32768.

    Raises:
        PcmError: the number of bytes is odd.
    """
    size = memoryview(data).nbytes
    if size % SAMPLE_WIDTH:
        raise PcmError(
            f"{size} bytes are not whole 16-bit samples; send an even number of bytes of PCM16 little endian."
        )
    # A multiplication by a power of two is exact, so this equals the division.
    return np.frombuffer(data, dtype="<i2").astype(np.float32) * np.float32(1 / FULL_SCALE)


def encode(samples: NDArray[np.float32]) -> bytes:
    """Turn samples into PCM16 bytes: the inverse of `decode`, exact for whatever `decode` returned.

    Args:
        samples: float32, shape (n,). Rounded to the nearest step (half to even); beyond [-1, 1) it clips, so
            the infinities become full scale.

    Returns:
        2 n bytes, little endian.

    Raises:
        PcmError: a sample is NaN, which no sound is.
    """
    not_a_number = np.isnan(samples)
    if not_a_number.any():
        raise PcmError(
            f"Sample {int(not_a_number.argmax())} of {samples.size} is not a number (NaN), which PCM16 cannot hold; "
            "correct the samples first."
        )
    steps: NDArray[np.float32] = np.rint(np.clip(samples, -1, 1) * FULL_SCALE)
    return steps.clip(max=FULL_SCALE - 1).astype("<i2").tobytes()


class PcmDecoder:
    """Decodes PCM16 that arrives in pieces of any length; an odd byte waits for the next piece."""

    def __init__(self) -> None:
        self._rest = b""

    @property
    def pending(self) -> int:
        """Bytes that wait for the second half of their sample: 0 or 1."""
        return len(self._rest)

    def feed(self, data: bytes | bytearray | memoryview) -> NDArray[np.float32]:
        """Return the samples that `data` completes: float32, shape (n,), in [-1, 1); n may be 0."""
        joined = self._rest + bytes(data)
        whole = len(joined) - len(joined) % SAMPLE_WIDTH
        self._rest = joined[whole:]
        return decode(memoryview(joined)[:whole])


def dbfs(samples: NDArray[np.float32]) -> float:
    """Return the RMS level of `samples` in dB relative to full scale.

    0 dBFS is a square wave of amplitude 1.0 (a full-scale sine is -3.01); -inf is digital silence or no samples.
    """
    if is_silence(samples):
        return -math.inf
    # float64: the square of a small float32 would vanish in float32.
    return 10 * math.log10(np.mean(np.square(samples, dtype=np.float64)))


def is_silence(samples: NDArray[np.float32]) -> bool:
    """Say whether this is digital silence: every sample exactly 0, or no samples at all."""
    return not np.any(samples)


def duration_ms(samples: int) -> int:
    """Return how long `samples` samples at 16 kHz last, in whole milliseconds, rounded down."""
    return samples * 1000 // SAMPLE_RATE
