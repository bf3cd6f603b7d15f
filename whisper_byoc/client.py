"""The client of the bytes path: one call per frame, or a stream that sends while it receives."""

from __future__ import annotations

import asyncio
import io
import json
import uuid
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from types import TracebackType
from typing import Any

import aiohttp

from whisper_byoc.errors import ClientError, SegmentFailed, ServerRefused, ServerUnreachable, UsageError

__all__ = ["TrickleClient"]

CHUNK_BYTES = 64 * 1024
CONNECT_SECONDS = 10.0
CLOSED = "Lp-Trickle-Closed"
MAX_RECORD_BYTES = 128 * 1024 * 1024  # a record can carry a whole frame as base64


class TrickleClient:
    """Speaks to one server, as `async with TrickleClient("http://localhost:8000") as client`.

    `pipeline` chooses one where the server has several; `params` go along when a job is opened (`language`, …);
    `timeout` bounds, in seconds, the wait for the result of one frame; `token` is for a server that asks for one.
    Methods raise `ServerUnreachable`, `ServerRefused` or `SegmentFailed`.
    """

    def __init__(
        self,
        base_url: str = "http://localhost:8000",
        *,
        pipeline: str | None = None,
        params: Mapping[str, str] | None = None,
        timeout: float = 120.0,
        token: str | None = None,
    ) -> None:
        self._base_url = base_url.rstrip("/")
        self._query = dict(params or {}) | ({"pipeline": pipeline} if pipeline else {})
        self._timeout = timeout
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._job = new_job_id()
        self._job_open = False
        self._one_at_a_time = asyncio.Lock()
        self._http: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> TrickleClient:
        limits = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS)
        self._http = aiohttp.ClientSession(timeout=limits, headers=self._headers)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._job_open:
            with suppress(ClientError):  # leaving must not fail because the server is gone
                await self._delete(self._job)
        if self._http is not None:
            await self._http.close()

    async def process_frame(self, frame: bytes) -> bytes:
        """Send one frame or segment and wait for its result; an empty frame is a keep-alive and gives b"".

        Calls at the same time are taken one after the other. Raises `SegmentFailed` when the server has an error
        for this frame.
        """
        async with self._one_at_a_time:
            async with self._request(
                "PUT", f"{self._job}/source", params=self._query, data=io.BytesIO(frame)
            ) as answer:
                await answer.read()
            self._job_open = True
            if not frame:
                return b""
            try:
                return await asyncio.wait_for(self._next_result(), self._timeout)
            except asyncio.TimeoutError:
                raise ServerUnreachable(f"{self._base_url} had no result within {self._timeout:g} s") from None

    async def stream(
        self, source: AsyncIterable[bytes] | bytes, *, content_type: str = "application/octet-stream", **query: str
    ) -> AsyncIterator[dict[str, Any]]:
        """Send `source` as a live feed, and yield each record as it comes, up to and with the `end` record.

        `query` goes into the URL of the feed, such as `width="640", height="360"` for video.
        """
        job = new_job_id()
        feed = asyncio.ensure_future(self._feed(job, chunked(source), content_type, self._query | query))
        records = self._records(job, feed)
        ended = False
        try:
            while (record := await self._next_record(records, feed)) is not None:
                ended = record["type"] == "end"
                yield record
            await feed
        finally:
            feed.cancel()
            await asyncio.wait({feed})
            await records.aclose()
            if not ended:
                with suppress(ClientError):
                    await self._delete(job)

    async def _next_record(
        self, records: AsyncGenerator[dict[str, Any], None], feed: asyncio.Task[None]
    ) -> dict[str, Any] | None:
        """Wait for a record: without limit while there is something to send, then for `timeout` seconds."""
        coming = asyncio.ensure_future(anext(records, None))
        try:
            await asyncio.wait({coming, feed}, return_when=asyncio.FIRST_COMPLETED)
            await asyncio.wait({coming}, timeout=self._timeout)
            if not coming.done():
                message = f"{self._base_url} sent no record for {self._timeout:g} s after the end of the feed"
                raise ServerUnreachable(message)
            return coming.result()
        finally:
            if not coming.done():
                coming.cancel()
                await asyncio.wait({coming})

    async def _feed(self, job: str, body: AsyncIterator[bytes], content_type: str, query: Mapping[str, str]) -> None:
        """Send the body. When that fails, end the input, so that the reader gets what did arrive, and its end."""
        headers = {"Content-Type": content_type}
        broken: list[Exception] = []
        watched = remember_error(body, broken)
        try:
            async with self._request("PUT", f"{job}/source", params=query, data=watched, headers=headers) as answer:
                await answer.read()
        except Exception as error:
            with suppress(ClientError):
                await self._delete(f"{job}/source")
            raise (broken[0] if broken else error) from None

    async def _records(self, job: str, feed: asyncio.Task[None]) -> AsyncGenerator[dict[str, Any], None]:
        """Follow the output, unless the feed is refused before there is one."""
        headers = {"Accept": "application/x-ndjson"}
        async with AsyncExitStack() as stack:
            request = self._request("GET", f"{job}/output", headers=headers, params={"wait": "300"})
            opening = asyncio.ensure_future(stack.enter_async_context(request))
            try:
                await asyncio.wait({opening, feed}, return_when=asyncio.FIRST_COMPLETED)
                if not opening.done() and feed.exception() is not None:
                    feed.result()
                answer = await opening
            finally:
                opening.cancel()
            async for line in lines(answer.content):
                yield json.loads(line)

    async def _next_result(self) -> bytes:
        while True:
            async with self._request("GET", f"{self._job}/output") as answer:
                if answer.status == 200:
                    return await answer.read()
                if CLOSED in answer.headers:
                    raise ServerRefused(410, "the server has ended this client's job; enter a new TrickleClient")

    async def _delete(self, path: str) -> None:
        async with self._request("DELETE", path) as answer:
            await answer.read()

    @asynccontextmanager
    async def _request(self, method: str, path: str, **options: Any) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send a request; every way in which it can fail comes out as a `ClientError`."""
        if self._http is None:
            raise UsageError("TrickleClient must be entered first: async with TrickleClient(…) as client")
        try:
            async with self._http.request(method, f"{self._base_url}/live/{path}", **options) as answer:
                if answer.status >= 400:
                    raise await refusal(answer)
                yield answer
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError) as error:
            reason = str(error) or type(error).__name__
            message = f"no answer from {self._base_url}: {reason}; is the server running there?"
            raise ServerUnreachable(message) from error


def new_job_id() -> str:
    """Make up a job id that nobody else has."""
    return uuid.uuid4().hex


async def refusal(answer: aiohttp.ClientResponse) -> ClientError:
    """Make the server's error answer an exception."""
    text = await answer.text(errors="replace")
    try:
        body = json.loads(text)
        message, seq = str(body["error"]), body.get("seq")
    except (ValueError, TypeError, KeyError, AttributeError):
        message, seq = text.strip()[:200] or str(answer.reason), None
    if answer.status == 500 and isinstance(seq, int):
        return SegmentFailed(seq, message)
    return ServerRefused(answer.status, message)


async def chunked(source: AsyncIterable[bytes] | bytes) -> AsyncIterator[bytes]:
    """Yield bytes in pieces, and an iterable as it is, without the empty chunks that would end an HTTP body."""
    if isinstance(source, bytes):
        for at in range(0, len(source), CHUNK_BYTES):
            yield source[at : at + CHUNK_BYTES]
    else:
        async for chunk in source:
            if chunk:
                yield chunk


async def remember_error(source: AsyncIterator[bytes], errors: list[Exception]) -> AsyncIterator[bytes]:
    """Pass bytes on, and keep the source's own exception, which the HTTP client would wrap in one of its own."""
    try:
        async for chunk in source:
            yield chunk
    except Exception as error:
        errors.append(error)
        raise


async def lines(content: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """Split a body into lines of any length, up to `MAX_RECORD_BYTES`."""
    rest = bytearray()
    async for chunk in content.iter_any():
        head, newline, tail = chunk.rpartition(b"\n")
        rest += head if newline else chunk
        if len(rest) > MAX_RECORD_BYTES:
            raise ServerRefused(200, f"the server sent a record of more than {MAX_RECORD_BYTES} bytes")
        if newline:
            for line in bytes(rest).split(b"\n"):
                yield line
            rest = bytearray(tail)
