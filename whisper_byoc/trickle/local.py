"""The two ends of a channel in this process, with the methods of `TricklePublisher` and `TrickleSubscriber`."""

from contextlib import ExitStack
from typing import Self

from whisper_byoc.trickle.channel import Channel, Cursor, Segment
from whisper_byoc.trickle.errors import ChannelClosed
from whisper_byoc.trickle.protocol import CURRENT, NEXT
from whisper_byoc.trickle.subscriber import LARGEST_READ, read_whole


class LocalPublisher:
    """Writes to a channel of a server in this process, always to the next segment."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel

    async def next(self) -> "LocalWriter":
        """Return the next segment to write.

        Raises `ChannelClosed`.
        """
        segment = self.channel.for_write(NEXT)
        self.channel.begin(segment)
        return LocalWriter(self.channel, segment)

    async def publish(self, data: bytes) -> int:
        """Write one whole segment, and return its index.

        Raises `ChannelClosed`, `SegmentTooLarge` or `MemoryFull`.
        """
        async with await self.next() as segment:
            await segment.write(data)
        return segment.seq


class LocalWriter:
    """One segment being written; leaving `async with` finishes it."""

    def __init__(self, channel: Channel, segment: Segment) -> None:
        self.seq = segment.seq
        self._channel = channel
        self._segment = segment
        self._open = ExitStack()
        self._open.enter_context(channel.uploading())

    async def write(self, data: bytes) -> None:
        """Add bytes, without waiting for readers.

        Raises `ChannelClosed`, `SegmentTooLarge` or `MemoryFull`.
        """
        if self._channel.closed:
            raise ChannelClosed(f"channel {self._channel.name!r} was closed while segment {self.seq} was written")
        self._segment.append(data)

    async def close(self) -> None:
        self._open.close()
        self._segment.whole = True
        self._channel.finish(self._segment)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


class LocalSegment(Cursor):
    """One segment being read, as its bytes arrive.

    `missed` is how many segments before it had left the window before they were asked for; `began_anew` is whether a
    publisher began again from the start before it.
    """

    def __init__(self, channel: Channel, segment: Segment, missed: int, *, began_anew: bool = False) -> None:
        super().__init__(segment)
        self.seq = segment.seq
        self.missed = missed
        self.began_anew = began_anew
        self.content_type = channel.mime

    async def read(self, limit: int = LARGEST_READ) -> bytes:
        """Wait for the end of the segment, and return everything not read yet.

        Raises `SegmentTooLarge` beyond `limit` bytes.
        """
        return await read_whole(self, self.seq, limit)


class LocalSubscriber:
    """Iterates over the segments of a channel of a server in this process, until the channel is closed.

    Segments without a byte are skipped. What was in the window when the channel was closed can still be read.
    """

    def __init__(self, channel: Channel, start: int = CURRENT) -> None:
        self.channel = channel
        self._seq = start
        self._beginnings = channel.beginnings

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> LocalSegment:
        channel = self.channel
        self._seq = channel.index_of(self._seq)
        missed, began_anew = 0, False
        while True:
            if self._beginnings != channel.beginnings:
                self._beginnings, began_anew = channel.beginnings, True
                missed += max(channel.ended_at - self._seq, 0)
                self._seq = min((each.seq for each in channel.segments), default=channel.next_write)
            segment = next((each for each in channel.segments if each.seq >= self._seq), None)
            if segment and (segment.seq == self._seq or self._seq < channel.next_write):
                missed += segment.seq - self._seq
                self._seq = segment.seq
                while not (segment.size or segment.closed):
                    await segment.changed.wait()
                self._seq += 1
                if segment.size:
                    return LocalSegment(channel, segment, missed, began_anew=began_anew)
            elif channel.closed:
                raise StopAsyncIteration
            else:
                await channel.changed.wait()
