"""Livepeer's own Python package as the other end: pytrickle 0.1.6 from the package index, both of its roles.

It must be installed without its dependencies (`pip install --no-deps pytrickle==0.1.6`), which would bring av, opencv
and an MQTT client: only its publisher and its subscriber are used, and they need aiohttp alone. Importing the package
itself would import all of it, so an empty package object with the right `__path__` stands in for `__init__`.
"""

import asyncio

import pytest

from tests.waiting import until

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


class Errors:
    """Their error callback."""

    def __init__(self):
        self.seen = []

    async def __call__(self, kind, error):
        self.seen.append(kind)


async def write_theirs(publisher, segments, got=None):
    """Write segments; their publisher does not wait until a segment has arrived, so this waits for its reader."""
    for number, pieces in enumerate(segments, 1):
        async with await publisher.next() as segment:
            for piece in pieces:
                await segment.write(piece)
        if got is not None:
            await until(lambda number=number: len(got) >= number)


async def read_theirs(subscriber, count=None, got=None):
    got = [] if got is None else got
    while count is None or len(got) < count:
        segment = await subscriber.next()
        if segment is None:
            break
        data = b""
        while chunk := await segment.read():
            data += chunk
        got.append((segment.seq(), data))
    return got


SEGMENTS = [[b"a%d " % number, bytes(number * 1000), b"z"] for number in range(12)]
WHOLE = [(number, b"".join(pieces)) for number, pieces in enumerate(SEGMENTS)]


async def test_their_publisher_to_their_subscriber(trickle, pytrickle):
    api, got = await trickle(), []
    await api.post("ch")
    async with pytrickle.Publisher(api.url()) as publisher, pytrickle.Subscriber(api.url()) as subscriber:
        reading = asyncio.create_task(read_theirs(subscriber, len(WHOLE), got))
        await api.slot_there(0)
        await write_theirs(publisher, SEGMENTS, got)
        assert await asyncio.wait_for(reading, 20) == WHOLE


async def test_their_publisher_to_ours(trickle, pytrickle):
    api, got = await trickle(), []
    await api.post("ch")
    subscriber = await api.subscriber(start=0)
    async with pytrickle.Publisher(api.url(), mime_type="video/mp2t") as publisher:
        reading = asyncio.create_task(read_ours(subscriber, len(WHOLE), got))
        await write_theirs(publisher, SEGMENTS, got)
        assert await asyncio.wait_for(reading, 20) == WHOLE


async def read_ours(subscriber, count, got):
    async for segment in subscriber:
        got.append((segment.seq, await segment.read()))
        if len(got) == count:
            break
    return got


async def test_our_publisher_to_theirs(trickle, pytrickle):
    api = await trickle()
    publisher = await api.publisher(create=True)
    async with pytrickle.Subscriber(api.url()) as subscriber:
        reading = asyncio.create_task(read_theirs(subscriber))
        await api.slot_there(0)
        for pieces in SEGMENTS:
            async with await publisher.next() as segment:
                for piece in pieces:
                    await segment.write(piece)
        await publisher.close(delete_channel=True)
        assert await asyncio.wait_for(reading, 20) == WHOLE, "and it takes the end of the channel for the end"


async def test_their_publisher_creates_the_channel_by_writing(trickle, pytrickle):
    api = await trickle()
    async with pytrickle.Publisher(api.url(), mime_type="application/jsonl") as publisher:
        await write_theirs(publisher, [[b"{}\n"]])
        await api.slot_there(0)
    assert api.server.channels["ch"].mime == "application/jsonl"


async def test_their_publisher_without_a_channel(trickle, pytrickle):
    api = await trickle(autocreate=False)
    errors = Errors()
    async with pytrickle.Publisher(api.url(), error_callback=errors) as publisher:
        await write_theirs(publisher, [[b"x"]])
        await until(lambda: errors.seen)
    assert errors.seen[0] == "post_failed"


async def test_their_subscriber_without_a_channel(trickle, pytrickle):
    api = await trickle()
    errors = Errors()
    async with pytrickle.Subscriber(api.url(), error_callback=errors) as subscriber:
        assert await subscriber.next() is None
    assert errors.seen == ["stream_not_found"]


async def test_their_subscriber_waits_for_a_channel_that_ends(trickle, pytrickle):
    api = await trickle()
    await api.post("ch")
    async with pytrickle.Subscriber(api.url()) as subscriber:
        reading = asyncio.create_task(read_theirs(subscriber))
        await api.slot_there(0)
        await api.delete("ch")
        assert await asyncio.wait_for(reading, 10) == []


async def test_their_subscriber_jumps_when_it_is_behind(trickle, pytrickle):
    api = await trickle()
    for seq in range(20):
        await api.post(f"ch/{seq}", b"%d" % seq)
    async with pytrickle.Subscriber(api.url(), start_seq=3) as subscriber:
        reading = asyncio.create_task(read_theirs(subscriber, 1))
        await api.slot_there(20)
        await api.post("ch/20", b"20")
        assert await asyncio.wait_for(reading, 10) == [(20, b"20")]


async def test_their_publisher_restarted_on_a_channel_is_told_instead_of_damaging_it(trickle, pytrickle):
    api = await trickle()
    for seq in range(3):
        await api.post(f"ch/{seq}", b"%d" % seq)
    errors = Errors()
    async with pytrickle.Publisher(api.url(), error_callback=errors) as publisher:
        await write_theirs(publisher, [[b"x"]])
        await until(lambda: errors.seen)
    assert (await api.get("ch/next"))[1] == b"3"
    assert [(await api.get(f"ch/{seq}"))[1] for seq in range(3)] == [b"0", b"1", b"2"]


async def test_their_publisher_restarted_behind_the_window_begins_the_channel_again(trickle, pytrickle):
    api = await trickle()
    for seq in range(8):
        await api.post(f"ch/{seq}", b"%d" % seq)
    ours = await api.subscriber(early_seconds=600)
    assert await (await anext(ours)).read() == b"7"
    errors, segments, got = Errors(), [], []

    async def read():
        async for segment in ours:
            got.append(await segment.read())
            segments.append((segment.seq, segment.began_anew))

    reading = asyncio.create_task(read())
    async with pytrickle.Publisher(api.url(), error_callback=errors) as publisher:
        await write_theirs(publisher, [[b"again"], [b"and again"]], got)
    await api.delete("ch")
    await reading
    assert (segments[:2], got[:2]) == ([(0, True), (1, False)], [b"again", b"and again"])
    assert not errors.seen
