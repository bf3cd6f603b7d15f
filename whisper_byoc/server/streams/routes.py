"""`/stream/start|stop|params|status`: the routes through which an orchestrator drives BYOC streams."""

import asyncio
import contextlib
import hashlib
from collections import deque
from typing import Any, Literal, NotRequired, TypedDict

from aiohttp import web

from whisper_byoc.connections import client_of
from whisper_byoc.errors import RequestRefused
from whisper_byoc.http import json_value, read_body, read_request
from whisper_byoc.livepeer import ID, STREAM_ID
from whisper_byoc.server.core.table import JobTable
from whisper_byoc.server.routes.answers import errors_as
from whisper_byoc.server.routes.telling import tells
from whisper_byoc.server.streams.hosts import StreamHosts
from whisper_byoc.server.streams.stream import STOP_LIMIT_S, StartRequest, Stream
from whisper_byoc.trickle.remote import ClientOptions

MAX_BODY = 1 << 20
REMEMBERED = 256


class State(TypedDict):
    """The state object of pytrickle."""

    status: str
    state: str
    error_message: None
    pipeline_ready: bool
    active_streams: int
    startup_complete: bool
    pipeline_state: str
    additional_info: dict[str, object]


class StreamTable:
    """The streams of one server, by id. `data_format` is used for streams that do not ask for another."""

    def __init__(self, table: JobTable, hosts: StreamHosts, data_format: str = "object") -> None:
        self.hosts = hosts
        self._table = table
        self._data_format = data_format
        self._options = ClientOptions(verify=False)  # orchestrators sign their own certificates
        self._streams: dict[str, Stream] = {}
        self._ended: deque[str] = deque(maxlen=REMEMBERED)

    @property
    def streams(self) -> tuple[Stream, ...]:
        return tuple(self._streams.values())

    async def start(self, request: StartRequest, pipeline: str | None, client: str = "") -> Stream:
        """Start a stream for the client with the address `client`.

        Raises `RequestRefused`: 400 for an invalid stream, 503 when there is no room.
        """
        stream_id = request.stream_id
        self._check_is_free(stream_id)
        job_id = job_id_of(stream_id)
        before = next((job for job in self._table.jobs if job.info.job_id == job_id), None)
        if before is not None:
            if not before.results.ended:  # neither to be shared nor abandoned with the stream
                raise RequestRefused(400, f"a job {job_id!r} that is not a stream is running; use another id")
            with contextlib.suppress(RequestRefused):  # an earlier stream of that name
                await self._table.forget(job_id, "a new stream took its name")
        its = self._table.pipeline_of(job_id, pipeline)
        if its.media == "bytes":
            raise RequestRefused(400, f"pipeline {its.name} works on bytes, not on streams of media")
        job = await self._table.open(job_id, pipeline, request.params, client=client)
        self._check_is_free(stream_id)
        stream = Stream(request, job, its, self._data_format, self._options, lambda: self._table.draining)
        self._streams[stream_id] = stream
        stream.over.add_done_callback(lambda _: self._forget(stream_id))
        return stream

    def find(self, stream_id: str | None) -> Stream | None:
        """Return the stream with this id; without an id, the only one."""
        if stream_id is not None:
            return self._streams.get(stream_id)
        return next(iter(self._streams.values())) if len(self._streams) == 1 else None

    def has_ended(self, stream_id: str | None) -> bool:
        """Return whether a stream with this id ended recently."""
        return stream_id in self._ended

    async def close(self) -> None:
        await asyncio.gather(*(stream.stop(STOP_LIMIT_S) for stream in self.streams))

    def state(self) -> State:
        """Return the state object of pytrickle."""
        status = self._table.pipelines.status(busy=bool(self._streams))
        ready = status in ("OK", "IDLE")
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

    def _check_is_free(self, stream_id: str) -> None:
        if stream_id in self._streams:
            raise RequestRefused(400, f"stream {stream_id!r} is already running")

    def _forget(self, stream_id: str) -> None:
        del self._streams[stream_id]
        self._ended.append(stream_id)


STREAMS = web.AppKey("STREAMS", StreamTable)


def job_id_of(stream_id: str) -> str:
    """Return the id of a stream's job: the stream's own, or a hash of it if no job may have that id."""
    if ID.fullmatch(stream_id):
        return stream_id
    return hashlib.sha256(stream_id.encode("utf-8", "surrogatepass")).hexdigest()[:32]


