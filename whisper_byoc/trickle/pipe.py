"""From a file to a channel and back: what `whisper-byoc trickle pub` and `sub` do."""

import asyncio
import io
import time
from collections.abc import AsyncIterator, Callable
from typing import Protocol

from whisper_byoc.trickle.publisher import SegmentWriter, TricklePublisher
from whisper_byoc.trickle.subscriber import SegmentReader, TrickleSubscriber

CHUNK_BYTES = 64 << 10

Cut = Callable[[AsyncIterator[bytes]], AsyncIterator[tuple[bytes, bool]]]
"""Turns a stream into pieces; the flag says that a segment ends after the piece."""


class Sink(Protocol):
    def write(self, data: bytes, /) -> object: ...

    def flush(self) -> None: ...


async def chunks_of(source: io.BufferedIOBase) -> AsyncIterator[bytes]:
    """Read a file or a pipe as its bytes come, without blocking the event loop."""
    while data := await asyncio.to_thread(source.read1, CHUNK_BYTES):
        yield data


def by_line(longest: int = 1 << 20) -> Cut:
    """Make every line one segment; a line of more than `longest` bytes is cut."""

    async def cut(source: AsyncIterator[bytes]) -> AsyncIterator[tuple[bytes, bool]]:
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

    return cut


def by_size(size: int) -> Cut:
    """Make every `size` bytes one segment; they are sent as they come."""

    async def cut(source: AsyncIterator[bytes]) -> AsyncIterator[tuple[bytes, bool]]:
        left = size
        async for data in source:
            while len(data) >= left:
                yield data[:left], True
                data, left = data[left:], size
            if data:
                yield data, False
                left -= len(data)

    return cut


def by_time(seconds: float, clock: Callable[[], float] = time.monotonic) -> Cut:
    """End a segment with the first piece that comes `seconds` or more after its first one."""

    async def cut(source: AsyncIterator[bytes]) -> AsyncIterator[tuple[bytes, bool]]:
        began_at: float | None = None
        async for data in source:
            began_at = clock() if began_at is None else began_at
            last = clock() - began_at >= seconds
            yield data, last
            if last:
                began_at = None

    return cut


async def publish(source: AsyncIterator[bytes], publisher: TricklePublisher, cut: Cut) -> int:
    """Send a stream as segments to an open publisher, and return how many there were.

    Raises what the publisher raises.
    """
    segment: SegmentWriter | None = None
    count = 0
    try:
        async for data, last in cut(source):
            if segment is None:
                segment, count = await publisher.next(), count + 1
            await segment.write(data)
            if last:
                ended, segment = segment, None
                await ended.close()
    except BaseException:
        if segment:
            await segment.abort()
        raise
    if segment:
        await segment.close()
    return count


async def subscribe(
    subscriber: TrickleSubscriber, sink: Sink, on_segment: Callable[[SegmentReader, int], None] | None = None
) -> int:
    """Write all segments to `sink` as they arrive, and return how many there were.

    `on_segment` is called after each, with its size. Raises what the subscriber raises.
    """
    count = 0
    async for segment in subscriber:
        size = 0
        async for data in segment:
            await asyncio.to_thread(_write, sink, data)  # a slow reader of our output blocks nobody else
            size += len(data)
        count += 1
        if on_segment:
            on_segment(segment, size)
    return count


def _write(sink: Sink, data: bytes) -> None:
    sink.write(data)
    sink.flush()
