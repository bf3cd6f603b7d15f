"""A job's input: a bounded queue of segments, and of pieces of a live feed, which wait together."""

import asyncio
from dataclasses import dataclass
from enum import Enum

from whisper_byoc.aio import Alarm, Changed
from whisper_byoc.errors import RequestRefused, SegmentError
from whisper_byoc.server.core.limits import Limits

JOINED_BYTES = 480_000
"""Waiting pieces of a live feed share one place in the queue, up to 15 s of sound."""
SMALL_BYTES = 3_200
"""Waiting pieces are joined up to this size: only 0.1 s, so that their times of arrival stay nearly exact."""


@dataclass(frozen=True)
class QueuedSegment:
    """One accepted segment, or the reason why its bytes cannot be one."""

    data: bytes | SegmentError
    reserved: int
    """Bytes that it takes up in the queue: its size as sent, which for a WAV is not the size of its sound."""
    arrived: float
    """Event loop time, in seconds."""

    @property
    def size(self) -> int:
        return 0 if isinstance(self.data, SegmentError) else len(self.data)


@dataclass
class QueuedPieces:
    """Consecutive pieces of a live feed, with their times of arrival; more may join while they wait."""

    pieces: list[tuple[bytes, float]]
    reserved: int

    def add(self, data: bytes, arrived: float) -> None:
        self.reserved += len(data)
        if len(self.pieces[-1][0]) + len(data) <= SMALL_BYTES:
            data = self.pieces.pop()[0] + data
        self.pieces.append((data, arrived))


class Sentinel(Enum):
    """What the inbox yields besides segments and pieces."""

    READY = "ready"
    """The session of a live feed has results between two pieces."""
    FLUSH = "flush"
    """Nothing has come for a while."""
    END = "end"
    """Nothing more will come."""


class Inbox:
    """A bounded queue. One segment always fits, however large."""

    def __init__(self, job_id: str, limits: Limits) -> None:
        self.items = 0
        """Segments waiting or being processed; pieces that wait together count as one."""
        self.bytes = 0
        """Their bytes."""
        self.fed = False
        """Whether anything has come yet."""
        self._job_id = job_id
        self._limits = limits
        self._closed = False
        self._freed = Changed()
        self._queue: asyncio.Queue[QueuedSegment | QueuedPieces | Sentinel] = asyncio.Queue()  # bounded by `_fits`
        self._flushing = False  # a flush is last in the queue
        self._joinable: QueuedPieces | None = None  # the last item in the queue, if of a live feed
        self._flush = Alarm(self._put_flush)
        self._loop = asyncio.get_running_loop()
        self.touched = self._loop.time()
        """When something last came, in event loop time."""

    @property
    def closed(self) -> bool:
        """Whether it accepts nothing more."""
        return self._closed

    def over(self) -> RequestRefused:
        return RequestRefused(409, f"the input of job {self._job_id} has ended; use a new job id")

    async def reserve(self, size: int, timeout: float | None = None, *, items: int = 1) -> bool:
        """Wait for room for `size` bytes and `items` items; bytes that join waiting pieces add no item.

        Return False when there was none within `timeout` seconds, or the inbox is closed.
        """
        self.touched = self._loop.time()
        await self._freed.until(lambda: self._closed or self._fits(size, items), timeout)
        if self._closed or not self._fits(size, items):
            return False
        self.items += items
        self.bytes += size
        return True

    def release(self, size: int) -> None:
        """Free the room of an item that is done, or that never came."""
        self.items -= 1
        self.bytes -= size
        self._freed.notify()

    def enqueue(self, data: bytes | SegmentError, reserved: int) -> None:
        """Take a segment for which `reserved` bytes of room were reserved.

        Raises `RequestRefused` (409), and frees the room, when the inbox was closed meanwhile.
        """
        self.touched = self._loop.time()
        if self._closed:
            self.release(reserved)
            raise self.over()
        self.fed = True
        self._joinable = None
        self._queue.put_nowait(QueuedSegment(data, reserved, self._loop.time()))

    async def submit(self, data: bytes, *, live: bool = False) -> None:
        """Wait for room, then take a segment, or a piece of a live feed.

        Raises `RequestRefused` (409) when the inbox is closed before there is room.
        """
        joins = live and self._joinable is not None and self._joinable.reserved + len(data) <= JOINED_BYTES
        if not await self.reserve(len(data), items=0 if joins else 1):
            raise self.over()
        if not live:
            self.enqueue(data, len(data))
        elif joins and self._joinable is not None:
            self._joinable.add(data, self._loop.time())
        else:
            if joins:
                self.items += 1  # the pieces it was to join are being processed by now
            self._enqueue_piece(data)

    def submit_now(self, data: bytes | SegmentError, *, live: bool = False) -> None:
        """Take the tail of a feed that has ended, even if there is no room; drop it if the inbox is closed.

        An error is an item of its own, even in a live feed.
        """
        if self._closed:
            return
        size = 0 if isinstance(data, SegmentError) else len(data)
        self.items += 1
        self.bytes += size
        if live and not isinstance(data, SegmentError):
            self._enqueue_piece(data)
        else:
            self.enqueue(data, size)

    def flush(self) -> None:
        """Have the session return the results of what has come so far; the feed goes on."""
        if not (self._closed or self._flushing):
            self._flushing = True
            self._joinable = None
            self._queue.put_nowait(Sentinel.FLUSH)

    def put_ready(self) -> None:
        self._queue.put_nowait(Sentinel.READY)

    def close(self) -> None:
        """Accept nothing more; `Sentinel.END` follows what is waiting. Harmless when repeated."""
        if not self._closed:
            self._closed = True
            self._freed.notify()
            self._queue.put_nowait(Sentinel.END)

    def _fits(self, size: int, items: int) -> bool:
        if self.items == 0:
            return True
        return self.items + items <= self._limits.queue_segments and self.bytes + size <= self._limits.queue_bytes

    def _enqueue_piece(self, data: bytes) -> None:
        self.fed = True
        self._flushing = False
        self._joinable = QueuedPieces([(data, self._loop.time())], len(data))
        self._queue.put_nowait(self._joinable)

    def _put_flush(self) -> None:
        if self._queue.empty():
            self._queue.put_nowait(Sentinel.FLUSH)

    async def next(self, flush_after: float | None = None) -> QueuedSegment | QueuedPieces | Sentinel:
        """Wait for what comes next; `Sentinel.FLUSH` when nothing came for `flush_after` seconds."""
        if flush_after is not None:
            self._flush.set(flush_after)
        try:
            item = await self._queue.get()
        finally:
            self._flush.clear()
        if item is self._joinable:
            self._joinable = None
        self._flushing = self._flushing and not self._queue.empty()
        return item

    def drain(self) -> list[QueuedSegment | QueuedPieces]:
        """Close the inbox, and return the items that will not be processed. Their room is still to be released."""
        self._closed = True
        self._freed.notify()
        items = [self._queue.get_nowait() for _ in range(self._queue.qsize())]
        return [item for item in items if not isinstance(item, Sentinel)]
