"""Asking for segments: when to wait, when to ask again, when to jump, and when it is over."""

from __future__ import annotations

import asyncio
import logging
import time

import aiohttp

from whisper_byoc.http import CONNECTION_ERRORS, reason_of
from whisper_byoc.trickle.errors import ChannelNotFound, Refused, Unreachable
from whisper_byoc.trickle.http import (
    ClientOptions,
    backoff,
    error_of,
    header_seq,
    next_write,
    persist,
)
from whisper_byoc.trickle.protocol import CLOSED, CURRENT, LATEST, NOT_FOUND, SEQ, WINDOW

__all__ = ["Fetched", "Fetcher"]

log = logging.getLogger("whisper_byoc.trickle")


class Fetched:
    """A segment whose first bytes are there."""

    def __init__(self, response: aiohttp.ClientResponse, seq: int, missed: int, first: bytes) -> None:
        self.response = response
        self.seq = seq
        self.missed = missed
        self._first = first

    async def more(self, patience: float) -> bytes:
        """Give the next bytes; b"" at the end.

        Raises one of `CONNECTION_ERRORS`, also when nothing comes for `patience` seconds.
        """
        content = self.response.content
        data, self._first = self._first, b""
        data = data or content.read_nowait()
        if data or content.at_eof():
            return data
        stalled = asyncio.get_running_loop().call_later(patience, self.response.close)  # ends the wait by an error
        try:
            return await content.readany()
        finally:
            stalled.cancel()

    async def skip(self, size: int, patience: float) -> bool:
        """Pass over the first `size` bytes; False when there are fewer."""
        while size:
            data = await self.more(patience)
            if not data:
                return False
            self._first, size = data[size:], size - min(size, len(data))
        return True


class Fetcher:
    """Gets segments by index from one channel."""

    def __init__(self, http: aiohttp.ClientSession, url: str, options: ClientOptions) -> None:
        self.options = options
        self._http = http
        self._url = url
        self._known = False  # the server had this channel when it was asked
        self._served = False

    async def first(self, start: int) -> Fetched | None:
        """Wait for the first segment; None when the channel ends before it.

        Raises `ChannelNotFound`, `Unreachable` or `Refused`.
        """
        pause, absent_since = 0.0, time.monotonic()
        while True:
            await asyncio.sleep(pause)
            try:
                return await self._first(start)
            except ChannelNotFound:
                if time.monotonic() - absent_since >= self.options.absent_seconds:
                    raise
                pause = self.options.absent_pause

    async def _first(self, start: int) -> Fetched | None:
        if start >= 0:
            return await self.fetch(start)
        latest = await persist(lambda: next_write(self._http, self._url, self.options), self.options)
        self._known = True
        if latest is None:  # a server without /next: asking again could pass over what was written in between
            return await self.fetch(start, refresh=False)
        return await self.fetch(max(latest - 1, 0) if start == CURRENT else latest)

    async def fetch(self, seq: int, *, refresh: bool = True) -> Fetched | None:
        """Wait for the segment `seq`, or the first one after it that can be had; None when the channel ends.

        Raises `ChannelNotFound` when there never was a channel, `Unreachable` or `Refused`.
        """
        missed = skipped = 0
        early_since = 0.0
        while True:
            response, first = await self._answer(seq, self.options.refresh_seconds if refresh else None)
            if response.headers.get(CLOSED) or (response.status == 404 and self._known):
                response.close()
                return None
            if response.status == 200:
                self._known = True
                seq = seq if seq >= 0 else self._served_seq(response, seq)
                if first:
                    self._served = True
                    return Fetched(response, seq, missed, first)
                seq, skipped = seq + 1, skipped + 1  # by its publisher
                if skipped > WINDOW:  # or by a server that answers so to everything
                    await asyncio.sleep(self.options.early_seconds)
            elif response.status == NOT_FOUND:
                self._known = True
                latest = header_seq(response, LATEST)
                response.close()
                if latest is not None and seq < latest:
                    oldest = max(seq + 1, latest - WINDOW)
                    log.info("%s: segment %d has gone, going on at %d", self._url, seq, oldest)
                    missed += oldest - seq if seq >= 0 else 0
                    seq = oldest
                    continue
                early_since = early_since or time.monotonic()
                seq = await self._early(seq, latest, early_since)
                continue
            else:
                error = await error_of(response, self._url)
                response.close()
                raise error
            early_since = 0.0

    async def _early(self, seq: int, latest: int | None, since: float) -> int:
        """Wait a moment for what is written before `seq`; give up on it when the channel seems to be a new one."""
        await asyncio.sleep(self.options.early_seconds)
        if self._served and latest is not None and self._late(since):
            log.warning("%s: began anew, going on at %d", self._url, latest)
            return latest
        return seq

    async def again(self, seq: int) -> Fetched | None:
        """Ask once more for a segment that was there; None when it is there no longer.

        Raises `Unreachable`.
        """
        response, first = await self._answer(seq, self.options.refresh_seconds)
        if response.status == 200 and first and not response.headers.get(CLOSED):
            return Fetched(response, seq, 0, first)
        response.close()
        return None

    def _served_seq(self, response: aiohttp.ClientResponse, asked: int) -> int:
        served = header_seq(response, SEQ)
        if served is None:
            response.close()
            raise Refused(200, f"{self._url}/{asked} was answered without {SEQ}")
        return served

    def _late(self, since: float) -> bool:
        return time.monotonic() - since > self.options.patience_seconds

    async def _answer(self, seq: int, refresh: float | None) -> tuple[aiohttp.ClientResponse, bytes]:
        """Ask until there is an answer, and, if it is a segment, until its first byte or its end is there."""
        pauses, since = backoff(self.options), time.monotonic()
        while True:
            if pause := next(pauses):
                await asyncio.sleep(pause)
            try:
                async with asyncio.timeout(refresh):
                    response, first = await self._get(seq)
                if response.status < 500:
                    return response, first
                error = await error_of(response, self._url)
                response.close()
                self._give_up_or_go_on(error, since)
            except aiohttp.ServerTimeoutError as slow:
                self._give_up_or_go_on(slow, since)
            except TimeoutError:  # silence; by its index nothing is lost in asking again
                pauses, since = backoff(self.options), time.monotonic()
            except CONNECTION_ERRORS as broken:
                if time.monotonic() - since > self.options.refresh_seconds:
                    since = time.monotonic()  # it had been waiting, not failing
                self._give_up_or_go_on(broken, since)

    async def _get(self, seq: int) -> tuple[aiohttp.ClientResponse, bytes]:
        response = await self._http.get(f"{self._url}/{seq}", allow_redirects=False)
        try:
            return response, await response.content.readany() if response.status == 200 else b""
        except BaseException:
            response.close()
            raise

    def _give_up_or_go_on(self, error: BaseException, since: float) -> None:
        log.info("%s: %s", self._url, reason_of(error))
        if self._late(since):
            raise Unreachable(f"{self._url}: {reason_of(error)}") from error
