"""Segments and their channel: every reader gets all bytes once, and every index is written once."""

import asyncio
import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whisper_byoc.trickle.channel import MERGED_BYTES, Channel, Cursor, Segment
from whisper_byoc.trickle.errors import (
    BadSequence,
    ChannelClosed,
    MemoryFull,
    SegmentFinished,
    SegmentNotFound,
    TrickleError,
)
from whisper_byoc.trickle.limits import ByteBudget
from whisper_byoc.trickle.protocol import parse_seq

SIZES = st.lists(st.integers(0, 20) | st.integers(MERGED_BYTES - 3, MERGED_BYTES + 3), max_size=12)


def new_segment(memory=None):
    return Segment(0, memory or ByteBudget(1 << 30), 1 << 30)


def new_channel():
    return Channel("ch", "text/plain", 1 << 20, ByteBudget(1 << 30))


def write(channel, seq, data=b"x"):
    segment = channel.for_write(seq)
    channel.begin(segment)
    segment.append(data)
    channel.finish(segment)
    return segment


@given(st.lists(st.tuples(st.integers(0, 5000), st.booleans(), st.booleans())))
@settings(max_examples=30, deadline=None)
def test_readers_at_any_pace_get_everything(steps):
    segment = new_segment()
    fast, slow = Cursor(segment), Cursor(segment)
    got = {fast: b"", slow: b""}
    whole = b""
    for number, (size, fast_reads, slow_reads) in enumerate(steps):
        data = bytes([number % 256]) * size
        whole += data
        segment.append(data)
        for cursor, reads in ((fast, fast_reads), (slow, slow_reads)):
            if reads:
                got[cursor] += cursor.take()
    for cursor in got:
        while data := cursor.take():
            got[cursor] += data
    assert got[fast] == got[slow] == whole
    assert segment.size == len(whole)


@given(SIZES)
@settings(max_examples=20, deadline=None)
async def test_iterating_while_it_grows(sizes):
    segment = new_segment()
    pieces = [bytes([number]) * size for number, size in enumerate(sizes)]

    async def write_all():
        for piece in pieces:
            segment.append(piece)
            await asyncio.sleep(0)
        segment.close()

    writing = asyncio.create_task(write_all())
    assert b"".join([data async for data in Cursor(segment)]) == b"".join(pieces)
    await writing


def test_single_bytes_do_not_cost_an_object_each():
    segment = new_segment()
    for _ in range(3 * MERGED_BYTES):
        segment.append(b"x")
    assert len(segment.chunks) == 3


def test_memory_is_shared_and_given_back_when_nobody_reads_any_more():
    memory = ByteBudget(100)
    one, two = new_segment(memory), new_segment(memory)
    one.append(bytes(60))
    two.append(bytes(40))
    with pytest.raises(MemoryFull, match="holds 100 of 100 bytes"):
        two.append(b"x")
    cursor = Cursor(one)
    del one
    assert memory.held == 100, "a reader still holds it"
    del cursor
    assert memory.held == 40
    two.append(bytes(60))


def test_the_first_byte_moves_the_next_write_and_never_back():
    channel = new_channel()
    behind = channel.for_write(0)
    assert channel.next_write == 0
    write(channel, 4)
    channel.begin(behind)
    assert channel.next_write == 5


def test_what_was_evicted_is_kept_for_its_reader():
    channel = new_channel()
    old = channel.for_write(0)
    channel.begin(old)
    old.append(b"old")
    cursor = Cursor(old)
    channel.for_write(5)
    assert old.closed
    assert cursor.take() == b"old"


def test_an_index_that_was_overtaken_is_taken_while_its_slot_is_free():
    channel = new_channel()
    write(channel, 6)
    late = write(channel, 5)
    assert channel.for_read(5) is late
    assert channel.next_write == 7
    with pytest.raises(SegmentFinished):
        channel.for_write(5)


@pytest.mark.parametrize("others", [True, False])
def test_a_publisher_that_begins_behind_the_window_begins_the_channel_again_unless_another_one_writes(others):
    channel = new_channel()
    for seq in range(8):
        write(channel, seq)
    waiting = channel.for_read(8)
    with channel.uploading() if others else contextlib.nullcontext():
        if others:
            with pytest.raises(SegmentFinished, match="the next one is 8"):
                channel.for_write(2)
        else:
            assert channel.for_write(2).seq == channel.next_write == 2
    assert waiting.closed is not others
    assert (channel.beginnings, channel.ended_at) == ((1, 0) if others else (2, 8))
    for seq in (3, 7):  # behind what is written next now, and the rest of before is gone
        with pytest.raises(SegmentFinished if others else SegmentNotFound):
            (channel.for_write if others else channel.for_read)(seq)


def test_closing_a_segment_that_only_a_reader_waits_for_uses_its_index_up():
    channel = new_channel()
    waiting = channel.for_read(0)
    channel.finish_seq(0)
    assert waiting.closed
    assert channel.next_write == 1, "else writer and readers would wait for each other"


def test_a_closed_channel_takes_and_gives_nothing():
    channel = new_channel()
    channel.close()
    for ask in (channel.for_read, channel.for_write):
        with pytest.raises(ChannelClosed):
            ask(0)


@given(st.lists(st.tuples(st.sampled_from(["write", "open", "read", "finish", "reset"]), st.integers(-3, 12))))
@settings(max_examples=50, deadline=None)
def test_invariants_hold_whatever_peers_ask(steps):
    channel = new_channel()
    actions = {
        "write": lambda seq: write(channel, seq),
        "open": channel.for_write,
        "read": channel.for_read,
        "finish": channel.finish_seq,
        "reset": channel.finish_below,
    }
    for what, seq in steps:
        before = channel.next_write
        with contextlib.suppress(TrickleError):
            actions[what](seq)
        began_again = what in ("write", "open") and 0 <= seq < before - 5
        assert channel.next_write >= (seq if began_again else before)
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
