"""The HTTP face of a trickle server, as go-livepeer's peers expect it."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from whisper_byoc.aiohttp_internals import LateHeadResponse, send_continue
from whisper_byoc.trickle.channel import Channel
from whisper_byoc.trickle.errors import (
    BadSequence,
    ChannelClosed,
    ChannelNotFound,
    LimitReached,
    SegmentFinished,
    SegmentNotFound,
)
from whisper_byoc.trickle.protocol import CLOSED, EXPECT_CONTENT, LATEST, NOT_FOUND, RESET, SEQ, TERMINATED, parse_seq
from whisper_byoc.trickle.segment import Segment

if TYPE_CHECKING:
    from whisper_byoc.trickle.server import TrickleServer

__all__ = ["TrickleRoutes"]

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

SMALL_BYTES = 64 << 10
"""A finished segment up to this size is answered in one piece."""
BROKEN = (web.RequestPayloadError, HttpProcessingError, ConnectionError)
"""What reading a request body raises when it does not come to its end."""


class TrickleRoutes:
    """Parses, asks the table of channels, and writes."""

    def __init__(self, server: TrickleServer) -> None:
        self._server = server
        self._limits = server.limits
        self._writing: dict[asyncio.Transport, float] = {}  # since when a reader's transport has had bytes to take
        self._silent: dict[asyncio.Transport, tuple[float, Channel, Segment]] = {}  # since when a writer sends nothing

    def add_to(self, app: web.Application) -> None:
        """Add all routes below the base path."""
        channel = self._server.base_path + "{name:[^/]+}"
        segment = channel + "/{seq:[^/]+}"
        app.router.add_post(channel, answering(self.create))
        app.router.add_delete(channel, answering(self.delete))
        app.router.add_get(segment, answering(self.read), allow_head=False)
        app.router.add_post(segment, answering(self.write))
        app.router.add_delete(segment, answering(self.finish))

    def cut_stalled(self) -> None:
        """Cut off the readers that have taken nothing for `stall_seconds`.

        And the writers that have sent nothing for so long of a segment that nobody can ask for any more: they would
        keep its bytes until their connection ends, and that of a machine which is gone ends after hours.
        """
        before = time.monotonic() - self._limits.stall_seconds
        for transport, since in list(self._writing.items()):
            if since < before:
                transport.abort()
        for transport, (since, channel, segment) in list(self._silent.items()):
            if since < before and not channel.holds(segment):
                transport.abort()

    async def create(self, request: web.Request) -> web.StreamResponse:
        """Create a channel, or find that it exists."""
        self._writable(request, request.headers.get(EXPECT_CONTENT, ""))
        return web.Response()

    async def delete(self, request: web.Request) -> web.StreamResponse:
        """Close a channel."""
        try:
            self._server.close(self._unreserved(request))
        except ChannelNotFound:
            return refusal(400, "Invalid stream")
        return web.Response()

    async def finish(self, request: web.Request) -> web.StreamResponse:
        """Close a segment."""
        channel = self._server.get(self._unreserved(request))
        try:
            channel.finish_seq(parse_seq(request.match_info["seq"]))
        except SegmentNotFound:
            return refusal(400, "Nonexistent segment")
        return web.Response()

    async def write(self, request: web.Request) -> web.StreamResponse:
        """Write a segment as its bytes arrive."""
        if not self._server.autocreate:
            self._server.get(self._unreserved(request))
        seq = parse_seq(request.match_info["seq"])  # before a channel is created for it
        channel = self._writable(request, request.headers.get("Content-Type", ""))
        segment = channel.for_write(seq)
        if request.headers.get(RESET):
            channel.finish_below(segment.seq)
        first = await self._first_bytes(request, segment)
        if not first:
            channel.finish(segment)
            return closing(written(channel, segment))
        channel.begin(segment)
        try:
            segment.append(first)
            while data := await self._next_bytes(request, channel, segment):
                if segment.closed and not channel.holds(segment):  # nobody can ask for it any more
                    return (
                        closing(written(channel, segment)) if channel.closed else refusal(409, "Too late", close=True)
                    )
                segment.append(data)
            segment.whole = True
        finally:
            channel.finish(segment)  # also when the upload broke: nobody is left waiting for the rest
        return written(channel, segment)

    async def read(self, request: web.Request) -> web.StreamResponse:
        """Serve a segment from its first byte, while it is still being written."""
        channel = self._server.get(request.match_info["name"])
        text = request.match_info["seq"]
        if text == "next":
            return web.Response(text=str(channel.next_write), headers={LATEST: str(channel.next_write)})
        latest = channel.next_write
        seq = parse_seq(text)
        try:
            segment = channel.for_read(seq)
        except SegmentNotFound:
            headers = {LATEST: str(latest), SEQ: str(seq)}
            return web.Response(status=NOT_FOUND, reason="Entry not found", text="Entry not found", headers=headers)
        if not await self._more(request, segment, 0):
            return empty(channel, segment)
        headers = {SEQ: str(segment.seq), "Content-Type": channel.mime}
        if latest != segment.seq:
            headers[LATEST] = str(latest)
        if segment.closed and segment.size <= SMALL_BYTES:
            return web.Response(body=b"".join(segment.chunks), headers=headers)
        return await self._stream(request, segment, LateHeadResponse(headers=headers))

    async def _stream(self, request: web.Request, segment: Segment, response: web.StreamResponse) -> web.StreamResponse:
        """Write what is there and what comes; a slow reader holds up nobody else."""
        transport = request.transport
        if transport is None:
            return response
        await response.prepare(request)
        cursor = segment.read()
        sent = 0
        while await self._more(request, segment, sent):
            while data := cursor.take():
                sent += len(data)
                self._writing[transport] = time.monotonic()
                try:
                    await response.write(data)
                finally:
                    del self._writing[transport]
        return response

    async def _more(self, request: web.Request, segment: Segment, sent: int) -> bool:
        """Wait for more than `sent` bytes; False at the end of the segment, or when the reader has gone."""
        while segment.size <= sent and not segment.closed:
            if not await segment.changed.wait(self._limits.probe_seconds) and request.transport is None:
                return False
        return segment.size > sent

    async def _first_bytes(self, request: web.Request, segment: Segment) -> bytes:
        """Wait for the first bytes of a body; b"" when it has none, or the segment is closed meanwhile."""
        reading = asyncio.ensure_future(request.content.readany())
        try:
            while not reading.done() and not segment.closed:
                timeout = self._limits.interim_seconds
                waiting = (reading, segment.released)
                done, _ = await asyncio.wait(waiting, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
                if not done and request.version >= (1, 1):
                    await send_continue(request)
            return reading.result() if reading.done() else b""
        finally:
            reading.cancel()

    async def _next_bytes(self, request: web.Request, channel: Channel, segment: Segment) -> bytes:
        """Wait for more of a body; b"" at its end."""
        transport = request.transport
        if transport is None:
            return await request.content.readany()
        self._silent[transport] = (time.monotonic(), channel, segment)
        try:
            return await request.content.readany()
        finally:
            del self._silent[transport]

    def _writable(self, request: web.Request, mime: str) -> Channel:
        """Give the channel, created if remote peers may do so."""
        name = self._unreserved(request)
        return self._server.create(name, mime) if self._server.autocreate else self._server.get(name)

    def _unreserved(self, request: web.Request) -> str:
        """Give the channel's name, unless only the server itself may change the channel."""
        name: str = request.match_info["name"]
        if self._server.is_reserved(name):
            raise web.HTTPForbidden(text="Reserved channel\n")
        return name


