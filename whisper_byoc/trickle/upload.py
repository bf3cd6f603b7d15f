"""One segment on its way to the server: the same bytes again, on another connection, for as long as need be."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator
from typing import Protocol

import aiohttp

from whisper_byoc.aio import Changed
from whisper_byoc.http import CONNECTION_ERRORS, reason_of
from whisper_byoc.trickle.errors import ChannelClosed, SegmentBroken, TrickleError, Unreachable
from whisper_byoc.trickle.http import (
    ClientOptions,
    ServerTrouble,
    backoff,
    error_of,
    limited,
)
from whisper_byoc.trickle.protocol import CLOSED, RESET

__all__ = ["Target", "Upload"]

log = logging.getLogger("whisper_byoc.trickle")

UNSENT_BYTES = 1 << 20
"""A writer waits while so many bytes are not on their way yet."""


class Target(Protocol):
    """What an upload needs to know of its publisher."""

    url: str
    mime: str
    options: ClientOptions
    keep_bytes: int
    continuous: bool
    """Readers want the bytes of all segments as one stream, not each segment whole."""
    left_open: bool
    """A segment was given up while the server could not be told; the next POST closes it."""

    @property
    def http(self) -> aiohttp.ClientSession:
        """The session."""

    async def renumber(self, upload: Upload) -> int:
        """Give a free index in place of the upload's own."""


class IndexTaken(Exception):
    """The server takes nothing more for this index."""


