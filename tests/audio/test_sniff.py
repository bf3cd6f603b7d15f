"""Bytes without a type: which files are known by how they begin is tested with their decoding (`test_recording.py`)."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from audio.sniff import is_media, media_format


@given(st.binary(max_size=600))
def test_any_bytes_are_media_or_not(data):
    assert is_media(data) in (True, False)


@given(st.binary(min_size=200, max_size=400))
def test_quiet_pcm_is_not_taken_for_media(data):
    samples = np.frombuffer(b"\0" + data, np.int8) * np.int16(2)
    assert not is_media(samples.astype("<i2").tobytes())


@given(st.binary(max_size=600), st.integers(0, 600))
def test_what_is_known_early_is_what_is_known_in_the_end(data, at):
    early = media_format(data[:at], more=True)
    assert early is None or early == media_format(data)


@pytest.mark.parametrize("head", [b"abcd", b"\x01\x02", bytes(12), b"RIFX" + bytes(8), b"G" + bytes(200)])
def test_no_more_is_waited_for_than_is_needed(head):
    assert media_format(head, more=True) is not None
