"""Silero's model as we build it: its probabilities are those of the original, which onnxruntime gave."""

import hashlib
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from audio.utterances import CHUNK
from audio.wav import read_wav
from whisper_byoc.speech.silero import WEIGHTS, Silero
from whisper_byoc.speech.voice_activity import CONTEXT, STATE, Memory

EXPECTED = np.load(Path(__file__).parents[2] / "fixtures" / "silero-probabilities.npz")


@pytest.fixture(scope="module")
def silero():
    return Silero()


def windows(samples):
    """Whole chunks behind their contexts, (n, CONTEXT + CHUNK)."""
    padded = np.concatenate((np.zeros(CONTEXT, np.float32), samples))
    found = np.lib.stride_tricks.sliding_window_view(padded, CONTEXT + CHUNK)[::CHUNK]
    return np.ascontiguousarray(found)


def beginning(streams):
    return Memory(*np.zeros((2, streams, 1, STATE), np.float32))


def test_the_weights_are_those_that_were_released():
    assert hashlib.sha256(WEIGHTS.read_bytes()).hexdigest() == (
        "3fdc6704faec3571e43eea2da62bb7cc59866a074c7801b45a5199aaca3270d4"
    )


@pytest.mark.parametrize("name", EXPECTED)
def test_probabilities_are_those_of_the_original(silero, fixtures_dir, name):
    sound = windows(read_wav((fixtures_dir / f"{name}.wav").read_bytes()))
    found, _ = silero(sound[None], beginning(1))
    assert found[0].max() > 0.9
    assert found[0] == pytest.approx(EXPECTED[name], abs=1e-4)


def test_streams_of_a_batch_do_not_mix_and_go_on_where_they_were(silero, fixtures_dir):
    sounds = [windows(read_wav((fixtures_dir / f"{name}.wav").read_bytes()))[:80] for name in EXPECTED]
    memory, found = beginning(len(sounds)), []
    for start, end in pairwise((0, 1, 4, 30, 80)):
        probabilities, memory = silero(np.stack([each[start:end] for each in sounds]), memory)
        found.append(probabilities)
    for mine, name in zip(np.concatenate(found, axis=1), EXPECTED, strict=True):
        assert mine == pytest.approx(EXPECTED[name][:80], abs=1e-4)
