"""The HTTP routes of a trickle server, as go-livepeer's peers expect them."""

import asyncio
import contextlib
import functools
import time
from collections.abc import Callable, Iterator
from typing import Protocol

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.typedefs import Handler

from whisper_byoc.aiohttp_internals import LateHeadResponse, send_continue
from whisper_byoc.errors import RequestRefused
from whisper_byoc.trickle.channel import Channel, Cursor, Segment
from whisper_byoc.trickle.errors import (
    BadSequence,
    ChannelClosed,
    ChannelNotFound,
    LimitReached,
    SegmentFinished,
    SegmentNotFound,
)
from whisper_byoc.trickle.limits import TrickleLimits
from whisper_byoc.trickle.protocol import CLOSED, EXPECT_CONTENT, LATEST, NOT_FOUND, RESET, SEQ, TERMINATED, parse_seq

ONE_PIECE_BYTES = 64 << 10
"""A finished segment up to this size is sent in one piece."""
BROKEN_BODY = (web.RequestPayloadError, HttpProcessingError, ConnectionError)
"""What reading a request body raises when it breaks off."""


class ChannelTable(Protocol):
    """What the routes need of their server."""

    autocreate: bool
    limits: TrickleLimits

    def create(self, name: str, mime: str) -> Channel: ...

    def get(self, name: str) -> Channel: ...

    def close(self, name: str) -> None: ...

    def is_reserved(self, name: str) -> bool: ...


class TrickleRoutes:
    """Answers the requests for the channels of a table."""

    def __init__(self, table: ChannelTable) -> None:
        self._table = table
        self._waiting: dict[asyncio.Transport, tuple[float, Callable[[], bool]]] = {}
        """Connections whose peer has to act: since when, and whether it may be cut off if it does not."""

    def add_to(self, app: web.Application, base_path: str) -> None:
        channel = base_path + "{name:[^/]+}"
        segment = channel + "/{seq:[^/]+}"
        app.router.add_post(channel, _answering_errors(self.create))
        app.router.add_delete(channel, _answering_errors(self.delete))
        app.router.add_head(channel + "/next", _answering_errors(self.next))
        app.router.add_get(channel + "/next", _answering_errors(self.next), allow_head=False)
        app.router.add_get(segment, _answering_errors(self.read), allow_head=False)
        app.router.add_post(segment, _answering_errors(self.write))
        app.router.add_delete(segment, _answering_errors(self.finish))

    def cut_stalled(self) -> None:
        """Cut off the peers that have taken or sent nothing for `stall_seconds`.

        They keep segments in memory until their connection ends, which takes hours if the machine is gone.
        """
        before = time.monotonic() - self._table.limits.stall_seconds
        for transport, (since, may_be_cut) in list(self._waiting.items()):
            if since < before and may_be_cut():
                transport.abort()

    async def create(self, request: web.Request) -> web.StreamResponse:
        self._writable(request, request.headers.get(EXPECT_CONTENT, ""))
        return web.Response()

    async def delete(self, request: web.Request) -> web.StreamResponse:
        try:
            self._table.close(self._unreserved(request))
        except ChannelNotFound:
            return _http_error(400, "Invalid stream")
        return web.Response()

    async def finish(self, request: web.Request) -> web.StreamResponse:
        channel = self._table.get(self._unreserved(request))
        try:
            channel.finish_seq(parse_seq(request.match_info["seq"]))
        except SegmentNotFound:
            return _http_error(400, "Nonexistent segment")
        return web.Response()

    async def write(self, request: web.Request) -> web.StreamResponse:
        if not self._table.autocreate:
            self._table.get(self._unreserved(request))
        seq = parse_seq(request.match_info["seq"])  # before a channel is created for it
        channel = self._writable(request, request.headers.get("Content-Type", ""))
        segment = channel.for_write(seq)
        with channel.uploading():
            if request.headers.get(RESET):
                channel.finish_below(segment.seq)
            return await self._store(request, channel, segment)

    async def _store(self, request: web.Request, channel: Channel, segment: Segment) -> web.StreamResponse:
        try:
            data = await self._first_bytes(request, segment)
        except BROKEN_BODY:
            if segment.size:
                self._leave_open(channel, segment)  # if it is empty, the index is still free
            raise
        if not data:
            channel.finish(segment)
            return await self._released(request, _closing(_written(channel, segment)))
        channel.begin(segment)
        try:
            segment.append(data)
            while data := await self._next_bytes(request, channel, segment):
                if segment.closed and not channel.holds(segment):  # it can no longer be requested
                    if channel.closed:
                        return _closing(_written(channel, segment))
                    return _http_error(409, "Too late", close=True)
                segment.append(data)
            segment.whole = True
        except BROKEN_BODY:
            self._leave_open(channel, segment)
            raise
        finally:
            if not segment.broken:
                channel.finish(segment)
        return _written(channel, segment)

    def _leave_open(self, channel: Channel, segment: Segment) -> None:
        """Let readers wait for an upload that continues this one, but not for long."""
        if not channel.holds(segment):
            return
        segment.broken = True
        asyncio.get_running_loop().call_later(self._table.limits.resume_seconds, segment.give_up)

    async def _released(self, request: web.Request, response: web.Response) -> web.StreamResponse:
        """Answer, and close the connection at once: aiohttp would wait for the rest of the body."""
        await response.prepare(request)
        await response.write_eof()
        if request.transport is not None:
            request.transport.close()
        return response

    async def next(self, request: web.Request) -> web.StreamResponse:
        latest = str(self._table.get(request.match_info["name"]).next_write)
        return web.Response(text=latest, headers={LATEST: latest})

    async def read(self, request: web.Request) -> web.StreamResponse:
        channel = self._table.get(request.match_info["name"])
        latest = channel.next_write
        seq = parse_seq(request.match_info["seq"])
        try:
            segment = channel.for_read(seq)
        except SegmentNotFound:
            headers = {LATEST: str(latest), SEQ: str(seq)}
            return web.Response(status=NOT_FOUND, reason="Entry not found", text="Entry not found", headers=headers)
        if not await self._more(request, segment, 0):
            response = _written(channel, segment)  # skipped, or the end of the channel
            response.headers[LATEST] = str(channel.next_write)
            return response
        headers = {SEQ: str(segment.seq), "Content-Type": channel.mime}
        if latest != segment.seq:
            headers[LATEST] = str(latest)
        if segment.closed and segment.size <= ONE_PIECE_BYTES:
            return web.Response(body=b"".join(segment.chunks), headers=headers)
        return await self._stream(request, segment, LateHeadResponse(headers=headers))

    async def _stream(self, request: web.Request, segment: Segment, response: web.StreamResponse) -> web.StreamResponse:
        await response.prepare(request)
        cursor = Cursor(segment)
        sent = 0
        while await self._more(request, segment, sent):
            while data := cursor.take():
                sent += len(data)
                with self._watched(request, lambda: True):
                    await response.write(data)
        return response

    async def _more(self, request: web.Request, segment: Segment, sent: int) -> bool:
        """Wait for more than `sent` bytes; return False at the end of the segment, or when the reader has gone."""
        while segment.size <= sent and not segment.closed:
            if not await segment.changed.wait(self._table.limits.probe_seconds) and request.transport is None:
                return False
        return segment.size > sent

    async def _first_bytes(self, request: web.Request, segment: Segment) -> bytes:
        """Wait for the first bytes of a body; return b"" when it has none, or the segment is closed first."""
        reading = asyncio.ensure_future(request.content.readany())
        reading.add_done_callback(lambda _: segment.changed.notify())
        interim_seconds = self._table.limits.interim_seconds
        try:
            while not await segment.changed.until(lambda: reading.done() or segment.closed, interim_seconds):
                if request.version >= (1, 1):
                    await send_continue(request)
            return reading.result() if reading.done() else b""
        finally:
            reading.cancel()

    async def _next_bytes(self, request: web.Request, channel: Channel, segment: Segment) -> bytes:
        with self._watched(request, lambda: not channel.holds(segment)):
            return await request.content.readany()

    @contextlib.contextmanager
    def _watched(self, request: web.Request, may_be_cut: Callable[[], bool]) -> Iterator[None]:
        transport = request.transport
        if transport is None:
            yield
            return
        self._waiting[transport] = (time.monotonic(), may_be_cut)
        try:
            yield
        finally:
            del self._waiting[transport]

    def _writable(self, request: web.Request, mime: str) -> Channel:
        """Return the channel, creating it if remote peers may do so."""
        name = self._unreserved(request)
        return self._table.create(name, mime) if self._table.autocreate else self._table.get(name)

    def _unreserved(self, request: web.Request) -> str:
        """Return the channel's name, unless only the server itself may change the channel."""
        name: str = request.match_info["name"]
        if self._table.is_reserved(name):
            raise web.HTTPForbidden(text="Reserved channel\n")
        return name


