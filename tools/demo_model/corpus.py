"""The generated speech in memory, as windows are composed of it."""

import random
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from tools.demo_model.vocabulary import WORDS

UNKNOWN = -100
"""The label of what is not to be learned from (torch.nn.functional.cross_entropy's ignore_index)."""

_RARE = 20  # a phoneme said less often than this is not worth a class of its own


@dataclass(frozen=True)
class Utterance:
    """Speech that a window can hold."""

    words: list[int]
    """Indices into WORDS."""
    spans: npt.NDArray[np.float64]
    """When each word is said, shape (words, 2), in frames of 10 ms."""
    phonemes: npt.NDArray[np.int64]
    """Which phoneme is said in each frame: 0 is none, UNKNOWN where it is not known."""
    mel: npt.NDArray[np.float32]
    """log10 of the mel power, shape (frames, 80)."""


class Corpus:
    """All utterances of some parts."""

    def __init__(self, files: Sequence[Path], phonemes: Sequence[str] | None = None) -> None:
        """Load the files that `generate.write` wrote; `phonemes` are the names of another corpus to share."""
        parts = [torch.load(file, weights_only=True, mmap=True) for file in files]
        said = Counter(name for part in parts for each in part["phonemes"] for _, _, name in each)
        self.phonemes = list(phonemes or sorted(name for name, count in said.items() if count >= _RARE))
        """The phonemes' names; a label is one more than the index in this list."""
        self._labels = {name: index + 1 for index, name in enumerate(self.phonemes)}
        indices = {word: index for index, word in enumerate(WORDS)}
        self._entries: list[
            tuple[npt.NDArray[np.float16], list[int], npt.NDArray[np.float64], list[tuple[float, float, str]]]
        ] = []
        for part in parts:
            mel = part["mel"].numpy()
            start = 0
            for words, spans, spoken, frames in zip(
                part["words"], part["spans"], part["phonemes"], part["frames"], strict=True
            ):
                entry = (mel[start : start + frames], [indices[word] for word in words], np.array(spans) * 100, spoken)
                self._entries.append(entry)
                start += frames
        self._entries.sort(key=lambda entry: len(entry[0]))
        self._lengths = [len(entry[0]) for entry in self._entries]

    def __len__(self) -> int:
        return len(self._entries)

    def draw(self, longest: float, rng: random.Random, shortest: float = 0.0) -> Utterance | None:
        """Return one of the utterances that have at most `longest` frames, each as likely; None if there is none.

        Those that have less than `shortest` are left out if there are others.
        """
        fitting = bisect_right(self._lengths, longest)
        if not fitting:
            return None
        first = min(bisect_left(self._lengths, shortest), fitting - 1)
        mel, words, spans, spoken = self._entries[rng.randrange(first, fitting)]
        labels = np.full(len(mel), 0 if spoken else UNKNOWN, np.int64)
        for start, end, name in spoken:
            labels[int(start * 100) : max(int(start * 100) + 1, int(end * 100))] = self._labels.get(name, UNKNOWN)
        return Utterance(words, spans, labels, mel.astype(np.float32))
