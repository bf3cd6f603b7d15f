"""The full stop that is held back, and what an utterance may go on in."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from audio.utterances import Utterance
from whisper_byoc.speech.sentence import LONGEST, PAUSE, Sentence
from whisper_byoc.speech.transcript import TextSegment, Transcription, join

RATE = 16_000


def utterance(number, start, seconds=1.0, ended_by="pause"):
    first, length = int(start * RATE), int(seconds * RATE)
    samples = np.full(length, 1000, np.int16)
    return Utterance(number, first, samples, first + 100, first + length - 100, ended_by)


def text(words, *, goes_on=False, language="en"):
    return Transcription(words, language, (TextSegment(0.0, 1.0, words),) if words else (), goes_on)


@pytest.fixture
def sentence():
    return Sentence()


def test_a_full_stop_is_held_back_and_leads_the_next_text(sentence):
    told = sentence.add(utterance(0, 0), text("Printing."), hold=True)
    assert (told.text, told.segments[0].text, told.is_open) == ("Printing", "Printing", True)
    told = sentence.add(utterance(1, 1.5), text("It is old."), hold=False)
    assert (told.text, told.segments[0].text, told.is_open) == (". It is old.", ". It is old.", False)


def test_a_text_that_goes_on_drops_it(sentence):
    sentence.add(utterance(0, 0), text("Printing."), hold=True)
    assert (
        sentence.add(utterance(1, 1.5), text("in the only sense.", goes_on=True), hold=True).text == "in the only sense"
    )
    assert sentence.end()[1].text == "."


@pytest.mark.parametrize("words", ["How old is it?", "Stop!", "concerned,", "no mark", "...", ""])
def test_nothing_else_is_held_back(sentence, words):
    assert sentence.add(utterance(0, 0), text(words), hold=True) == text(words)
    assert sentence.end() is None


@pytest.mark.parametrize("stop", ["...", "\u2026", "\u3002"])
def test_what_else_ends_a_sentence(sentence, stop):
    assert sentence.add(utterance(0, 0), text(f"and so{stop}"), hold=True).text == "and so"
    assert sentence.end()[1].text == stop


def test_it_is_told_once_when_the_pause_has_become_a_long_one(sentence):
    said = utterance(0, 0)
    sentence.add(said, text("Printing."), hold=True)
    assert sentence.end(said.speech_end + PAUSE - 1) is None
    place, found = sentence.end(said.speech_end + PAUSE)
    assert (found.text, found.segments, place.first, len(place.samples)) == (".", (), said.end, 0)
    assert sentence.end() is None


def test_noise_without_text_changes_nothing(sentence):
    sentence.add(utterance(0, 0), text("Printing."), hold=True)
    assert sentence.add(utterance(1, 1.2, 0.2), text(""), hold=True).text == ""
    assert sentence.before(utterance(2, 1.6), "en").text == "Printing"


def test_context_is_the_sound_before_with_its_pause(sentence):
    assert sentence.before(utterance(0, 0), "en") is None
    sentence.add(utterance(0, 0), text("Printing."), hold=True)
    before = sentence.before(utterance(1, 1.5), "en")
    assert before.text == "Printing"
    assert len(before.samples) == 1.5 * RATE
    assert before.samples[0] == pytest.approx(1000 / 32768)
    assert not before.samples[RATE:].any()


def test_behind_a_long_pause_the_sentence_before_has_ended(sentence):
    sentence.add(utterance(0, 0), text("Printing."), hold=True)
    assert sentence.before(utterance(1, 2.2), "en").text == "Printing."
    assert sentence.before(utterance(1, 2.6), "en") is None


def test_another_language_or_too_much_sound_has_no_context(sentence):
    sentence.add(utterance(0, 0), text("Printing."), hold=True)
    assert sentence.before(utterance(1, 1.5), "de") is None
    assert sentence.before(utterance(1, 1.5, LONGEST / RATE - 1.4), "en") is None


def test_an_utterance_that_is_lost_is_no_context(sentence):
    sentence.add(utterance(0, 0), text("Printing."), hold=True)
    sentence.lose()
    assert sentence.before(utterance(2, 1.5), "en") is None
    assert sentence.end() is None


SPOKEN = st.lists(
    st.tuples(st.sampled_from(["One.", "two", "Three,", "four?", "...", ". five", ", six.", ""]), st.booleans(),
              st.booleans(), st.floats(0.0, 2.0)),
    max_size=8,
)  # fmt: skip


@given(SPOKEN)
def test_texts_that_are_told_join_to_what_was_said(spoken):
    """No mark is lost or told twice, but for the stop before a text that goes on in its sentence."""
    sentence, told, said, clock = Sentence(), [], [], 0.0
    for number, (words, goes_on, hold, pause) in enumerate(spoken):
        each = utterance(number, clock + pause)
        clock += pause + 1.0
        if (stop := sentence.end(each.speech_start)) is not None:
            told.append(stop[1])
            said[-1] = said[-1][0], False
        told.append(sentence.add(each, text(words, goes_on=goes_on), hold=hold))
        if goes_on and words and said and said[-1][1]:
            said[-1] = said[-1][0].rstrip(".\u2026 "), False
        said += [(words, hold and words != "...")] if words else []
    if (stop := sentence.end()) is not None:
        told.append(stop[1])
    assert "".join(join(told, "en").text.split()) == "".join("".join(words for words, _ in said).split())
    joined = join(told, "en")
    assert joined.text == " ".join(segment.text for segment in joined.segments)