class Upload:
    """A POST that is opened before there are bytes to send, and opened again when it breaks.

    A connection that breaks before it took a byte costs nothing: the same index is opened again. One that took some
    leaves the index in doubt. Then the index is closed, and read back if everything had been sent; unless the server
    turns out to have it all, the whole segment goes to the next free index. Of a continuous stream, only what the
    server does not have goes there.
    """

    def __init__(self, target: Target, seq: int, *, reset: bool = False) -> None:
        self.seq = seq
        self._target = target
        self._options = target.options
        self._reset = reset
        self._queue: list[bytes] = []  # what the present connection did not take yet
        self._sent: list[bytes] | None = []  # what it took, None when that became too much to keep
        self._size = 0
        self._unsent = 0
        self._whole = False
        self._started = False  # the present connection took bytes
        self._doubtful = False  # a connection broke after it took bytes
        self._index_taken = False
        self._changed = Changed()
        self._moved_at = time.monotonic()
        self._task = asyncio.create_task(self._run())
        self._task.add_done_callback(self._ended)

    @property
    def has_data(self) -> bool:
        """Whether anything was written, or the segment was finished empty."""
        return self._size > 0 or self._whole

    @property
    def error(self) -> BaseException | None:
        """What ended the upload, if it did not end well."""
        if not self._task.done():
            return None
        return ChannelClosed("the publisher was closed") if self._task.cancelled() else self._task.exception()

    async def write(self, data: bytes) -> None:
        """Add bytes; waits while the connection takes less than is written.

        Raises what ended the upload.
        """
        if data:
            self._queue.append(bytes(data))
            self._size += len(data)
            self._unsent += len(data)
            self._move()
        while self._unsent > UNSENT_BYTES and not self._task.done():
            await self._changed.wait()  # `_in_time` keeps the time
        self._check()

    async def finish(self) -> None:
        """Say that all bytes were written, and wait until the server has them.

        Raises what ended the upload.
        """
        self._whole = True
        self._move()
        await asyncio.wait((self._task,))
        self._check()

    def drop(self) -> None:
        """Drop the connection, without a word to the server."""
        self._task.cancel()

    async def abandon(self) -> None:
        """Drop the connection; tell the server to close the segment if it may have begun."""
        self.drop()
        await asyncio.wait((self._task,))
        if self._started or self._doubtful:
            with contextlib.suppress(*CONNECTION_ERRORS):
                await self._close_segment()

    async def _run(self) -> None:
        """Try until the segment is delivered, or cannot be."""
        pauses, idle_pauses, failing_since = backoff(self._options), backoff(self._options), 0.0
        while True:
            began_at = time.monotonic()
            try:
                if not await self._recover():
                    await self._attempt()
                return
            except IndexTaken:
                self._index_taken = True  # maybe by every index: who answers may be no trickle server
                await self._pause(next(pauses if self.has_data else idle_pauses))
            except (*CONNECTION_ERRORS, ServerTrouble) as error:
                log.info("segment %d of %s: %s", self.seq, self._target.url, reason_of(error))
                self._doubtful = self._doubtful or self._started
                now, patience = time.monotonic(), self._options.patience_seconds
                lived = now - began_at > patience and not isinstance(error, TimeoutError)
                if not failing_since or lived or not self.has_data:  # when idle, only `abandon` ends this
                    failing_since = now
                if lived:
                    pauses = backoff(self._options)
                if now - failing_since > patience:
                    self._target.left_open = True
                    raise Unreachable(f"segment {self.seq} of {self._target.url}: {reason_of(error)}") from error
                await self._pause(next(pauses))
            if self._started and self._sent is None:
                self._target.left_open = True
                raise SegmentBroken(f"segment {self.seq} broke after {self._size} bytes, too many to keep", self.seq)

    async def _pause(self, seconds: float) -> None:
        """Wait before the next try; the first byte that is written ends the wait."""
        if self.has_data:
            await asyncio.sleep(seconds)
        else:
            await self._changed.wait(seconds)

    async def _recover(self) -> bool:
        """Find out what became of the last try; True when the server has the whole segment after all."""
        if self._doubtful:
            was_there = await self._close_segment()  # else readers could wait for the rest for ever
            if was_there and (self._whole or self._target.continuous):
                stored = await self._stored()
                written = b"".join([*(self._sent or []), *self._queue])
                if self._whole and stored == written:
                    return True
                if self._target.continuous and stored and written.startswith(stored):
                    self._go_on_with(written[len(stored) :])
        if self._doubtful or self._index_taken:
            self.seq = await self._target.renumber(self)
        self._doubtful = self._index_taken = False
        return False

    async def _attempt(self) -> None:
        """Open the POST, send what there is and what comes, and read the answer."""
        self._queue[:0] = self._sent or []
        self._sent, self._started, self._unsent = [], False, sum(map(len, self._queue))
        self._move()
        headers = {"Content-Type": self._target.mime}
        reset = self._reset or self._target.left_open
        if reset:
            headers[RESET] = "1"
        url = f"{self._target.url}/{self.seq}"
        posting = asyncio.ensure_future(
            self._target.http.post(url, data=self._body(), headers=headers, allow_redirects=False)
        )
        try:
            await self._in_time(posting)
            await self._judge(posting.result())
            self._target.left_open = self._target.left_open and not reset
        finally:
            posting.cancel()
            if posting.done() and not posting.cancelled() and not posting.exception():
                posting.result().release()

    async def _in_time(self, posting: asyncio.Future[aiohttp.ClientResponse]) -> None:
        """Wait for the answer; there is no limit while it is not the server's turn."""
        limit = self._options.answer_seconds
        while not posting.done():
            still = time.monotonic() - self._moved_at
            servers_turn = self._whole or self._unsent > 0
            if servers_turn and still >= limit:
                raise TimeoutError(f"the server did nothing for {limit:g} s")
            await asyncio.wait((posting,), timeout=limit - still if servers_turn else limit)

    async def _judge(self, answer: aiohttp.ClientResponse) -> None:
        """Return when the segment is stored."""
        if answer.headers.get(CLOSED):
            raise ChannelClosed(f"channel {self._target.url} was closed")
        if answer.status == 409 or (answer.status == 200 and not (self._whole and self._unsent == 0)):
            raise IndexTaken
        if answer.status != 200:
            raise await error_of(answer, self._target.url)
        if self._size and answer.headers.get("Connection", "").lower() == "close":
            raise aiohttp.ClientConnectionError("the server may have answered before it read the segment")

    async def _body(self) -> AsyncIterator[bytes]:
        """Yield the bytes from the first one on."""
        yield b""  # aiohttp holds the head back until there is a chunk: this one puts it on the wire
        while True:
            if self._queue:
                data = b"".join(self._queue)
                self._queue.clear()
                self._started = True
                if self._sent is not None:
                    self._sent.append(data)
                    if self._size > self._target.keep_bytes:
                        self._sent = None
                yield data
                self._unsent -= len(data)
                self._move()
            elif self._whole:
                return
            else:
                await self._changed.wait()

    async def _close_segment(self) -> bool:
        """Tell the server that no more comes for this index; False when it has nothing there."""
        url = f"{self._target.url}/{self.seq}"
        async with self._target.http.delete(url, timeout=limited(self._options)) as answer:
            return answer.status == 200

    def _go_on_with(self, rest: bytes) -> None:
        """Leave the rest to another index."""
        self._sent, self._queue, self._size = [], [rest] if rest else [], len(rest)
        self._doubtful, self._index_taken = False, True

    async def _stored(self) -> bytes | None:
        """Read the segment back; None when that is of no use."""
        url = f"{self._target.url}/{self.seq}"
        async with self._target.http.get(url, timeout=limited(self._options)) as answer:
            got = bytearray()
            async for data in answer.content.iter_any():
                got += data
                if len(got) > self._size:
                    return None
            return bytes(got) if answer.status == 200 else None

    def _check(self) -> None:
        if error := self.error:
            raise error

    def _move(self) -> None:
        self._moved_at = time.monotonic()
        self._changed.notify()

    def _ended(self, _: object) -> None:
        self._changed.notify()
        error = self.error  # also marks it as seen: an idle upload may fail without anybody asking
        if error and not isinstance(error, TrickleError):
            log.error("segment %d of %s: %s", self.seq, self._target.url, reason_of(error))
