"""One utterance: sound, its words, and when each word and phoneme is said."""

import random
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import soxr

from tools.demo_model.espeak import Espeak, Phoneme
from tools.demo_model.flite import Flite
from tools.demo_model.vocabulary import SPOKEN
from tools.demo_model.voices import Accent

RATE = 16_000
"""Samples a second, what Whisper hears."""

_PEAK = 0.5
_EDGE_BEFORE, _EDGE_AFTER = 0.04, 0.06  # seconds kept around the words


@dataclass(frozen=True)
class Spoken:
    """An utterance."""

    words: list[str]
    samples: npt.NDArray[np.float32]
    """16 kHz mono, peak 0.5, from 40 ms before the first word to 60 ms after the last."""
    spans: list[tuple[float, float]]
    """When each word is said, in seconds."""
    phonemes: list[tuple[float, float, str]]
    """When each phoneme is said, and its name in espeak-ng's mnemonics."""
    voice: str


def align(words: list[str], phonemes: list[Phoneme], characters: list[int], end: float) -> list[tuple[float, float]]:
    """Return each word's start and end in seconds, from the phonemes that belong to its characters.

    `characters` says where in the text each word begins, `end` when the sound ends. espeak-ng says some pairs of
    words as one (`in the`); their time is shared by the lengths of their spellings. Raises ValueError when the first
    word has no phonemes.
    """
    spans: list[list[float]] = [[] for _ in words]
    for phoneme, until in zip(phonemes, [*(each.start for each in phonemes[1:]), end], strict=True):
        if not phoneme.name or phoneme.name.startswith("_"):
            continue
        word = max((k for k, character in enumerate(characters) if character <= phoneme.character), default=0)
        spans[word] = [spans[word][0] if spans[word] else phoneme.start, until]
    if not spans[0]:
        raise ValueError(f"no phoneme belongs to the first word of {words}")
    return _share(words, spans)


def _share(words: list[str], spans: list[list[float]]) -> list[tuple[float, float]]:
    shared: list[tuple[float, float]] = []
    first = 0
    while first < len(words):
        last = first + 1
        while last < len(words) and not spans[last]:
            last += 1
        start, end = spans[first]
        letters = np.cumsum([0, *(len(word) for word in words[first:last])])
        edges = start + (end - start) * letters / letters[-1]
        shared += [(float(a), float(b)) for a, b in pairwise(edges)]
        first = last
    return shared


class Speaker:
    """Says texts with changing voices; everything random comes from the `rng` of each call."""

    def __init__(self) -> None:
        self._espeak = Espeak()
        self._flite = Flite()
        self._pronunciations: dict[tuple[str, str], str] = {}

    def espeak(self, words: list[str], voice: str, rng: random.Random, accent: Accent | None = None) -> Spoken:
        """Say the words with espeak-ng at a random tempo, pitch and gap, in an invented accent if there is one."""
        spelled = [SPOKEN.get(word, word) for word in words]
        if accent:
            language = voice.partition("+")[0]
            spelled = [f"[[{accent.apply(self._pronunciation(word, language))}]]" for word in spelled]
        text = " ".join(spelled)
        samples, phonemes = self._espeak.say(
            text,
            voice,
            rate=rng.randint(115, 205),
            pitch=rng.randint(15, 85),
            pitch_range=rng.randint(10, 90),
            gap=rng.choice((0, 0, 0, 1, 2, 4, 8, 15)),
        )
        characters = [0]
        for word in spelled[:-1]:
            characters.append(characters[-1] + len(word) + 1)
        seconds = len(samples) / self._espeak.rate
        spans = align(words, phonemes, characters, seconds)
        ends = [*(each.start for each in phonemes[1:]), seconds]
        named = [(p.start, end, p.name) for p, end in zip(phonemes, ends, strict=True) if p.name.strip("_:")]
        return _tidy(Spoken(words, _resample(samples, self._espeak.rate, RATE), spans, named, voice))

    def _pronunciation(self, word: str, language: str) -> str:
        if (language, word) not in self._pronunciations:
            self._pronunciations[language, word] = self._espeak.phonemes(word, language)
        return self._pronunciations[language, word]

    def flite(self, words: list[str], voice: str, rng: random.Random, *, any_pitch: bool = False) -> Spoken | None:
        """Say the words with flite (see `Flite.say`), or return None where it does not tell their times."""
        said = self._flite.say([SPOKEN.get(word, word) for word in words], voice, rng, any_pitch=any_pitch)
        if said is None:
            return None
        samples = _resample(said.samples, said.rate, RATE)
        return _tidy(Spoken(words, samples, said.spans, said.phonemes, f"flite {voice}"))


def as_another_speaker(spoken: Spoken, rng: random.Random) -> Spoken:
    """Play it 18 % slower to 22 % faster: formants, pitch and tempo all move, as if somebody else spoke."""
    rate = int(RATE * rng.uniform(0.82, 1.22)) // 200 * 200
    factor = rate / RATE
    return replace(
        spoken,
        samples=_resample(spoken.samples, RATE, rate),
        spans=[(a * factor, b * factor) for a, b in spoken.spans],
        phonemes=[(a * factor, b * factor, name) for a, b, name in spoken.phonemes],
    )


def reverberate(spoken: Spoken, rng: random.Random) -> Spoken:
    """Put it into a room of 50 to 350 ms reverberation time, an exponentially falling noise as its response."""
    noise = np.random.default_rng(rng.getrandbits(32))
    length = int(RATE * rng.uniform(0.05, 0.35))
    response = noise.standard_normal(length) * np.exp(-6.9 * np.arange(length) / length)  # 6.9: -60 dB at the end
    response *= rng.uniform(0.1, 0.6) / np.sqrt(np.square(response).sum())
    response[0] = 1.0
    size = 1 << (len(spoken.samples) + length).bit_length()
    wet = np.fft.irfft(np.fft.rfft(spoken.samples, size) * np.fft.rfft(response, size), size)
    wet = wet[: len(spoken.samples) + length // 2]
    return replace(spoken, samples=np.asarray(wet * (_PEAK / np.abs(wet).max()), np.float32))


def _resample(samples: npt.NDArray[np.float32], rate: int, wanted: int) -> npt.NDArray[np.float32]:
    return samples if rate == wanted else np.asarray(soxr.resample(samples, rate, wanted), np.float32)


def _tidy(spoken: Spoken) -> Spoken:
    """Cut it to its words, and set the peak."""
    start = max(0.0, spoken.spans[0][0] - _EDGE_BEFORE)
    end = min(len(spoken.samples) / RATE, spoken.spans[-1][1] + _EDGE_AFTER)
    samples = spoken.samples[round(start * RATE) : round(end * RATE)]
    return replace(
        spoken,
        samples=np.asarray(samples * (_PEAK / max(np.abs(samples).max(initial=0.0), 1e-6)), np.float32),
        spans=[(a - start, b - start) for a, b in spoken.spans],
        phonemes=[(a - start, b - start, name) for a, b, name in spoken.phonemes],
    )
