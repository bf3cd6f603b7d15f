"""Recordings to evaluate with: fresh utterances, alone or several, with leads, pauses and noise."""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tools.demo_model import grammar, voices
from tools.demo_model.noise import KINDS, noise
from tools.demo_model.speech import RATE, Speaker, Spoken
from tools.demo_model.vocabulary import CONTENT_WORDS, CORE_WORDS

Voice = Callable[[Speaker, list[str], random.Random], Spoken | None]
"""Says words; None where the synthesiser does not tell their times."""
Text = Callable[[random.Random], list[str]]

HUSH = 0.001
"""RMS of the pink noise under long recordings: -60 dBFS, a quiet room."""


@dataclass(frozen=True)
class Said:
    """An utterance in a recording."""

    words: list[str]
    start: float
    """Seconds, as is `end`: where its first word begins and its last one ends."""
    end: float


@dataclass(frozen=True)
class Recording:
    """What the model is given, and what it should make of it."""

    samples: npt.NDArray[np.float32]
    """16 kHz mono."""
    utterances: list[Said]

    @property
    def words(self) -> list[str]:
        """All that is said, in order."""
        return [word for utterance in self.utterances for word in utterance.words]


def espeak_heard(speaker: Speaker, words: list[str], rng: random.Random) -> Spoken | None:
    """Say it with a voice of the training."""
    return speaker.espeak(words, voices.espeak_voice(rng, held_out=False), rng)


def espeak_held_out(speaker: Speaker, words: list[str], rng: random.Random) -> Spoken | None:
    """Say it with a variant never heard, in an accent of the training."""
    return speaker.espeak(words, voices.espeak_voice(rng, held_out=True), rng)


def espeak_held_out_accent(speaker: Speaker, words: list[str], rng: random.Random) -> Spoken | None:
    """Say it with a variant and an accent never heard."""
    return speaker.espeak(words, f"{voices.HELD_OUT_ACCENT}+{rng.choice(voices.HELD_OUT_VARIANTS)}", rng)


def flite_heard(speaker: Speaker, words: list[str], rng: random.Random) -> Spoken | None:
    """Say it with a voice of flite's that the first demo model was trained on, and this one."""
    return speaker.flite(words, rng.choice(("slt", "awb", "kal")), rng)


def flite_held_out(speaker: Speaker, words: list[str], rng: random.Random) -> Spoken | None:
    """Say it with the voice of flite's never heard."""
    return speaker.flite(words, voices.HELD_OUT_FLITE_VOICE, rng)


def core_words(rng: random.Random) -> list[str]:
    """Return one to eight of the 105 words that both demo models know."""
    return grammar.sequence(rng, CORE_WORDS, rng.choice((1, 2, 3, 3, 4, 4, 5, 5, 6, 7, 8)))


def all_words(rng: random.Random) -> list[str]:
    """Return one to eight of all words but those that are said in sentences only."""
    return grammar.sequence(rng, CONTENT_WORDS, rng.choice((1, 2, 3, 3, 4, 4, 5, 5, 6, 7, 8)))


def core_words_of(length: int) -> Text:
    """Return a text of that many of the 105 words."""
    return lambda rng: grammar.sequence(rng, CORE_WORDS, length)


def say(speaker: Speaker, voice: Voice, text: Text, rng: random.Random, longest: float = 60.0) -> Spoken:
    """Return an utterance of at most so many seconds; texts are drawn until one can be said and aligned."""
    while True:
        spoken = voice(speaker, text(rng), rng)
        if spoken and np.abs(spoken.samples).max() > 0.1 and len(spoken.samples) <= longest * RATE:
            return spoken


def alone(spoken: Spoken, rng: random.Random, snr: float | None = None) -> Recording:
    """Return a clip with the utterance, up to 0.9 s before and 1 s after it, at any level, perhaps in noise (dB)."""
    lead, rest = rng.uniform(0, 0.9), rng.uniform(0.1, 1.0)
    clip = placed(spoken, lead, lead + len(spoken.samples) / RATE + rest, rng.uniform(0.1, 1.5))
    return clip if snr is None else with_noise(clip, snr, rng)


def placed(spoken: Spoken, start: float, seconds: float, gain: float = 1.0) -> Recording:
    """Return a clip of that many seconds with the utterance at that place in digital silence."""
    samples = np.zeros(round(seconds * RATE), np.float32)
    first = round(start * RATE)
    room = samples[first : first + len(spoken.samples)]
    room += spoken.samples[: len(room)] * np.float32(gain)
    return Recording(samples, [Said(spoken.words, start + spoken.spans[0][0], start + spoken.spans[-1][1])])


def with_noise(clip: Recording, snr: float, rng: random.Random) -> Recording:
    """Return the clip in noise of any kind, so many dB below the speech."""
    speech = clip.samples[clip.samples != 0]
    level = np.sqrt(np.mean(np.square(speech))) * 10 ** (-snr / 20)
    sound = noise(rng.choice(KINDS), len(clip.samples), np.random.default_rng(rng.getrandbits(32)))
    return Recording(clip.samples + sound * np.float32(level), clip.utterances)


def conversation(
    speaker: Speaker, voice: Voice, text: Text, seconds: float, pauses: tuple[float, float], rng: random.Random
) -> Recording:
    """Return a recording of about that length with an utterance after the other, and hushed noise under all."""
    parts: list[npt.NDArray[np.float32]] = []
    said: list[Said] = []
    time = rng.uniform(0, 0.9)
    parts.append(np.zeros(round(time * RATE), np.float32))
    length = len(parts[0])
    while True:
        spoken = say(speaker, voice, text, rng)
        if (length + len(spoken.samples)) / RATE > seconds and said:
            break
        start = length / RATE
        said.append(Said(spoken.words, start + spoken.spans[0][0], start + spoken.spans[-1][1]))
        pause = np.zeros(round(rng.uniform(*pauses) * RATE), np.float32)
        parts += [spoken.samples * np.float32(rng.uniform(0.3, 1.0)), pause]
        length += len(spoken.samples) + len(pause)
    samples = np.concatenate(parts)[: round(seconds * RATE)]
    hush = noise("pink", len(samples), np.random.default_rng(rng.getrandbits(32))) * np.float32(HUSH)
    return Recording(samples + hush, said)


def without_speech(count: int, rng: random.Random) -> Iterator[Recording]:
    """Yield clips of 0.4 to 30 s: digital silence, and each kind of noise at any level from -60 to -10 dBFS."""
    for index in range(count):
        samples = round(rng.choice((0.4, 1, 3, 6, 12, 30)) * RATE)
        kind = ("silence", *KINDS)[index % (len(KINDS) + 1)]
        if kind == "silence":
            yield Recording(np.zeros(samples, np.float32), [])
        else:
            sound = noise(kind, samples, np.random.default_rng(rng.getrandbits(32)))
            yield Recording(sound * np.float32(10 ** rng.uniform(-3.0, -0.5)), [])
