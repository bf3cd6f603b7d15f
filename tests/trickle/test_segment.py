"""A segment's bytes: however they come and whoever reads when, every reader gets all of them once."""

import asyncio
import gc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whisper_byoc.trickle.channel import MERGED_BYTES, Segment
from whisper_byoc.trickle.errors import MemoryFull, SegmentTooLarge
from whisper_byoc.trickle.limits import Memory

PIECES = st.lists(st.one_of(st.binary(max_size=20), st.binary(min_size=MERGED_BYTES - 3, max_size=MERGED_BYTES + 3)))


def new(seq=0, limit=1 << 30, memory=None):
    return Segment(seq, memory or Memory(1 << 30), limit)


@given(st.lists(st.tuples(st.binary(max_size=5000), st.booleans(), st.booleans())))
def test_readers_at_any_pace_get_everything(steps):
    segment = new()
    fast, slow = segment.read(), segment.read()
    got = {fast: b"", slow: b""}
    for data, fast_reads, slow_reads in steps:
        segment.append(data)
        for cursor, reads in ((fast, fast_reads), (slow, slow_reads)):
            if reads:
                got[cursor] += cursor.take()
    for cursor in got:
        while data := cursor.take():
            got[cursor] += data
    whole = b"".join(data for data, _, _ in steps)
    assert got[fast] == got[slow] == whole
    assert segment.size == len(whole)


@given(PIECES)
async def test_iterating_while_it_grows(pieces):
    segment = new()

    async def write():
        for piece in pieces:
            segment.append(piece)
            await asyncio.sleep(0)
        segment.close()

    writing = asyncio.create_task(write())
    assert b"".join([data async for data in segment.read()]) == b"".join(pieces)
    await writing


def test_single_bytes_do_not_cost_an_object_each():
    segment = new()
    for _ in range(3 * MERGED_BYTES):
        segment.append(b"x")
    assert len(segment.chunks) == 3


def test_bytes_that_come_after_the_end_are_for_later_readers():
    segment = new()
    early = segment.read()
    segment.append(b"in time")
    segment.close()
    assert early.take() == b"in time"
    segment.append(b", late")
    assert segment.read().take() == b"in time, late"


def test_limit_of_one_segment():
    segment = new(limit=10)
    segment.append(b"0123456789")
    with pytest.raises(SegmentTooLarge, match="more than 10 bytes"):
        segment.append(b"a")
    assert segment.size == 10


def test_memory_is_shared_and_given_back():
    memory = Memory(100)
    one, two = new(memory=memory), new(memory=memory)
    one.append(bytes(60))
    two.append(bytes(40))
    with pytest.raises(MemoryFull, match="holds 100 of 100 bytes"):
        two.append(b"x")
    cursor = one.read()
    del one
    gc.collect()
    assert memory.held == 100, "a reader still holds it"
    del cursor
    gc.collect()
    assert memory.held == 40
    two.append(bytes(60))
