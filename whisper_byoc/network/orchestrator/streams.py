"""`/ai/stream/start|stop|update|payment`: the routes by which a gateway drives streams (go-livepeer, byoc)."""

from __future__ import annotations

import asyncio
import logging
import re
from typing import Any
from urllib.parse import urlsplit

from aiohttp import web

from whisper_byoc.errors import PeerFailed, RequestRefused
from whisper_byoc.network.answers import as_text
from whisper_byoc.network.header import HEADER, JobHeader
from whisper_byoc.network.orchestrator.context import Context
from whisper_byoc.network.orchestrator.pool import Container
from whisper_byoc.network.orchestrator.stream import BUSY, Channels, Stream
from whisper_byoc.network.reading import json_object, read_small
from whisper_byoc.trickle import TrickleServer

__all__ = ["Streams"]

log = logging.getLogger("whisper_byoc.network.orchestrator")

LARGEST_BODY = 10 << 20
"""As go-livepeer's gateway takes it."""
STREAM_ID = re.compile(r"[A-Za-z0-9._~-]{1,128}")
BODY_URLS = {
    "control": "control_url", "events": "events_url", "": "subscribe_url", "out": "publish_url", "data": "data_url",
}  # fmt: skip
"""Kind of channel -> its key in the body for the container, whose side it names."""
HEADER_URLS = {
    "control": "X-Control-Url", "events": "X-Events-Url", "": "X-Publish-Url", "out": "X-Subscribe-Url",
    "data": "X-Data-Url",
}  # fmt: skip
"""Kind of channel -> its header for the gateway, whose side it names."""


class Streams:
    """All streams of one orchestrator.

    `service_url` is how gateways reach it; containers are given `trickle_host` instead, if set.
    """

    def __init__(self, context: Context, trickle: TrickleServer, trickle_host: str = "") -> None:
        self.service_url = ""
        self._context = context
        self._trickle = trickle
        self._trickle_host = trickle_host
        self._streams: dict[str, Stream] = {}
        self._starting: set[str] = set()

    def __len__(self) -> int:
        return sum(not stream.over.done() for stream in self._streams.values())

    def routes(self) -> list[web.RouteDef]:
        """Give the routes."""
        return [
            web.post("/ai/stream/start", as_text(self.start)),
            web.post("/ai/stream/stop", as_text(self.stop)),
            web.post("/ai/stream/update", as_text(self.update)),
            web.post("/ai/stream/payment", as_text(self.payment)),
        ]

    async def start(self, request: web.Request) -> web.Response:
        """Find a container for a stream, and answer with the URLs of its channels."""
        self._context.check_draining()
        job = JobHeader.parse(request.headers.get(HEADER))
        stream_id = job.stream_id or job.id
        if not STREAM_ID.fullmatch(stream_id):
            raise RequestRefused(400, f"bad stream id {stream_id!r:.60}: use 1-128 characters of A-Z a-z 0-9 . _ ~ -")
        body = json_object(await read_small(request, LARGEST_BODY))
        before = self._streams.get(stream_id)
        if stream_id in self._starting or (before is not None and not before.ending):
            raise RequestRefused(400, f"stream {stream_id!r} is running already")
        self._starting.add(stream_id)
        try:
            if before is not None:  # it was stopped, and its channels are still there for its last readers
                await asyncio.wait({before.over})
                self._context.check_draining()
            stream, channels = await self._on_some_container(job, stream_id, body)
        finally:
            self._starting.discard(stream_id)
        self._streams[stream_id] = stream
        stream.over.add_done_callback(lambda _: self._streams.pop(stream_id, None))
        urls = channels.urls(self.service_url + self._trickle.base_path, HEADER_URLS)
        return web.Response(headers={**urls, "Livepeer-Balance": "0"})

    async def stop(self, request: web.Request) -> web.Response:
        """End a stream, and answer as its container does."""
        stream = self._find(request)
        body = await read_small(request, LARGEST_BODY)
        return passed_on(*await stream.stop(body, request.headers.get("Content-Type", "")))

    async def update(self, request: web.Request) -> web.Response:
        """Hand new parameters to a stream's container, and answer as it does."""
        job = JobHeader.parse(request.headers.get(HEADER))
        stream = self._find(request)
        body = await read_small(request, LARGEST_BODY)
        return passed_on(*await stream.tell("params", body, "application/json", float(job.timeout_seconds)))

    async def payment(self, request: web.Request) -> web.Response:
        """Thank for a payment; off-chain nothing is owed."""
        await read_small(request)
        return web.Response(headers={"Livepeer-Balance": "0"})

    async def stop_all(self, reason: str) -> None:
        """End all streams."""
        streams = list(self._streams.values())
        for stream in streams:
            self._context.tasks.start(stopped(stream, reason))
        if streams:
            await asyncio.wait({stream.over for stream in streams})

    async def _on_some_container(self, job: JobHeader, stream_id: str, body: dict[str, Any]) -> tuple[Stream, Channels]:
        """Start a stream at a container with a free place, or once more at another if the first one fails.

        One that did not answer in time may still begin, and would write to the channels of the next.
        """
        context = self._context
        passed_over: list[Container] = []
        failed_before = False
        while True:
            slot = context.pool.take(job.capability, passed_over)
            passed_over.append(slot.container)
            try:
                channels = Channels(self._trickle, stream_id, job.options)
            except BaseException:
                slot.free()
                raise
            stream = Stream(stream_id, slot, channels, context.http, context.limits)
            urls = channels.urls(self._container_base(), BODY_URLS)
            try:
                await stream.start({"gateway_request_id": stream_id, **urls, **body}, float(job.timeout_seconds))
            except PeerFailed as error:
                context.follower.doubt(slot.container)
                worth_it = error.status != 504 and not failed_before
                failed_before = failed_before or error.reached
                failure: RequestRefused = error
            except RequestRefused as error:
                worth_it, failure = error.status in BUSY, error
            else:
                log.info("stream %s runs at %s", stream_id, slot.container.url)
                return stream, channels
            if not worth_it or context.draining or not context.pool.free_elsewhere(job.capability, passed_over):
                raise failure
            log.warning("stream %s: %s; trying another container", stream_id, failure)

    def _container_base(self) -> str:
        parts = urlsplit(self.service_url)
        return f"{parts.scheme}://{self._trickle_host or parts.netloc}{self._trickle.base_path}"

    def _find(self, request: web.Request) -> Stream:
        stream_id = JobHeader.parse(request.headers.get(HEADER)).stream_id
        if stream := self._streams.get(stream_id):
            return stream
        raise RequestRefused(404, f"no stream {stream_id!r:.140} here: it never began, or has ended")


async def stopped(stream: Stream, reason: str) -> None:
    """Stop a stream whose container may be gone."""
    try:
        await stream.stop(reason.encode())
    except RequestRefused as error:
        log.warning("stream %s: %s", stream.id, error)


def passed_on(status: int, body: bytes, content_type: str) -> web.Response:
    """Answer as a container did."""
    headers = {"Content-Type": content_type} if content_type else {}
    return web.Response(status=status, body=body, headers=headers)
