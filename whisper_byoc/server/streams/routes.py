"""`/stream/start|stop|params|status`: the routes through which an orchestrator drives BYOC streams."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from whisper_byoc.errors import RequestRefused
from whisper_byoc.server.core.pipeline import PipelineState
from whisper_byoc.server.core.table import JOB_ID, JobTable
from whisper_byoc.server.routes.errors import refuse
from whisper_byoc.server.streams.output import DATA_FORMATS
from whisper_byoc.server.streams.start_request import StartRequest
from whisper_byoc.server.streams.stream import Stream
from whisper_byoc.trickle.http import ClientOptions

__all__ = ["StreamTable", "routes"]

MAX_BODY = 1 << 20
REMEMBERED = 256


class StreamTable:
    """The streams of one server, by their id."""

    def __init__(self, table: JobTable, options: ClientOptions | None = None) -> None:
        self.options = options or ClientOptions(verify=False)  # orchestrators sign their own certificates
        self._table = table
        self._streams: dict[str, Stream] = {}
        self._stopped: OrderedDict[str, None] = OrderedDict()
        self._format = os.environ.get("DATA_FORMAT", "object")
        if self._format not in DATA_FORMATS:
            raise RequestRefused(400, f"DATA_FORMAT must be one of {', '.join(DATA_FORMATS)}, not {self._format!r}")

    @property
    def streams(self) -> tuple[Stream, ...]:
        """Streams that are running."""
        return tuple(self._streams.values())

    async def start(self, request: StartRequest, pipeline: str | None) -> Stream:
        """Start a stream.

        Raises `RequestRefused`: 400 for what cannot be, 503 when there is no place.
        """
        stream_id = request.request_id
        if stream_id in self._streams:
            raise RequestRefused(400, f"stream {stream_id!r} is running already")
        job_id = job_id_of(stream_id)
        before = next((job for job in self._table.jobs if job.info.job_id == job_id), None)
        if before is not None and not before.results.ended:  # not to be shared, and not to be abandoned with the stream
            raise RequestRefused(400, f"a job {job_id!r} that is no stream is running here; use another id")
        if before is not None:  # an earlier stream of that name
            with contextlib.suppress(RequestRefused):
                await self._table.forget(job_id, "a new stream took its name")
        job = await self._table.open(job_id, pipeline, request.params)
        if stream_id in self._streams:
            raise RequestRefused(400, f"stream {stream_id!r} is running already")
        try:
            its = self._table.pipelines[job.info.pipeline]
            if its.media == "bytes":
                raise RequestRefused(400, f"pipeline {job.info.pipeline} works on bytes, not on streams of media")
            stream = Stream(request, job, its, self._format, self.options)
        except RequestRefused:
            await self._table.forget(job_id, "the stream was refused")
            raise
        self._streams[stream_id] = stream
        self._stopped.pop(stream_id, None)
        stream.over.add_done_callback(lambda _: self._forget(stream_id))
        return stream

    def find(self, stream_id: str | None) -> Stream | None:
        """Find a stream by its id; without an id, the only one."""
        if stream_id is not None:
            return self._streams.get(stream_id)
        return next(iter(self._streams.values())) if len(self._streams) == 1 else None

    def was_stopped(self, stream_id: str | None) -> bool:
        """Whether a stream of that id has come to its end not long ago."""
        return stream_id in self._stopped

    async def close(self) -> None:
        """Stop all streams."""
        await asyncio.gather(*(stream.stop() for stream in self.streams))

    def _forget(self, stream_id: str) -> None:
        self._streams.pop(stream_id, None)
        self._stopped[stream_id] = None
        while len(self._stopped) > REMEMBERED:
            self._stopped.popitem(last=False)

    def state(self) -> dict[str, Any]:
        """Build the state object in pytrickle's form."""
        states = {pipeline.state for pipeline in self._table.pipelines.values()}
        ready = states == {PipelineState.READY}
        status = (
            "ERROR" if PipelineState.FAILED in states else "LOADING" if not ready else "OK" if self._streams else "IDLE"
        )
        return {
            "status": status,
            "state": status,
            "error_message": None,
            "pipeline_ready": ready,
            "active_streams": len(self._streams),
            "startup_complete": ready,
            "pipeline_state": status,
            "additional_info": {},
        }


