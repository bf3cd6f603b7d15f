"""Sound of any length against `whisper.transcribe`; and windows whose text looks wrong."""

from itertools import chain

import numpy as np
import pytest
import whisper

from whisper_byoc.speech.engine import DecodeOptions, never
from whisper_byoc.speech.fast import windows as module
from whisper_byoc.speech.fast.decoding import Decoded
from whisper_byoc.speech.fast.mel import log_mel
from whisper_byoc.speech.fast.model import FastModel
from whisper_byoc.speech.fast.windows import Attempt, Request, Windows, attempts_at, sentences, transcribe

pytestmark = pytest.mark.filterwarnings("ignore:unclosed file.*tiktoken:ResourceWarning")


@pytest.fixture(scope="module")
def model(exact_demo):
    return exact_demo


@pytest.fixture(scope="module")
def network(model):
    return model.network(1)


SHORT_FIRST = attempts_at(full=False, patient=False)


def found_by(model, network, samples, *, timestamps=True, attempts=SHORT_FIRST, pauses=None, **options):
    request = Request(DecodeOptions(**options), 224, timestamps, attempts)
    windows = Windows(network, log_mel(samples, 80), never, pauses=pauses)
    return network.run(transcribe(model, windows, request, never))


@pytest.mark.parametrize("words", [False, True])
@pytest.mark.parametrize("name", ["demo-long-40s.wav", "demo-numbers.wav", "tiny-weather.wav", "demo-stop.wav"])
def test_segments_and_words_are_openai_whispers(model, network, demo_model, sound, name, words):
    expected = whisper.transcribe(
        demo_model, sound(name), language="en", temperature=0.0, condition_on_previous_text=False,
        word_timestamps=words, fp16=False,
    )  # fmt: skip
    found = found_by(model, network, sound(name), words=words, attempts=(Attempt(full=True),))
    segments = [each for each in expected["segments"] if each["text"]]
    assert [each.text for each in found] == [each["text"] for each in segments]
    for mine, theirs in zip(found, segments, strict=True):
        assert (mine.segment.start, mine.segment.end) == pytest.approx((theirs["start"], theirs["end"]), abs=0.02)
        assert mine.score.logprob == pytest.approx(theirs["avg_logprob"], abs=1e-3)
        assert mine.score.compression == pytest.approx(theirs["compression_ratio"])
        if words:
            assert [word.text for word in mine.segment.words] == [word["word"] for word in theirs["words"]]
            for one, other in zip(mine.segment.words, theirs["words"], strict=True):
                assert (one.start, one.end) == pytest.approx((other["start"], other["end"]), abs=0.02)
                assert one.probability == pytest.approx(other["probability"], abs=1e-3)


@pytest.fixture
def scripted(model, monkeypatch):
    """Have `decode` return what the test wants; returns what it was asked for."""
    asked = []

    def script(*texts):
        waiting = list(texts)

        def decode(sound, tokenizer, context, wish, is_cancelled):
            yield from ()
            asked.append((sound.positions, wish.temperature, bool(wish.prompt)))
            text, change = waiting.pop(0)
            values = {"logprob": -0.2, "no_speech": 0.1, "ended": True} | change
            return Decoded(tokens=tokenizer.encode(" " + text), queries={}, **values)

        monkeypatch.setattr(module, "decode", decode)
        return asked

    return script


GUESS = {"logprob": -1.5}
SHORT, FULL = 208, 1500  # positions for 3 s of sound and 1 s more


@pytest.mark.parametrize(
    ("texts", "expected", "asked"),
    [
        ([("good", {})], "good", [(SHORT, 0.0)]),
        ([("guess", GUESS), ("good", {})], "good", [(SHORT, 0.0), (FULL, 0.0)]),
        ([("cut off", {"ended": False}), ("good", {})], "good", [(SHORT, 0.0), (FULL, 0.0)]),
        ([("and so on " * 20, {}), ("good", {})], "good", [(SHORT, 0.0), (FULL, 0.0)]),
        ([("a", GUESS), ("b", {"logprob": -1.2}), ("c", GUESS)], "b", [(SHORT, 0.0), (FULL, 0.0), (FULL, 0.4)]),
        ([("none", {"logprob": -1.5, "no_speech": 0.7})], None, [(SHORT, 0.0)]),
    ],
)
def test_text_that_looks_wrong_is_decoded_again_on_the_whole_window(
    model, network, noise, scripted, texts, expected, asked
):
    asking = scripted(*texts)
    found = found_by(model, network, np.pad(noise[:16_000], (0, 32_000)))
    assert [each.text.strip() for each in found] == ([expected] if expected else [])
    assert [(positions, temperature) for positions, temperature, _ in asking] == asked


