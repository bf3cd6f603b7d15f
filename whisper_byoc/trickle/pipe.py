"""From chunks of bytes to a channel and back: what `whisper-byoc trickle pub` and `sub` do."""

import time
from collections.abc import AsyncIterator, Callable
from typing import BinaryIO

from whisper_byoc.aio import in_daemon_thread
from whisper_byoc.trickle.publisher import SegmentWriter, TricklePublisher
from whisper_byoc.trickle.subscriber import SegmentReader, TrickleSubscriber

SegmentPieces = AsyncIterator[tuple[bytes, bool]]
"""Bytes to send as they come; the flag says whether a segment ends after them."""


async def by_line(source: AsyncIterator[bytes], longest: int = 1 << 20) -> SegmentPieces:
    """Make each line one segment; a line of more than `longest` bytes is cut."""
    rest = b""
    async for data in source:
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            yield line + b"\n", True
        if len(rest) >= longest:
            yield rest, True
            rest = b""
    if rest:
        yield rest, True


async def by_size(source: AsyncIterator[bytes], size: int) -> SegmentPieces:
    """Make every `size` bytes one segment."""
    left = size
    async for data in source:
        while len(data) >= left:
            yield data[:left], True
            data, left = data[left:], size
        if data:
            yield data, False
            left -= len(data)


async def by_time(
    source: AsyncIterator[bytes], seconds: float, clock: Callable[[], float] = time.monotonic
) -> SegmentPieces:
    """End a segment with the first piece that comes at least `seconds` after its first piece."""
    began_at: float | None = None
    async for data in source:
        began_at = clock() if began_at is None else began_at
        last = clock() - began_at >= seconds
        yield data, last
        if last:
            began_at = None


async def publish(pieces: SegmentPieces, publisher: TricklePublisher) -> int:
    """Send pieces as segments to an open publisher, and return the number of segments.

    Raises what the publisher raises.
    """
    segment: SegmentWriter | None = None
    count = 0
    try:
        async for data, last in pieces:
            if segment is None:
                segment, count = await publisher.next(), count + 1
            await segment.write(data)
            if last:
                await segment.close()
                segment = None
        if segment:
            await segment.close()
    except BaseException:
        if segment:
            await segment.abort()
        raise
    return count


async def subscribe(
    subscriber: TrickleSubscriber, sink: BinaryIO, on_segment: Callable[[SegmentReader, int], None] | None = None
) -> int:
    """Write all segments to `sink` as they arrive, and return their number.

    `on_segment` is called after each, with its size. Raises what the subscriber raises.
    """
    count = 0
    async for segment in subscriber:
        size = 0
        async for data in segment:
            await in_daemon_thread(_write, sink, data)  # a slow reader of our output blocks nobody else
            size += len(data)
        count += 1
        if on_segment:
            on_segment(segment, size)
    return count


def _write(sink: BinaryIO, data: bytes) -> None:
    sink.write(data)
    sink.flush()
