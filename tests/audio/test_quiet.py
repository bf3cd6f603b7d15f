import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from audio.quiet import HOP_SAMPLES, WINDOW_SAMPLES, QuietCutter, quietest_point

RATE = 16_000


def noise(samples: int, amplitude: int = 3000, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-amplitude, amplitude + 1, samples).astype("<i2")


def feed_all(cutter: QuietCutter, data: bytes, sizes: list[int]) -> list[bytes]:
    """Feed `data` in pieces of `sizes` bytes, over and over, then finish."""
    segments, at, turn = [], 0, 0
    while at < len(data):
        size = sizes[turn % len(sizes)]
        segments += cutter.feed(data[at : at + size])
        at, turn = at + size, turn + 1
    return segments + cutter.finish()


def test_a_short_stream_is_one_segment_at_finish():
    cutter = QuietCutter()
    data = noise(3 * RATE).tobytes()
    assert cutter.feed(data) == []
    assert cutter.finish() == [data]
    assert cutter.finish() == []


def test_nothing_in_nothing_out():
    cutter = QuietCutter()
    assert cutter.feed(b"") == []
    assert cutter.finish() == []
    assert cutter.pending == 0


def test_a_segment_comes_as_soon_as_the_limit_is_buffered():
    cutter = QuietCutter(max_seconds=1.0)
    data = noise(RATE).tobytes()
    assert cutter.feed(data[:-1]) == []
    assert len(cutter.feed(data[-1:])) == 1


def test_it_cuts_in_the_pause():
    sound = noise(RATE)
    sound[12_000:13_600] //= 50  # a pause of 100 ms, within the last third
    (segment,) = QuietCutter(max_seconds=1.0).feed(sound.tobytes())
    assert 12_000 < len(segment) // 2 < 13_600


def test_it_ignores_a_pause_before_the_last_third():
    sound = noise(RATE)
    sound[3_000:9_000] = 0
    (segment,) = QuietCutter(max_seconds=1.0).feed(sound.tobytes())
    assert len(segment) // 2 > RATE * 2 // 3


def test_of_a_long_silence_it_takes_the_middle():
    sound = noise(RATE)
    sound[11_200:15_200] = 0
    (segment,) = QuietCutter(max_seconds=1.0).feed(sound.tobytes())
    assert len(segment) // 2 == pytest.approx(13_200, abs=HOP_SAMPLES)


def test_of_two_silences_it_takes_the_longer():
    sound = noise(RATE)
    sound[11_200:12_200] = 0
    sound[13_000:15_000] = 0
    (segment,) = QuietCutter(max_seconds=1.0).feed(sound.tobytes())
    assert len(segment) // 2 == pytest.approx(14_000, abs=HOP_SAMPLES)


def test_of_equally_long_silences_it_takes_the_last():
    sound = noise(4 * WINDOW_SAMPLES)
    sound[:WINDOW_SAMPLES] = sound[-WINDOW_SAMPLES:] = 0
    assert quietest_point(sound) == 3.5 * WINDOW_SAMPLES


def test_loudness_does_not_overflow():
    sound = np.tile(np.array([-32768, 32767], dtype=np.int16), 2 * WINDOW_SAMPLES)
    sound[WINDOW_SAMPLES : 2 * WINDOW_SAMPLES : 2] = -32767
    assert quietest_point(sound) == 1.5 * WINDOW_SAMPLES


@given(st.integers(0, 99), st.integers(-20_000, 20_000))
def test_a_constant_offset_is_no_loudness(seed, offset):
    sound = noise(RATE, seed=seed)
    sound[9_000:10_000] //= 20
    hum = np.round(200 * np.sin(2 * np.pi * 30 / RATE * np.arange(RATE))).astype(np.int16)
    assert quietest_point(sound + hum + np.int16(offset)) == quietest_point(sound + hum)


def test_one_window_is_cut_in_its_middle():
    assert quietest_point(noise(WINDOW_SAMPLES)) == WINDOW_SAMPLES // 2


def test_digital_silence_makes_long_segments():
    segments = feed_all(QuietCutter(max_seconds=1.0), bytes(10 * RATE * 2), [RATE])
    assert all(len(segment) // 2 > RATE * 2 // 3 for segment in segments[:-1])
    assert sum(map(len, segments)) == 10 * RATE * 2


def test_a_large_chunk_gives_several_segments_at_once():
    data = noise(10 * RATE).tobytes()
    segments = QuietCutter(max_seconds=1.0).feed(data)
    assert len(segments) >= 9
    assert data.startswith(b"".join(segments))


def test_no_more_than_the_limit_is_held_back():
    cutter = QuietCutter(max_seconds=1.0)
    data, given_out = noise(20 * RATE).tobytes(), 0
    for at in range(0, len(data), 5000):
        given_out += sum(map(len, cutter.feed(data[at : at + 5000])))
        assert min(at + 5000, len(data)) - given_out < RATE * 2


def test_an_odd_byte_is_kept_and_told():
    cutter = QuietCutter()
    cutter.feed(b"\x01\x02\x03")
    assert cutter.pending == 1
    assert cutter.finish() == [b"\x01\x02"]
    assert cutter.pending == 1


@pytest.mark.parametrize("max_seconds", [0, -1, 0.1])
def test_a_limit_too_short_to_search_is_refused(max_seconds):
    with pytest.raises(ValueError, match=f"max_seconds={max_seconds}"):
        QuietCutter(max_seconds)


@given(
    data=st.builds(
        lambda samples, seed, odd: noise(samples, seed=seed).tobytes() + b"x" * odd,
        st.integers(0, 20_000),
        st.integers(0, 9),
        st.booleans(),
    ),
    max_seconds=st.sampled_from([0.15, 0.2, 0.5]),
    sizes=st.lists(st.integers(1, 30_000), min_size=1, max_size=5).filter(lambda sizes: sum(sizes) > 500),
)
def test_joined_segments_are_the_stream_however_it_was_chunked(data, max_seconds, sizes):
    cutter = QuietCutter(max_seconds)
    segments = feed_all(cutter, data, sizes)
    assert b"".join(segments) == data[: len(data) // 2 * 2]
    assert cutter.pending == len(data) % 2
    assert all(0 < len(segment) <= max_seconds * RATE * 2 and len(segment) % 2 == 0 for segment in segments)
    assert segments == feed_all(QuietCutter(max_seconds), data, [len(data) + 1])