def test_text_that_is_too_short_for_its_sound_is_decoded_once_more(model, network, noise, scripted):
    long = "all that was said in three seconds"
    for texts, expected, attempts in ([("all", long), long, 2], [("all", "that"), "all", 2], [(long,), long, 1]):
        asked = scripted(*((text, {}) for text in texts))
        found = found_by(model, network, noise[: 3 * 16_000])
        assert [each.text.strip() for each in found] == [expected]
        assert [positions for positions, *_ in asked[-attempts:]] == [SHORT, FULL][:attempts]


def test_all_temperatures_are_tried_when_there_is_time(model, network, noise, scripted):
    asked = scripted(*[("guess", GUESS)] * 7)
    found_by(model, network, noise[: 3 * 16_000], attempts=attempts_at(full=False, patient=True))
    assert [temperature for _, temperature, _ in asked] == [0.0, 0.0, 0.2, 0.4, 0.6, 0.8, 1.0]


def test_full_windows_are_not_computed_twice(model, network, noise, scripted):
    asked = scripted(("guess", GUESS), ("good", {}))
    assert found_by(model, network, noise, attempts=attempts_at(full=True, patient=False))[0].text == " good"
    assert [(positions, temperature) for positions, temperature, _ in asked] == [(FULL, 0.0), (FULL, 0.4)]


def test_sound_that_fills_the_window_is_not_tried_twice_alike(model, network, sound, scripted):
    asked = scripted(("guess", GUESS), ("good", {}))
    found_by(model, network, sound("demo-long-40s.wav")[: 28 * 16_000], attempts=SHORT_FIRST)
    assert [(positions, temperature) for positions, temperature, _ in asked] == [(FULL, 0.0), (FULL, 0.4)]


def test_an_echo_of_the_prompt_is_decoded_again_without_it(model, network, noise, scripted):
    asked = scripted(("we met in the garden", {}), ("hello", {}))
    found = found_by(model, network, noise, prompt="yesterday we met in the garden", attempts=(Attempt(),))
    assert [each.text for each in found] == [" hello"]
    assert [prompt for *_, prompt in asked] == [True, False]


def test_only_the_first_window_has_the_prompt(model, network, sound, scripted):
    asked = scripted(("one", {}), ("two", {}))
    found = found_by(model, network, sound("demo-long-40s.wav"), prompt="met in the garden", attempts=(Attempt(),))
    assert [each.text for each in found] == [" one", " two"]
    assert [prompt for *_, prompt in asked] == [True, False]


@pytest.mark.parametrize(
    ("places", "pieces", "expected"),
    [
        ([(0.7, 1.5, 2.3, 2.8)], [(0, 300)], "one two three"),
        ([(0.5, 0.9, 1.3, 1.3), (0.9, 1.4)], [(0, 300), (150, 300)], "one two three after"),
        ([(0.5, 0.9, 1.3, 2.9), (0.9, 1.4)], [(0, 300), (150, 300)], "one two three after"),  # the full stop
        ([(1.8, 2.2, 2.7, 2.8), (0.5, 1.0)], [(0, 300), (0, 120)], "after one two three"),
        ([(0.3, 2.3, 2.8, 2.8), (0.6, 1.1)], [(0, 300), (50, 170)], "one after two three"),
        ([(2.8, 0.7, 1.5, 2.2)], [(0, 300)], "one two three"),  # one word's attention is elsewhere
    ],
)
def test_loud_sound_that_no_word_is_about_is_decoded_by_itself(
    model, network, noise, scripted, monkeypatch, places, pieces, expected
):
    monkeypatch.setattr(FastModel, "follows_sound", True)  # the demo model's heads are not known
    scripted(("one two three.", {}), ("after", {}))
    waiting, asked = iter(places), []
    monkeypatch.setattr(module, "token_places", lambda *_: np.array(next(waiting)))
    encode = Windows.sound

    def sound(self, begin, end=None, *, full):
        asked.append((begin, end))
        return encode(self, begin, end, full=full)

    monkeypatch.setattr(Windows, "sound", sound)
    found = found_by(model, network, noise[: 3 * 16_000], timestamps=False, attempts=(Attempt(),))
    assert "".join(each.text for each in found).replace(".", "").strip() == expected
    assert asked == pieces
    ends = [(each.segment.start, each.segment.end) for each in found]
    assert ends == sorted(ends)


