"""The body of a feed and the records that answer it."""

import asyncio
import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.waiting import forever, until
from whisper_byoc.client.feed import Outgoing, records_of
from whisper_byoc.errors import ServerRefused


async def each(chunks):
    for chunk in chunks:
        yield chunk


def read(chunks):
    async def collect():
        return [record async for record in records_of(each(chunks))]

    return asyncio.run(collect())


@given(st.lists(st.binary(max_size=20)))
def test_bytes_pass_unchanged_and_no_chunk_is_empty(chunks):
    async def collect():
        return [chunk async for chunk in Outgoing(each(chunks))]

    assert asyncio.run(collect()) == [chunk for chunk in chunks if chunk]


@given(st.binary(max_size=300_000))
def test_bytes_go_in_pieces(data):
    async def collect():
        return [chunk async for chunk in Outgoing(data)]

    assert b"".join(asyncio.run(collect())) == data


RECORDS = st.lists(st.fixed_dictionaries({"type": st.text(), "text": st.text()}))


@given(RECORDS, st.lists(st.integers(0, 2000)), st.sampled_from(["\n", "\r\n", "\n\n"]))
def test_records_do_not_depend_on_where_the_chunks_were_cut(records, cuts, newline):
    data = "".join(json.dumps(record, ensure_ascii=False) + newline for record in records).encode()
    places = [0, *sorted(cuts), len(data)]
    assert read([data[a:b] for a, b in itertools.pairwise(places)]) == records


@pytest.mark.parametrize(
    "line", [b"<html>", b"3", b"[]", b"{}", b'{"type": 1}', b"\xff", b"[" * 100_000, b'{"type": "end"']
)
def test_a_line_that_is_no_record_is_refused(line):
    with pytest.raises(ServerRefused, match="no record") as caught:
        read([b'{"type": "result"}\n', line, b"\n"])
    assert len(str(caught.value)) < 150


async def test_whose_turn_it_is():
    go = asyncio.Event()

    async def source():
        yield b"a"
        await go.wait()
        yield b"b"

    outgoing = Outgoing(source())
    assert outgoing.waiting_since is None
    await anext(outgoing)
    assert outgoing.waiting_since is not None  # to begin to answer, then to take what it was given
    outgoing.answered = True
    assert outgoing.waiting_since is not None
    coming = asyncio.ensure_future(anext(outgoing))
    await until(lambda: outgoing.waiting_since is None)  # it is the source's turn
    go.set()
    assert await coming == b"b"
    assert outgoing.waiting_since is not None
    assert [chunk async for chunk in outgoing] == []
    assert outgoing.ended
    assert outgoing.waiting_since is not None


async def test_closing_waits_for_a_reader_that_was_cancelled():
    reading, leave, closed = asyncio.Event(), asyncio.Event(), []

    async def source():
        try:
            yield b"a"
            reading.set()
            await forever()
        finally:
            await leave.wait()
            closed.append(True)

    outgoing = Outgoing(source())
    await anext(outgoing)
    reader = asyncio.ensure_future(anext(outgoing))
    await reading.wait()
    reader.cancel()
    asyncio.get_running_loop().call_later(0.01, leave.set)
    await outgoing.close()
    assert closed == [True]
    assert [chunk async for chunk in outgoing] == []
    await asyncio.wait({reader})
