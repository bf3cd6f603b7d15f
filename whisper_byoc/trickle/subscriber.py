"""The reading end of a channel on any trickle server."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator

import aiohttp

from whisper_byoc.http import CONNECTION_ERRORS
from whisper_byoc.trickle.errors import SegmentBroken, SegmentTooLarge, TrickleError
from whisper_byoc.trickle.fetch import Fetched, Fetcher
from whisper_byoc.trickle.http import ClientOptions, backoff, channel_url, open_session
from whisper_byoc.trickle.protocol import CURRENT

__all__ = ["SegmentReader", "TrickleSubscriber"]

LARGEST_READ = 64 << 20
RESUMES = 5
"""How often a segment that broke off is asked for again without getting further."""


class TrickleSubscriber:
    """Iterates over the segments of a channel, in order and each once, until the channel ends.

    `start` is an index, -1 (the next segment that is written) or -2 (the newest one that was started). Silence is no
    error, for however long. A segment without a byte is passed over. Going on to the next segment gives up what was
    not read of the one before; the next one is asked for as soon as one is handed out.
    """

    def __init__(self, url: str, start: int = CURRENT, *, options: ClientOptions | None = None) -> None:
        self.url = channel_url(url)
        self.options = options or ClientOptions()
        self._start = start
        self._http: aiohttp.ClientSession | None = None
        self._fetcher: Fetcher | None = None
        self._ahead: asyncio.Task[Fetched | None] | None = None
        self._current: SegmentReader | None = None
        self._ended = False

    async def start(self) -> None:
        """Open the session."""
        if self._http is None:
            self._http = open_session(self.options)
            self._fetcher = Fetcher(self._http, self.url, self.options)

    async def close(self) -> None:
        """Drop all connections; the iteration ends."""
        self._ended = True
        if self._current:
            self._current.discard()
        try:
            if ahead := self._ahead:
                ahead.cancel()
                await asyncio.wait((ahead,))
                if not ahead.cancelled() and not ahead.exception() and (fetched := ahead.result()):
                    fetched.response.close()
        finally:  # also when the caller is cancelled meanwhile
            if self._http:
                await self._http.close()

    async def __aenter__(self) -> TrickleSubscriber:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def __aiter__(self) -> TrickleSubscriber:
        return self

    async def __anext__(self) -> SegmentReader:
        """Wait for the next segment.

        Raises `ChannelNotFound` when there never was a channel, `Unreachable` or `Refused`.
        """
        if self._fetcher is None:
            raise TrickleError("the subscriber is not open: use `async with`, or `start` and `close`")
        if self._current:
            self._current.discard()
        if self._ended:
            raise StopAsyncIteration
        ahead = self._ahead = self._ahead or asyncio.create_task(self._fetcher.first(self._start))
        if not ahead.done():
            await asyncio.wait((ahead,))  # a caller who stops waiting can come back
        self._ahead = None
        fetched = None if ahead.cancelled() else ahead.result()
        if fetched is None:
            self._ended = True
            raise StopAsyncIteration
        self._start = fetched.seq + 1
        self._ahead = asyncio.create_task(self._fetcher.fetch(self._start))
        self._ahead.add_done_callback(seen)
        self._current = SegmentReader(self._fetcher, fetched)
        return self._current


class SegmentReader:
    """One segment being read, as its bytes arrive.

    `missed` says how many segments before it had left the server's window before they were asked for.
    """

    def __init__(self, fetcher: Fetcher, fetched: Fetched) -> None:
        self.seq = fetched.seq
        self.missed = fetched.missed
        self.content_type = fetched.response.headers.get("Content-Type", "application/octet-stream")
        self._fetcher = fetcher
        self._fetched: Fetched | None = fetched
        self._received = 0
        self._resumed_at = 0
        self._resumes = 0

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Yield bytes as they arrive. A broken connection is opened again, and nothing comes twice.

        Raises `SegmentBroken` when the server no longer has the rest, or `Unreachable`.
        """
        while self._fetched:
            fetched = self._fetched
            try:
                data = await fetched.more(self._fetcher.options.stall_seconds)
            except CONNECTION_ERRORS as error:
                self.discard()
                self._fetched = await self._resume(error)
                continue
            if not data:
                self.discard()
                return
            self._received += len(data)
            yield data

    async def read(self, limit: int = LARGEST_READ) -> bytes:
        """Wait for the end of the segment, and give all of it that was not read yet.

        Raises `SegmentTooLarge` beyond `limit` bytes, `SegmentBroken` or `Unreachable`.
        """
        data = bytearray()
        async for chunk in self:
            data += chunk
            if len(data) > limit:
                self.discard()
                raise SegmentTooLarge(f"segment {self.seq} has more than {limit} bytes; read it piece by piece")
        return bytes(data)

    def discard(self) -> None:
        """Give up what was not read."""
        if self._fetched:
            self._fetched.response.close()
            self._fetched = None

    async def _resume(self, cause: BaseException) -> Fetched:
        """Ask for the segment again, and pass over what was received."""
        self._resumes = self._resumes + 1 if self._received == self._resumed_at else 1
        self._resumed_at = self._received
        for pause in itertools.islice(backoff(self._fetcher.options), max(RESUMES - self._resumes, 0)):
            await asyncio.sleep(pause)
            fetched = await self._fetcher.again(self.seq)
            if fetched is None:
                break
            try:
                if await fetched.skip(self._received, self._fetcher.options.stall_seconds):
                    return fetched
            except CONNECTION_ERRORS as error:
                cause = error
            fetched.response.close()
        broken = f"segment {self.seq} broke off after {self._received} bytes, and the rest cannot be had"
        raise SegmentBroken(broken, self.seq) from cause


def seen(task: asyncio.Task[Fetched | None]) -> None:
    """Mark an error as seen: the subscriber may be closed before it comes to it."""
    if not task.cancelled():
        task.exception()
