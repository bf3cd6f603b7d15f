"""A channel: the newest segments of a stream, which can be read while they are still being written."""

import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

from whisper_byoc.aio import Changed
from whisper_byoc.trickle.errors import (
    BadSequence,
    ChannelClosed,
    SegmentFinished,
    SegmentNotFound,
    SegmentTooLarge,
)
from whisper_byoc.trickle.limits import ByteBudget
from whisper_byoc.trickle.protocol import CURRENT, NEXT, WINDOW

MERGED_BYTES = 4096
"""Pieces up to this size are joined, so that a peer sending single bytes does not cost one object per byte."""


class Segment:
    """The bytes of one index. They only grow, and writers never wait for readers."""

    def __init__(self, seq: int, memory: ByteBudget, limit: int) -> None:
        self.seq = seq
        self.size = 0
        self.closed = False
        self.whole = False
        """Whether a writer finished it; a segment that is closed but not whole was cut short."""
        self.broken = False
        """Whether an upload broke off that another one may continue."""
        self.chunks: list[bytes] = []
        self.changed = Changed()
        self._memory = memory
        self._limit = limit

    def __del__(self) -> None:
        self._memory.give(self.size)  # not earlier: a segment that has left the window may still be read

    def append(self, data: bytes) -> None:
        """Add bytes. As in go-livepeer, bytes after `close` are kept for later readers.

        Raises `SegmentTooLarge` or `MemoryFull`.
        """
        if not data:
            return
        if self.size + len(data) > self._limit:
            raise SegmentTooLarge(f"segment {self.seq} has more than {self._limit} bytes; cut it into smaller ones")
        self._memory.take(len(data))
        self.size += len(data)
        if self.chunks and len(self.chunks[-1]) + len(data) <= MERGED_BYTES:
            self.chunks[-1] += data
        else:
            self.chunks.append(bytes(data))
        self.changed.notify()

    def close(self) -> None:
        """End the segment for its readers, and for writers that have not yet begun."""
        self.closed = True
        self.changed.notify()

    def give_up(self) -> None:
        """Close the segment if its upload broke off and no other has continued it."""
        if self.broken:
            self.close()


class Cursor:
    """One reader's place in a segment."""

    def __init__(self, segment: Segment) -> None:
        self.segment = segment
        self._index = 0
        self._offset = 0

    def take(self) -> bytes:
        """Return the next bytes, or b"" if there are none yet."""
        chunks = self.segment.chunks
        while self._index < len(chunks):
            data = chunks[self._index][self._offset :]
            if self._index + 1 == len(chunks):  # only the last chunk can still grow
                self._offset += len(data)
                return data
            self._index, self._offset = self._index + 1, 0
            if data:
                return data
        return b""

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while True:
            if data := self.take():
                yield data
            elif self.segment.closed:
                return
            else:
                await self.segment.changed.wait()


