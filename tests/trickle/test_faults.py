"""Publisher, server and subscriber together, while the network between them fails."""

import asyncio
import itertools
import random

import pytest

from tests.waiting import until
from whisper_byoc.trickle import ChannelNotFound, TricklePublisher, TrickleSubscriber, Unreachable

SEGMENTS = [b"%d " % number * 500 for number in range(12)]


async def read_until(subscriber, last, got):
    """Read whole segments up to one with this content."""
    async for segment in subscriber:
        got.append(await segment.read())
        if got[-1] == last:
            return
    raise AssertionError("the channel ended early")


def without_fragments(got, wanted):
    """What was read, without the beginnings of segments that were sent again."""
    return [data for data in got if data in wanted]


async def read_while_cut(api, relay, publisher, subscriber):
    """Write the segments, cut the connection in every other one, and give what was read."""
    got = []
    reading = asyncio.create_task(read_until(subscriber, SEGMENTS[-1], got))
    for number, data in enumerate(SEGMENTS):
        await until(lambda: relay.passing)
        async with await publisher.next() as segment:
            await segment.write(data[:700])
            await until(lambda seq=segment.seq: api.slot(seq) and api.slot(seq).size)
            if number % 2:
                relay.cut()
            await segment.write(data[700:])
        await until(lambda data=data: data in got)  # before the window has passed
    await reading
    return got


async def test_readers_survive_cuts(relayed):
    api, behind, relay = await relayed()
    publisher, subscriber = await api.publisher(create=True), await behind.subscriber(start=0)
    assert await read_while_cut(api, relay, publisher, subscriber) == SEGMENTS


async def test_writers_survive_cuts(relayed):
    api, behind, relay = await relayed()
    publisher, subscriber = await behind.publisher(create=True), await api.subscriber(start=0)
    got = await read_while_cut(api, relay, publisher, subscriber)
    assert without_fragments(got, SEGMENTS) == SEGMENTS, "in order, and each once"


@pytest.mark.parametrize("seed", range(4))
async def test_both_sides_survive_a_network_that_cuts_at_random_bytes(relayed, seed):
    rng = random.Random(seed)
    api, behind, relay = await relayed()
    left = rng.randrange(200, 3000)

    def sometimes(data, to_server):
        nonlocal left
        left -= len(data)
        if left > 0:
            return data
        left = rng.randrange(500, 6000)
        return None

    await api.post("ch")
    publisher, subscriber = await behind.publisher(), await behind.subscriber(start=0)
    relay.after = sometimes
    wanted = [bytes(rng.randrange(256) for _ in range(rng.randrange(1, 1500))) + b"#%d" % n for n in range(15)]
    got = []
    reading = asyncio.create_task(read_until(subscriber, b"end", got))
    for data in wanted:
        await publisher.publish(data)
        await until(lambda data=data: data in got)  # before the window has passed
    relay.after = None
    await publisher.publish(b"end")
    await asyncio.wait_for(reading, 30)
    assert without_fragments(got, wanted) == wanted


async def test_a_server_that_comes_back_empty(relayed, trickle):
    _, behind, relay = await relayed()
    publisher = await behind.publisher(create=True)
    assert await publisher.publish(b"before") == 0
    reborn = await trickle()
    relay.target = reborn.port
    relay.cut()
    seq = await publisher.publish(b"after")
    assert (await reborn.get(f"ch/{seq}"))[1] == b"after"


async def test_a_server_that_comes_back_without_the_channel(relayed, trickle):
    _, behind, relay = await relayed()
    publisher = await behind.publisher(create=True)
    subscriber = await behind.subscriber(start=0)
    await publisher.publish(b"before")
    assert (await anext(subscriber)).seq == 0
    relay.target = (await trickle(autocreate=False)).port
    relay.cut()
    with pytest.raises(ChannelNotFound):
        await publisher.publish(b"after")
    with pytest.raises(StopAsyncIteration):
        await anext(subscriber)


async def test_a_segment_given_up_in_an_outage_does_not_keep_readers_waiting(relayed):
    api, behind, relay = await relayed()
    publisher = await behind.publisher(options={"patience_seconds": 0.05})
    segment = await publisher.next()
    await segment.write(b"part")
    await api.stored(0, 4)
    reading = asyncio.create_task(api.get("ch/1"))
    await api.slot_there(1)
    relay.up = False
    relay.cut()
    with pytest.raises(Unreachable, match="segment 0"):
        await segment.close()
    relay.up = True
    for _ in range(2):
        await publisher.publish(b"next")
    assert api.slot(0).closed
    assert (await reading)[0] == 200


async def test_a_slow_subscriber_is_told_what_it_missed_and_holds_up_nobody(trickle):
    api = await trickle()
    publisher = await api.publisher(create=True)
    subscriber = await api.subscriber(start=0)
    for number in range(2):
        await publisher.publish(b"%d" % number)
    got = [await anext(subscriber)]
    for number in range(2, 30):
        await publisher.publish(b"%d" % number)
    for _ in range(3):
        got.append(await anext(subscriber))
    assert [segment.seq for segment in got][:2] == [0, 1]
    for before, after in itertools.pairwise(got):
        assert after.seq == before.seq + 1 + after.missed
    assert sum(segment.missed for segment in got) > 20


@pytest.mark.parametrize("kind", ["publisher", "subscriber"])
async def test_whoever_is_cancelled_while_it_closes_leaves_nothing_open(scripted, quick, kind):
    async def silent(number, method, seq, wire, headers):
        await wire.reader.read()

    script = await scripted(silent)
    if kind == "publisher":
        end = TricklePublisher(script.url, options=quick())
        await end.start()
        await (await end.next()).write(b"x")
    else:
        end = TrickleSubscriber(script.url, 0, options=quick())
        await end.start()
        reading = asyncio.ensure_future(anext(end))
    await until(lambda: script.asked)
    closing = asyncio.ensure_future(end.close())
    await asyncio.sleep(0)
    closing.cancel()
    await asyncio.wait({closing})
    assert closing.cancelled()
    await until(lambda: not script.connections)
    if kind == "subscriber":
        with pytest.raises(StopAsyncIteration):
            await reading
