"""The in-process ends of a channel; they have the methods of `TricklePublisher` and `TrickleSubscriber`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import TracebackType

from whisper_byoc.trickle.channel import Channel
from whisper_byoc.trickle.errors import ChannelClosed, SegmentNotFound, SegmentTooLarge
from whisper_byoc.trickle.protocol import CURRENT, NEXT, WINDOW
from whisper_byoc.trickle.segment import Cursor, Segment

__all__ = ["LocalPublisher", "LocalSegment", "LocalSubscriber", "LocalWriter"]


class LocalPublisher:
    """Writes to a channel of a server in this process, always to what comes next."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel

    async def next(self) -> LocalWriter:
        """Give the next segment to write.

        Raises `ChannelClosed`.
        """
        segment = self.channel.for_write(NEXT)
        self.channel.begin(segment)
        return LocalWriter(self.channel, segment)

    async def publish(self, data: bytes) -> int:
        """Write one whole segment, and give its index.

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

    async def write(self, data: bytes) -> None:
        """Add bytes; nobody waits for readers.

        Raises `ChannelClosed`, `SegmentTooLarge` or `MemoryFull`.
        """
        if self._channel.closed:
            raise ChannelClosed(f"channel {self._channel.name!r} was closed while segment {self.seq} was written")
        self._segment.append(data)

    async def close(self) -> None:
        """Finish the segment."""
        self._segment.whole = True
        self._channel.finish(self._segment)

    async def __aenter__(self) -> LocalWriter:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


class LocalSegment:
    """One segment being read, as its bytes arrive."""

    def __init__(self, channel: Channel, cursor: Cursor, missed: int) -> None:
        self.seq = cursor.segment.seq
        self.missed = missed
        self.whole = cursor.segment
        """The segment itself, for readers that keep it."""
        self.content_type = channel.mime
        self._cursor = cursor

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._cursor.__aiter__()

    async def read(self, limit: int = 64 << 20) -> bytes:
        """Wait for the end of the segment and give all of it that was not read yet.

        Raises `SegmentTooLarge` beyond `limit` bytes.
        """
        data = bytearray()
        async for chunk in self:
            data += chunk
            if len(data) > limit:
                raise SegmentTooLarge(f"segment {self.seq} has more than {limit} bytes; read it piece by piece")
        return bytes(data)


class LocalSubscriber:
    """Iterates over the segments of a channel of a server in this process, until the channel is closed.

    A segment without a byte is passed over. `missed` counts what had left the window before it was asked for. What was
    in the window when the channel was closed is still given.
    """

    def __init__(self, channel: Channel, start: int = CURRENT) -> None:
        self.channel = channel
        self._seq = start

    def __aiter__(self) -> LocalSubscriber:
        return self

    async def __anext__(self) -> LocalSegment:
        missed = 0
        while not self.channel.closed:
            try:
                segment = self.channel.for_read(self._seq)
            except SegmentNotFound as error:
                if self._seq > error.latest:  # early: wait for what is written before it
                    segment = self.channel.for_read(NEXT)
                    await asyncio.wait((segment.released,))  # others wait for it too: not to be cancelled with us
                    continue
                oldest = max(self._seq + 1, error.latest - WINDOW)
                missed += oldest - self._seq
                self._seq = oldest
                continue
            cursor = segment.read()
            while not (segment.size or segment.closed):
                await segment.changed.wait()
            self._seq = segment.seq + 1
            if segment.size:
                return LocalSegment(self.channel, cursor, missed)
        return self._left()

    def _left(self) -> LocalSegment:
        """Give the next segment of a channel that has been closed.

        Raises `StopAsyncIteration` when there is none.
        """
        end = self.channel.next_write
        wanted = {NEXT: end, CURRENT: max(end - 1, 0)}.get(self._seq, self._seq)
        for segment in self.channel.left:
            if segment.seq >= wanted:
                self._seq = segment.seq + 1
                return LocalSegment(self.channel, segment.read(), max(0, end - WINDOW - wanted))
        raise StopAsyncIteration
