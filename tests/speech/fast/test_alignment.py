"""Times of words against openai-whisper's functions."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from whisper.timing import WordTiming, dtw_cpu, median_filter, merge_punctuations

from whisper_byoc.speech.fast import alignment
from whisper_byoc.speech.fast.alignment import CLOSING, OPENING, TimedWord, dtw

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
