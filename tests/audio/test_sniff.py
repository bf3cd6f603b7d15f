"""Bytes without a type: which files are known by how they begin is tested with their decoding (`test_recording.py`)."""

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from audio.sniff import foreign, is_media, media_format


@given(st.binary(max_size=600))
def test_any_bytes_are_media_or_not(data):
    assert is_media(data) in (True, False)


@given(st.binary(min_size=200, max_size=400))
def test_quiet_pcm_is_not_taken_for_media(data):
    samples = np.frombuffer(b"\0" + data, np.int8) * np.int16(2)
    assert not is_media(samples.astype("<i2").tobytes())


@given(st.binary(max_size=1600) | st.just(b"\xff\xfb\xe0").map(lambda head: head + bytes(1600)), st.integers(0, 1600))
def test_what_is_known_early_is_what_is_known_in_the_end(data, at):
    early = media_format(data[:at], more=True)
    assert early is None or early == media_format(data)


@pytest.mark.parametrize("head", [bytes(1024), b"RIFX" + bytes(8), b"\x1aE\xdf\xa3" + bytes(8)])
def test_no_more_is_waited_for_than_is_needed(head):
    assert media_format(head, more=True) is not None
    assert media_format(head[:11], more=True) is None


@pytest.mark.parametrize("path", ["tiny-garden.wav", "demo-numbers-noise-15db.wav"])
def test_no_piece_of_a_recording_is_taken_for_noise(fixtures_dir, path):
    sound = (fixtures_dir / path).read_bytes()[44:]
    loud = (np.frombuffer(sound, "<i2").astype(np.int32) * 4).clip(-32768, 32767).astype("<i2").tobytes()
    for data in (sound, loud):
        assert not any(media_format(data[at : at + 1024]) for at in range(0, len(data), 1024))


def test_samples_of_another_kind_are_not_taken_for_pcm16(fixtures_dir):
    samples = np.frombuffer((fixtures_dir / "tiny-garden.wav").read_bytes()[44:], "<i2")
    for other in (samples.byteswap(), random.Random(1).randbytes(4000)):
        data = bytes(other)
        assert is_media(data)
        assert not foreign(data)


@pytest.mark.parametrize(
    ("data", "what"),
    [
        ("größer als\r\n".encode() * 90, "text"),
        (b'{"error": "not found"}', "text"),
        (b"\x89PNG\r\n\x1a\n" + bytes(1000), "a PNG picture"),
        (b"\xff\xd8\xff\xe0" + bytes(1000), "a JPEG picture"),
        (b"%PDF-1.4\n" + bytes(1000), "a PDF document"),
        (b"NIST_1A\n   1024\n", ""),
        (b"hello", ""),
        (bytes(1000), ""),
    ],
)
def test_what_holds_no_sound(data, what):
    assert foreign(data) == what
    assert is_media(data) == bool(what or data.startswith(b"NIST"))
