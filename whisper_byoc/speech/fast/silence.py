"""The encoded silence after speech: computed once per model, it follows every sound.

Whisper was trained on windows of 30 s. After a shorter one its decoder finds no end and begins again; with encoded
silence, it ends. The encoding of silence hardly depends on what was said before, but it differs if nothing was: base
loops after silence that was encoded alone. So an artificial voice comes first, whose own encoding is left out.
"""

import numpy as np
from numpy.typing import NDArray

from audio.pcm import SAMPLE_RATE
from whisper_byoc.speech.engine import Samples
from whisper_byoc.speech.fast.mel import log_mel
from whisper_byoc.speech.fast.weights import Dimensions
from whisper_byoc.speech.runtime import core, ov

STRIDE = 8
"""Of this many positions of silence one is kept; it counts as that many in the softmax (measured in
docs/engines.md)."""
VOICE_SECONDS = 2.0
"""Less than the shortest window, so that none of it ever follows a sound."""
PITCH = 120.0
"""Hertz; a man's voice."""
FORMANTS = ((700, 1200, 2500), (300, 2200, 2900), (400, 800, 2400), (550, 1800, 2500))
"""Hertz; roughly those of the vowels a, i, o, e (Peterson and Barney, 1952)."""
FORMANT_WIDTH = 150.0
VOWELS_PER_SECOND = 5
SYLLABLES_PER_SECOND = 5
LOUDNESS = 0.3
NOISE = 0.001


def encoded_silence(encoder: ov.Model, dims: Dimensions, stride: int = STRIDE) -> NDArray[np.float32]:
    """Return the encoding of silence, at one of every `stride` positions of 30 s, from the middle of a stride.

    (2 * layers, 1, heads, positions, values) float32: key and value for each decoder layer. Positions within the first
    two seconds are of the voice.
    """
    window = np.zeros((1, dims.n_mels, 2 * dims.n_audio_ctx), np.float32)
    voice = log_mel(artificial_voice(), dims.n_mels)
    window[0, :, : voice.shape[1]] = voice
    request = core().compile_model(encoder, "CPU", {"INFERENCE_PRECISION_HINT": "f32"}).create_infer_request()
    request.infer([window])
    names = [f"{part}{layer}" for layer in range(dims.n_text_layer) for part in ("key", "value")]
    return np.stack([request.get_tensor(name).data[:, :, stride // 2 :: stride] for name in names])


def artificial_voice() -> Samples:
    """Return two seconds of vowels, one after another, at a varying pitch; the same samples on every call."""
    time = np.arange(int(VOICE_SECONDS * SAMPLE_RATE)) / SAMPLE_RATE
    pitch = PITCH + 20 * np.sin(2 * np.pi * 0.7 * time)
    phase = 2 * np.pi * np.cumsum(pitch) / SAMPLE_RATE
    vowel = (time * VOWELS_PER_SECOND).astype(int) % len(FORMANTS)
    formants = np.array(FORMANTS, float)[vowel]
    voice = np.zeros(len(time))
    for harmonic in range(1, 30):
        distance = (harmonic * pitch)[:, None] - formants
        strength = 0.02 + np.exp(-((distance / FORMANT_WIDTH) ** 2)).sum(1)
        voice += strength * np.sin(harmonic * phase) / harmonic**0.3
    loudness = 0.15 + 0.85 * np.abs(np.sin(np.pi * SYLLABLES_PER_SECOND * time))
    noise = NOISE * np.random.default_rng(0).standard_normal(len(time))
    found: Samples = (LOUDNESS * loudness * voice / np.abs(voice).max() + noise).astype(np.float32)
    return found
