"""Times of words against openai-whisper's functions."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from whisper.timing import WordTiming, dtw_cpu, median_filter, merge_punctuations

from whisper_byoc.speech.fast import alignment
from whisper_byoc.speech.fast.alignment import CLOSING, OPENING, TimedSegment, TimedWord, dtw, leave_pauses

SHAPES = arrays.array_shapes(min_dims=2, max_dims=2, max_side=9)


@settings(max_examples=100, deadline=None)
@given(arrays.arrays(np.float64, SHAPES, elements=st.sampled_from([-1.5, -1.0, 0.0, 0.5, 0.1])))
def test_the_cheapest_path_is_openai_whispers_with_its_choice_among_equals(cost):
    np.testing.assert_array_equal(np.array(dtw(cost)), dtw_cpu(cost))


def test_a_large_matrix():
    cost = np.random.default_rng(0).standard_normal((60, 700))
    np.testing.assert_array_equal(np.array(dtw(cost)), dtw_cpu(cost))


@pytest.mark.parametrize("length", [1, 3, 4, 7, 50])
def test_the_median_filter(length):
    values = np.random.default_rng(length).standard_normal((2, 3, length)).astype(np.float32)
    found = alignment.median_filter(values, 7)
    np.testing.assert_array_equal(found, median_filter(torch.from_numpy(values), 7).numpy())


@settings(max_examples=200)
@given(
    st.lists(
        st.sampled_from([" one", " two", "three", ",", ".", ' "', '"', " (", ")", " -", "-", " ", "!"]), max_size=9
    )
)
def test_punctuation_goes_to_the_word_that_openai_whisper_gives_it_to(texts):
    mine = [TimedWord(text, [at], at, at + 1, 0.5) for at, text in enumerate(texts)]
    theirs = [WordTiming(text, [at], at, at + 1, 0.5) for at, text in enumerate(texts)]
    alignment.merge_punctuation(mine)
    if theirs:  # openai-whisper's fails without any
        merge_punctuations(theirs, OPENING, CLOSING)
    assert [(word.text, word.tokens) for word in mine] == [(word.word, word.tokens) for word in theirs]


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ((0.2, 0.6), (0.2, 0.6)),
        ((0.2, 1.4), (0.2, 1.0)),  # it ends in the pause
        ((1.2, 2.5), (2.0, 2.5)),  # it begins there
        ((0.95, 2.5), (2.0, 2.5)),  # it begins where the word before ends
        ((0.5, 2.5), (0.5, 2.5)),  # there may be a pause in a word
        ((1.2, 1.4), (1.2, 1.4)),  # voice activity has not heard it
    ],
)
def test_words_begin_and_end_where_somebody_speaks(word, expected):
    segment = TimedSegment(0.1, 2.6, [1], [TimedWord("one", [1], *word, 0.5)])
    leave_pauses([segment], [(1.0, 2.0)])
    (found,) = segment.words
    assert (found.start, found.end) == (segment.start, segment.end) == expected
