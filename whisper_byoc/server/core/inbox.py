"""A job's queue: segments, pieces of a live feed that wait together, and marks between them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from whisper_byoc.errors import RequestRefused, SegmentError
from whisper_byoc.server.core.limits import Limits
from whisper_byoc.server.core.room import Room

__all__ = ["JOINED_BYTES", "PIECE_BYTES", "Inbox", "Mark", "Pieces", "Segment"]

JOINED_BYTES = 480_000
"""Pieces of a live feed that wait share one place in the queue, up to 15 s of sound."""
PIECE_BYTES = 3_200
"""Pieces that wait and are smaller than this become one: 0.1 s, so that it matters little when which byte came."""


@dataclass(frozen=True)
class Segment:
    """One accepted segment, or the reason why its bytes cannot be one."""

    data: bytes | SegmentError
    reserved: int
    """Bytes taken in the queue's room."""
    arrived: float
    """Event loop time, in seconds."""

    def __len__(self) -> int:
        return 0 if isinstance(self.data, SegmentError) else len(self.data)


@dataclass
class Pieces:
    """Consecutive pieces of a live feed, with their times of arrival; more may join while they wait."""

    pieces: list[tuple[bytes, float]]
    reserved: int

    def __len__(self) -> int:
        return self.reserved

    def add(self, data: bytes, arrived: float) -> None:
        """Join a piece."""
        self.reserved += len(data)
        if len(self.pieces[-1][0]) + len(data) <= PIECE_BYTES:
            data = self.pieces.pop()[0] + data
        self.pieces.append((data, arrived))


class Mark(Enum):
    """What stands in the inbox beside sound."""

    READY = "ready"
    """The session of a live feed has results between two pieces."""
    LULL = "lull"
    """Nothing has come for a while."""
    END = "end"
    """Nothing will come any more."""


class Inbox:
    """Takes what comes for a job, within bounds, and gives it out in the same order."""

    def __init__(self, job_id: str, limits: Limits, touch: Callable[[], None]) -> None:
        """`touch` is called whenever something comes."""
        self._job_id = job_id
        self._touch = touch
        self._room = Room(limits.queue_segments, limits.queue_bytes)
        self._queue: asyncio.Queue[Segment | Pieces | Mark] = asyncio.Queue()  # bounded by the room
        self._joinable: Pieces | None = None  # the newest in the queue, if it is of a live feed
        self._loop = asyncio.get_running_loop()

    @property
    def items(self) -> int:
        """How many segments wait or are at work; pieces that wait together count as one."""
        return self._room.items

    def over(self) -> RequestRefused:
        """Give the error (409) for what comes after the end."""
        return RequestRefused(409, f"the input of job {self._job_id} has ended; use a new job id")

    # -- in ------------------------------------------------------------------------------------------------

    async def reserve(self, size: int, timeout: float | None = None) -> bool:
        """Wait for room for a segment of `size` bytes; False when none came in time or the inbox is closed."""
        self._touch()
        return await self._room.take(size, timeout)

    def release(self, size: int) -> None:
        """Give back the room of a segment: one that is done, or that did not come."""
        self._room.give(size)

    def enqueue(self, data: bytes | SegmentError, reserved: int) -> None:
        """Take a segment for which `reserved` bytes of room were taken.

        Raises `RequestRefused` (409), and gives the room back, when the inbox was closed meanwhile.
        """
        self._touch()
        if self._room.closed:
            self._room.give(reserved)
            raise self.over()
        self._joinable = None
        self._queue.put_nowait(Segment(data, reserved, self._loop.time()))

    async def submit(self, data: bytes, *, live: bool = False) -> None:
        """Wait for room, then take a segment, or a piece of a live feed.

        Raises `RequestRefused` (409) when the inbox is closed before there is room.
        """
        self._touch()
        joining = live and self._joinable is not None and self._joinable.reserved + len(data) <= JOINED_BYTES
        if not await self._room.take(len(data), items=0 if joining else 1):
            raise self.over()
        if live:
            self._join_or_add(data, joining=joining)
        else:
            self.enqueue(data, len(data))

    def submit_now(self, data: bytes | SegmentError, *, live: bool = False) -> None:
        """Take a segment without waiting: the tail of a feed that is over. Nothing when the inbox is closed."""
        if self._room.closed:
            return
        size = 0 if isinstance(data, SegmentError) else len(data)
        self._room.take_now(size)
        if live and not isinstance(data, SegmentError):
            self._join_or_add(data, joining=False)
        else:
            self.enqueue(data, size)

    def _join_or_add(self, data: bytes, *, joining: bool) -> None:
        """Put a piece, for which room was taken, to those that wait, or behind them."""
        if joining and self._joinable is not None:
            self._joinable.add(data, self._loop.time())
            return
        if joining:  # those were taken to work while this piece waited for room
            self._room.take_now(0)
        self._joinable = Pieces([(data, self._loop.time())], len(data))
        self._queue.put_nowait(self._joinable)

    def mark(self, mark: Mark) -> None:
        """Put a mark behind what waits."""
        self._queue.put_nowait(mark)

    def close(self) -> None:
        """Take no more; the end is marked behind what waits. Harmless when repeated."""
        if not self._room.closed:
            self._room.close()
            self.mark(Mark.END)

    # -- out -----------------------------------------------------------------------------------------------

    async def next(self, lull: float | None = None) -> Segment | Pieces | Mark:
        """Wait for what comes next: for `lull` seconds, if given, and then it is `Mark.LULL`."""
        timer = None if lull is None else self._loop.call_later(lull, self._mark_lull)
        try:
            came = await self._queue.get()
        finally:
            if timer is not None:
                timer.cancel()
        if came is self._joinable:
            self._joinable = None
        return came

    def _mark_lull(self) -> None:
        """End the wait, unless something came in this very turn of the loop: that is to be heard first."""
        if self._queue.empty():
            self.mark(Mark.LULL)

    def drain(self) -> list[Segment | Pieces]:
        """Close the inbox, and give what nobody will work on any more. Its room is still to be released."""
        self._room.close()
        waiting: list[Segment | Pieces] = []
        while not self._queue.empty():
            came = self._queue.get_nowait()
            waiting += [] if isinstance(came, Mark) else [came]
        return waiting
