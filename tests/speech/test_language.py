"""Which language is spoken where."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from whisper_byoc.speech.engine import DecodeOptions
from whisper_byoc.speech.language import (
    CHANGE,
    LEAST_PROBABILITY,
    LONGEST_PIECE,
    SHORTEST_PIECE,
    LanguageChoice,
    labelled,
    parted,
    runs,
)
from whisper_byoc.speech.transcript import LanguagePiece, Transcription

RATE = 16_000


def pieces(*heard):
    """Make pieces of (seconds, language, probability)."""
    found, at = [], 0.0
    for seconds, language, probability in heard:
        found.append(LanguagePiece(at, at + seconds, {language: probability}))
        at += seconds
    return found


def languages(heard, before=None):
    return [each.language for each in labelled(pieces(*heard), before or {})[0]]


@given(st.integers(0, 40 * RATE), st.integers(0, 9))
def test_pieces_follow_each_other_and_are_neither_long_nor_short(length, seed):
    sound = np.random.default_rng(seed).normal(0, 0.1, length).astype(np.float32)
    points = parted(sound)
    assert (points[0], points[-1]) == (0, length)
    if length > LONGEST_PIECE * RATE:
        sizes = [(end - start) / RATE for start, end in pairwise(points)]
        assert min(sizes) >= SHORTEST_PIECE
        assert max(sizes) <= LONGEST_PIECE + 0.01


def test_pauses_are_where_sound_is_parted():
    sound = np.random.default_rng(1).normal(0, 0.1, 26 * RATE).astype(np.float32)
    for pause in (7.0, 12.2, 19.0):
        sound[int(pause * RATE) : int((pause + 0.5) * RATE)] *= 0.05
    points = np.array(parted(sound)) / RATE
    assert all(np.any((points > pause) & (points < pause + 0.5)) for pause in (7.0, 12.2, 19.0))


@pytest.mark.parametrize(
    ("heard", "expected"),
    [
        ([(1.0, "cy", 0.5)], ["cy"]),  # nothing is known that speaks against it
        ([(4.0, "en", 0.9), (4.0, "de", 0.9), (4.0, "en", 0.9)], ["en", "de", "en"]),
        ([(4.0, "en", 0.9), (1.0, "de", 0.9), (4.0, "en", 0.9)], ["en", "en", "en"]),
        ([(4.0, "en", 0.9), (1.0, "de", 0.9), (1.0, "de", 0.9), (1.0, "de", 0.9)], ["en", "de", "de", "de"]),
        ([(1.0, "cy", 0.5), (4.0, "en", 0.9)], ["en", "en"]),  # what follows counts as well
    ],
)
def test_a_change_needs_more_than_a_short_sound(heard, expected):
    assert languages(heard) == expected


def test_what_was_spoken_before_counts():
    _, english = labelled(pieces((4.0, "en", 0.99)), {})
    assert max(english, key=english.get) == "en"
    assert languages([(1.0, "de", 0.99)], english) == ["en"]
    assert languages([(4.0, "de", 0.99)], english) == ["de"]
    _, doubt = labelled(pieces((1.0, "de", 0.9)), english)
    assert languages([(1.0, "de", 0.9)], doubt) == ["de"]  # twice in a row


chances = st.dictionaries(
    st.sampled_from(["en", "de", "fr", "es"]), st.floats(LEAST_PROBABILITY, 1), min_size=1, max_size=3
)


@given(st.lists(st.tuples(st.floats(0.01, 30), chances), min_size=1, max_size=6))
def test_scores_stay_in_their_bounds(heard):
    scores = {}
    for seconds, found in heard:
        (piece,), scores = labelled([LanguagePiece(0.0, seconds, found)], scores)
        if scores:
            assert max(scores.values()) == 0
            assert min(scores.values()) > -CHANGE
            assert scores[piece.language] == 0


def test_runs():
    found = [LanguagePiece(0.0, 2.0, {}, "en"), LanguagePiece(2.0, 5.0, {}, "en"), LanguagePiece(5.0, 6.5, {}, "de")]
    assert runs(found) == [(0.0, 5.0, "en"), (5.0, 6.5, "de")]


def test_what_the_client_says_is_not_asked_of_the_model():
    choice = LanguageChoice("de")
    assert choice.likely == "de"
    assert choice.asked(DecodeOptions("xx", prompt="a")) == DecodeOptions("de", prompt="a")


def heard(text, *spoken, before):
    found, _ = labelled(pieces(*spoken), before)
    return Transcription(text, found[0].language, pieces=found)


def test_a_stream_remembers_what_was_spoken_but_not_where_nobody_spoke():
    choice = LanguageChoice(None)
    assert choice.likely is None
    assert choice.asked(DecodeOptions("xx")) == DecodeOptions(None)
    doubtful = heard("ah", (0.5, "cy", 0.9), before={})
    assert choice.agrees(doubtful)
    choice.heard(heard("guten Tag", (4.0, "de", 0.9), before={}))
    assert choice.likely == "de"
    assert not choice.agrees(doubtful)
    choice.heard(heard("", (9.0, "cy", 0.9), before=choice.asked(DecodeOptions()).spoken))
    assert choice.likely == "de"
