"""Sound that is taken out of MPEG-TS, and put beside other pictures; ffmpeg judges the result in test_video.py."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whisper_byoc.server.streams.mpegts import CLOCK, WRAP, PacketReader, SoundMixer, SoundReader, crc32

SOUND, PICTURES, MAP = 0x101, 0x100, 0x1000


def word(value):
    return value.to_bytes(2)


def packet(pid, payload, *, begins):
    head = b"\x47" + word(begins << 14 | pid)
    stuffing = 184 - len(payload)
    if not stuffing:
        return head + b"\x10" + payload
    return head + b"\x30" + bytes([stuffing - 1]) + b"\0".ljust(stuffing - 1, b"\xff")[: stuffing - 1] + payload


def table(number, body):
    section = bytes([number]) + word(0xB000 | len(body) + 9) + b"\0\1\xc1\0\0" + body
    return b"\0" + section + crc32(section).to_bytes(4)


def tables(*tracks):
    entries = b"".join(bytes([kind]) + word(0xE000 | pid) + b"\xf0\0" for kind, pid in tracks)
    pmt = table(2, word(0xE000 | PICTURES) + b"\xf0\0" + entries)
    return packet(0, table(0, b"\0\1" + word(0xE000 | MAP)), begins=True) + packet(MAP, pmt, begins=True)


def piece(pid, time, data=b"data"):
    """One PES packet in as many packets as it takes."""
    time %= WRAP
    stamp = bytes([0x21 | time >> 29 & 14]) + word(time >> 14 & 0xFFFE | 1) + word(time << 1 & 0xFFFE | 1)
    length = 0 if pid == PICTURES else len(data) + 8
    pes = b"\0\0\1" + (b"\xe0" if pid == PICTURES else b"\xc0") + word(length) + b"\x80\x80\5" + stamp + data
    return b"".join(packet(pid, pes[at : at + 184], begins=at == 0) for at in range(0, len(pes), 184))


BOTH = tables((0x1B, PICTURES), (0x0F, SOUND))


def stream(begin=0, tenths=20, size=300):
    parts = [BOTH]
    for tenth in range(tenths):
        time = begin + tenth * CLOCK // 10
        parts += [piece(PICTURES, time, bytes([tenth]) * size), piece(SOUND, time, bytes([tenth]) * size)]
    return b"".join(parts)


def test_crc():
    assert crc32(b"123456789") == 0x0376E6E7


@given(st.lists(st.integers(1, 400), max_size=60), st.sampled_from([0, WRAP - CLOCK, 5 * CLOCK]))
def test_sound_is_found_in_any_chunking(sizes, begin):
    data, reader, units = stream(begin), SoundReader(7), []
    for size in sizes:
        units += reader.feed(data[:size])
        data = data[size:]
    units += reader.feed(data) + reader.finish()
    assert [unit.time for unit in units] == [7 + tenth * CLOCK // 10 for tenth in range(20)]
    assert [unit.pes[14:] for unit in units] == [bytes([tenth]) * 300 for tenth in range(20)]


@given(st.lists(st.one_of(st.binary(max_size=400), st.just(BOTH), st.just(piece(SOUND, 0))), max_size=20))
def test_what_is_no_stream_is_taken(pieces):
    reader, mixer = SoundReader(), SoundMixer(1000)
    for each in pieces:
        mixer.add(reader.feed(each))
        mixer.feed(each)
    mixer.add(reader.finish())
    assert len(mixer.rest()) % 188 == 0


def test_the_pattern_of_packets_is_found_again():
    good = [packet(5, bytes([number]) * 184, begins=False) for number in range(4)]
    reader = PacketReader()
    damaged = b"\x47bad" + good[0] + good[1] + good[2][:90] + good[3] + good[3]
    assert list(reader.feed(damaged))[-2:] == [good[3], good[3]]


@pytest.mark.parametrize("jump", [-15 * CLOCK, -CLOCK, 11 * CLOCK, 20 * 3600 * CLOCK])
def test_time_that_jumps_goes_on(jump):
    """ffmpeg, too, joins what comes after a jump of the pictures' time to what came before."""
    reader = SoundReader()
    first = reader.feed(stream())
    later = reader.feed(stream(begin=2 * CLOCK + jump)) + reader.finish()
    times = [unit.time for unit in first + later]
    assert len(times) == 40
    assert all(0 <= after - before <= CLOCK // 5 for before, after in itertools.pairwise(times))


def test_a_gap_stays_a_gap():
    reader = SoundReader()
    times = [unit.time for unit in reader.feed(stream()) + reader.feed(stream(begin=7 * CLOCK)) + reader.finish()]
    assert times[20] - times[19] == 51 * CLOCK // 10


def test_the_track_of_sound_may_change_and_go():
    reader = SoundReader()
    sound = reader.feed(stream() + tables((0x1B, PICTURES)) + piece(SOUND, 2 * CLOCK))
    assert len(sound) == 20
    other = tables((0x1B, PICTURES), (0x03, 0x222)) + piece(0x222, 2 * CLOCK) + piece(SOUND, 2 * CLOCK)
    (unit,) = reader.feed(other)
    assert (unit.track.kind, unit.track.pid) == (0x03, 0x222)


def test_sound_comes_before_its_pictures_and_the_rest_at_the_end():
    reader, mixer = SoundReader(), SoundMixer(1 << 20)
    mixer.add(reader.feed(stream()) + reader.finish())
    mixer.begin(0)
    begin = 3 * CLOCK
    pictures = tables((0x1B, PICTURES)) + b"".join(piece(PICTURES, begin + tenth * CLOCK // 10) for tenth in range(10))
    mixed = mixer.feed(pictures)
    assert mixer.pictures == 10
    for data, last in ((mixed, 9), (mixed + mixer.rest(), 19)):
        heard = SoundReader()
        units = heard.feed(data) + heard.finish()
        assert [unit.pes[14:] for unit in units] == [bytes([tenth]) * 300 for tenth in range(last + 1)]
        assert [unit.time for unit in units] == [tenth * CLOCK // 10 for tenth in range(last + 1)]


def test_sound_beyond_the_limit_is_counted():
    reader, mixer = SoundReader(), SoundMixer(1000)
    mixer.add(reader.feed(stream()) + reader.finish())
    assert mixer.dropped == 17 * 314
