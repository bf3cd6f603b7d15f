"""The input of a stream on its way to an orchestrator, kept until something came of it."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable

from whisper_byoc.aio import Changed
from whisper_byoc.trickle import LocalSubscriber
from whisper_byoc.trickle.channel import Segment

__all__ = ["Backlog"]


class Backlog:
    """Segments of a channel in this process. `read` yields all that is kept, and what comes, once for each attempt.

    As long as it is `replayable` everything is kept, up to `hold_bytes`; `settle` says that nobody will read again.
    When so much is waiting to be sent, the channel is read no further, and its window drops what nobody takes.
    """

    def __init__(self, source: LocalSubscriber, hold_bytes: int, on_missed: Callable[[int], None]) -> None:
        self.replayable = True
        self.missed = 0
        """Segments that had left the channel's window before they could be taken."""
        self.segments = 0
        """Segments that were taken from the channel."""
        self._source: LocalSubscriber | None = source
        self._hold = hold_bytes
        self._on_missed = on_missed
        self._kept: deque[Segment] = deque()
        self._first = 0
        self._taken = 0
        self._turn = 0
        self._ended = False
        self._dropped_bytes = 0
        self._changed = Changed()

    async def run(self) -> None:
        """Take segments as they begin, until the channel ends."""
        try:
            assert self._source is not None
            async for segment in self._source:
                if segment.missed:
                    self.missed += segment.missed
                    self._on_missed(segment.missed)
                self.segments += 1
                self._kept.append(segment.segment)
                self._changed.notify()
                while self._held > self._hold:
                    self.settle()
                    if self._held > self._hold:
                        await self._changed.wait()
        finally:
            self._ended = True
            self._changed.notify()

    async def read(self) -> AsyncIterator[Segment]:
        """Yield segments, the oldest that is kept first; a call ends the iterators of earlier ones."""
        self._turn += 1
        turn, self._taken = self._turn, self._first
        self._changed.notify()
        while turn == self._turn:
            if self._taken < self._first + len(self._kept):
                yield self._kept[self._taken - self._first]
                if turn == self._turn:
                    self._taken += 1
                    self._drop()
            elif self._ended:
                return
            else:
                await self._changed.wait()

    async def sent(self) -> None:
        """Wait until the channel has ended and all of it was sent."""
        while not (self._ended and self._taken >= self._first + len(self._kept)):
            await self._changed.wait()

    def settle(self) -> None:
        """Keep nothing more than what is still to be sent."""
        if self.replayable:
            self.replayable = False
            self._drop()

    def close(self) -> None:
        """Let go of everything but the counts: the stream is over."""
        self._dropped_bytes = self.bytes
        self._kept.clear()
        self._source = None
        self.replayable = False
        self._turn += 1
        self._changed.notify()

    @property
    def bytes(self) -> int:
        """Bytes that have come so far."""
        return self._dropped_bytes + self._held

    @property
    def _held(self) -> int:
        return sum(segment.size for segment in self._kept)

    def _drop(self) -> None:
        while not self.replayable and self._kept and self._first < self._taken:
            self._dropped_bytes += self._kept.popleft().size
            self._first += 1
        self._changed.notify()
