"""Speech made by espeak-ng and flite: its sound, and when each word is said."""

import ctypes.util
import random
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import pytest
import torch

from tools.demo_model import flite, generate, noise, scenes, voices
from tools.demo_model.espeak import Espeak, EspeakMissing, Phoneme, library
from tools.demo_model.speech import RATE, Speaker, align, as_another_speaker, reverberate
from tools.demo_model.vocabulary import WORDS

needs_espeak = pytest.mark.skipif(not ctypes.util.find_library("espeak-ng"), reason="espeak-ng is not installed")
needs_flite = pytest.mark.skipif(not flite.installed(), reason="flite is not installed")


@pytest.fixture(scope="module")
def speaker():
    return Speaker()


def loud(spoken, start, end):
    return float(np.sqrt(np.mean(np.square(spoken.samples[round(start * RATE) : round(end * RATE)]))))


# Alignment, without a synthesiser


def test_words_are_where_their_phonemes_are():
    phonemes = [Phoneme("h", 0.1, 0), Phoneme("aI", 0.2, 0), Phoneme("_:", 0.4, 3), Phoneme("j", 0.5, 3)]
    assert np.array(align(["hi", "you"], phonemes, [0, 3], 0.9)) == pytest.approx(np.array([(0.1, 0.4), (0.5, 0.9)]))


def test_words_said_as_one_share_its_time_by_their_spelling():
    phonemes = [Phoneme("I", 0.0, 0), Phoneme("n", 0.1, 0), Phoneme("D", 0.2, 0), Phoneme("k", 0.5, 7)]
    spans = align(["in", "the", "car"], phonemes, [0, 3, 7], 0.8)
    assert np.array(spans) == pytest.approx(np.array([(0, 0.2), (0.2, 0.5), (0.5, 0.8)]))


def test_a_first_word_without_phonemes_is_an_error():
    with pytest.raises(ValueError, match="first word"):
        align(["the", "car"], [Phoneme("k", 0.5, 4)], [0, 4], 0.8)


def test_without_the_library_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr("tools.demo_model.espeak.LIBRARY", "libespeak-missing.so")
    monkeypatch.setattr("tools.demo_model.espeak.library", library.__wrapped__)  # not what is loaded already
    with pytest.raises(EspeakMissing, match="apt-get install espeak-ng"):
        Espeak()


@pytest.mark.parametrize("kind", noise.KINDS)
def test_noise_is_level_and_of_its_seed(kind):
    first, second = (noise.noise(kind, 8000, np.random.default_rng(3)) for _ in range(2))
    assert np.array_equal(first, second)
    assert first.dtype == np.float32
    assert first.std() == pytest.approx(1, abs=1e-3)
    assert np.isfinite(noise.varied(16_000, np.random.default_rng(4))).all()


# espeak-ng


@needs_espeak
def test_an_unknown_voice_is_an_error(speaker):
    with pytest.raises(ValueError, match="no voice 'xx-none'"):
        speaker.espeak(["hello"], "xx-none", random.Random(0))


@needs_espeak
@pytest.mark.parametrize("most_shifts", [0, 4, 10])
def test_words_are_said_within_their_spans(speaker, most_shifts):
    rng = random.Random(5)
    for _ in range(20):
        words = rng.choices(WORDS, k=5)
        accent = voices.invented_accent(rng, most_shifts, consonants=0.5) if most_shifts else None
        spoken = speaker.espeak(words, voices.espeak_voice(rng, held_out=False), rng, accent)
        edges = np.array(spoken.spans).flatten()
        assert spoken.words == words
        assert len(spoken.spans) == 5
        assert np.all(np.diff(edges) >= -1e-6)
        assert edges[0] == pytest.approx(0.04, abs=0.041)
        assert edges[-1] <= len(spoken.samples) / RATE + 0.01
        assert np.abs(spoken.samples).max() == pytest.approx(0.5, abs=0.01)
        assert all(0 <= start <= end for start, end, _ in spoken.phonemes)


@needs_espeak
def test_silence_between_words_is_not_theirs(speaker):
    rng = random.Random(1)
    rng.choice = max  # the longest gap, between the last words of every list
    spoken = speaker.espeak(["stop", "stop"], "en-us", rng)
    (_, end), (start, _) = spoken.spans
    assert start - end > 0.08
    assert loud(spoken, end + 0.02, start - 0.01) < 0.1 * loud(spoken, *spoken.spans[0])


