"""A job's queue: segments, pieces of a live feed that wait together, and marks between them; and its bounds."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from whisper_byoc.aio import Changed
from whisper_byoc.errors import RequestRefused, SegmentError
from whisper_byoc.server.core.limits import Limits

JOINED_BYTES = 480_000
"""Pieces of a live feed that wait share one place in the queue, up to 15 s of sound."""
SMALL_BYTES = 3_200
"""Waiting pieces smaller than this become one: 0.1 s, so that it matters little when which byte came."""


@dataclass(frozen=True)
class Segment:
    """One accepted segment, or the reason why its bytes cannot be one."""

    data: bytes | SegmentError
    reserved: int
    """Bytes that it takes up in the queue."""
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
        self.reserved += len(data)
        if len(self.pieces[-1][0]) + len(data) <= SMALL_BYTES:
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
    """Takes what comes for a job, within bounds, and hands it out in the same order.

    One segment always fits, however large.
    """

    def __init__(self, job_id: str, limits: Limits, touch: Callable[[], None]) -> None:
        """`touch` is called whenever something comes."""
        self.items = 0
        """Segments that wait or are at work; pieces that wait together count as one."""
        self.bytes = 0
        """Their bytes."""
        self._job_id = job_id
        self._limits = limits
        self._touch = touch
        self._closed = False
        self._freed = Changed()
        self._queue: asyncio.Queue[Segment | Pieces | Mark] = asyncio.Queue()  # bounded by `_fits`
        self._joinable: Pieces | None = None  # the newest in the queue, if it is of a live feed
        self._loop = asyncio.get_running_loop()

    def over(self) -> RequestRefused:
        return RequestRefused(409, f"the input of job {self._job_id} has ended; use a new job id")

    # -- in ------------------------------------------------------------------------------------------------

    async def reserve(self, size: int, timeout: float | None = None, *, items: int = 1) -> bool:
        """Wait for room for `size` bytes; return False when none came in `timeout` seconds or the inbox is closed.

        No `items` are for bytes that join a segment.
        """
        self._touch()
        await self._freed.until(lambda: self._closed or self._fits(size, items), timeout)
        if self._closed or not self._fits(size, items):
            return False
        self.items += items
        self.bytes += size
        return True

    def release(self, size: int) -> None:
        """Free the room of a segment: one that is done, or that did not come."""
        self.items -= 1
        self.bytes -= size
        self._freed.notify()

    def enqueue(self, data: bytes | SegmentError, reserved: int) -> None:
        """Take a segment for which `reserved` bytes of room were reserved.

        Raises `RequestRefused` (409), and frees the room, when the inbox was closed meanwhile.
        """
        self._touch()
        if self._closed:
            self.release(reserved)
            raise self.over()
        self._joinable = None
        self._queue.put_nowait(Segment(data, reserved, self._loop.time()))

    async def submit(self, data: bytes, *, live: bool = False) -> None:
        """Wait for room, then take a segment, or a piece of a live feed.

        Raises `RequestRefused` (409) when the inbox is closed before there is room.
        """
        joining = live and self._joinable is not None and self._joinable.reserved + len(data) <= JOINED_BYTES
        if not await self.reserve(len(data), items=0 if joining else 1):
            raise self.over()
        if not live:
            self.enqueue(data, len(data))
        elif joining and self._joinable is not None:
            self._joinable.add(data, self._loop.time())
        else:
            self.items += joining  # the pieces that it was to join are at work by now
            self._add_pieces(data)

    def submit_now(self, data: bytes | SegmentError, *, live: bool = False) -> None:
        """Take a segment even where there is no room: the tail of a feed that is over. Nothing if the inbox is closed.

        An error is no piece of a live feed: it stands for itself.
        """
        if self._closed:
            return
        size = 0 if isinstance(data, SegmentError) else len(data)
        self.items += 1
        self.bytes += size
        if live and not isinstance(data, SegmentError):
            self._add_pieces(data)
        else:
            self.enqueue(data, size)

    def mark(self, mark: Mark) -> None:
        self._queue.put_nowait(mark)

    def close(self) -> None:
        """Take no more; the end is marked behind what waits. Harmless when repeated."""
        if not self._closed:
            self._closed = True
            self._freed.notify()
            self.mark(Mark.END)

    def _fits(self, size: int, items: int) -> bool:
        if self.items == 0:
            return True
        return self.items + items <= self._limits.queue_segments and self.bytes + size <= self._limits.queue_bytes

    def _add_pieces(self, data: bytes) -> None:
        self._joinable = Pieces([(data, self._loop.time())], len(data))
        self._queue.put_nowait(self._joinable)

    # -- out -----------------------------------------------------------------------------------------------

    async def next(self, lull: float | None = None) -> Segment | Pieces | Mark:
        """Wait for what comes next; `Mark.LULL` when nothing came for `lull` seconds."""
        timer = None if lull is None else self._loop.call_later(lull, self._mark_lull)
        try:
            item = await self._queue.get()
        finally:
            if timer is not None:
                timer.cancel()
        if item is self._joinable:
            self._joinable = None
        return item

    def _mark_lull(self) -> None:
        if self._queue.empty():  # what came in this very turn of the loop goes first
            self.mark(Mark.LULL)

    def drain(self) -> list[Segment | Pieces]:
        """Close the inbox, and return what nobody will work on any more. Its room is still to be released."""
        self._closed = True
        self._freed.notify()
        waiting: list[Segment | Pieces] = []
        while not self._queue.empty():
            item = self._queue.get_nowait()
            waiting += [] if isinstance(item, Mark) else [item]
        return waiting
