"""Chained Ogg: each link is decoded as what it is."""

import io
import itertools
import subprocess

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from audio.errors import MediaError
from audio.ffmpeg import ffmpeg_environment, ffmpeg_path
from audio.media import decode_media
from audio.ogg import MAX_SPANS, Links, spans

TONES = {"a": (1000, 44_100, 2), "b": (600, 16_000, 1), "c": (800, 44_100, 2)}
"""Name of a link -> Hz, and of its samples the rate and the channels."""


@pytest.fixture(scope="session")
def link():
    """Return a function that encodes one second of a tone, a link."""
    made = {}

    def encode(name, codec):
        if (name, codec) not in made:
            hertz, rate, channels = TONES[name]
            source = f"sine=frequency={hertz}:duration=1:sample_rate={rate}"
            quiet = (ffmpeg_path(), "-nostdin", "-loglevel", "error")
            command = [*quiet, "-f", "lavfi", "-i", source, "-ac", str(channels), "-c:a", codec, "-f", "ogg", "pipe:1"]
            done = subprocess.run(command, check=True, capture_output=True, timeout=30, env=ffmpeg_environment())
            made[name, codec] = done.stdout
        return made[name, codec]

    return encode


@pytest.mark.parametrize("codec", ["libvorbis", "flac", "libspeex"])
@pytest.mark.parametrize("names", ["ab", "ba", "aca", "abcb"])
def test_links_of_any_rate_and_channels_are_decoded_right(link, codec, names, monkeypatch):
    if codec == "libspeex":
        for name, rate in (("a", 32_000), ("b", 8_000), ("c", 32_000)):
            monkeypatch.setitem(TONES, name, (TONES[name][0], rate, TONES[name][2]))
    links = [link(name, codec) for name in names]
    complaints = []
    samples = decode_media(b"".join(links), warn=complaints.append)
    assert len(samples) / 16_000 == pytest.approx(len(names), abs=0.1 * len(names))
    for number, name in enumerate(names):
        middle = samples[int((number + 0.3) * 16_000) :][:8000]
        assert np.abs(np.fft.rfft(middle)).argmax() * 2 == pytest.approx(TONES[name][0], abs=4)


def test_only_where_the_format_changes_is_a_chain_cut(link):
    a, b, c = (link(name, "libvorbis") for name in "abc")
    assert spans(io.BytesIO(a)) == [(0, len(a))]
    assert spans(io.BytesIO(a + c + b)) == [(0, len(a + c)), (len(a + c), len(a + c + b))]
    assert spans(io.BytesIO(a + b[:40])) == [(0, len(a) + 40)]
    assert spans(io.BytesIO(b"OggS")) == [(0, 4)]


def test_a_chain_of_too_many_formats_is_refused(link):
    with pytest.raises(MediaError, match="more than 64 times"):
        spans(io.BytesIO((link("a", "libvorbis") + link("b", "libvorbis")) * (MAX_SPANS // 2 + 1)))


def test_all_links_count_for_the_limit(link):
    data = b"".join(link(name, "flac") for name in "abab")
    with pytest.raises(MediaError, match=r"more than 2\.5 s"):
        decode_media(data, max_seconds=2.5)


BYTES = st.lists(
    st.one_of(
        st.binary(max_size=90),
        st.just(b"OggS\0\2" + bytes(20) + b"\1\x07\x01vorbis"),
        st.just(b"OggS\0\2" + bytes(20) + b"\1\x07\x7fFLAC\0\0"),
        st.just(b"OggS" + bytes(22) + b"\1\2ab"),
    ),
    max_size=20,
)


@given(BYTES, st.lists(st.integers(0, 400), max_size=5))
def test_no_byte_is_lost_however_it_arrives(parts, cuts):
    data = b"OggS" + b"".join(parts)
    links, out, whole = Links(), [], []
    for begin, end in itertools.pairwise([0, *sorted(min(each, len(data)) for each in cuts), len(data)]):
        out += links.feed(data[begin:end])
    assert b"".join([piece for _, piece in out]) + links.finish() == data
    whole += Links().feed(data)
    assert sum(begins for begins, _ in out) == sum(begins for begins, _ in whole)
    found = spans(io.BytesIO(data))
    assert [found[0][0], found[-1][1]] == [0, len(data)]
    assert all(before[1] == after[0] for before, after in itertools.pairwise(found))
