"""Relays bytes in both directions: a client's body to a peer, a peer's response to the client."""

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

from whisper_byoc import livepeer
from whisper_byoc.errors import ReaderGone, RequestRefused
from whisper_byoc.http import abort, read_into
from whisper_byoc.network.peers import AbortScope, refusal, talking_to
from whisper_byoc.network.records import RecordStream, record_stream
from whisper_byoc.network.serving import NetworkLimits, Node
from whisper_byoc.trickle.limits import ByteBudget
from whisper_byoc.trickle.protocol import SEQ

log = logging.getLogger("whisper_byoc.network")

REQUEST_HEADERS = ("Content-Type", "Content-Encoding", "Accept")
"""Headers of a client's request that are passed on, besides the job."""
PIECE_BYTES = 256 << 10
ANSWER_HEADERS = (
    "Content-Type", "Content-Encoding", "Content-Length", "Cache-Control", "X-Metadata", "X-Livepeer-Work-Units",
    livepeer.BALANCE, SEQ,
)  # fmt: skip
"""Headers of a peer's response that are passed on; go-livepeer keeps two of them."""
BODY_ERRORS = (web.RequestPayloadError, HttpProcessingError, ConnectionError)
"""What a body that breaks off raises."""


class RequestBody:
    """The body of a request, for one peer after another until one takes the job.

    A frame, or the body of a batch job, is read whole before it is sent. Nothing of a live feed is read before a peer
    has begun to respond, so no peer misses any of it.
    """

    def __init__(self, request: web.Request, memory: ByteBudget, limits: NetworkLimits, *, live: bool) -> None:
        self.live = live
        self.error: RequestRefused | None = None
        """Why a feed could not be read to its end."""
        self.sent = False
        """Whether the current peer may have received some of it."""
        self.waiting = False
        """Whether all of a feed so far has been passed on, and more is expected from the client."""
        self._content = request.content
        self._limits = limits
        self._length = request.content_length or 0
        self._memory = memory
        self._whole = bytearray()
        self._taken = asyncio.Event()

    async def for_peer(self) -> tuple[AsyncIterator[bytes], dict[str, str]]:
        """Return the body for one peer, and its length as a header unless it is a feed, which flows after `take`.

        Raises `RequestRefused`: 400 when it breaks off or stalls, 413 beyond the limit; `MemoryFull`.
        """
        self.sent = False
        if self.live:
            self._taken = asyncio.Event()
            return self._feed(self._taken), {}
        if not self._whole:
            await self._read_whole()
        return self._pieces(), {"Content-Length": str(len(self._whole))}

    def take(self) -> None:
        """Let the feed flow to the peer that got it last, and hold nothing for any other."""
        self._taken.set()
        self.release()

    def release(self) -> None:
        self._memory.give(len(self._whole))
        self._whole = bytearray()

    async def _read_whole(self) -> None:
        limit, seconds = self._limits.frame_bytes, self._limits.stall_seconds
        size = f" of {self._length} bytes" if self._length else ""
        too_large = RequestRefused(413, f"the body{size} is larger than the limit of {limit} bytes")
        if self._length > limit:
            raise too_large
        try:
            async with asyncio.timeout(seconds):
                await read_into(self._whole, self._content, limit, too_large, self._memory.take)
        except BODY_ERRORS:
            raise RequestRefused(400, "the body of the request broke off") from None
        except TimeoutError:
            raise RequestRefused(400, f"the body of the request was not there within {seconds:g} s") from None

    async def _pieces(self) -> AsyncIterator[bytes]:
        self.sent = True
        for at in range(0, len(self._whole), PIECE_BYTES):  # aiohttp writes bytes in one go, however many there are
            yield bytes(memoryview(self._whole)[at : at + PIECE_BYTES])

    async def _feed(self, taken: asyncio.Event) -> AsyncIterator[bytes]:
        yield b""  # aiohttp sends a request's head with the first chunk
        await taken.wait()
        self.sent = True
        while True:
            self.waiting = True
            try:
                chunk = await self._content.readany()
            except BODY_ERRORS:
                self.error = RequestRefused(400, "the body of the request broke off")
                raise self.error from None
            finally:
                self.waiting = False
            if not chunk:
                return
            yield chunk


class ClientAnswer:
    """The response to a client: begun once a peer has responded, and ended properly whatever happens to that peer.

    A client that takes nothing for `stall_seconds` is cut off; this, or its going away, raises `ReaderGone`. Without
    `records` the response is bytes, which can only break off.
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
        """Pass on a peer's response as it comes; the end is left to `finish`.

        Raises `TimeoutError` when the peer sends nothing for `stall_seconds`, unless `may_be_silent()`.
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
        """End the response after success.

        Raises `PeerFailed` when the peer's records had no end record.
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
    """One request on its way to a peer, and the peer's response on its way back; leaving `with` frees its body.

    With `live`, a body without a length is a feed, and its response may be records, if the client accepts them.
    Raises `RequestRefused` (400) for a path that would leave the route that the peer offers to clients.
    """

    def __init__(self, node: Node, request: web.Request, *, live: bool = False) -> None:
        if ".." in request.path.split("/"):
            raise RequestRefused(400, f"bad route {request.path!r:.100}: it must not have '..' in it")
        self.request = request
        self.body = RequestBody(request, node.memory, node.limits, live=live and request.content_length is None)
        records = record_stream(request.headers.get("Accept", "")) if self.body.live else None
        self.client = ClientAnswer(request, node.limits.stall_seconds, records)
        self._http = node.http

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.body.release()

    async def post(
        self,
        scope: AbortScope,
        peer: str,
        url: URL,
        headers: Mapping[str, str],
        seconds: float,
        back: Mapping[str, str],
    ) -> web.StreamResponse:
        """Post the request to a peer, whose response must begin within `seconds`; return it with the headers `back`.

        Raises `RequestRefused` as long as the client has been sent nothing.
        """
        data, length = await self.body.for_peer()
        query = self.request.query
        try:
            async with scope.guard():
                with talking_to(peer):
                    async with asyncio.timeout(seconds):
                        answer = await self._http.post(
                            url, data=data, params=query, headers={**headers, **length}, allow_redirects=False
                        )
                    async with answer:
                        if answer.status >= 400:
                            raise await refusal(peer, answer)
                        await self.begin(answer.status, {**picked(answer.headers, ANSWER_HEADERS), **back})
                        await self.client.copy(answer, lambda: self.body.waiting)
                        return await self.client.finish()
        except RequestRefused as error:
            return await self.fail(error)

    async def begin(self, status: int, headers: Mapping[str, str]) -> None:
        """Begin the response: from now on the request stays with this peer, and its feed flows."""
        await self.client.begin(status, headers)
        self.body.take()

    async def fail(self, error: RequestRefused) -> web.StreamResponse:
        """End the response with the error, or the body's own error; raise it if nothing was sent yet."""
        return await self.client.fail(self.body.error or error)


def picked(headers: Mapping[str, str], names: tuple[str, ...]) -> dict[str, str]:
    return {name: headers[name] for name in names if name in headers}
