"""Streams of speech with known text: fixtures and fresh synthetic speech, pauses, noise; and sound without speech."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from audio import pcm
from audio.wav import read_wav

__all__ = ["Spoken", "Stream", "noises", "streams"]

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"
VOICES = ("en-us+m1", "en-us+f2", "en-gb-x-rp+m2", "en-gb-x-rp+f2", "en-us+f3", "en-gb-scotland+m3", "en-us+m8")
PAUSES = (0.1, 0.2, 0.3, 0.45, 0.6, 0.8, 1.0, 1.5, 2.0, 3.0, 5.0)
"""Seconds between two utterances."""
EDGE_SECONDS = 1.0
FLOOR = 0.01
LEVEL_DBFS = -20.0


@dataclass(frozen=True)
class Spoken:
    """One utterance in a stream; positions are samples."""

    text: str
    start: int
    end: int


@dataclass(frozen=True)
class Stream:
    """Sound of one speaker after the other: float32, shape (n,)."""

    name: str
    samples: NDArray[np.float32]
    spoken: tuple[Spoken, ...]

    @property
    def seconds(self) -> float:
        """Its length."""
        return len(self.samples) / pcm.SAMPLE_RATE


def streams(seconds: float, seed: int, model: str) -> Iterator[Stream]:
    """Make a stream of about so many seconds for each condition: the same speech, clean and with pink noise."""
    rng = np.random.default_rng(seed)
    clean, spoken = speech_with_pauses(rng, seconds, model)
    yield Stream("clean", clean, spoken)
    for snr_db in (20, 10):
        noise = pink(rng, len(clean)) * rms(clean[clean != 0]) * 10 ** (-snr_db / 20)
        yield Stream(f"pink noise, {snr_db} dB", clean + noise, spoken)


def speech_with_pauses(
    rng: np.random.Generator, seconds: float, model: str
) -> tuple[NDArray[np.float32], tuple[Spoken, ...]]:
    """Put utterances one behind the other, with pauses of 0.1 to 5 s."""
    parts, spoken = [np.zeros(int(EDGE_SECONDS * pcm.SAMPLE_RATE), np.float32)], []
    at = len(parts[0])
    pauses: list[float] = []
    for text, speech in utterances(rng, model):
        pauses = pauses or list(rng.permutation(PAUSES))
        spoken.append(Spoken(text, at, at + len(speech)))
        silence = np.zeros(int(pauses.pop() * pcm.SAMPLE_RATE), np.float32)
        parts += [speech, silence]
        at += len(speech) + len(silence)
        if at > seconds * pcm.SAMPLE_RATE:
            break
    parts.append(np.zeros(int(EDGE_SECONDS * pcm.SAMPLE_RATE), np.float32))
    return np.concatenate(parts), tuple(spoken)


def utterances(rng: np.random.Generator, model: str) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Yield text and speech without end: every fixture of the model once, and fresh speech between them."""
    fixtures = list(rng.permutation(list(fixture_utterances(model))))
    while True:
        for _ in range(2):
            text, voice = sentence(rng, model), str(rng.choice(VOICES))
            yield text, level(trimmed(speak(text, voice, int(rng.integers(130, 170)))))
        if fixtures:
            name = fixtures.pop()
            entry = json.loads((FIXTURES / "texts.json").read_text())[name]
            yield entry["text"], level(trimmed(read_wav((FIXTURES / name).read_bytes())))


def fixture_utterances(model: str) -> Iterator[str]:
    """Name the clean fixtures of one utterance whose text the model can know."""
    for name, entry in json.loads((FIXTURES / "texts.json").read_text()).items():
        if entry["model"] == model and len(entry["utterances"]) == 1 and "noise" not in name:
            yield name


def sentence(rng: np.random.Generator, model: str) -> str:
    """Make a text up: of the demo model's words, or one of the sentences in the fixtures for others."""
    if model != "demo":
        entries = json.loads((FIXTURES / "texts.json").read_text()).values()
        return str(rng.choice([each["text"] for each in entries if each["model"] == "tiny"]))
    vocabulary = (FIXTURES / "demo-vocabulary.txt").read_text().split()
    return " ".join(rng.choice(vocabulary, int(rng.integers(2, 9))))


def speak(text: str, voice: str, speed: int) -> NDArray[np.float32]:
    """Have espeak-ng say it: float32 (n,), 16 kHz."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "speech.wav"
        said = text.replace("xray", "x-ray")  # one word to the model, to be said as two
        subprocess.run(["espeak-ng", "-v", voice, "-s", str(speed), "-g", "1", "-w", str(path), said], check=True)
        return read_wav(path.read_bytes())


def trimmed(samples: NDArray[np.float32]) -> NDArray[np.float32]:
    """Cut silence off both ends."""
    loud = np.flatnonzero(np.abs(samples) > FLOOR * np.abs(samples).max())
    return samples[loud[0] : loud[-1] + 1]


def level(samples: NDArray[np.float32]) -> NDArray[np.float32]:
    """Bring speech to one loudness."""
    return (samples * np.float32(10 ** (LEVEL_DBFS / 20) / rms(samples))).clip(-1, 1)


def rms(samples: NDArray[np.float32]) -> float:
    """Root mean square."""
    return float(np.sqrt(np.mean(np.square(samples, dtype=np.float64))))


def pink(rng: np.random.Generator, length: int) -> NDArray[np.float32]:
    """Noise that falls by 3 dB an octave, RMS 1."""
    spectrum = np.fft.rfft(rng.standard_normal(length))
    spectrum[0] = 0
    spectrum[1:] /= np.sqrt(np.arange(1, len(spectrum)))
    noise = np.fft.irfft(spectrum, length)
    return np.asarray(noise / np.sqrt(np.mean(np.square(noise))), np.float32)


def noises(seconds: float, seed: int) -> Iterator[Stream]:
    """Make sound without speech: silence, noise of three colours, hum, and chords with a beat."""
    rng = np.random.default_rng(seed)
    length = int(seconds * pcm.SAMPLE_RATE)
    time = np.arange(length) / pcm.SAMPLE_RATE
    brown = np.cumsum(rng.standard_normal(length))
    brown -= np.convolve(brown, np.ones(4001) / 4001, "same")
    chords = sum(np.sin(2 * np.pi * base * 2 ** (step / 12) * time) for base in (220.0,) for step in (0, 4, 7, 12))
    beat = np.exp(-6 * (time * 2 % 1))  # two strokes a second
    melody = np.sin(2 * np.pi * np.cumsum(np.repeat(rng.choice((262, 294, 330, 392, 440), length // 4000 + 1), 4000)[
        :length]) / pcm.SAMPLE_RATE)  # fmt: skip
    kinds = {
        "digital silence": np.zeros(length),
        "white noise": rng.standard_normal(length) * 0.05,
        "pink noise": pink(rng, length) * 0.05,
        "brown noise": brown / np.abs(brown).max() * 0.3,
        "mains hum": 0.1 * np.sin(2 * np.pi * 50 * time) + 0.05 * np.sin(2 * np.pi * 150 * time),
        "chords, melody and beat": 0.1 * chords * beat + 0.1 * melody,
    }
    for name, samples in kinds.items():
        yield Stream(name, samples.astype(np.float32), ())
