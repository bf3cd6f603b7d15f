"""A live stream of PCM16, cut into segments short enough to transcribe."""

import numpy as np
from numpy.typing import NDArray

from audio.pcm import SAMPLE_RATE, SAMPLE_WIDTH

SEGMENT_SECONDS = 15.0
"""Longest segment by default: half of Whisper's 30 s window, so text comes while it still is live."""

WINDOW_SAMPLES = SAMPLE_RATE * 50 // 1000
"""Samples over which loudness is measured: 50 ms hold several periods of the lowest voice (about 80 Hz)."""

HOP_SAMPLES = SAMPLE_RATE * 10 // 1000
"""Samples from one window to the next: 10 ms, the hop of Whisper's own spectrogram."""


class QuietCutter:
    """Cuts a live PCM16 stream into segments of at most `max_seconds`, each at a quiet point.

    When `max_seconds` are buffered, the cut falls on the quietest point of their last third. Where the cuts fall
    depends on the stream alone, never on how it was chunked. All segments, joined, are the stream. The memory
    held is `max_seconds` of PCM16 plus the chunk being fed.
    """

    def __init__(self, max_seconds: float = SEGMENT_SECONDS) -> None:
        """Cut at `max_seconds` (s) at the latest; ValueError if its last third cannot hold a 50 ms window."""
        self._max_samples = int(max_seconds * SAMPLE_RATE)
        self._search_from = self._max_samples * 2 // 3
        if self._max_samples - self._search_from < WINDOW_SAMPLES:
            raise ValueError(f"max_seconds={max_seconds} is too short to find a quiet point in; use 0.15 or more.")
        self._buffer = bytearray()

    @property
    def pending(self) -> int:
        """Bytes that wait for the second half of their sample: 0 or 1. After `finish`, what was cut off."""
        return len(self._buffer) % SAMPLE_WIDTH

    def feed(self, data: bytes | bytearray | memoryview) -> list[bytes]:
        """Take any number of bytes; return the segments that are complete, in order, in whole samples."""
        self._buffer += data
        segments = []
        while len(self._buffer) >= self._max_samples * SAMPLE_WIDTH:
            segments.append(self._take(self._cut()))
        return segments

    def finish(self) -> list[bytes]:
        """Return what is left as one segment of whole samples, if there is any."""
        samples = len(self._buffer) // SAMPLE_WIDTH
        return [self._take(samples)] if samples else []

    def _cut(self) -> int:
        count = self._max_samples - self._search_from
        offset = self._search_from * SAMPLE_WIDTH
        # The copy matters: an array on the buffer itself would forbid to shorten it.
        last_third = np.frombuffer(self._buffer, dtype="<i2", count=count, offset=offset).astype(np.int16)
        return self._search_from + quietest_point(last_third)

    def _take(self, samples: int) -> bytes:
        size = samples * SAMPLE_WIDTH
        segment = bytes(self._buffer[:size])
        del self._buffer[:size]
        return segment


def quietest_point(samples: NDArray[np.int16]) -> int:
    """Return the index in the middle of the quietest window: the one of lowest variance.

    Args:
        samples: int16, shape (n,), n >= `WINDOW_SAMPLES`.

    Windows that tie (digital silence) form runs; the answer is the middle of the longest run, so that the cut is
    far from speech, and of equally long runs the last, so that segments are long.
    """
    # Sums in int64 are exact, so equal windows compare equal, and the offset of a cheap sound card changes nothing.
    wide = samples.astype(np.int64)
    starts = np.arange(0, len(samples) - WINDOW_SAMPLES + 1, HOP_SAMPLES)
    total, squares = (sums[starts + WINDOW_SAMPLES] - sums[starts] for sums in map(_cumulative, (wide, wide * wide)))
    energy = WINDOW_SAMPLES * squares - total * total
    quietest = np.flatnonzero(energy == energy.min())
    runs = np.split(quietest, np.flatnonzero(np.diff(quietest) > 1) + 1)
    longest = max(reversed(runs), key=len)
    return int(starts[longest[0]] + starts[longest[-1]] + WINDOW_SAMPLES) // 2


def _cumulative(values: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the sums of the first 0, 1, … n values: shape (n,) to (n + 1,)."""
    return np.concatenate((np.zeros(1, np.int64), np.cumsum(values)))
