"""Values from outside: what is read, and what is named as wrong."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whisper_byoc.errors import BadParam
from whisper_byoc.params import choice, has_pcm_input, number, switch, whole


@pytest.mark.parametrize("value", ["1", "true", "YES", " on ", True, 1])
def test_on(value):
    assert switch("partials", value)


@pytest.mark.parametrize("value", ["0", "false", "No", "off", False, 0])
def test_off(value):
    assert not switch("partials", value)


@pytest.mark.parametrize(("value", "expected"), [("1.5", 1.5), (2, 2.0), ("0", 0.0), ("1e1", 10.0)])
def test_numbers(value, expected):
    assert number("wait", value, 0, 10) == expected


@pytest.mark.parametrize(("value", "expected"), [("7", 7), (7, 7), ("0", 0), ("-3", -3)])
def test_whole_numbers(value, expected):
    assert whole("seq", value, -5, 10) == expected


@pytest.mark.parametrize(
    ("read", "value", "message"),
    [
        (lambda v: switch("x", v), "maybe", "x must be true or false, not 'maybe'"),
        (lambda v: switch("x", v), "", "x must be true or false, not ''"),
        (lambda v: switch("x", v), None, "x must be true or false, not None"),
        (lambda v: number("x", v, 0, 300), "nan", "x must be a number from 0 to 300, not 'nan'"),
        (lambda v: number("x", v, 0, 300), "-1", "x must be a number from 0 to 300, not '-1'"),
        (lambda v: number("x", v, 0, 300), True, "x must be a number from 0 to 300, not True"),
        (lambda v: number("x", v, 0, 300), 10**400, "x must be a number from 0 to 300"),
        (lambda v: whole("x", v), "²", "x must be a whole number, not '²'"),
        (lambda v: whole("x", v), "9" * 50, "x must be a whole number, not '999"),
        (lambda v: whole("x", v), 1.0, "x must be a whole number, not 1.0"),
        (lambda v: whole("x", v), "-1", "x must be a whole number of at least 0, not -1"),
        (lambda v: whole("x", v, 1, 60), 61, "x must be a whole number from 1 to 60, not 61"),
        (lambda v: choice("x", v, ("a", "b")), "c", "x must be one of a, b, not 'c'"),
        (lambda v: choice("x", v, ("a", "b")), ["a"], "x must be one of a, b, not ['a']"),
    ],
)
def test_what_cannot_be_is_named(read, value, message):
    with pytest.raises(BadParam) as caught:
        read(value)
    assert str(caught.value).startswith(message)
    assert caught.value.name == "x"


@given(st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.integers(), max_size=2))
def test_any_value_is_read_or_named(value):
    for read in (
        lambda: switch("x", value),
        lambda: number("x", value, 0, 1),
        lambda: whole("x", value),
        lambda: choice("x", value, ("a",)),
    ):
        with suppress(BadParam):
            read()


@pytest.mark.parametrize(("params", "pcm"), [({"input": "S16LE"}, True), ({"input": "mpegts"}, False), ({}, False)])
def test_what_a_stream_says_of_its_input(params, pcm):
    assert has_pcm_input(params) is pcm
