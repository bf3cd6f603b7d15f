"""PCM16 bytes to float32 samples and back, and how loud they are.

PCM16 here is always signed, 16 bits, little endian, one channel: what a BYOC segment holds.
"""

import math

import numpy as np
from numpy.typing import NDArray

from audio.errors import PcmError

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


class FrameAligner:
    """Passes on a byte stream in whole frames; the incomplete frame at the end of a piece waits for the next piece."""

    def __init__(self, frame_bytes: int = SAMPLE_WIDTH) -> None:
        """A frame is one PCM16 sample by default."""
        self.rest = b""
        """The beginning of a frame, shorter than `frame_bytes`."""
        self._frame_bytes = frame_bytes

    def feed(self, data: bytes | bytearray | memoryview) -> memoryview:
        """Return the frames that `data` completes; there may be none. The view may be one of `data` itself."""
        view = memoryview(data).cast("B")
        if self.rest:
            view = memoryview(self.rest + view)
        whole = len(view) - len(view) % self._frame_bytes
        self.rest = bytes(view[whole:])
        return view[:whole]


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
