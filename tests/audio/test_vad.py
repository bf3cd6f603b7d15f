"""Silero's model itself: it finds the speech of the fixtures, and none where there is none."""

import numpy as np
import pytest

from audio.utterances import CHUNK, SplitterOptions, UtteranceSplitter, VoiceActivityDetector
from audio.wav import read_wav

RATE = 16_000
CLEAN = [
    *("demo-stop.wav", "demo-yes.wav", "demo-hello-world.wav", "demo-start-recording.wav", "demo-numbers.wav"),
    *("demo-directions-slow.wav", "demo-spelling.wav", "demo-pipeline.wav", "demo-colours-fast.wav"),
    *("demo-stereo-48k.wav", "demo-numbers-noise-15db.wav", "demo-long-40s.wav"),
    *("tiny-weather.wav", "tiny-train.wav", "tiny-meeting.wav", "tiny-fox-fast.wav", "tiny-garden.wav"),
]
PATIENT = SplitterOptions(pause=0.6, shortest_pause=0.6, longest=28.0)
"""Breaths within an utterance of the fixtures do not end it."""


def utterances(samples, options=PATIENT):
    splitter = UtteranceSplitter(options)
    data = np.clip(samples * 32768, -32768, 32767).astype("<i2").tobytes()
    return splitter.feed(data) + splitter.finish()


@pytest.mark.parametrize("level", [1.0, 0.01])
@pytest.mark.parametrize("name", CLEAN)
def test_the_speech_of_a_fixture_is_found_where_it_is(fixtures_dir, texts, name, level):
    found = utterances(read_wav((fixtures_dir / name).read_bytes()) * level)
    known = texts[name]["utterances"]
    assert len(found) == len(known)
    for utterance, truth in zip(found, known, strict=True):
        assert utterance.speech_start / RATE == pytest.approx(truth["start"], abs=0.15)
        assert utterance.speech_end / RATE == pytest.approx(truth["end"], abs=0.15)
        assert utterance.first / RATE <= truth["start"]
        assert utterance.end / RATE >= truth["end"] - 0.05


def coloured(exponent, seconds=10, seed=0):
    """Noise whose power falls with frequency: 0 white, 1 pink, 2 brown."""
    spectrum = np.fft.rfft(np.random.default_rng(seed).standard_normal(seconds * RATE))
    spectrum[1:] /= np.arange(1, len(spectrum)) ** (exponent / 2)
    sound = np.fft.irfft(spectrum)
    return sound / np.abs(sound).max()


def tones(*frequencies, seconds=10):
    time = np.arange(seconds * RATE) / RATE
    return sum(np.sin(2 * np.pi * each * time) for each in frequencies) / len(frequencies)


NO_SPEECH = {
    "digital silence": lambda: np.zeros(10 * RATE),
    "white noise": lambda: coloured(0),
    "pink noise": lambda: coloured(1),
    "brown noise": lambda: coloured(2),
    "hum of 50 Hz": lambda: tones(50, 100, 150),
    "a tone": lambda: tones(440),
    "a chord": lambda: tones(261.6, 329.6, 392.0),
    "an offset": lambda: np.full(10 * RATE, 0.5),
    "clicks": lambda: (np.arange(10 * RATE) % 8000 == 0).astype(float),
}


@pytest.mark.parametrize("level", [0.9, 0.05, 0.003])
@pytest.mark.parametrize("kind", NO_SPEECH)
def test_what_is_no_speech_gives_nothing(kind, level):
    assert utterances(NO_SPEECH[kind]() * level, SplitterOptions()) == []


def test_a_detector_remembers_only_its_own_stream(fixtures_dir):
    sound = read_wav((fixtures_dir / "demo-numbers.wav").read_bytes())
    sound = (sound * 32767).astype(np.int16)[: len(sound) // CHUNK * CHUNK].reshape(-1, CHUNK)
    alone = [VoiceActivityDetector()(each) for each in sound[:1]]
    one, other = VoiceActivityDetector(), VoiceActivityDetector()
    first = [one(each) for each in sound]
    assert first[0] == alone[0]
    assert max(first) > 0.9
    silence = np.zeros(CHUNK, np.int16)
    mixed = []
    for each in sound:
        mixed.append(other(each))
        one(silence)
    assert mixed == first
    assert all(0 <= each <= 1 for each in first)
