"""Which index is where: next write, window, eviction."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whisper_byoc.trickle.channel import Channel
from whisper_byoc.trickle.errors import BadSequence, ChannelClosed, SegmentFinished, SegmentNotFound, TrickleError
from whisper_byoc.trickle.limits import Memory
from whisper_byoc.trickle.protocol import parse_seq


@pytest.fixture
def channel():
    return make()


def make():
    return Channel("ch", "text/plain", 1 << 20, Memory(1 << 30))


def write(channel, seq, data=b"x"):
    segment = channel.for_write(seq)
    channel.begin(segment)
    segment.append(data)
    channel.finish(segment)
    return segment


def test_opening_does_not_move_the_next_write_but_a_byte_does(channel):
    segment = channel.for_write(0)
    assert channel.next_write == 0
    channel.begin(segment)
    assert channel.next_write == 1


def test_an_empty_segment_uses_its_index_up(channel):
    channel.finish(channel.for_write(0))
    assert channel.next_write == 1


def test_the_next_write_never_moves_back(channel):
    behind = channel.for_write(0)
    write(channel, 4)
    channel.begin(behind)
    assert channel.next_write == 5


def test_minus_one_and_minus_two(channel):
    assert channel.for_read(-1).seq == 0
    assert channel.for_read(-2).seq == 0
    write(channel, -1)
    write(channel, -1)
    assert channel.for_read(-2).seq == 1
    assert channel.for_read(-1).seq == 2
    assert channel.for_write(-1) is channel.for_write(2), "both get the same index until one has a byte"


@pytest.mark.parametrize("seq", [-3, -1000, -(2**62)])
def test_other_negative_indices_are_refused(channel, seq):
    for ask in (channel.for_read, channel.for_write, channel.finish_seq):
        with pytest.raises(BadSequence):
            ask(seq)


@pytest.mark.parametrize("ask", ["for_write", "finish_seq"])
def test_minus_two_is_for_reading_only(channel, ask):
    with pytest.raises(BadSequence):
        getattr(channel, ask)(-2)
    with pytest.raises(BadSequence):
        channel.finish_seq(-1)


def test_a_reader_may_come_first_to_the_next_one_and_once_to_index_1(channel):
    assert channel.for_read(1).seq == 1
    assert channel.for_read(0).seq == 0
    with pytest.raises(SegmentNotFound) as early:
        channel.for_read(2)
    assert early.value.latest == 0
    write(channel, 0)
    write(channel, 1)
    assert channel.for_read(2).seq == 2
    with pytest.raises(SegmentNotFound):
        channel.for_read(3)


def test_window_holds_n_minus_3_to_n_beside_a_preconnect(channel):
    for seq in range(10):
        write(channel, seq)
    channel.for_write(10)
    for seq in range(6, 11):
        assert channel.for_read(seq).seq == seq
    for seq in (5, 11, 0, 2**63 - 2):
        with pytest.raises(SegmentNotFound) as gone:
            channel.for_read(seq)
        assert gone.value.latest == 10


def test_evicting_ends_the_evicted_and_keeps_its_bytes_for_who_reads_it(channel):
    old = channel.for_write(0)
    channel.begin(old)
    old.append(b"old")
    cursor = old.read()
    channel.for_write(5)
    assert old.closed
    assert cursor.take() == b"old"


def test_an_index_behind_or_finished_is_refused(channel):
    write(channel, 0)
    with pytest.raises(SegmentFinished, match="the next one is 1"):
        channel.for_write(0)
    for seq in range(1, 8):
        write(channel, seq)
    with pytest.raises(SegmentFinished):
        channel.for_write(1)


def test_an_index_that_was_overtaken_is_taken_while_its_place_is_free(channel):
    write(channel, 6)
    late = write(channel, 5)
    assert channel.for_read(5) is late
    assert channel.next_write == 7
    with pytest.raises(SegmentFinished):
        channel.for_write(1)
    with pytest.raises(SegmentFinished):
        channel.for_write(5)


def test_an_index_behind_that_is_still_open_is_shared(channel):
    open_one = channel.for_write(0)
    channel.begin(open_one)
    assert channel.for_write(0) is open_one


def test_far_ahead_is_allowed(channel):
    write(channel, 1_000_000)
    assert channel.next_write == 1_000_001


def test_closing_a_segment_that_only_a_reader_waits_for_uses_its_index_up(channel):
    waiting = channel.for_read(0)
    channel.finish_seq(0)
    assert waiting.closed
    assert channel.next_write == 1, "else writer and readers would wait for each other"


def test_closing_below_leaves_what_is_above(channel):
    one, two, three = (channel.for_write(seq) for seq in (1, 2, 3))
    channel.finish_below(2)
    assert (one.closed, two.closed, three.closed) == (True, False, False)


def test_a_closed_channel_takes_and_gives_nothing(channel):
    waiting = channel.for_read(0)
    channel.close()
    assert waiting.closed
    for ask in (channel.for_read, channel.for_write):
        with pytest.raises(ChannelClosed):
            ask(0)


@given(st.lists(st.tuples(st.sampled_from(["write", "open", "read", "finish", "reset"]), st.integers(-3, 12))))
def test_invariants_hold_whatever_peers_ask(steps):
    channel = make()
    for what, seq in steps:
        before = channel.next_write
        try:
            if what == "write":
                write(channel, seq)
            elif what == "open":
                channel.for_write(seq)
            elif what == "read":
                channel.for_read(seq)
            elif what == "finish":
                channel.finish_seq(seq)
            else:
                channel.finish_below(seq)
        except TrickleError:
            pass
        assert channel.next_write >= before
        assert len({each.seq % 5 for each in channel.segments}) == len(channel.segments), "one for each slot"
    assert not channel.for_write(-1).closed, "whatever happened, the next one can be written"
    assert channel.for_read(-1) is channel.for_write(-1)


@pytest.mark.parametrize(
    ("text", "seq"), [("0", 0), ("+7", 7), ("-1", -1), ("007", 7), ("9223372036854775806", 2**63 - 2)]
)
def test_indices_are_read_as_go_does(text, seq):
    assert parse_seq(text) == seq


@pytest.mark.parametrize(
    "text",
    ["", " 1", "1 ", "1.0", "1e3", "0x1", "1_0", "--1", "next", "\u0661", "9223372036854775808", "1" * 5000, "\x00"],
)
def test_what_is_no_index_is_refused(text):
    with pytest.raises(BadSequence):
        parse_seq(text)
