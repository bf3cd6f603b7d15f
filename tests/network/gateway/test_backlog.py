"""The input of a stream: kept until something came of it, replayed byte for byte, bounded, and never lost silently."""

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from tests.waiting import until
from whisper_byoc.network.gateway.backlog import Backlog
from whisper_byoc.trickle import LocalPublisher, LocalSubscriber, TrickleServer


class Input:
    """A channel, its publisher, and the backlog that reads it."""

    def __init__(self, hold=1000):
        self.server = TrickleServer()
        self.channel = self.server.create("in")
        self.publisher = LocalPublisher(self.channel)
        self.missed = []
        self.backlog = Backlog(LocalSubscriber(self.channel), hold, self.missed.append)

    async def __aenter__(self):
        self.running = asyncio.ensure_future(self.backlog.run())
        await asyncio.sleep(0)
        return self

    async def __aexit__(self, *_):
        self.running.cancel()
        await asyncio.wait({self.running})

    async def publish(self, *segments):
        for segment in segments:
            await self.publisher.publish(segment)
            await asyncio.sleep(0.001)

    def end(self):
        self.server.close("in")

    def read(self):
        """Read all of it in the background, as a list of segments."""
        found = []

        async def run():
            async for segment in self.backlog.read():
                found.append(b"")
                async for data in segment.read():
                    found[-1] += data

        return found, asyncio.ensure_future(run())


@given(st.lists(st.binary(min_size=1, max_size=50), max_size=12), st.lists(st.integers(0, 12), max_size=4))
def test_every_attempt_gets_all_of_it_until_it_is_settled(segments, attempts):
    async def run():
        async with Input() as source:
            for at in sorted(attempts):
                _, reading = source.read()
                await source.publish(*segments[source.backlog.segments : at])
                reading.cancel()
            found, reading = source.read()
            await source.publish(*segments[source.backlog.segments :])
            source.end()
            await asyncio.wait_for(reading, 5)
            assert found == segments
            assert source.backlog.bytes == sum(map(len, segments))
            assert source.backlog.segments == len(segments)
            await asyncio.wait_for(source.backlog.sent(), 5)
            again, reading = source.read()
            await asyncio.wait_for(reading, 5)
            assert again == segments

    asyncio.run(run())


async def test_a_new_attempt_ends_the_reading_of_the_one_before():
    async with Input() as source:
        await source.publish(b"a", b"b")
        first, one = source.read()
        await until(lambda: len(first) == 2)
        second, two = source.read()
        await asyncio.wait_for(one, 5)
        source.end()
        await asyncio.wait_for(two, 5)
        assert first == second == [b"a", b"b"]


async def test_bytes_of_an_open_segment_are_passed_on_as_they_come():
    async with Input() as source:
        found, reading = source.read()
        writer = await source.publisher.next()
        await writer.write(b"a")
        await until(lambda: found == [b"a"])
        await writer.write(b"b")
        await until(lambda: found == [b"ab"])
        source.end()  # in the middle of the segment
        await asyncio.wait_for(reading, 5)
        assert found == [b"ab"]


async def test_what_is_settled_is_not_kept():
    async with Input() as source:
        found, reading = source.read()
        await source.publish(b"a" * 100, b"b" * 100)
        await until(lambda: len(found) == 2)
        assert source.backlog.replayable
        source.backlog.settle()
        await source.publish(b"c" * 100)
        await until(lambda: not source.backlog._kept)
        assert source.backlog.bytes == 300
        again, reading_again = source.read()
        source.end()
        await asyncio.wait_for(asyncio.gather(reading, reading_again), 5)
        assert again == []


async def test_what_is_too_much_to_keep_is_not_replayed_and_the_rest_waits():
    async with Input(hold=250) as source:
        await source.publish(*(b"%d" % number * 100 for number in range(4)))
        assert not source.backlog.replayable
        assert source.backlog.segments == 3  # the fourth waits in the channel
        found, reading = source.read()
        await until(lambda: len(found) == 4)
        source.end()
        await asyncio.wait_for(reading, 5)
        assert found == [b"%d" % number * 100 for number in range(4)]


async def test_what_nobody_took_in_time_is_counted():
    async with Input(hold=50) as source:
        await source.publish(*(b"%02d" % number * 50 for number in range(20)))
        found, reading = source.read()
        await until(lambda: source.backlog.segments > 1)
        source.end()
        await asyncio.wait_for(reading, 5)
        assert len(found) + source.backlog.missed == 20
        assert source.backlog.missed == sum(source.missed) > 0
        assert found[-1] == b"19" * 50


async def test_what_was_in_the_channel_when_it_ended_is_still_taken():
    """A publisher can be quicker than we are: several segments and the end in one go."""
    async with Input() as source:
        found, reading = source.read()
        for number in range(4):
            await source.publisher.publish(b"%d" % number)
        source.end()
        await asyncio.wait_for(reading, 5)
        assert found == [b"0", b"1", b"2", b"3"]


async def test_an_empty_input_ends():
    async with Input() as source:
        found, reading = source.read()
        source.end()
        await asyncio.wait_for(reading, 5)
        await asyncio.wait_for(source.backlog.sent(), 5)
        assert found == []


async def test_closing_lets_go_of_the_bytes_and_keeps_the_counts():
    async with Input() as source:
        _, reading = source.read()
        await source.publish(b"a" * 100)
        source.end()
        source.backlog.close()
        await asyncio.wait_for(reading, 5)
        assert (source.backlog.bytes, source.backlog.segments) == (100, 1)
        source.running.cancel()
        await asyncio.wait({source.running})
        source.publisher = source.channel = None
        assert source.server.memory.held == 0
