"""The client of the bytes path: one call per frame, or a stream that sends while it receives."""

from __future__ import annotations

import asyncio
import io
import uuid
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Mapping
from contextlib import AsyncExitStack, suppress
from types import TracebackType

from whisper_byoc.client.feed import Outgoing, Record, exchange, records_of
from whisper_byoc.client.http import SHORT, Connection, whole
from whisper_byoc.errors import ClientError, SegmentFailed, ServerRefused, ServerUnreachable

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
        self._http = Connection(base_url, "TrickleClient", token)
        self._job = new_job_id()
        self._job_open = False
        self._owed = False
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
            if self._owed:
                await self._start_afresh()
            try:
                return await asyncio.wait_for(self._process(frame), self._timeout)
            except TimeoutError:
                raise ServerUnreachable(f"{self._http.base_url} had no result within {self._timeout:g} s") from None

    async def stream(
        self, source: AsyncIterable[bytes] | bytes, *, content_type: str = "application/octet-stream", **query: str
    ) -> AsyncIterator[Record]:
        """Send `source` as a live feed, and yield each record as it comes, up to and with the `end` record.

        `query` goes into the URL of the feed, such as `width="640", height="360"` for video. An exception of the
        source comes after the records of what did arrive.
        """
        job = new_job_id()
        outgoing = Outgoing(source)
        feed = asyncio.ensure_future(self._feed(job, outgoing, content_type, self._query | query))
        output = self._records(job, outgoing, feed)
        records = exchange(outgoing, output, self._timeout, self._http.base_url, feed=feed)
        ended = False
        try:
            async for record in records:
                ended = record["type"] == "end"
                yield record
        finally:
            await records.aclose()
            if not ended:
                with suppress(ClientError):
                    await self._delete(job)

    async def _feed(self, job: str, outgoing: Outgoing, content_type: str, query: Mapping[str, str]) -> None:
        """Send the body. When that fails, end the input, so that the reader gets what did arrive, and its end."""
        headers = {"Content-Type": content_type}
        try:
            async with self._http.request(
                "PUT", f"/live/{job}/source", params=query, data=outgoing, headers=headers
            ) as answer:
                await whole(answer)
        except ClientError:
            with suppress(ClientError):
                await self._delete(f"{job}/source")
            raise
        finally:
            outgoing.end()

    async def _records(self, job: str, outgoing: Outgoing, feed: asyncio.Task[None]) -> AsyncGenerator[Record, None]:
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
            outgoing.answered = True
            async for record in records_of(answer.content.iter_any()):
                yield record

    async def _process(self, frame: bytes) -> bytes:
        self._owed = True
        try:
            async with self._http.request(
                "PUT", f"/live/{self._job}/source", params=self._query, data=io.BytesIO(frame)
            ) as answer:
                await whole(answer)
            self._job_open = True
            result = await self._next_result() if frame else b""
        except (ServerRefused, SegmentFailed):
            self._owed = False
            raise
        self._owed = False
        return result

    async def _start_afresh(self) -> None:
        """Leave a job that owes a result nobody waits for any more: it would be taken for the next frame's."""
        with suppress(ClientError):
            await self._delete(self._job)
        self._job, self._job_open, self._owed = new_job_id(), False, False

    async def _next_result(self) -> bytes:
        while True:
            async with self._http.request("GET", f"/live/{self._job}/output") as answer:
                if answer.status == 200:
                    return await whole(answer)
                if CLOSED in answer.headers:
                    raise ServerRefused(410, "the server has ended this client's job; enter a new TrickleClient")

    async def _delete(self, path: str) -> None:
        async with self._http.request("DELETE", f"/live/{path}", timeout=SHORT) as answer:
            await whole(answer)


def new_job_id() -> str:
    """Make up a job id that nobody else has."""
    return uuid.uuid4().hex