@pytest.mark.parametrize(
    ("places", "second"),
    [((0.2, 0.2, 0.2, 0.2), "unasked"), ((0.5, 0.9, 1.3, 1.3), "One, two, three.")],
)
def test_what_was_said_is_not_said_again(model, network, noise, scripted, monkeypatch, places, second):
    """Where attention says nothing, a text seems to leave out sound that it is about."""
    monkeypatch.setattr(FastModel, "follows_sound", True)
    scripted(("one two three.", {}), (second, {}))
    monkeypatch.setattr(module, "token_places", lambda *_: np.array(places))
    found = found_by(model, network, noise[: 3 * 16_000], timestamps=False, attempts=(Attempt(),))
    assert [each.text for each in found] == [" one two three."]


@pytest.mark.parametrize(
    ("pauses", "expected"),
    [
        ([], "one two three after"),
        ([(1.0, 1.4)], "one two three after"),
        ([(1.0, 1.4), (2.0, 2.8)], "one two three"),  # 0.7 s of speech are left
        (None, "one two three"),  # it is not loud
    ],
)
def test_a_quiet_voice_behind_a_loud_one_is_decoded_by_itself(
    model, network, noise, scripted, monkeypatch, pauses, expected
):
    monkeypatch.setattr(FastModel, "follows_sound", True)
    scripted(("one two three.", {}), ("after", {}))
    waiting = iter([(0.5, 0.9, 1.3, 1.3), (0.9, 1.4)])
    monkeypatch.setattr(module, "token_places", lambda *_: np.array(next(waiting)))
    sound = noise[: 3 * 16_000] * np.where(np.arange(3 * 16_000) < 16_000, 1, 0.01).astype(np.float32)
    found = found_by(model, network, sound, timestamps=False, attempts=(Attempt(),), pauses=pauses)
    assert "".join(each.text for each in found).replace(".", "").strip() == expected


def test_text_that_leaves_all_out_is_not_looked_through_without_end(model, network, noise, scripted, monkeypatch):
    monkeypatch.setattr(FastModel, "follows_sound", True)
    scripted(*[("one", {})] * module.MOST_PIECES)
    monkeypatch.setattr(module, "token_places", lambda *_: np.array([1.5, 1.5]))
    found = found_by(model, network, np.tile(noise, 9)[: 26 * 16_000], timestamps=False, attempts=(Attempt(),))
    assert 1 < len(found) <= module.MOST_PIECES


def test_a_guess_is_no_text_for_what_was_left_out(model, network, noise, scripted, monkeypatch):
    monkeypatch.setattr(FastModel, "follows_sound", True)
    scripted(("one two three.", {}), ("thank you", GUESS))
    monkeypatch.setattr(module, "token_places", lambda *_: np.array([0.5, 0.9, 1.3, 1.3]))
    found = found_by(model, network, noise[: 3 * 16_000], timestamps=False, attempts=(Attempt(),))
    assert [each.text for each in found] == [" one two three."]


@pytest.mark.parametrize(
    ("ends", "pauses", "expected"),
    [
        ([0.9, 2.0, 2.1, 4.0, 5.0, 5.1], (), [(0.0, 2.1), (2.1, 6.0)]),
        ([0.9, 2.0, 2.1, 4.0, 5.0, 5.1], [(2.2, 3.5)], [(0.0, 2.1), (3.5, 6.0)]),
        ([0.9, 2.0, 2.5, 4.0, 5.0, 5.1], [(0.0, 0.4), (2.2, 3.5), (4.1, 4.5)], [(0.4, 2.5), (3.5, 6.0)]),
        ([0.9, 2.0, 2.1, 2.3, 5.0, 5.1], [(2.4, 4.5)], [(0.0, 2.1), (2.1, 6.0)]),  # behind the first word
        ([5.0, 5.0, 5.0, 5.1, 5.2, 5.3], [(2.2, 3.5)], [(0.0, 5.0), (5.0, 6.0)]),  # a first word that attends elsewhere
        ([0.9, 2.0, 6.0, 6.0, 6.0, 6.0], [(5.0, 6.0)], [(0.0, 6.0)]),  # a full stop that attends to the end
    ],
)
def test_a_sentence_begins_behind_the_pause_before_it(model, ends, pauses, expected):
    tokens = [model.tokenizer.encode(piece) for piece in (" one", " two", ".", " one", " two", ".")]
    ends = [end for end, piece in zip(ends, tokens, strict=True) for _ in piece]
    found = sentences([*chain(*tokens)], ends, model.tokenizer, "en", (0.0, 6.0), pauses)
    assert [(each.start, each.end) for each in found] == expected