def job_id_of(stream_id: str) -> str:
    """Give the id of a stream's job: its own, or a hash of one that cannot be a job's."""
    if JOB_ID.fullmatch(stream_id):
        return stream_id
    return hashlib.sha256(stream_id.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def routes(streams: StreamTable) -> list[web.RouteDef]:
    """Give the routes, with and without the `/api` that older registrations have."""
    handlers: list[tuple[str, str, Callable[[web.Request, StreamTable], Awaitable[web.Response]]]] = [
        ("POST", "/stream/start", start),
        ("POST", "/stream/stop", stop),
        ("POST", "/stream/params", params),
        ("GET", "/stream/status", status),
        ("POST", "/live-video-to-video", start),
    ]

    def bound(handler: Callable[[web.Request, StreamTable], Awaitable[web.Response]]) -> Any:
        async def handle(request: web.Request) -> web.Response:
            try:
                return await handler(request, streams)
            except RequestRefused as error:
                body = {"status": "error", "message": str(error), "current_state": streams.state()}
                return refuse(request, error.status, body, error.retry_after)

        return handle

    return [
        web.RouteDef(method, prefix + path, bound(handler), {})
        for prefix in ("", "/api")
        for method, path, handler in handlers
    ]


async def start(request: web.Request, streams: StreamTable) -> web.Response:
    """Start a stream, and answer before any media flows."""
    parsed = StartRequest.parse(await json_body(request), request.headers.get("X-Stream-Id"))
    stream = await streams.start(parsed, request.query.get("pipeline") or parsed.params.get("pipeline"))
    return success(streams, "Stream processing started successfully", stream.request.request_id)


async def stop(request: web.Request, streams: StreamTable) -> web.Response:
    """Stop a stream, once its last words are delivered. Repeated stops are harmless."""
    stream_id = request.headers.get("X-Stream-Id")
    await request.content.read(MAX_BODY)  # whatever the stopper sent, of whatever type
    stream = streams.find(stream_id)
    if stream is not None:
        await stream.stop()
        return success(streams, "Stream stopped", stream.request.request_id)
    if streams.was_stopped(stream_id):
        return success(streams, "Stream had stopped before", stream_id)
    raise RequestRefused(400, "No active stream to stop")


async def params(request: web.Request, streams: StreamTable) -> web.Response:
    """Change the parameters of a running stream."""
    body = await json_body(request)
    stream = streams.find(request.headers.get("X-Stream-Id"))
    if stream is None:
        raise RequestRefused(400, "No active stream to update")
    stream.update(body.get("params", body) if isinstance(body, dict) else body)
    return success(streams, "Parameters updated", stream.request.request_id)


async def status(request: web.Request, streams: StreamTable) -> web.Response:
    """Tell how the server is, and the stream that is asked for, or the only one."""
    stream = streams.find(request.headers.get("X-Stream-Id"))
    body = streams.state() | {
        "client_active": bool(streams.streams),
        "streams": [s.request.request_id for s in streams.streams],
    }
    if stream is not None:
        current = {
            "subscribe_url": stream.request.subscribe_url,
            "publish_url": stream.request.publish_url,
            "gateway_request_id": stream.request.request_id,
        }
        body |= {"client_running": not stream.over.done(), "fps": {}, "current_params": current}
    return web.json_response(body)


async def json_body(request: web.Request) -> Any:
    """Read a JSON body.

    Raises `RequestRefused` (400) for another content type, or what is no JSON; 413 for more than 1 MiB.
    """
    if request.content_type != "application/json":
        raise RequestRefused(400, f"the content type must be application/json, not {request.content_type}")
    raw = b""
    while chunk := await request.content.read(MAX_BODY):
        raw += chunk
        if len(raw) > MAX_BODY:
            raise RequestRefused(413, f"the body is larger than {MAX_BODY} bytes")
    try:
        return json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise RequestRefused(400, f"the body is no JSON: {error}") from None


def success(streams: StreamTable, message: str, request_id: str | None) -> web.Response:
    """Answer in pytrickle's form."""
    body = {"status": "success", "message": message, "request_id": request_id, "current_state": streams.state()}
    return web.json_response(body)