class Started(TypedDict):
    status: Literal["success"]
    message: str
    request_id: str | None
    current_state: State


class StreamError(TypedDict):
    status: Literal["error"]
    message: str
    current_state: State


def pytrickle_error(request: web.Request, error: RequestRefused) -> StreamError:
    return {"status": "error", "message": str(error), "current_state": request.app[STREAMS].state()}


class Start(TypedDict):
    gateway_request_id: str
    subscribe_url: NotRequired[str | None]
    publish_url: NotRequired[str | None]
    control_url: NotRequired[str | None]
    events_url: NotRequired[str | None]
    data_url: NotRequired[str | None]
    params: NotRequired[dict[str, object] | None]


@errors_as(pytrickle_error)
@tells(body=Start, answers={200: Started})
async def start_stream(request: web.Request) -> web.Response:
    """Start a stream, and answer before any media flows."""
    wanted = StartRequest.parse(await json_body(request), request.headers.get(STREAM_ID))
    pipeline = request.query.get("pipeline") or wanted.params.get("pipeline")
    streams = request.app[STREAMS]
    await streams.hosts.check(wanted.urls, request.remote)
    await streams.start(wanted, pipeline, client_of(request))
    return success(request, "Stream processing started successfully", wanted.stream_id)


@errors_as(pytrickle_error)
@tells(answers={200: Started})
async def stop_stream(request: web.Request) -> web.Response:
    """Stop a stream once its last results are delivered. Repeated stops are harmless."""
    streams, stream_id = request.app[STREAMS], request.headers.get(STREAM_ID)
    await read_body(request.content, MAX_BODY)  # of whatever type
    stream = streams.find(stream_id)
    if stream is not None:
        await stream.stop(STOP_LIMIT_S)
        return success(request, "Stream stopped", stream.request.stream_id)
    if streams.has_ended(stream_id):
        return success(request, "Stream had stopped before", stream_id)
    raise RequestRefused(400, "No active stream to stop")


@errors_as(pytrickle_error)
@tells(body=dict, answers={200: Started})
async def update_stream(request: web.Request) -> web.Response:
    """Change parameters of a stream while it runs."""
    body = await json_body(request)
    stream = request.app[STREAMS].find(request.headers.get(STREAM_ID))
    if stream is None:
        raise RequestRefused(400, "No active stream to update")
    await stream.update(body.get("params", body) if isinstance(body, dict) else body)
    return success(request, "Parameters updated", stream.request.stream_id)


class StreamStatus(State):
    client_active: bool
    streams: list[str]
    client_running: NotRequired[bool]
    fps: NotRequired[dict[str, float]]
    current_params: NotRequired[dict[str, str | None]]


@tells(answers={200: StreamStatus})
async def stream_status(request: web.Request) -> web.Response:
    """Return the state of the server, and that of the requested stream or of the only one."""
    streams = request.app[STREAMS]
    ids = [each.request.stream_id for each in streams.streams]
    state = streams.state()
    body: StreamStatus = {**state, "client_active": bool(ids), "streams": ids}  # type: ignore[typeddict-item]
    stream = streams.find(request.headers.get(STREAM_ID))
    if stream is not None:
        current = {
            "subscribe_url": stream.request.subscribe_url,
            "publish_url": stream.request.publish_url,
            "gateway_request_id": stream.request.stream_id,
        }
        body |= {"client_running": not stream.over.done(), "fps": stream.monitor.fps(), "current_params": current}
    return web.json_response(body)


async def json_body(request: web.Request) -> Any:
    """Read a JSON body.

    Raises `RequestRefused`: 400 for another content type or invalid JSON, 413 for more than 1 MiB.
    """
    if request.content_type != "application/json":
        raise RequestRefused(400, f"the content type must be application/json, not {request.content_type}")
    try:
        return json_value(await read_request(request, MAX_BODY))
    except ValueError as error:
        raise RequestRefused(400, f"the body is not JSON: {error}") from None


def success(request: web.Request, message: str, stream_id: str | None) -> web.Response:
    state = request.app[STREAMS].state()
    body: Started = {"status": "success", "message": message, "request_id": stream_id, "current_state": state}
    return web.json_response(body)
