"""Log-mel against openai-whisper's, and against the same formula in double precision."""

import numpy as np
import pytest
import torch
import whisper

from whisper_byoc.speech.fast.mel import log_mel, mel_filters


@pytest.mark.parametrize("mels", [80, 128])
def test_filters_are_librosas(mels):
    np.testing.assert_allclose(mel_filters(mels), whisper.audio.mel_filters("cpu", mels).numpy(), atol=1e-8)


def reference(samples, mels=80):
    return whisper.log_mel_spectrogram(samples, mels, padding=480_000)[:, : len(samples) // 160].numpy()


def exact(samples):
    """openai-whisper's formula in float64: its own float32 is up to 1e-4 away from it where the sound is faint."""
    padded = torch.nn.functional.pad(torch.from_numpy(samples).double(), (0, 480_000))
    spectrum = torch.stft(padded, 400, 160, window=torch.hann_window(400).double(), return_complex=True)
    power = whisper.audio.mel_filters("cpu", 80).double() @ (spectrum[:, :-1].abs() ** 2)
    log = power.clamp(min=1e-10).log10()
    return ((torch.maximum(log, log.max() - 8.0) + 4.0) / 4.0)[:, : len(samples) // 160].numpy()


@pytest.mark.parametrize("name", ["demo-numbers.wav", "demo-numbers-noise-15db.wav", "tiny-weather.wav"])
def test_speech(sound, name):
    samples = sound(name)
    found = log_mel(samples, 80)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, exact(samples), atol=1e-5)
    difference = np.abs(found - reference(samples))
    assert difference.max() < 1e-4
    assert (difference < 1e-5).mean() > 0.99


@pytest.mark.parametrize("samples", [0, 1, 100, 159, 160, 199, 200, 201, 400, 1600, 5001, 16_000])
def test_any_length(samples):
    values = np.random.default_rng(samples).standard_normal(samples).astype(np.float32) / 10
    found = log_mel(values, 80)
    assert found.shape == (80, samples // 160)
    if found.size:
        np.testing.assert_allclose(found, reference(values), atol=1e-5)


def test_an_end_that_is_loudest_counts_for_the_range():
    """The last frames are beyond the whole ones, and yet the loudest."""
    values = np.full(16_079, 1e-4, np.float32)
    values[-79:] = np.random.default_rng(0).standard_normal(79)
    np.testing.assert_allclose(log_mel(values, 80), reference(values), atol=1e-5)


def test_silence():
    np.testing.assert_allclose(
        log_mel(np.zeros(16_000, np.float32), 80), reference(np.zeros(16_000, np.float32)), atol=1e-5
    )


def test_a_long_sound_is_the_same_in_blocks(monkeypatch, sound):
    whole = log_mel(sound("demo-long-40s.wav"), 128)
    monkeypatch.setattr("whisper_byoc.speech.fast.mel.BLOCK_FRAMES", 1000)
    np.testing.assert_array_equal(log_mel(sound("demo-long-40s.wav"), 128), whole)
