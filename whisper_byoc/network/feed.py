"""The body of a request on its way to a peer, kept until something came of it, so that another peer can have it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from whisper_byoc.aio import Changed
from whisper_byoc.errors import RequestRefused
from whisper_byoc.trickle.limits import Memory

__all__ = ["Feed"]

UNSENT_BYTES = 1 << 20
"""So much may have arrived and not be sent yet; then the sender has to wait."""
BROKEN = (web.RequestPayloadError, HttpProcessingError, ConnectionError)


class Feed:
    """Reads a request's body in a task of its own, within `async with`.

    `chunks` yields it from its first byte, once for each peer that is tried, one at a time. As long as the feed is
    `replayable` all of it is kept, up to `hold_bytes`; `settle` says that no other peer will want it.
    """

    def __init__(self, request: web.Request, memory: Memory, hold_bytes: int, most_bytes: int | None = None) -> None:
        self.length = request.content_length
        """Bytes of the whole body where the sender told it; None for a live feed."""
        self.error: RequestRefused | None = None
        """Why the body did not come to its end, by the sender's fault."""
        self.replayable = True
        self._content = request.content
        self._most = most_bytes
        self._hold = hold_bytes
        self._memory = memory
        self._held = 0
        self._kept: deque[bytes] = deque()
        self._first = 0  # number of the oldest chunk that is kept
        self._turn = 0
        self._taken = 0  # chunks that the present peer has taken
        self._unsent = 0
        self._whole = False
        self._changed = Changed()
        self._task: asyncio.Task[None] | None = None
        if most_bytes is not None and (self.length or 0) > most_bytes:
            raise RequestRefused(413, f"the body of {self.length} bytes is larger than the limit of {most_bytes} bytes")

    async def __aenter__(self) -> Feed:
        self._task = asyncio.get_running_loop().create_task(self._read())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._turn += 1
        self._changed.notify()
        try:
            if self._task:
                self._task.cancel()
                await asyncio.wait({self._task})
        finally:  # a client that hangs up cancels this, too
            self._memory.give(self._held)
            self._held = 0

    @property
    def empty(self) -> bool:
        """Whether the sender said that there is no body."""
        return self.length == 0

    @property
    def hungry(self) -> bool:
        """Whether all that has come was taken, and more is to come: it is the sender's turn, not the peer's."""
        return not self._whole and self.error is None and self._unsent == 0

    async def chunks(self, produced: Callable[[], bool] = lambda: False) -> AsyncIterator[bytes]:
        """Yield the body from its first byte; a call ends the iterators of earlier ones.

        It is settled as soon as `produced` says that something came of it.
        Raises `RequestRefused` when the body breaks off.
        """
        self._turn += 1
        turn, self._taken = self._turn, self._first
        self._unsent = sum(map(len, self._kept))
        self._changed.notify()
        if self.length is None:
            yield b""  # aiohttp sends a request's head with the first chunk, and this feed may begin with a pause
        while turn == self._turn:
            if self.replayable and produced():
                self.settle()
            if self._taken < self._first + len(self._kept):
                chunk = self._kept[self._taken - self._first]
                self._taken += 1
                self._drop()
                yield chunk
                if turn == self._turn:
                    self._unsent -= len(chunk)
                    self._changed.notify()
            elif self.error:
                raise self.error
            elif self._whole:
                return
            else:
                await self._changed.wait()

    def settle(self) -> None:
        """Keep nothing more than what is still to be sent: something came of it, or never will."""
        self.replayable = False
        self._drop()

    async def _read(self) -> None:
        try:
            size = 0
            while data := await self._content.readany():
                size += len(data)
                if self._most is not None and size > self._most:
                    raise RequestRefused(413, f"the body is larger than the limit of {self._most} bytes")
                self._memory.take(len(data))
                self._held += len(data)
                self._kept.append(data)
                self._unsent += len(data)
                if self._held > self._hold:
                    self.settle()
                self._changed.notify()
                while self._unsent > UNSENT_BYTES:
                    await self._changed.wait()
            self._whole = True
        except BROKEN:
            self.error = RequestRefused(400, "the body of the request broke off")
        except RequestRefused as error:
            self.error = error
        except Exception as error:  # the bounds of the memory
            self.error = RequestRefused(503, str(error), retry_after=1)
        self._changed.notify()

    def _drop(self) -> None:
        while not self.replayable and self._kept and self._first < self._taken:
            size = len(self._kept.popleft())
            self._memory.give(size)
            self._held -= size
            self._first += 1
