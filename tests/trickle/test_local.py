"""The in-process ends: the same segments as over HTTP."""

import asyncio

import pytest

from whisper_byoc.trickle import NEXT, ChannelClosed, LocalPublisher, LocalSubscriber, SegmentTooLarge, TrickleServer


@pytest.fixture
def channel():
    return TrickleServer().create("ch", "text/plain")


async def test_in_process_to_http_and_back(trickle):
    api = await trickle(autocreate=False)
    channel = api.server.create("ch", "application/jsonl")
    subscriber = await api.subscriber(start=0)
    local = LocalPublisher(channel)
    assert [await local.publish(b"%d" % number) for number in range(3)] == [0, 1, 2]
    for number in range(3):
        segment = await anext(subscriber)
        assert (segment.content_type, await segment.read()) == ("application/jsonl", b"%d" % number)
    reader = LocalSubscriber(channel, -1)
    reading = asyncio.create_task(anext(reader))
    await asyncio.sleep(0)
    publisher = await api.publisher(join=True)
    await publisher.publish(b"back")
    segment = await reading
    assert (segment.seq, segment.missed, segment.content_type, await segment.read()) == (
        3,
        0,
        "application/jsonl",
        b"back",
    )


async def test_a_local_reader_sees_an_open_segment(channel):
    async with await LocalPublisher(channel).next() as writing:
        await writing.write(b"one")
        segment = await anext(LocalSubscriber(channel))
        chunks = segment.__aiter__()
        assert await anext(chunks) == b"one"
        await writing.write(b"two")
        assert await anext(chunks) == b"two"
    with pytest.raises(StopAsyncIteration):
        await anext(chunks)


async def test_a_local_reader_that_is_behind(channel):
    publisher = LocalPublisher(channel)
    for number in range(12):
        await publisher.publish(b"%d" % number)
    segment = await anext(LocalSubscriber(channel, 3))
    assert (segment.seq, segment.missed, await segment.read()) == (7, 4, b"7")
    with pytest.raises(SegmentTooLarge, match="more than 1 bytes"):
        await (await anext(LocalSubscriber(channel, 11))).read(1)


async def test_a_local_reader_of_a_publisher_that_begins_again(channel):
    publisher = LocalPublisher(channel)
    reader = LocalSubscriber(channel, 0)
    for _ in range(8):
        await publisher.publish(b"old")
    assert (await anext(reader)).missed == 3
    again = channel.for_write(0)
    again.append(b"new")
    channel.finish(again)
    segment = await anext(reader)
    assert (segment.seq, segment.missed, segment.began_anew, await segment.read()) == (0, 4, True, b"new")


async def test_a_local_reader_that_is_early_and_empty_segments(channel):
    reading = asyncio.create_task(anext(LocalSubscriber(channel, 4)))
    await asyncio.sleep(0)
    publisher = LocalPublisher(channel)
    for data in (b"0", b"1", b"2", b"3", b"", b"5"):
        await asyncio.sleep(0)
        await publisher.publish(data)
    assert (await reading).seq == 5


async def test_the_end(channel):
    reader = LocalSubscriber(channel)
    reading = asyncio.create_task(anext(reader))
    await asyncio.sleep(0)
    writing = await LocalPublisher(channel).next()
    channel.close()
    with pytest.raises(StopAsyncIteration):
        await reading
    with pytest.raises(ChannelClosed, match="while segment 0 was written"):
        await writing.write(b"x")
    with pytest.raises(ChannelClosed):
        await LocalPublisher(channel).next()


async def test_what_was_written_before_the_end_is_still_given(channel):
    reader, late = LocalSubscriber(channel), LocalSubscriber(channel)
    reading = asyncio.create_task(anext(reader))
    await asyncio.sleep(0)
    for number in range(3):  # in one go with the end: no reader can come in between
        await LocalPublisher(channel).publish(b"%d" % number)
    channel.close()
    found = [await (await reading).read(), *[await segment.read() async for segment in reader]]
    assert found == [b"0", b"1", b"2"]
    assert [await segment.read() async for segment in late] == [b"2"]  # the current one
    assert [segment async for segment in LocalSubscriber(channel, NEXT)] == []


async def test_what_had_left_the_window_before_the_end_is_counted(channel):
    reader = LocalSubscriber(channel, 0)
    for number in range(8):
        await LocalPublisher(channel).publish(b"%d" % number)
    channel.close()
    assert [(segment.seq, segment.missed) async for segment in reader] == [(3, 3), (4, 0), (5, 0), (6, 0), (7, 0)]
