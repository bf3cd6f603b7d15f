"""The two clients: one for a gateway, and one for a container, which has separate routes for input and output."""

import asyncio
import io
import uuid
from collections.abc import AsyncGenerator, AsyncIterable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, suppress
from typing import Any

import aiohttp

from whisper_byoc.aio import backoff, cancel, first_of
from whisper_byoc.client.connection import SHORT, Connection, whole_body
from whisper_byoc.client.feed import JsonRecord, Outgoing, exchange, records_of
from whisper_byoc.errors import ClientError, SegmentFailed, ServerRefused
from whisper_byoc.http import json_value
from whisper_byoc.livepeer import MODEL

OCTET_STREAM = "application/octet-stream"
NDJSON = "application/x-ndjson"
QUICK_SECONDS = 1.0
"""After a response without a result that comes sooner than this, pause."""


class GatewayClient(Connection):
    """Talks to one model behind a gateway: `async with GatewayClient("http://localhost:8935", "whisper-tiny")`.

    `model` is the exact name of the capability (`capabilities` needs none); `params` are sent with every job
    (`language`, …); `timeout` bounds, in seconds, every wait for the gateway; `token` is for a gateway that requires
    one. Methods raise `ServerUnreachable`, `ServerRefused` or `SegmentFailed`.
    """

    def __init__(
        self,
        base_url: str = "http://localhost:8935",
        model: str = "",
        *,
        params: Mapping[str, str] | None = None,
        timeout: float = 120.0,
        token: str | None = None,
    ) -> None:
        super().__init__(base_url, token, timeout)
        self._query = dict(params or {})
        self._model = model

    async def capabilities(self) -> dict[str, Any]:
        """Return the models there are: `{"capabilities": [{"name": …, "available": …}, …], "orchestrators": […]}`."""
        async with self._request("GET", "/capabilities", timeout=SHORT) as answer:
            text = await whole_body(answer)
        try:
            known: dict[str, Any] = json_value(text)
            named = all(isinstance(each["name"], str) for each in known["capabilities"])
        except (ValueError, TypeError, KeyError):
            named = False
        if not named:
            raise ServerRefused(200, f"{self.base_url}/capabilities does not answer as a gateway does")
        return known

    async def process_frame(self, frame: bytes) -> bytes:
        """Send one frame or segment and return its result; an empty frame is a keep-alive and returns b"".

        Concurrent calls run in parallel.
        """
        async with (
            self._time_limit(),
            self._post(io.BytesIO(frame), self._query, {"Content-Type": OCTET_STREAM}) as answer,
        ):
            return await whole_body(answer)

    def stream(
        self, source: AsyncIterable[bytes] | bytes, *, content_type: str = OCTET_STREAM, **query: str
    ) -> AsyncGenerator[JsonRecord, None]:
        """Send `source` as a live feed, and yield each record as it comes, up to and including the `end` record.

        `query` goes into the URL of the feed, such as `width="640", height="360"` for video. An exception in the source
        is raised after the records for what did arrive.
        """
        outgoing = Outgoing(source)
        records = self._records(outgoing, self._query | query, content_type)
        return exchange(outgoing, records, self._timeout, self.base_url)

    async def _records(
        self, outgoing: Outgoing, query: Mapping[str, str], content_type: str
    ) -> AsyncGenerator[JsonRecord, None]:
        async with self._post(outgoing, query, {"Content-Type": content_type, "Accept": NDJSON}) as answer:
            outgoing.answered = True
            async for record in records_of(answer.content.iter_any()):
                yield record

    def _post(
        self, body: object, query: Mapping[str, str], headers: Mapping[str, str]
    ) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        # the network's only route for live jobs, whatever they carry
        path = "/live/video-to-video"
        return self._request("POST", path, data=body, params=query, headers={MODEL: self._model, **headers})


