"""The reading end of a channel on any trickle server."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import AsyncIterable, AsyncIterator, Iterator
from typing import Self

import aiohttp

from whisper_byoc.aio import backoff, cancel
from whisper_byoc.http import CONNECTION_ERRORS
from whisper_byoc.trickle.errors import ChannelNotFound, Refused, SegmentBroken, SegmentTooLarge, TrickleError
from whisper_byoc.trickle.protocol import CLOSED, CURRENT, LATEST, NOT_FOUND, SEQ, WINDOW
from whisper_byoc.trickle.remote import (
    FIRST_PAUSE_S,
    RETRIED,
    ClientOptions,
    RemoteChannel,
    Retry,
    header_seq,
    retry_pauses,
)

log = logging.getLogger("whisper_byoc.trickle")

LARGEST_READ = 64 << 20
LONGEST_EARLY_S = 1.0
"""A segment that does not exist yet is asked for at least this often."""
FREE_STEPS = WINDOW + 1
"""Responses without a byte that may follow each other at once; a server might respond like that to everything."""
REWOUND = 2
"""A server's next write never goes back this far behind what it has served, except when it begins anew."""
RESUMES = 5
"""How often a segment that broke off is asked for again without any progress."""


class TrickleSubscriber:
    """Iterates over the segments of a channel, in order and each once, until the channel ends.

    `start` is an index, -1 (the next segment that is written) or -2 (the newest one that was started). Silence is not
    an error, however long it lasts. Segments without a byte are skipped. Going on to the next segment discards what was
    not read of the previous one; the next is requested as soon as one is handed out.
    """

    def __init__(self, url: str, start: int = CURRENT, *, options: ClientOptions | None = None) -> None:
        self._channel = RemoteChannel(url, options or ClientOptions())
        self._fetcher = _Fetcher(self._channel)
        self._start = start
        self._ahead: asyncio.Task[SegmentReader | None] | None = None
        self._current: SegmentReader | None = None
        self._ended = False
        self._pauses: Iterator[float] | None = None  # after an error, those before the next attempts

    async def start(self) -> None:
        self._channel.open()

    async def close(self) -> None:
        """Drop all connections; the iteration ends."""
        self._ended = True
        if self._current:
            self._current.discard()
        try:
            if ahead := self._ahead:
                await cancel(ahead)
                if not ahead.cancelled() and not ahead.exception() and (segment := ahead.result()):
                    segment.discard()
        finally:  # also when the caller is cancelled meanwhile
            await self._channel.close()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> SegmentReader:
        """Wait for the next segment.

        Raises `ChannelNotFound` when there never was a channel, `Unreachable` or `Refused`; another call tries again,
        after a pause that grows with each failure.
        """
        if self._current:
            self._current.discard()
        if self._ended:
            raise StopAsyncIteration
        ahead = self._ahead = self._ahead or asyncio.create_task(self._first())
        await asyncio.wait((ahead,))  # a caller that stops waiting can come back
        self._ahead = None
        segment = None if ahead.cancelled() else ahead.result()
        self._pauses = None
        if segment is None:
            self._ended = True
            raise StopAsyncIteration
        self._current = segment
        self._start = segment.seq + 1
        self._ahead = asyncio.create_task(self._fetcher.fetch(self._start))
        self._ahead.add_done_callback(lambda task: task.cancelled() or task.exception())  # marks an error as retrieved
        return segment

    @property
    def position(self) -> int:
        """The index being asked for: all below it were handed out, skipped or missed; 0 before the first."""
        return self._fetcher.position

    async def written(self) -> int:
        """Ask the server how many segments have begun so far; 0 if it does not say."""
        try:
            return await self._channel.next_write() or 0
        except (*RETRIED, TrickleError):
            return 0

    async def _first(self) -> SegmentReader | None:
        if self._pauses is None:
            self._pauses = backoff(FIRST_PAUSE_S, self._channel.options.longest_pause)
        else:
            await asyncio.sleep(next(self._pauses))
        return await self._fetcher.first(self._start)


