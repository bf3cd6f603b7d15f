"""Passing bytes on in both directions: a client's body to a peer, a peer's answer to the client."""

import asyncio
import contextlib
import logging
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Self

import aiohttp
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from yarl import URL

from whisper_byoc.errors import ReaderGone, RequestRefused
from whisper_byoc.http import abort
from whisper_byoc.network.peers import AbortScope, refusal, talking_to
from whisper_byoc.network.records import RecordStream, record_stream
from whisper_byoc.network.serving import Node
from whisper_byoc.trickle import MemoryFull
from whisper_byoc.trickle.limits import ByteBudget

log = logging.getLogger("whisper_byoc.network")


class RequestBody:
    """The body of a request, sent to a peer as it comes.

    It is `repeatable` as long as all of it that was read is kept, at most `keep_bytes`: another peer can have it from
    its first byte. After `release` nothing is held.
    """

    def __init__(self, request: web.Request, memory: ByteBudget, keep_bytes: int, limit: int | None = None) -> None:
        """Raise `RequestRefused` (413) for a body of more than `limit` bytes."""
        self.length = request.content_length
        """Bytes of the whole body; None for a live feed."""
        self.error: RequestRefused | None = None
        """Why the body could not be read to its end."""
        self.repeatable = True
        self.waiting = False
        """Whether everything that came was passed on, and more is expected from the client."""
        self._content = request.content
        self._keep_bytes = keep_bytes
        self._limit = limit
        self._size = 0
        self._memory = memory
        self._kept: list[bytes] = []
        self._reading = asyncio.Lock()
        if limit is not None and (self.length or 0) > limit:
            raise self._too_large()

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield the body from its first byte, for one peer at a time.

        Raises `RequestRefused` when it cannot be read to its end, which is also in `error`.
        """
        if self.length is None:
            yield b""  # aiohttp sends a request's head with the first chunk, and a feed may begin with a pause
        sent = 0
        while True:
            async with self._reading:  # the reading for the peer before may not have noticed its end yet
                chunk = self._kept[sent] if sent < len(self._kept) else await self._next()
            if not chunk:
                return
            sent += 1
            yield chunk

    def release(self) -> None:
        """Keep nothing for another peer: one has answered."""
        self.repeatable = False
        self._memory.give(sum(map(len, self._kept)))
        self._kept.clear()

    async def _next(self) -> bytes:
        self.waiting = True
        try:
            chunk = await self._content.readany()
            self._hold(chunk)
            return chunk
        except (web.RequestPayloadError, HttpProcessingError, ConnectionError):
            self.error = RequestRefused(400, "the body of the request broke off")
        except MemoryFull as error:
            self.error = RequestRefused(503, str(error), retry_after=1)
        except RequestRefused as error:
            self.error = error
        except Exception:  # aiohttp would take it for a failure of the peer
            log.exception("reading the body of a request failed")
            self.error = RequestRefused(500, "the server failed on this request; its log says why")
        finally:
            self.waiting = False
        raise self.error

    def _hold(self, chunk: bytes) -> None:
        self._size += len(chunk)
        if self._limit is not None and self._size > self._limit:
            raise self._too_large()
        if self.repeatable and self._size > self._keep_bytes:
            self.release()
        if self.repeatable and chunk:
            self._memory.take(len(chunk))
            self._kept.append(chunk)

    def _too_large(self) -> RequestRefused:
        size = f" of {self.length} bytes" if self.length else ""
        return RequestRefused(413, f"the body{size} is larger than the limit of {self._limit} bytes")


class ClientAnswer:
    """The answer to a client: begun when a peer has answered, and ended properly whatever happens to that peer.

    A client that takes nothing for `stall_seconds` is cut off; that, or its going away, raises `ReaderGone`. Without
    `records` the answer is bytes, which can only break off.
    """

    def __init__(self, request: web.Request, stall_seconds: float, records: RecordStream | None = None) -> None:
        self._request = request
        self._stall = stall_seconds
        self._records = records
        self._response: web.StreamResponse | None = None

    async def begin(self, status: int, headers: Mapping[str, str]) -> None:
        head = {"Content-Type": "application/octet-stream", **headers}
        if self._records:
            head |= {"Content-Type": self._records.content_type, "Cache-Control": "no-cache"}
        response = web.StreamResponse(status=status, headers=head)
        async with self._client_reads():
            await response.prepare(self._request)
        self._response = response

    async def copy(self, answer: aiohttp.ClientResponse, may_be_silent: Callable[[], bool] = lambda: False) -> None:
        """Pass a peer's answer on as it comes; the end is left to `finish`.

        Raises `TimeoutError` when the peer says nothing for `stall_seconds` while it may not be silent.
        """
        while True:
            try:
                async with asyncio.timeout(self._stall):
                    data = await answer.content.readany()
            except TimeoutError:
                if may_be_silent():
                    continue
                raise
            if not data:
                return
            await self.write(self._records.feed(data) if self._records else data)

    async def write(self, data: bytes) -> None:
        assert self._response is not None
        if data:
            async with self._client_reads():
                await self._response.write(data)

    async def finish(self) -> web.StreamResponse:
        """End the answer: all went well.

        Raises `PeerFailed` when the peer's records had no end.
        """
        return await self.end(self._records.finish() if self._records else b"")

    async def fail(self, error: RequestRefused) -> web.StreamResponse:
        """End the answer with an error and an end record, or break it off; raise the error if nothing was sent yet."""
        if self._response is None:
            raise error
        log.warning("%s %s: %s", self._request.method, self._request.path, error)
        if self._records is None:
            abort(self._request)
            return self._response
        return await self.end(self._records.failure(uuid.uuid4().hex, str(error)))

    async def end(self, data: bytes = b"") -> web.StreamResponse:
        await self.write(data)
        assert self._response is not None
        async with self._client_reads():
            await self._response.write_eof()
        return self._response

    @contextlib.asynccontextmanager
    async def _client_reads(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self._stall):
                yield
        except (TimeoutError, ConnectionError):
            abort(self._request)
            raise ReaderGone("the reader is gone, or does not read") from None


class Relay:
    """One request on its way to a peer, and the peer's answer on its way back; leave `with` to free its body.

    A body with a length, which is a frame or that of a batch job, is kept whole; of a `live` one without, the first
    `feed_bytes` are. A live feed's answer may be records, if the client accepts them.
    """

    def __init__(self, node: Node, request: web.Request, *, live: bool = False) -> None:
        """Raise `RequestRefused` (413) for a body that says it is too large."""
        limits = node.limits
        self.request = request
        self._http = node.http
        if live and request.content_length is None:
            self.body = RequestBody(request, node.memory, limits.feed_bytes)
            self.client = ClientAnswer(request, limits.stall_seconds, record_stream(request.headers.get("Accept", "")))
        else:
            self.body = RequestBody(request, node.memory, limits.frame_bytes, limits.frame_bytes)
            self.client = ClientAnswer(request, limits.stall_seconds)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.body.release()

    def repeatable(self) -> bool:
        """Whether another peer can still have the whole body."""
        return self.body.repeatable

    async def post(
        self, scope: AbortScope, peer: str, url: URL, headers: Mapping[str, str], seconds: float,
        passed_back: Callable[[Mapping[str, str]], Mapping[str, str]],
    ) -> web.StreamResponse:  # fmt: skip
        """Post the request to a peer, whose head must come within `seconds`, and pass its answer back.

        Raises `RequestRefused` as long as the client has been sent nothing.
        """
        sent = dict(headers)
        if self.body.length is not None:
            sent["Content-Length"] = str(self.body.length)
        query = self.request.query
        try:
            async with scope.guard():
                with talking_to(peer):
                    async with asyncio.timeout(seconds):
                        answer = await self._http.post(
                            url, data=self.body.chunks(), params=query, headers=sent, allow_redirects=False
                        )
                    async with answer:
                        if answer.status >= 400:
                            raise await refusal(peer, answer)
                        await self.begin(answer.status, passed_back(answer.headers))
                        await self.client.copy(answer, lambda: self.body.waiting)
                        return await self.client.finish()
        except RequestRefused as error:
            return await self.fail(error)

    async def begin(self, status: int, headers: Mapping[str, str]) -> None:
        """Begin the answer: from now on the request stays with this peer."""
        await self.client.begin(status, headers)
        self.body.release()

    async def fail(self, error: RequestRefused) -> web.StreamResponse:
        """End the answer with the error, or with what was wrong with the body; raise that if nothing was sent yet."""
        return await self.client.fail(self.body.error or error)