class TrickleClient(Connection):
    """Talks to one server: `async with TrickleClient("http://localhost:8000") as client`.

    `pipeline` chooses one if the server has several; `params` are sent when a job is opened (`language`, …); `timeout`
    bounds, in seconds, the wait for the result of one frame; `token` is for a server that requires one. Methods raise
    `ServerUnreachable`, `ServerRefused` or `SegmentFailed`.
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
        super().__init__(base_url, token, timeout)
        self._query = dict(params or {}) | ({"pipeline": pipeline} if pipeline else {})
        self._job = uuid.uuid4().hex
        self._job_open = False
        self._result_due = False
        self._one_at_a_time = asyncio.Lock()

    async def __aexit__(self, *details: object) -> None:
        if self._job_open:
            await self._delete(self._job)
        await super().__aexit__(*details)

    async def health(self) -> dict[str, Any]:
        """Return the state of the server: `{"status": "LOADING" | "IDLE" | "OK" | "ERROR", …}`."""
        async with self._request("GET", "/health", timeout=SHORT) as answer:
            text = await whole_body(answer)
        try:
            known: dict[str, Any] = json_value(text)
            known["status"].upper()
        except (ValueError, TypeError, KeyError, AttributeError):
            raise ServerRefused(200, f"{self.base_url}/health does not answer as a container does") from None
        return known

    async def process_frame(self, frame: bytes) -> bytes:
        """Send one frame or segment and wait for its result; an empty frame is a keep-alive and returns b"".

        Concurrent calls run one after the other. Raises `SegmentFailed` when the server reports an error for this
        frame.
        """
        async with self._one_at_a_time:
            if self._result_due:  # from an abandoned call: it would pass for this frame's result
                await self._delete(self._job)
                self._job, self._job_open, self._result_due = uuid.uuid4().hex, False, False
            async with self._time_limit():
                return await self._process(frame)

    async def stream(
        self, source: AsyncIterable[bytes] | bytes, *, content_type: str = OCTET_STREAM, **query: str
    ) -> AsyncGenerator[JsonRecord, None]:
        """Send `source` as a live feed, and yield each record, as `GatewayClient.stream` does."""
        job = uuid.uuid4().hex
        outgoing = Outgoing(source)
        feed = asyncio.ensure_future(self._feed(job, outgoing, content_type, self._query | query))
        output = self._records(job, outgoing, feed)
        records = exchange(outgoing, output, self._timeout, self.base_url, feed=feed)
        ended = False
        try:
            async for record in records:
                ended = record["type"] == "end"
                yield record
        finally:
            await records.aclose()
            if not ended:
                await self._delete(job)

    async def _feed(self, job: str, outgoing: Outgoing, content_type: str, query: Mapping[str, str]) -> None:
        """Send the body. If that fails, end the input, so that the reader gets the results so far, and the end."""
        try:
            await self._put(job, outgoing, query, content_type)
        except ClientError:
            await self._delete(f"{job}/source")
            raise
        finally:
            outgoing.end()

    async def _records(
        self, job: str, outgoing: Outgoing, feed: asyncio.Task[None]
    ) -> AsyncGenerator[JsonRecord, None]:
        """Follow the output, unless the feed is refused before there is any."""
        async with AsyncExitStack() as stack:
            request = self._request("GET", f"/live/{job}/output", headers={"Accept": NDJSON}, params={"wait": "300"})
            opening = asyncio.ensure_future(stack.enter_async_context(request))
            try:
                await first_of(opening, feed)
                if not opening.done():
                    feed.result()  # raises if the feed was refused
                answer = await opening
            finally:
                await cancel(opening)
            outgoing.answered = True
            async for record in records_of(answer.content.iter_any()):
                yield record

    async def _process(self, frame: bytes) -> bytes:
        self._result_due = True
        try:
            await self._put(self._job, io.BytesIO(frame), self._query, OCTET_STREAM)
            self._job_open = True
            result = await self._next_result() if frame else b""
        except (ServerRefused, SegmentFailed):
            self._result_due = False
            raise
        self._result_due = False
        return result

    async def _next_result(self) -> bytes:
        loop, pauses = asyncio.get_running_loop(), backoff(0.05, 1.0)
        while True:
            asked_at = loop.time()
            async with self._request("GET", f"/live/{self._job}/output") as answer:
                if answer.status == 200:
                    return await whole_body(answer)
                if "Lp-Trickle-Closed" in answer.headers:
                    raise ServerRefused(410, "the server has ended this client's job; enter a new TrickleClient")
            if loop.time() - asked_at < QUICK_SECONDS:  # our server waits before it says there is no result
                await asyncio.sleep(next(pauses))

    async def _put(self, job: str, body: object, query: Mapping[str, str], content_type: str) -> None:
        headers = {"Content-Type": content_type}
        async with self._request("PUT", f"/live/{job}/source", data=body, params=query, headers=headers) as answer:
            await whole_body(answer)

    async def _delete(self, path: str) -> None:
        """End a job, or its input, if the server can still be reached."""
        with suppress(ClientError):
            async with self._request("DELETE", f"/live/{path}", timeout=SHORT) as answer:
                await whole_body(answer)
