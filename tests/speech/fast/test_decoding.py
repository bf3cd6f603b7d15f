"""The same tokens as openai-whisper, with the same weights in float32: the demo model, and one with random weights."""

import numpy as np
import pytest
import torch
import whisper
from whisper.decoding import DecodingOptions

from whisper_byoc.speech import models
from whisper_byoc.speech.engine import Cancelled, never
from whisper_byoc.speech.fast import model as fast
from whisper_byoc.speech.fast.decoding import Wish, decode, language_probabilities
from whisper_byoc.speech.fast.mel import log_mel
from whisper_byoc.speech.fast.rules import Rules

pytestmark = pytest.mark.filterwarnings("ignore:unclosed file.*tiktoken:ResourceWarning")


class Pair:
    """One model, ours and openai-whisper's."""

    def __init__(self, mine, theirs):
        self.mine = mine
        self.theirs = theirs
        self.network = self.mine.network(1)

    def sound(self, samples):
        return self.network.encode(log_mel(samples, 80), 30)

    def features(self, samples):
        mel = log_mel(samples, 80)
        return torch.from_numpy(np.pad(mel, ((0, 0), (0, 3000 - mel.shape[1]))))

    def decode(self, sound, language="en", task="transcribe", prompt="", limit=224, is_cancelled=never, **options):
        tokenizer = self.mine.tokenizer
        tokens = tokenizer.encode(" " + prompt.strip()) if prompt else ()
        wish = Wish(tokenizer.start(language, task), limit, tokens, **options)
        return self.network.run(decode(sound, tokenizer, self.mine.dims.n_text_ctx, wish, is_cancelled))

    def compare(self, samples, language="en", task="transcribe", prompt="", limit=224, **options):
        found = self.decode(self.sound(samples), language, task, prompt, limit, **options)
        wanted = DecodingOptions(
            task=task, language=language, prompt=prompt or None, sample_len=limit, fp16=False,
            without_timestamps=not options.get("timestamps", True), beam_size=options.get("beam"),
        )  # fmt: skip
        expected = self.theirs.decode(self.features(samples), wanted)
        assert found.tokens == expected.tokens
        assert found.logprob == pytest.approx(expected.avg_logprob, abs=1e-3)
        assert found.no_speech == pytest.approx(expected.no_speech_prob, abs=1e-3)
        return found


@pytest.fixture(scope="module")
def demo(exact_demo, demo_model):
    return Pair(exact_demo, demo_model)


@pytest.fixture(scope="module")
def random(small, small_weights):
    return Pair(fast.build(small_weights, models.DEMO_FILE, exact=True), small)


NAMES = ["demo-stop.wav", "demo-numbers.wav", "demo-spelling.wav", "demo-numbers-noise-15db.wav", "tiny-weather.wav"]


@pytest.mark.parametrize("name", [*NAMES, "silence-3s.wav"])
@pytest.mark.parametrize("timestamps", [True, False])
@pytest.mark.parametrize("beam", [None, 5])
def test_the_demo_model_on_speech(demo, sound, name, timestamps, beam):
    found = demo.compare(sound(name), timestamps=timestamps, **({"beam": beam} if beam else {}))
    assert found.ended


@pytest.mark.parametrize(("language", "task"), [("en", "transcribe"), ("de", "translate"), ("ja", "transcribe")])
@pytest.mark.parametrize("timestamps", [True, False])
def test_random_weights_which_try_every_rule(random, noise, language, task, timestamps):
    """They write all kinds of tokens and never end."""
    found = random.compare(noise, language, task, timestamps=timestamps, limit=60)
    assert not found.ended
    assert len(found.tokens) == 60


@pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")  # openai-whisper sorts a tensor by numpy
@pytest.mark.parametrize("beam", [2, 5])
@pytest.mark.parametrize("timestamps", [True, False])
def test_a_search_through_random_weights(random, noise, beam, timestamps):
    random.compare(noise, timestamps=timestamps, limit=30, beam=beam)


