import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from audio import pcm
from audio.errors import AudioError, PcmError

EVERY_STEP = np.arange(-32768, 32768, dtype="<i2")


def sine(amplitude: float, n: int = 16_000) -> np.ndarray:
    return (amplitude * np.sin(2 * np.pi * 1000 * np.arange(n) / 16_000)).astype(np.float32)


def test_decode_divides_by_32768_exactly():
    samples = pcm.decode(EVERY_STEP.tobytes())
    assert samples.dtype == np.float32
    assert np.array_equal(samples.astype(np.float64), EVERY_STEP / 32768)
    assert samples.min() == -1.0
    assert samples.max() < 1.0


def test_decode_is_little_endian():
    assert pcm.decode(b"\x00\x40\x00\xc0").tolist() == [0.5, -0.5]


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_decode_takes_any_bytes_and_returns_its_own_memory(kind):
    data = bytearray(b"\x00\x40" * 3)
    samples = pcm.decode(kind(data))
    data[:] = bytes(6)
    assert samples.tolist() == [0.5] * 3
    samples[0] = 0.25  # writable


def test_decode_counts_bytes_not_items_of_a_view():
    assert len(pcm.decode(memoryview(np.zeros(3, dtype=np.int16)))) == 3


def test_decode_of_nothing_is_nothing():
    assert pcm.decode(b"").shape == (0,)


def test_odd_length_is_an_error_that_says_how_many():
    with pytest.raises(PcmError, match="3 bytes") as caught:
        pcm.decode(b"abc")
    assert isinstance(caught.value, AudioError)
    assert isinstance(caught.value, ValueError)


def test_encode_is_the_inverse_for_every_step():
    data = EVERY_STEP.tobytes()
    assert pcm.encode(pcm.decode(data)) == data


@given(st.binary().map(lambda data: data[: len(data) // 2 * 2]))
def test_decode_encode_round_trip(data):
    assert pcm.encode(pcm.decode(data)) == data


@given(st.lists(st.floats(-1, 1, width=32), max_size=50))
def test_encode_is_off_by_half_a_step_at_most(values):
    samples = np.array(values, dtype=np.float32)
    # The top of the range has no step at +1.0, so it may be off by one.
    limit = np.where(samples > 32767 / 32768, 1, 0.5) / 32768
    assert np.all(np.abs(pcm.decode(pcm.encode(samples)) - samples) <= limit)


@pytest.mark.parametrize(
    ("sample", "step"),
    [(1.0, 32767), (1.5, 32767), (-1.5, -32768), (math.inf, 32767), (-math.inf, -32768), (3e38, 32767)],
)
def test_encode_clips(sample, step):
    assert np.frombuffer(pcm.encode(np.array([sample], dtype=np.float32)), "<i2").tolist() == [step]


def test_encode_refuses_nan_and_says_where():
    with pytest.raises(PcmError, match="Sample 2 of 4"):
        pcm.encode(np.array([0, 0.5, math.nan, math.nan], dtype=np.float32))


@given(st.binary(max_size=60), st.integers(1, 6), st.randoms(use_true_random=False))
def test_any_chunking_gives_the_same_whole_frames(data: bytes, frame_bytes: int, rng: random.Random):
    aligner, given_on, at = pcm.FrameAligner(frame_bytes), b"", 0
    while at < len(data):
        size = rng.randrange(0, 8)
        frames = aligner.feed(data[at : at + size])
        assert len(frames) % frame_bytes == 0
        assert len(aligner.rest) < frame_bytes
        given_on += frames
        at += size
    assert given_on + aligner.rest == data


def test_an_aligner_carries_half_a_sample_over():
    aligner = pcm.FrameAligner()
    assert (aligner.feed(b"\x00"), aligner.rest) == (b"", b"\x00")
    assert (aligner.feed(memoryview(b"\x40\x00")), aligner.rest) == (b"\x00\x40", b"\x00")


def test_dbfs_of_known_signals():
    assert pcm.dbfs(np.ones(100, dtype=np.float32)) == 0
    assert pcm.dbfs(sine(1.0)) == pytest.approx(-3.0103, abs=1e-3)
    assert pcm.dbfs(sine(0.01)) == pytest.approx(-43.0103, abs=1e-3)
    assert pcm.dbfs(np.array([1e-30], dtype=np.float32)) == pytest.approx(-600, abs=1e-3)


def test_dbfs_of_silence_and_of_nothing_is_minus_infinity():
    assert pcm.dbfs(np.zeros(100, dtype=np.float32)) == -math.inf
    assert pcm.dbfs(np.empty(0, dtype=np.float32)) == -math.inf


def test_silence_is_every_sample_zero():
    samples = np.zeros(1000, dtype=np.float32)
    assert pcm.is_silence(samples)
    assert pcm.is_silence(samples[:0])
    samples[-1] = 1 / 32768
    assert not pcm.is_silence(samples)


@pytest.mark.parametrize(
    ("samples", "milliseconds"), [(0, 0), (15, 0), (16, 1), (16_000, 1000), (57_600_000, 3_600_000)]
)
def test_duration(samples, milliseconds):
    assert pcm.duration_ms(samples) == milliseconds
