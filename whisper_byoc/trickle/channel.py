"""One channel: a window of the newest segments, and which index is written next."""

from __future__ import annotations

import time

from whisper_byoc.trickle.errors import BadSequence, ChannelClosed, SegmentFinished, SegmentNotFound
from whisper_byoc.trickle.limits import Memory, TrickleLimits
from whisper_byoc.trickle.protocol import CURRENT, NEXT, WINDOW
from whisper_byoc.trickle.segment import Segment

__all__ = ["Channel"]


class Channel:
    """A named row of segments of one MIME type, which is fixed at creation."""

    def __init__(self, name: str, mime: str, limits: TrickleLimits, memory: Memory) -> None:
        self.name = name
        self.mime = mime
        self.next_write = 0
        self.closed = False
        self.left: tuple[Segment, ...] = ()
        """What was in the window when the channel was closed, for readers in this process."""
        self.active_at = time.monotonic()
        self._limits = limits
        self._memory = memory
        self._slots: list[Segment | None] = [None] * WINDOW

    def for_write(self, seq: int) -> Segment:
        """Give the segment to write to; a new one also far ahead, but never one that was written or left behind.

        Raises `BadSequence`, `SegmentFinished` or `ChannelClosed`.
        """
        self._check_open()
        seq = self.next_write if seq == NEXT else seq
        if seq < 0:
            raise BadSequence(f"nothing can be written to segment {seq}")
        held = self._slots[seq % WINDOW]
        if held and held.seq == seq and not held.closed:
            return held
        passed = held and held.seq >= seq and seq < self.next_write
        if passed or seq < self.next_write - WINDOW:  # a late one whose place is free may come after a later one
            raise SegmentFinished(f"segment {seq} takes nothing more; the next one is {self.next_write}")
        return self._place(seq)

    def for_read(self, seq: int) -> Segment:
        """Give the segment to read, which may still be empty: the reader may come before the publisher.

        Raises `BadSequence`, `SegmentNotFound` or `ChannelClosed`.
        """
        self._check_open()
        if seq == NEXT:
            seq = self.next_write
        elif seq == CURRENT:
            seq = max(self.next_write - 1, 0)
        if seq < 0:
            raise BadSequence(f"segment {seq} cannot be read; -1 is the next one and -2 the current one")
        held = self._held(seq)
        if held:
            return held
        if seq == self.next_write or (seq == 1 and self.next_write == 0):
            return self._place(seq)
        raise SegmentNotFound(f"segment {seq} is not there; the next one is {self.next_write}", self.next_write)

    def begin(self, segment: Segment) -> None:
        """Note that the first byte of a segment arrived."""
        self.next_write = max(self.next_write, segment.seq + 1)
        self.active_at = time.monotonic()

    def finish(self, segment: Segment) -> None:
        """Close a segment, whether it was written or is skipped; its index is used up."""
        if self.holds(segment):
            self.begin(segment)
        segment.close()

    def finish_seq(self, seq: int) -> None:
        """Close the segment of that index.

        Raises `BadSequence` or `SegmentNotFound`.
        """
        if seq < 0:
            raise BadSequence(f"segment {seq} cannot be closed")
        held = self._held(seq)
        if held is None:
            raise SegmentNotFound(f"segment {seq} is not there; the next one is {self.next_write}", self.next_write)
        self.finish(held)

    def finish_below(self, seq: int) -> None:
        """Close every segment in the window with a lower index; higher ones may be somebody's next."""
        for segment in self._slots:
            if segment and segment.seq < seq and not segment.closed:
                self.finish(segment)

    def holds(self, segment: Segment) -> bool:
        """Whether readers can still ask for it."""
        return self._slots[segment.seq % WINDOW] is segment

    def close(self) -> None:
        """End the channel; readers get what was written, then the end."""
        self.closed = True
        segments = sorted(filter(None, self._slots), key=lambda segment: segment.seq)
        self._slots = [None] * WINDOW
        self.left = tuple(segment for segment in segments if segment.size)
        for segment in segments:
            segment.close()

    def _check_open(self) -> None:
        if self.closed:
            raise ChannelClosed(f"channel {self.name!r} is closed")

    def _held(self, seq: int) -> Segment | None:
        segment = self._slots[seq % WINDOW]
        return segment if segment and segment.seq == seq else None

    def _place(self, seq: int) -> Segment:
        evicted = self._slots[seq % WINDOW]
        segment = self._slots[seq % WINDOW] = Segment(seq, self._memory, self._limits.segment_bytes)
        if evicted:
            evicted.close()
        return segment