def _answering_errors(handler: Handler) -> Handler:
    """Turn our errors into go-livepeer's responses, and into clear ones where it has none."""

    @functools.wraps(handler)
    async def answer(request: web.Request) -> web.StreamResponse:
        try:
            return await handler(request)
        except (ChannelNotFound, ChannelClosed):
            return _http_error(404, "Stream not found", close=request.method == "POST")
        except BadSequence:
            return _http_error(400, "Invalid idx")
        except SegmentFinished as error:
            return _http_error(409, str(error), close=True)
        except LimitReached as error:
            return _http_error(error.status, str(error), close=True)
        except BROKEN_BODY as error:
            error.__traceback__ = None  # the request keeps the error, whose frames would keep the segment
            return _http_error(500, "Server error", close=True)

    return answer


@web.middleware
async def answering_refusals(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer requests that are refused before they reach a route."""
    try:
        return await handler(request)
    except RequestRefused as error:
        return _http_error(error.status, str(error), close=True)


def _written(channel: Channel, segment: Segment) -> web.Response:
    headers = {SEQ: str(segment.seq)}
    if channel.closed:
        headers[CLOSED] = TERMINATED
    return web.Response(headers=headers)


def _closing(response: web.Response) -> web.Response:
    """Add `Connection: close`, which wakes a client that is stuck writing."""
    response.force_close()
    return response


def _http_error(status: int, reason: str, *, close: bool = False) -> web.Response:
    """Answer with a sentence, as Go's `http.Error` does."""
    response = web.Response(status=status, text=reason + "\n", headers={"X-Content-Type-Options": "nosniff"})
    return _closing(response) if close else response