@pytest.mark.parametrize("known", [0, 1, 7, 30])
def test_a_guess_changes_nothing_be_it_right_or_wrong(random, noise, known):
    sound = random.sound(noise)
    expected = random.decode(sound, limit=30)
    for guess in (expected.tokens[:known], [*expected.tokens[:known], 11, 12]):
        found = random.decode(sound, limit=30, guess=guess)
        assert found.tokens == expected.tokens
        assert found.logprob == pytest.approx(expected.logprob, abs=1e-4)
        for layer, queries in expected.queries.items():
            np.testing.assert_allclose(found.queries[layer], queries, atol=1e-3)


def test_a_guess_saves_passes(demo, sound):
    encoded, passes = demo.sound(sound("demo-numbers.wav")), []
    tokens = demo.decode(encoded).tokens
    for guess in ((), tokens, tokens[:-3]):
        asked = []
        demo.decode(encoded, guess=guess, is_cancelled=lambda asked=asked: asked.append(1))
        passes.append(len(asked))
    assert passes == [len(tokens) + 1, 1, 4]


@pytest.mark.parametrize("prompt", ["seven three", "go on " * 200], ids=["short", "longer than fits"])
@pytest.mark.parametrize("timestamps", [True, False])
def test_a_prompt(demo, random, sound, noise, prompt, timestamps):
    demo.compare(sound("demo-numbers.wav"), prompt=prompt, timestamps=timestamps)
    random.compare(noise, prompt=prompt, timestamps=timestamps, limit=20)


def test_a_text_ends_where_the_decoder_has_no_more_places(random, noise):
    found = random.compare(noise, prompt="go on " * 200, limit=1000)
    assert len(found.tokens) < 300


def test_languages(random, noise):
    found = random.network.run(language_probabilities(random.sound(noise), random.mine.tokenizer))
    _, expected = random.theirs.detect_language(random.features(noise))
    assert found == pytest.approx(expected, abs=1e-4)


def test_a_draw_is_always_the_same_and_not_the_likeliest(random, noise):
    sound = random.sound(noise)
    texts = [random.decode(sound, limit=20, temperature=temperature) for temperature in (0.0, 1.0, 1.0)]
    assert texts[0].tokens != texts[1].tokens
    assert texts[1].tokens == texts[2].tokens


def test_draws_have_the_probabilities_of_the_softmax():
    from whisper_byoc.speech.fast.decoding import _choose

    logits, dice = np.log(np.array([0.7, 0.2, 0.1], np.float32)) * 2, np.random.default_rng(1)
    counts = np.bincount([_choose(logits, 2.0, dice) for _ in range(4000)], minlength=3) / 4000
    np.testing.assert_allclose(counts, [0.7, 0.2, 0.1], atol=0.03)


def test_decoding_is_cancelled_between_two_tokens(demo, sound):
    encoded, asked = demo.sound(sound("demo-numbers.wav")), []
    with pytest.raises(Cancelled):
        demo.decode(encoded, is_cancelled=lambda: asked.append(1) or len(asked) > 3)
    assert len(asked) == 4


def test_rules_leave_something_to_write_whatever_was_written(demo):
    """Any text so far, with timestamps in every order that the rules allow."""
    tokenizer = demo.mine.tokenizer
    rules, dice = Rules(tokenizer, timestamps=True), np.random.default_rng(0)
    for _ in range(20):
        written = []
        for _ in range(30):
            logits = dice.standard_normal(demo.mine.dims.n_vocab).astype(np.float32)
            logits[tokenizer.timestamp_begin :] += 4
            rules.apply(logits, written)
            assert np.isfinite(logits).any()
            written.append(int(logits.argmax()))
            if written[-1] == tokenizer.eot:
                break


def test_a_short_window_with_silence_behind_it_is_read_as_the_whole(demo, sound, texts):
    tokenizer = demo.mine.tokenizer
    for name in NAMES[:3]:
        samples = sound(name)
        encoded = demo.network.encode(log_mel(samples, 80), len(samples) / 16_000 + 1)
        found = demo.decode(encoded)
        assert tokenizer.decode(found.tokens).strip() == texts[name]["text"]
        assert encoded.positions < 500
        assert encoded.mask.shape[-1] < encoded.positions + 187
        assert encoded.mask[0, 0, 0, -1] == pytest.approx(np.log(8), abs=0.1)


def test_whisper_is_pinned_whose_rules_these_are():
    assert whisper.__version__ == "20250625"
