"""Bytes without a type: which files are known by how they begin is tested with their decoding (`test_recording.py`)."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from audio.sniff import is_media


@given(st.binary(max_size=600))
def test_any_bytes_are_media_or_not(data):
    assert is_media(data) in (True, False)


@given(st.binary(min_size=200, max_size=400))
def test_quiet_pcm_is_not_taken_for_media(data):
    samples = np.frombuffer(b"\0" + data, np.int8) * np.int16(2)
    assert not is_media(samples.astype("<i2").tobytes())
