"""flite through its program: samples, and when each word and phoneme is said.

It is slower than espeak-ng (a process for every utterance), so it speaks a smaller share of the training.
"""

import random
import shutil
import subprocess
import tempfile
import wave
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt

_PAUSE = "pau"
_TIMEOUT_SECONDS = 30
_HIGH_VOICES = ("slt",)
_LOW, _HIGH = (75, 170), (150, 240)
"""Pitches of men and of women, in Hz."""

PHONEMES = {
    "aa": "A:", "ae": "a", "ah": "V", "ao": "O:", "aw": "aU", "ax": "@", "ay": "aI", "b": "b", "ch": "tS", "d": "d",
    "dh": "D", "eh": "E", "er": "3:", "ey": "eI", "f": "f", "g": "g", "hh": "h", "ih": "I", "iy": "i:", "jh": "dZ",
    "k": "k", "l": "l", "m": "m", "n": "n", "ng": "N", "ow": "oU", "oy": "OI", "p": "p", "r": "r", "s": "s",
    "sh": "S", "t": "t", "th": "T", "uh": "U", "uw": "u:", "v": "v", "w": "w", "y": "j", "z": "z", "zh": "Z",
}  # fmt: skip
"""flite's phonemes (CMU's for American English) in espeak-ng's mnemonics, so that one head learns both."""


@dataclass(frozen=True)
class Said:
    """What flite said."""

    samples: npt.NDArray[np.float32]
    """In [-1, 1)."""
    rate: int
    """Samples a second."""
    spans: list[tuple[float, float]]
    """When each word is said, in seconds."""
    phonemes: list[tuple[float, float, str]]
    """When each phoneme is said, and its name in espeak-ng's mnemonics."""


def installed() -> bool:
    """Tell whether there is a flite to speak."""
    return shutil.which("flite") is not None


class Flite:
    """flite, ready to speak; it remembers how many phonemes a word has, which is how it aligns."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, str], int] = {}

    def say(self, words: list[str], voice: str, rng: random.Random, *, any_pitch: bool = False) -> Said | None:
        """Say the words at a tempo and pitch by `rng`, which is one that the voice may have by nature or any.

        None when the words' phonemes together are not those of the whole (some words are said differently in a
        sentence): their times are unknown then.
        """
        settings = [f"duration_stretch={rng.uniform(0.75, 1.3):.2f}"]
        if rng.random() < 0.6:
            pitches = (_LOW[0], _HIGH[1]) if any_pitch else _HIGH if voice in _HIGH_VOICES else _LOW
            settings.append(f"int_f0_target_mean={rng.randint(*pitches)}")
        samples, rate, phonemes = _run(" ".join(words), voice, settings)
        spoken: list[tuple[float, float, str]] = []
        start = 0.0
        for name, end in phonemes:
            if name != _PAUSE:
                spoken.append((start, end, PHONEMES.get(name, name)))
            start = end
        counts = [self._count(voice, word) for word in words]
        if sum(counts) != len(spoken):
            return None
        edges = np.cumsum([0, *counts])
        return Said(samples, rate, [(spoken[a][0], spoken[b - 1][1]) for a, b in pairwise(edges)], spoken)

    def _count(self, voice: str, word: str) -> int:
        if (voice, word) not in self._counts:
            phonemes = _run(word, voice, [])[2]
            self._counts[voice, word] = sum(name != _PAUSE for name, _ in phonemes)
        return self._counts[voice, word]


def _run(text: str, voice: str, settings: list[str]) -> tuple[npt.NDArray[np.float32], int, list[tuple[str, float]]]:
    """Return samples, rate, and each phoneme with the time at which it ends."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "speech.wav"
        options = [part for setting in settings for part in ("--setf", setting)]
        command = ["flite", "-voice", voice, "-psdur", "-t", text, "-o", str(path), *options]
        done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS)
        with wave.open(str(path)) as file:
            pcm = np.frombuffer(file.readframes(file.getnframes()), "<i2")
            rate = file.getframerate()
    phonemes = [part.rsplit(":", 1) for part in done.stdout.split()]
    return pcm.astype(np.float32) / np.float32(32768), rate, [(name, float(end)) for name, end in phonemes]