def answering(handler: Handler) -> Handler:
    """Turn our errors into the answers go-livepeer gives, and into clear ones where it has none."""

    @functools.wraps(handler)
    async def answer(request: web.Request) -> web.StreamResponse:
        try:
            return await handler(request)
        except (ChannelNotFound, ChannelClosed):
            return refusal(404, "Stream not found", close=request.method == "POST")
        except BadSequence:
            return refusal(400, "Invalid idx")
        except SegmentFinished as error:
            return refusal(409, str(error), close=True)
        except LimitReached as error:
            return refusal(error.status, str(error), close=True)
        except BROKEN as error:
            error.__traceback__ = None  # the request keeps the error, and its frames would keep the segment
            return refusal(500, "Server error", close=True)

    return answer


def written(channel: Channel, segment: Segment) -> web.Response:
    """Answer to a POST that came to its end."""
    headers = {SEQ: str(segment.seq)}
    if channel.closed:
        headers[CLOSED] = TERMINATED
    return web.Response(headers=headers)


def empty(channel: Channel, segment: Segment) -> web.Response:
    """Answer to a GET of a segment that ended without a byte: skipped, or the end of the channel."""
    response = written(channel, segment)
    response.headers[LATEST] = str(channel.next_write)
    return response


def closing(response: web.Response) -> web.Response:
    """Add `Connection: close`, which wakes a client that is stuck in writing."""
    response.force_close()
    return response


def refusal(status: int, reason: str, *, close: bool = False) -> web.Response:
    """Answer with a sentence, as Go's `http.Error` does."""
    response = web.Response(status=status, text=reason + "\n", headers={"X-Content-Type-Options": "nosniff"})
    return closing(response) if close else response