class Channel:
    """A window of numbered segments of one MIME type.

    `next_write` is the index after the newest segment that has begun.
    """

    def __init__(self, name: str, mime: str, segment_bytes: int, memory: ByteBudget) -> None:
        self.name = name
        self.mime = mime
        self.next_write = 0
        self.closed = False
        self.changed = Changed()
        """Notified when a segment is added or begun, or the channel is closed."""
        self.active_at = time.monotonic()
        self.beginnings = 1
        """How often a publisher has begun from the start."""
        self.ended_at = 0
        """What `next_write` was before the last of these beginnings."""
        self.uploads = 0
        """Open uploads, including those without a byte."""
        self._segment_bytes = segment_bytes
        self._memory = memory
        self._slots: list[Segment | None] = [None] * WINDOW

    @property
    def segments(self) -> list[Segment]:
        """The segments in the window, oldest first; for a closed channel, those that it ended with."""
        return sorted(filter(None, self._slots), key=lambda segment: segment.seq)

    def index_of(self, seq: int) -> int:
        """Return the index that `NEXT` or `CURRENT` now stands for; any other unchanged."""
        return {NEXT: self.next_write, CURRENT: max(self.next_write - 1, 0)}.get(seq, seq)

    def for_write(self, seq: int) -> Segment:
        """Return the segment to write to, even a new one far ahead; refuse one that is finished or left behind.

        A publisher that begins behind the window while nobody else is writing has been restarted (go-livepeer's and
        pytrickle's begin at 0), so the channel begins again with it.
        """
        self._check_open()
        seq = self.next_write if seq == NEXT else seq
        if seq < 0:
            raise BadSequence(f"nothing can be written to segment {seq}")
        held = self._slots[seq % WINDOW]
        if held and held.seq == seq and (held.broken or not held.closed):
            held.broken = held.closed = False
            return held
        passed = held and held.seq >= seq and seq < self.next_write
        behind = seq < self.next_write - WINDOW
        if behind and not self.uploads:
            self._begin_again(seq)
        elif passed or behind:  # a late one whose slot is free may follow a later one
            raise SegmentFinished(f"segment {seq} takes nothing more; the next one is {self.next_write}")
        return self._place(seq)

    def for_read(self, seq: int) -> Segment:
        """Return the segment to read, possibly still empty: the reader may come before the publisher."""
        self._check_open()
        seq = self.index_of(seq)
        if seq < 0:
            raise BadSequence(f"segment {seq} cannot be read; -1 is the next one and -2 the current one")
        if held := self._held(seq):
            return held
        if seq == self.next_write or (seq == 1 and self.next_write == 0):
            return self._place(seq)
        raise self._not_found(seq)

    @contextmanager
    def uploading(self) -> Iterator[None]:
        """Count an upload for as long as it is open, starting with its request."""
        self.uploads += 1
        try:
            yield
        finally:
            self.uploads -= 1

    def begin(self, segment: Segment) -> None:
        """Note that the first byte of a segment arrived."""
        self.next_write = max(self.next_write, segment.seq + 1)
        for each in self.segments:
            if each.seq < segment.seq:
                each.give_up()
        self.active_at = time.monotonic()
        self.changed.notify()

    def finish(self, segment: Segment) -> None:
        """Close a segment, whether written or skipped: its index is used up."""
        if self.holds(segment):
            self.begin(segment)
        segment.broken = False
        segment.close()

    def finish_seq(self, seq: int) -> None:
        if seq < 0:
            raise BadSequence(f"segment {seq} cannot be closed")
        held = self._held(seq)
        if held is None:
            raise self._not_found(seq)
        self.finish(held)

    def finish_below(self, seq: int) -> None:
        """Close every segment in the window with a lower index; a higher one may be another writer's next."""
        for segment in self.segments:
            if segment.seq < seq and not segment.closed:
                self.finish(segment)

    def holds(self, segment: Segment) -> bool:
        """Whether readers can still ask for the segment."""
        return not self.closed and self._slots[segment.seq % WINDOW] is segment

    def close(self) -> None:
        """End the channel: its readers get what was written, then the end."""
        self.closed = True
        for segment in self.segments:
            segment.close()
        self.changed.notify()

    def _begin_again(self, seq: int) -> None:
        self.beginnings, self.ended_at = self.beginnings + 1, self.next_write
        left, self._slots = self.segments, [None] * WINDOW
        self.next_write = seq
        for segment in left:
            segment.close()

    def _check_open(self) -> None:
        if self.closed:
            raise ChannelClosed(f"channel {self.name!r} is closed")

    def _not_found(self, seq: int) -> SegmentNotFound:
        return SegmentNotFound(f"segment {seq} is not there; the next one is {self.next_write}")

    def _held(self, seq: int) -> Segment | None:
        segment = self._slots[seq % WINDOW]
        return segment if segment and segment.seq == seq else None

    def _place(self, seq: int) -> Segment:
        evicted = self._slots[seq % WINDOW]
        segment = self._slots[seq % WINDOW] = Segment(seq, self._memory, self._segment_bytes)
        if evicted:
            evicted.close()
        self.changed.notify()
        return segment
