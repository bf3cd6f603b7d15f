"""The bundled demo model hears speech made anew."""

import ctypes.util
import random
import secrets

import pytest
import torch

from tools.demo_model import scenes
from tools.demo_model.scoring import word_errors, words
from tools.demo_model.sets import decode_shortened, transcribe
from tools.demo_model.speech import Speaker

needs_espeak = pytest.mark.skipif(not ctypes.util.find_library("espeak-ng"), reason="espeak-ng is not installed")


@pytest.fixture(scope="module")
def model(demo_model):
    return demo_model


def heard(segments):
    return [word for segment in segments for word in words(segment["text"])]


def word_error_rate(model, listen, recordings):
    torch.manual_seed(0)
    errors = sum(word_errors(each.words, heard(listen(model, each))) for each in recordings)
    return errors / sum(len(each.words) for each in recordings)


@needs_espeak
def test_twenty_fresh_utterances_are_heard(model):
    """Of 105 words, by voices of the training.

    The model card has the figure, about one word in thirty. With other utterances at each run there has to be room for
    bad luck: for half of the utterances to have an error, say, or for one that is repeated over and over.
    """
    seed = secrets.randbits(32)
    rng, speaker = random.Random(seed), Speaker()
    clips = [scenes.alone(scenes.say(speaker, scenes.espeak_heard, scenes.core_words, rng), rng) for _ in range(20)]
    torch.manual_seed(seed)
    errors = [min(len(each.words), word_errors(each.words, heard(transcribe()(model, each)))) for each in clips]
    assert sum(errors) <= 0.2 * sum(len(each.words) for each in clips), f"seed {seed}: {errors}"


@needs_espeak
@pytest.mark.parametrize("condition", [False, True])
def test_several_utterances_in_a_window_are_heard(model, condition):
    rng, speaker = random.Random(4), Speaker()
    recordings = [
        scenes.conversation(speaker, scenes.espeak_heard, scenes.core_words, seconds, (0.5, 2.0), rng)
        for seconds in (30.0, 45.0)
    ]
    listen = transcribe(condition_on_previous_text=condition, temperature=0.0)
    assert word_error_rate(model, listen, recordings) <= 0.15


@needs_espeak
def test_a_shortened_audio_context_serves_a_short_clip(model):
    rng, speaker = random.Random(6), Speaker()
    spoken = [scenes.say(speaker, scenes.espeak_heard, scenes.core_words, rng, longest=2.4) for _ in range(10)]
    clips = [scenes.placed(each, 0.2, 3.0) for each in spoken]
    assert word_error_rate(model, decode_shortened(3.0), clips) <= 0.15


def test_silence_and_noise_are_no_text(model):
    for clip in scenes.without_speech(15, random.Random(7)):
        assert heard(transcribe()(model, clip)) == []
