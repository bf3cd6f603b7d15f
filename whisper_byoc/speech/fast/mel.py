"""Log-mel features in numpy: openai-whisper's formula, only for as much sound as there is.

The spectrum is computed in double precision, so these are within 1e-5 of the formula everywhere. openai-whisper's own
are within that nearly everywhere, but up to 1e-4 off where the sound is faint.
"""

import functools
import math

import numpy as np
from numpy.typing import NDArray

from audio.pcm import SAMPLE_RATE

FFT_SAMPLES = 400
HOP_SAMPLES = 160
"""Window and step of the spectrum (openai-whisper, `audio.N_FFT` and `HOP_LENGTH`): 25 and 10 ms."""
FRAMES_PER_SECOND = SAMPLE_RATE // HOP_SAMPLES
SMALLEST_POWER = 1e-10
RANGE = 8.0
"""Power is floored at 1e-10, and its log10 at 8 below the loudest (openai-whisper, `log_mel_spectrogram`)."""
BLOCK_FRAMES = 4096
"""Frames whose spectra are held at once: 13 MB, and as much for their windows."""


def log_mel(samples: NDArray[np.float32], mels: int) -> NDArray[np.float32]:
    """Return the features (mels, n // 160) float32 of 16 kHz mono float32 samples (n,).

    These are the first n // 160 frames of `whisper.log_mel_spectrogram(samples, mels, padding=480000)`: silence follows
    the sound, so the last frames are those of sound that ends.
    """
    frames = len(samples) // HOP_SAMPLES
    if not frames:
        return np.zeros((mels, 0), np.float32)
    half = FFT_SAMPLES // 2
    # frames beyond `frames` still cover the sound's end, and count for the loudest
    audible = (len(samples) + half) // HOP_SAMPLES + 1
    before = np.pad(samples[1 : half + 1][::-1], (half - len(samples[1 : half + 1]), 0))  # mirrored, as torch.stft does
    after = np.zeros((audible - 1) * HOP_SAMPLES + half - len(samples), np.float32)
    padded = np.concatenate([before, samples, after]).astype(np.float32, copy=False)
    windows = np.lib.stride_tricks.sliding_window_view(padded, FFT_SAMPLES)[::HOP_SAMPLES]
    power = np.empty((mels, audible), np.float32)
    for at in range(0, audible, BLOCK_FRAMES):
        block = slice(at, min(at + BLOCK_FRAMES, audible))
        spectrum = np.fft.rfft(windows[block] * _window())
        power[:, block] = mel_filters(mels) @ (spectrum.real**2 + spectrum.imag**2).astype(np.float32).T
    log = np.log10(np.maximum(power, np.float32(SMALLEST_POWER)))
    log = np.maximum(log, log.max() - np.float32(RANGE))
    found: NDArray[np.float32] = (log[:, :frames] + np.float32(4)) / np.float32(4)
    return found


@functools.cache
def mel_filters(mels: int) -> NDArray[np.float32]:
    """Return the filters (mels, 201) of librosa's `filters.mel(sr=16000, n_fft=400)`, which openai-whisper ships.

    Triangles between points evenly spaced on Slaney's mel scale, each divided by half its width in hertz.
    """
    points = _hertz(np.linspace(0.0, _mel(SAMPLE_RATE / 2), mels + 2))
    bins = np.arange(FFT_SAMPLES // 2 + 1) * SAMPLE_RATE / FFT_SAMPLES
    rising = (bins - points[:-2, None]) / (points[1:-1] - points[:-2])[:, None]
    falling = (points[2:, None] - bins) / (points[2:] - points[1:-1])[:, None]
    triangles = np.maximum(0.0, np.minimum(rising, falling))
    filters: NDArray[np.float32] = (triangles * (2.0 / (points[2:] - points[:-2]))[:, None]).astype(np.float32)
    return filters


_LINEAR_HERTZ = 200 / 3
_BREAK_HERTZ = 1000.0
_BREAK_MEL = _BREAK_HERTZ / _LINEAR_HERTZ
_LOG_STEP = math.log(6.4) / 27
"""Slaney's scale (Auditory Toolbox): linear up to 1000 Hz, 27 steps for each factor of 6.4 above."""


def _mel(hertz: float) -> float:
    return _BREAK_MEL + math.log(hertz / _BREAK_HERTZ) / _LOG_STEP


def _hertz(mel: NDArray[np.float64]) -> NDArray[np.float64]:
    upper = _BREAK_HERTZ * np.exp(_LOG_STEP * np.maximum(mel - _BREAK_MEL, 0.0))
    return np.where(mel < _BREAK_MEL, mel * _LINEAR_HERTZ, upper)


@functools.cache
def _window() -> NDArray[np.float64]:
    """Return the periodic Hann window as `torch.hann_window(400)` computes it: its rounding matters in faint sound."""
    turn = np.arange(FFT_SAMPLES, dtype=np.float32) * np.float32(2 * np.pi / FFT_SAMPLES)
    half = np.float32(0.5)
    found: NDArray[np.float64] = (half - half * np.cos(turn)).astype(np.float64)
    return found