class SegmentReader:
    """One segment being read, as its bytes arrive.

    `missed` is how many segments before it had left the server's window before they were asked for; `began_anew` is
    whether a publisher began again from the start before it: what was lost then has no number.
    """

    def __init__(self, fetcher: _Fetcher, answer: _Answer, seq: int, missed: int, *, began_anew: bool = False) -> None:
        self.seq = seq
        self.missed = missed
        self.began_anew = began_anew
        self.content_type = answer.response.headers.get("Content-Type", "application/octet-stream")
        self._fetcher = fetcher
        self._options = fetcher.options
        self._answer: _Answer | None = answer
        self._position = 0  # in the current response
        self._received = 0
        self._pauses = self._new_pauses()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Yield bytes as they arrive. A broken connection is reopened, and nothing comes twice.

        Raises `SegmentBroken` when the server no longer has the rest, or `Unreachable`.
        """
        while self._answer:
            try:
                data = await self._answer.read(self._options.stall_seconds)
            except CONNECTION_ERRORS as error:
                await self._ask_again(error)
                continue
            if not data:
                self.discard()
                if self._position < self._received:
                    raise self._broken()
                return
            self._position += len(data)
            fresh = self._position - self._received
            if fresh > 0:
                self._received = self._position
                self._pauses = self._new_pauses()
                yield data[-fresh:]

    async def read(self, limit: int = LARGEST_READ) -> bytes:
        """Wait for the end of the segment, and return everything not read yet.

        Raises `SegmentTooLarge` beyond `limit` bytes, `SegmentBroken` or `Unreachable`.
        """
        return await read_whole(self, self.seq, limit)

    def discard(self) -> None:
        if self._answer:
            self._answer.response.close()
            self._answer = None

    async def _ask_again(self, cause: BaseException) -> None:
        self.discard()
        pause = next(self._pauses, None)
        if pause is not None:
            await asyncio.sleep(pause)
            self._answer = await self._fetcher.again(self.seq)
            self._position = 0
        if self._answer is None:
            raise self._broken() from cause

    def _new_pauses(self) -> Iterator[float]:
        return itertools.islice(retry_pauses(self._options), RESUMES)

    def _broken(self) -> SegmentBroken:
        message = f"segment {self.seq} broke off after {self._received} bytes, and the rest cannot be had"
        return SegmentBroken(message, self.seq)


async def read_whole(segment: AsyncIterable[bytes], seq: int, limit: int) -> bytes:
    data = bytearray()
    async for chunk in segment:
        data += chunk
        if len(data) > limit:
            raise SegmentTooLarge(f"segment {seq} has more than {limit} bytes; read it piece by piece")
    return bytes(data)


class _Answer:
    """The server's response. If it is a segment, its first bytes or its end have arrived."""

    def __init__(self, response: aiohttp.ClientResponse, first: bytes) -> None:
        self.response = response
        self.first = first
        self.channel_closed = bool(response.headers.get(CLOSED))

    async def read(self, stall_seconds: float) -> bytes:
        """Return the next bytes, b"" at the end; raise one of `CONNECTION_ERRORS`, also after `stall_seconds`."""
        content = self.response.content
        data, self.first = self.first, b""
        data = data or content.read_nowait()
        if data or content.at_eof():
            return data
        stalled = asyncio.get_running_loop().call_later(stall_seconds, self.response.close)  # makes the wait fail
        try:
            return await content.readany()
        finally:
            stalled.cancel()


