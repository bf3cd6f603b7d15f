"""Batches of windows, as tensors: noise, level, scaling and padding as Whisper's front end makes them."""

import math
import random
from collections.abc import Sequence as Several
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tools.demo_model.corpus import UNKNOWN
from tools.demo_model.targets import Sequence, Span
from tools.demo_model.windows import SILENT, Window

_LN10 = math.log(10)
_TOKEN_STEP = 32
"""Sequences are padded to a multiple of it: oneDNN compiles its kernels for each shape, and only few are to be met."""


@dataclass(frozen=True)
class Batch:
    """Some windows of one length, and the sequences that belong to them."""

    mel: Tensor
    """Scaled log-mel, float32, shape (windows, 80, frames)."""
    offset: Tensor
    """Shape (windows,)."""
    read: Tensor
    """Compact tokens, shape (windows, tokens), like the next two."""
    write: Tensor
    positions: Tensor
    ahead: Tensor
    """First and last encoder position, shape (windows, tokens, 2); -1 where there is none. So is `behind`."""
    behind: Tensor
    phonemes: Tensor
    """Labels, shape (windows, frames / 2), like the next two."""
    words: Tensor
    onsets: Tensor


def collate(windows: Several[Window], sequences: Several[Sequence], rng: random.Random, *, augment: bool) -> Batch:
    """Return the windows as a batch; `augment` masks bands and moments of them (SpecAugment)."""
    labels = [np.stack(each) for each in zip(*((w.phonemes, w.words, w.onsets()) for w in windows), strict=True)]
    for label in labels:
        for row, window in zip(label, windows, strict=True):
            row[window.content // 2 + 5 :] = UNKNOWN
    positions = len(windows[0].mel) // 2
    return Batch(
        spectra(windows, rng, augment=augment).transpose(1, 2).contiguous(),
        torch.tensor([window.offset for window in windows]),
        _rows([sequence.read for sequence in sequences], 0),
        _rows([sequence.write for sequence in sequences], UNKNOWN),
        _rows([sequence.positions for sequence in sequences], 0),
        _spans([sequence.ahead for sequence in sequences], positions),
        _spans([sequence.behind for sequence in sequences], positions),
        *(torch.from_numpy(label) for label in labels),
    )


def spectra(windows: Several[Window], rng: random.Random, *, augment: bool) -> Tensor:
    """Return the windows' scaled log-mel, shape (windows, frames, 80), as whisper.audio.log_mel_spectrogram has it."""
    power = torch.exp(torch.from_numpy(np.stack([window.mel for window in windows])) * _LN10)
    for row, window in zip(power, windows, strict=True):
        if window.noise is not None:
            row += torch.exp(torch.from_numpy(window.noise) * _LN10)
    mel = torch.log(power) / _LN10
    for row, window in zip(mel, windows, strict=True):
        if rng.random() < 0.7:
            row += _equaliser(rng)
        row += rng.uniform(-2.2, 0.4)
        row[window.content :] = SILENT
    mel.clamp_(min=SILENT)
    for row, window in zip(mel, windows, strict=True):
        # transcribe() scales a whole recording at once, so a louder part elsewhere raises the floor of this window.
        louder = rng.uniform(0, 1.2) if rng.random() < 0.3 else 0.0
        torch.maximum(row, row.max() + louder - 8, out=row)
        row.add_(4).div_(4)
        if rng.random() < 0.6:
            row[window.content :] = 0.0  # transcribe() pads the scaled spectrum, pad_or_trim(samples) the sound
        if augment:
            _mask(row, rng)
    return mel


def _equaliser(rng: random.Random) -> Tensor:
    """Return a smooth change of timbre, log10 of a power for each of 80 bands."""
    band = torch.arange(80) / 79
    waves = [
        rng.uniform(-0.35, 0.35) * torch.cos(math.pi * (cycles * band + 2 * rng.random())) for cycles in (0.5, 1, 2, 3)
    ]
    return torch.stack(waves).sum(0)


def _mask(mel: Tensor, rng: random.Random) -> None:
    mean = float(mel.mean())
    if rng.random() < 0.5:
        for _ in range(2):
            width = rng.randint(0, 10)
            low = rng.randint(0, 80 - width)
            mel[:, low : low + width] = mean
    if rng.random() < 0.3:
        length = rng.randint(1, 8)
        start = rng.randint(0, len(mel) - length)
        mel[start : start + length] = mean


def _padded(lists: Several[list[int]] | Several[list[Span | None]]) -> int:
    return -(-max(map(len, lists)) // _TOKEN_STEP) * _TOKEN_STEP


def _rows(lists: Several[list[int]], filler: int) -> Tensor:
    rows = torch.full((len(lists), _padded(lists)), filler)
    for row, numbers in zip(rows, lists, strict=True):
        row[: len(numbers)] = torch.tensor(numbers)
    return rows


def _spans(lists: Several[list[Span | None]], positions: int) -> Tensor:
    """Return the spans as whole positions within the window, one wider on each side."""
    spans = torch.full((len(lists), _padded(lists), 2), -1)
    for row, several in zip(spans, lists, strict=True):
        for index, span in enumerate(several):
            if span is not None:
                first = min(max(int(span[0]) - 1, 0), positions - 3)
                row[index, 0] = first
                row[index, 1] = min(max(int(span[1]) + 1, first + 2), positions - 1)
    return spans
