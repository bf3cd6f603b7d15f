"""One segment: bytes that only grow, and any number of readers, each at its own place."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from whisper_byoc.aio import Changed
from whisper_byoc.trickle.errors import SegmentTooLarge
from whisper_byoc.trickle.limits import Memory

__all__ = ["Cursor", "Segment"]

MERGED_BYTES = 4096
"""Pieces up to this size are joined, so that a peer who sends single bytes costs no object for each."""


class Segment:
    """The bytes of one index. Writers never wait for readers."""

    def __init__(self, seq: int, memory: Memory, limit: int) -> None:
        self.seq = seq
        self.size = 0
        self.closed = False
        self.whole = False
        """Whether a writer has come to its end; else the segment was closed by somebody, or its upload broke off."""
        self.chunks: list[bytes] = []
        self.changed = Changed()
        self._limit = limit
        self._share = memory.share(self)
        self._released: asyncio.Future[None] | None = None

    def append(self, data: bytes) -> None:
        """Add bytes. After `close` they are for those who come later: go-livepeer keeps them, too.

        Raises `SegmentTooLarge` or `MemoryFull`.
        """
        if not data:
            return
        if self.size + len(data) > self._limit:
            raise SegmentTooLarge(f"segment {self.seq} has more than {self._limit} bytes; cut it into smaller ones")
        self._share.take(len(data))
        self.size += len(data)
        if self.chunks and len(self.chunks[-1]) + len(data) <= MERGED_BYTES:
            self.chunks[-1] += data
        else:
            self.chunks.append(bytes(data))
        self.changed.notify()

    def close(self) -> None:
        """Let readers come to the end, and release a publisher that has sent nothing yet."""
        self.closed = True
        self.changed.notify()
        if self._released and not self._released.done():
            self._released.set_result(None)

    @property
    def released(self) -> asyncio.Future[None]:
        """Done when the segment is closed."""
        if self._released is None:
            self._released = asyncio.get_running_loop().create_future()
            if self.closed:
                self._released.set_result(None)
        return self._released

    def read(self) -> Cursor:
        """Start reading at byte 0."""
        return Cursor(self)


class Cursor:
    """One reader's place in a segment."""

    __slots__ = ("_index", "_offset", "segment")

    def __init__(self, segment: Segment) -> None:
        self.segment = segment
        self._index = 0
        self._offset = 0

    def take(self) -> bytes:
        """Return the next bytes there are; b"" when none are there now."""
        chunks = self.segment.chunks
        while self._index < len(chunks):
            chunk = chunks[self._index]
            data = chunk[self._offset :]
            if self._index + 1 < len(chunks):  # only the last chunk can still grow
                self._index, self._offset = self._index + 1, 0
            else:
                self._offset = len(chunk)
            if data or self._offset:
                return data
        return b""

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Yield bytes as they arrive, until the segment is closed."""
        while True:
            if data := self.take():
                yield data
            elif self.segment.closed:
                return
            else:
                await self.segment.changed.wait()