class _Fetcher:
    """Requests segments: decides when to wait, retry or jump, and when it is over."""

    def __init__(self, channel: RemoteChannel) -> None:
        self.options = channel.options
        self.position = 0
        self._channel = channel
        self._known = False  # the server has had this channel
        self._served = False

    async def first(self, start: int) -> SegmentReader | None:
        absent_since = time.monotonic()
        while True:
            try:
                return await self.fetch(await self._index_of(start))
            except ChannelNotFound:
                if time.monotonic() - absent_since >= self.options.absent_seconds:
                    raise
            await asyncio.sleep(self.options.absent_pause)

    async def _index_of(self, start: int) -> int:
        if start >= 0:
            return start
        latest = await self._channel.persist(self._channel.next_write)
        self._known = True
        if latest is None:  # a server without /next
            return start
        return max(latest - 1, 0) if start == CURRENT else latest

    async def fetch(self, seq: int) -> SegmentReader | None:
        """Wait for the segment `seq`, or the first available one after it; None when the channel ends."""
        missed, began_anew = 0, False
        pauses = backoff(self.options.early_seconds, max(self.options.early_seconds, LONGEST_EARLY_S))
        free = FREE_STEPS
        while True:
            self.position = max(seq, 0)
            answer = await self._ask(seq)
            status, latest = answer.response.status, header_seq(answer.response, LATEST)
            if answer.channel_closed or (status == 404 and self._known):
                answer.response.close()
                return None
            if status not in (200, NOT_FOUND):
                raise await self._channel.error_of(answer.response)
            self._known = True
            served = header_seq(answer.response, SEQ)
            other = status == 200 and seq >= 0 and served is not None and served != seq
            if status == 200 and answer.first and not other:
                self._served = True
                return SegmentReader(self, answer, self._served_seq(answer, seq), missed, began_anew=began_anew)
            answer.response.close()
            if other:  # perhaps it sends this for every index
                free = 0
            elif status == 200:  # its publisher skipped it
                seq = self._served_seq(answer, seq) + 1
            elif latest is not None and seq < latest:
                oldest = max(seq + 1, latest - WINDOW)
                log.info("%s: segment %d has gone, going on at %d", self._channel.shown, seq, oldest)
                missed += oldest - seq if seq >= 0 else 0
                seq = oldest
            elif self._served and latest is not None and seq - latest >= REWOUND:
                oldest = max(latest - WINDOW, 0)
                log.warning("%s: began anew, going on at %d instead of %d", self._channel.shown, oldest, seq)
                seq, began_anew = oldest, True
            else:
                free = 0
            if free:
                free -= 1
            else:
                await asyncio.sleep(next(pauses))

    async def again(self, seq: int) -> _Answer | None:
        answer = await self._ask(seq)
        if answer.response.status == 200 and answer.first and not answer.channel_closed:
            return answer
        answer.response.close()
        return None

    def _served_seq(self, answer: _Answer, asked: int) -> int:
        served = asked if asked >= 0 else header_seq(answer.response, SEQ)
        if served is None:
            answer.response.close()
            raise Refused(200, f"{self._channel.shown}/{asked} was answered without {SEQ}")
        return served

    async def _ask(self, seq: int) -> _Answer:
        """Ask until there is a response and, if it is a segment, until its first byte or its end has arrived."""
        retry = Retry(self.options)
        refresh_seconds = self.options.refresh_seconds if seq >= 0 else None  # -1 is another one when asked again
        while True:
            began_at = time.monotonic()
            error: Exception
            try:
                async with asyncio.timeout(refresh_seconds) as limit:
                    answer = await self._get(seq)
                if answer.response.status < 500:
                    return answer
                error = await self._channel.error_of(answer.response)
            except CONNECTION_ERRORS as broken:
                error = broken
            if limit.expired():  # silence is not a failure, and asking again by index loses nothing
                retry.restart()
            else:
                await asyncio.sleep(retry.pause_after(error, began_at, self._channel.shown))

    async def _get(self, seq: int) -> _Answer:
        response = await self._channel.session.get(f"{self._channel.url}/{seq}", allow_redirects=False)
        try:
            return _Answer(response, await response.content.readany() if response.status == 200 else b"")
        except BaseException:
            response.close()
            raise