@needs_espeak
def test_another_speaker_and_a_room_keep_the_times(speaker):
    rng = random.Random(7)
    spoken = speaker.espeak(["hello", "world"], "en-us", rng)
    other = as_another_speaker(spoken, rng)
    factor = len(other.samples) / len(spoken.samples)
    assert 0.8 < factor < 1.25
    assert np.array(other.spans) == pytest.approx(np.array(spoken.spans) * factor, abs=0.01)
    wet = reverberate(spoken, rng)
    assert wet.spans == spoken.spans
    assert len(wet.samples) > len(spoken.samples)


@needs_espeak
def test_a_part_is_what_its_seed_says_and_loads_without_running_code(tmp_path):
    part = generate.Part("toy-0", "espeak", 11, 12, other_speakers=0.5)
    with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as pool:
        for name in ("first", "second"):
            pool.submit(generate.write, part, tmp_path / f"{name}.pt").result(timeout=50)
    first, second = (torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("first", "second"))
    assert torch.equal(first["mel"], second["mel"])
    assert first["words"] == second["words"]
    assert len(first["words"]) == len(first["spans"]) == len(first["frames"]) == 12
    assert sum(first["frames"]) == len(first["mel"])
    assert first["mel"].shape[1] == 80
    assert not list(tmp_path.glob("*.part"))


@needs_espeak
def test_a_conversation_has_its_utterances_where_it_says(speaker):
    rng = random.Random(8)
    made = scenes.conversation(speaker, scenes.espeak_heard, scenes.core_words, 30.0, (0.5, 2.0), rng)
    assert len(made.samples) <= 30 * RATE
    assert len(made.utterances) >= 4
    for before, after in zip(made.utterances, made.utterances[1:], strict=False):
        assert after.start - before.end >= 0.5
    for each in made.utterances:
        assert loud(made, each.start, each.end) > 0.01
    assert made.words == [word for each in made.utterances for word in each.words]


@needs_espeak
def test_noise_of_15_db_is_15_db_below_the_speech(speaker):
    rng = random.Random(9)
    clip = scenes.alone(scenes.say(speaker, scenes.espeak_heard, scenes.core_words, rng), rng)
    noisy = scenes.with_noise(clip, 15.0, rng)
    sound = noisy.samples - clip.samples
    speech = clip.samples[clip.samples != 0]
    assert 10 * np.log10(np.mean(speech**2) / np.mean(sound**2)) == pytest.approx(15, abs=0.2)


def test_clips_without_speech_are_of_every_kind():
    clips = list(scenes.without_speech(20, random.Random(1)))
    assert sum(not clip.samples.any() for clip in clips) == 4
    assert all(not clip.utterances for clip in clips)
    assert all(np.abs(clip.samples).max() < 3 for clip in clips)


# flite


@needs_flite
@needs_espeak
def test_flite_tells_when_words_are_said(speaker):
    rng = random.Random(10)
    spoken = speaker.flite(["hello", "world", "xray"], "slt", rng)
    edges = np.array(spoken.spans).flatten()
    assert np.all(np.diff(edges) >= -1e-6)
    assert all(loud(spoken, start, end) > 0.02 for start, end in spoken.spans)
    assert " ".join(name for _, _, name in spoken.phonemes) == "h @ l oU w 3: l d E k s r eI"
    assert spoken.phonemes[-1][:2] == pytest.approx((edges[-1] - 0.28, edges[-1]), abs=0.05)


@needs_flite
@needs_espeak
def test_a_woman_of_flites_speaks_at_a_mans_pitch_where_any_is_wanted(speaker):
    by_nature, any_pitch = (
        [
            pitch(speaker.flite(["alpha", "yellow"], "slt", random.Random(seed), any_pitch=anything))
            for seed in range(20)
        ]
        for anything in (False, True)
    )
    assert min(by_nature) > 140
    assert min(any_pitch) < 110


def pitch(spoken):
    """The pitch in Hz of the middle of the utterance: how much later it is most alike to itself."""
    middle = spoken.samples[len(spoken.samples) // 4 : -len(spoken.samples) // 4]
    shortest, longest = RATE // 300, RATE // 60
    likeness = np.correlate(middle, middle, "full")[len(middle) - 1 :]
    return RATE / (shortest + int(likeness[shortest:longest].argmax()))
