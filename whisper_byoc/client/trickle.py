"""The client of the bytes path: one call per frame, or a stream that sends while it receives."""

from __future__ import annotations

import asyncio
import io
import json
import uuid
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Mapping
from contextlib import AsyncExitStack, suppress
from types import TracebackType
from typing import Any

from whisper_byoc.client.http import Connection, chunked, lines, remember_error
from whisper_byoc.errors import ClientError, ServerRefused, ServerUnreachable

__all__ = ["TrickleClient"]

CLOSED = "Lp-Trickle-Closed"


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
        self._query = dict(params or {}) | ({"pipeline": pipeline} if pipeline else {})
        self._timeout = timeout
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._http = Connection(base_url, "TrickleClient", headers)
        self._job = new_job_id()
        self._job_open = False
        self._one_at_a_time = asyncio.Lock()

    async def __aenter__(self) -> TrickleClient:
        self._http.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._job_open:
            with suppress(ClientError):  # leaving must not fail because the server is gone
                await self._delete(self._job)
        await self._http.close()

    async def process_frame(self, frame: bytes) -> bytes:
        """Send one frame or segment and wait for its result; an empty frame is a keep-alive and gives b"".

        Calls at the same time are taken one after the other. Raises `SegmentFailed` when the server has an error
        for this frame.
        """
        async with self._one_at_a_time:
            async with self._http.request(
                "PUT", f"/live/{self._job}/source", params=self._query, data=io.BytesIO(frame)
            ) as answer:
                await answer.read()
            self._job_open = True
            if not frame:
                return b""
            try:
                return await asyncio.wait_for(self._next_result(), self._timeout)
            except asyncio.TimeoutError:
                raise ServerUnreachable(f"{self._http.base_url} had no result within {self._timeout:g} s") from None

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
                message = f"{self._http.base_url} sent no record for {self._timeout:g} s after the end of the feed"
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
            async with self._http.request(
                "PUT", f"/live/{job}/source", params=query, data=watched, headers=headers
            ) as answer:
                await answer.read()
        except Exception as error:
            with suppress(ClientError):
                await self._delete(f"{job}/source")
            raise (broken[0] if broken else error) from None

    async def _records(self, job: str, feed: asyncio.Task[None]) -> AsyncGenerator[dict[str, Any], None]:
        """Follow the output, unless the feed is refused before there is one."""
        headers = {"Accept": "application/x-ndjson"}
        async with AsyncExitStack() as stack:
            request = self._http.request("GET", f"/live/{job}/output", headers=headers, params={"wait": "300"})
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
            async with self._http.request("GET", f"/live/{self._job}/output") as answer:
                if answer.status == 200:
                    return await answer.read()
                if CLOSED in answer.headers:
                    raise ServerRefused(410, "the server has ended this client's job; enter a new TrickleClient")

    async def _delete(self, path: str) -> None:
        async with self._http.request("DELETE", f"/live/{path}") as answer:
            await answer.read()


def new_job_id() -> str:
    """Make up a job id that nobody else has."""
    return uuid.uuid4().hex
