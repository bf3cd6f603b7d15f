"""Text that goes on in the sentence before, with the demo model, which knows words and no sentences."""

import numpy as np
import pytest

from whisper_byoc.speech.engine import Before, Cancelled, DecodeOptions
from whisper_byoc.speech.fast.continuation import agree
from whisper_byoc.speech.fast.decoding import Wish, decode, together
from whisper_byoc.speech.fast.engine import FastEngine
from whisper_byoc.speech.fast.mel import log_mel

RATE = 16_000
NAMES = ["demo-stop.wav", "demo-numbers.wav", "demo-colours-fast.wav"]


@pytest.fixture(scope="module")
def hello(sound):
    return sound("demo-hello-world.wav")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("beam", [1, 5])
def test_the_words_behind_a_text_are_those_alone(engine, sound, texts, hello, name, beam):
    options = DecodeOptions(before=Before(hello, "hello world"), beam=beam)
    found = engine.transcribe(sound(name), options).result()
    assert (found.text, found.goes_on) == (texts[name]["text"], True)


def test_times_count_from_the_new_sound(engine, sound, hello):
    name = "demo-numbers.wav"
    alone = engine.transcribe(sound(name), DecodeOptions(words=True)).result()
    behind = engine.transcribe(sound(name), DecodeOptions(words=True, before=Before(hello, "hello world"))).result()
    one, other = ([word for segment in each.segments for word in segment.words] for each in (alone, behind))
    assert [word.text for word in one] == [word.text for word in other]
    assert np.median([abs(a.start - b.start) for a, b in zip(one, other, strict=True)]) <= 0.041
    assert all(0 <= word.start <= word.end <= len(sound(name)) / RATE for word in other)


def test_a_text_that_misleads_is_not_gone_on_from(engine, sound, texts, hello):
    """The model takes what is said to be written already, so it ends; alone it hears all of it."""
    name = "demo-numbers.wav"
    before = Before(hello[:800], texts[name]["text"])
    found = engine.transcribe(sound(name), DecodeOptions(before=before)).result()
    assert (found.text, found.goes_on) == (texts[name]["text"], False)


def test_a_text_before_may_be_longer_than_the_decoder_has_places_for(engine, sound, texts, hello):
    name = "demo-numbers.wav"
    options = DecodeOptions(prompt="yes no " * 140, before=Before(hello, "hello world " * 200))
    found = engine.transcribe(sound(name), options).result()
    assert (found.text, found.goes_on) == (texts[name]["text"], False)


def test_an_engine_may_decline(model, sound, hello):
    engine = FastEngine(model, continues=False)
    engine.use_threads(1)
    found = engine.transcribe(sound("demo-stop.wav"), DecodeOptions(before=Before(hello, "hello world"))).result()
    assert (found.text, found.goes_on) == ("stop", False)
    assert not engine.replica().continues


def test_it_is_cancelled(engine, sound, hello):
    asked = iter([False] * 6 + [True] * 100)
    options = DecodeOptions(before=Before(hello, "hello world"))
    with pytest.raises(Cancelled):
        engine.transcribe(sound("demo-numbers.wav"), options, lambda: next(asked)).result()


@pytest.mark.parametrize(
    ("alone", "behind", "same"),
    [
        ("Ten of clubs.", "ten of clubs", True),
        ("Ten of clubs.", "of clubs", True),
        ("Ten of clubs.", "clubs", False),
        ("a b c d e f g h i j", "a b c d e f g h", True),
        ("a b c d e f g h i j", "a b c d e f g", False),
        ("a b c d e", "a b c d e f g", False),
        ("one", "", False),
        ("", "one", False),
        ("1, 2, 3.", "123", True),
        ("\u5370\u5237\u672f\u662f\u53e4\u8001\u7684", "\u5370\u5237\u3002", False),
    ],
)
def test_texts_agree_that_have_about_as_many_words(alone, behind, same):
    assert agree(alone, behind) is same


def test_work_done_together_has_the_results_that_each_has_alone(model, sound):
    network, tokenizer = model.network(1), model.tokenizer
    sounds = [network.encode(log_mel(sound(name), 80), 5) for name in NAMES]

    def work(encoded):
        return decode(encoded, tokenizer, model.dims.n_text_ctx, Wish(tokenizer.start("en", "transcribe"), 60))

    alone = [network.run(work(encoded)).tokens for encoded in sounds]
    both = together(*map(work, sounds))
    asked = next(both)
    with pytest.raises(StopIteration) as ended:
        while True:
            asked = both.send(network.decode(asked))
    assert [each.tokens for each in ended.value.value] == alone
