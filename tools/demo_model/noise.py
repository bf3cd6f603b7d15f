"""Noise without speech in it: white, coloured, band-limited, hum, with changing level and knocks."""

import numpy as np
import numpy.typing as npt

RATE = 16_000
KINDS = ("white", "pink", "brown", "hum")
"""What `noise` makes; the training's noises (`varied`) are made of more."""

_MAINS = (50, 60, 100, 120)  # Hz
_LEVEL = 0.05  # RMS of the training's noises; their level in a window is chosen there


def noise(kind: str, samples: int, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """Return noise of one of KINDS, RMS 1: white, falling by 3 (pink) or 6 dB (brown) an octave, or mains hum."""
    white = rng.standard_normal(samples)
    if kind == "hum":
        time = np.arange(samples) / RATE
        tones = [np.sin(2 * np.pi * 50 * k * time + rng.uniform(0, 6.3)) / k for k in range(1, 8)]
        sound = np.sum(tones, axis=0) + 0.1 * white
    else:
        slope = {"white": 0.0, "pink": 0.5, "brown": 1.0}[kind]
        sound = _coloured(white, np.maximum(_frequencies(samples), 20.0) ** -slope)
    return np.asarray(sound / sound.std(), np.float32)


def varied(samples: int, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """Return a noise of any colour or band, perhaps with hum, a changing level and knocks."""
    kind = rng.integers(6)
    sound = _coloured(rng.standard_normal(samples), _envelope(int(kind), _frequencies(samples), rng))
    sound /= sound.std()
    if kind >= 4:
        time = np.arange(samples) / RATE
        mains = rng.choice(_MAINS)
        harmonics = range(1, int(rng.integers(3, 12)))
        hum = np.sum([np.sin(2 * np.pi * mains * k * time + rng.uniform(0, 6.3)) / k for k in harmonics], axis=0)
        sound = sound * rng.uniform(0.02, 0.4) + hum
    if rng.random() < 0.4:
        levels = 10 ** rng.uniform(-0.6, 0.6, 40)
        sound *= np.interp(np.arange(samples), np.linspace(0, samples, 40), levels)
    if rng.random() < 0.3:
        _knock(sound, rng)
    return np.asarray(sound * (_LEVEL / sound.std()), np.float32)


def _frequencies(samples: int) -> npt.NDArray[np.float64]:
    return np.asarray(np.fft.rfftfreq(samples, 1 / RATE), np.float64)


def _coloured(white: npt.NDArray[np.float64], gains: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.fft.irfft(np.fft.rfft(white) * gains, len(white))


def _envelope(kind: int, hertz: npt.NDArray[np.float64], rng: np.random.Generator) -> npt.NDArray[np.float64]:
    if kind == 1:
        return np.maximum(hertz, 20) ** -0.5
    if kind == 2:
        return np.maximum(hertz, 20) ** -1.0
    if kind == 3:
        band = (hertz - rng.uniform(300, 4000)) / rng.uniform(200, 2000)
        return np.exp(-0.5 * band**2) + 0.03
    if kind == 4:
        return np.maximum(hertz, 50) ** -rng.uniform(0.3, 1.2)
    return np.ones_like(hertz)


def _knock(sound: npt.NDArray[np.float64], rng: np.random.Generator) -> None:
    for _ in range(int(rng.integers(3, 40))):
        length = int(rng.integers(50, 3000))
        start = int(rng.integers(0, len(sound) - length))
        decay = np.exp(-5 * np.arange(length) / length)
        sound[start : start + length] += rng.standard_normal(length) * decay * rng.uniform(1, 6)
