import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from audio.downmix import BLOCK_SECONDS, Downmix

RATE = 16_000
BLOCK = round(RATE * BLOCK_SECONDS)


def noise(n, seed=0):
    return np.random.default_rng(seed).uniform(-0.5, 0.5, n).astype(np.float32)


def mix(*channels, sizes=(10**9,)):
    """Mix channels, shape (n,) each, fed in pieces of `sizes` frames, over and over."""
    frames = np.stack(channels, axis=1).astype(np.float32)
    downmix, pieces, at, turn = Downmix(len(channels), RATE), [], 0, 0
    while at < len(frames):
        pieces.append(downmix.feed(frames[at : at + sizes[turn % len(sizes)]]))
        at, turn = at + sizes[turn % len(sizes)], turn + 1
    return np.concatenate([*pieces, downmix.finish()])


VOICE = noise(20_000)
FAINT = noise(20_000, 1) * np.float32(1e-4)


def test_the_mean_of_what_is_heard():
    other = noise(20_000, 2)
    assert mix(VOICE, other) == pytest.approx((VOICE + other) / 2, abs=1e-6)
    assert mix(VOICE, VOICE) == pytest.approx(VOICE, abs=1e-6)


@pytest.mark.parametrize("silent", [np.zeros(20_000), FAINT])
def test_a_silent_channel_does_not_halve_another(silent):
    assert mix(VOICE, silent) == pytest.approx(VOICE, abs=1e-4)
    assert mix(silent, VOICE) == pytest.approx(VOICE, abs=1e-4)


@pytest.mark.parametrize("residue", [np.zeros(20_000), FAINT, noise(20_000, 3) * 0.1])
def test_opposite_phase_does_not_cancel_out(residue):
    mixed = mix(VOICE, residue - VOICE)
    assert np.abs(np.corrcoef(mixed, VOICE)[0, 1]) > 0.98
    assert np.std(mixed) == pytest.approx(np.std(VOICE), rel=0.1)


def test_three_channels_of_which_one_is_opposite_and_one_silent():
    assert mix(np.zeros(20_000), VOICE, -VOICE) == pytest.approx(VOICE, abs=1e-6)


def test_whoever_speaks_second_is_heard_and_does_not_click():
    late = np.concatenate((np.zeros(10_240), np.full(9_760, 0.4)))  # the 17th block begins it
    steady = np.full(20_000, 0.4)
    mixed = mix(steady, late)
    assert mixed[:10_240] == pytest.approx(0.4, abs=1e-6)
    assert mixed[10_240 + BLOCK :] == pytest.approx(0.4, abs=1e-6)
    assert np.abs(np.diff(mix(steady, -late)))[:10_000].max() < 0.01


def test_a_pause_changes_no_weight():
    pause = np.zeros(2 * RATE)
    mixed = mix(np.concatenate((VOICE, pause, VOICE)), np.concatenate((noise(20_000, 4), pause, np.zeros(20_000))))
    assert mixed[-5000:] == pytest.approx(VOICE[-5000:] / 2, abs=1e-6)


@given(
    sizes=st.lists(st.integers(1, 3000), min_size=1, max_size=5).filter(lambda sizes: sum(sizes) > 40),
    channels=st.integers(2, 4),
    frames=st.integers(0, 4000),
)
def test_any_chunking_gives_the_same(sizes, channels, frames):
    sound = [noise(frames, seed) for seed in range(channels)]
    whole = mix(*sound) if frames else np.empty(0)
    assert len(whole) == frames
    assert np.array_equal(mix(*sound, sizes=sizes) if frames else whole, whole)


def test_full_scale_stays_within_range():
    assert np.abs(mix(np.ones(1000), np.full(1000, 0.02))).max() <= 1
