"""Wires routes, jobs and pipelines into one aiohttp application."""

from __future__ import annotations

from aiohttp import web
from aiohttp.typedefs import Handler

from whisper_byoc.server.core.metrics import Metrics
from whisper_byoc.server.core.table import JobTable
from whisper_byoc.server.ingest.recording_job import INTAKE, Intake
from whisper_byoc.server.routes import (
    audio_to_text,
    batch,
    hardware,
    openai,
    output,
    source,
    status,
    transcript,
    websocket,
)
from whisper_byoc.server.routes.answers import drop
from whisper_byoc.server.routes.auth import protect
from whisper_byoc.server.routes.errors import answer_to, refuse
from whisper_byoc.server.routes.keys import METRICS, TABLE
from whisper_byoc.server.streams import routes as streams
from whisper_byoc.server.streams.routes import STREAMS, StreamTable

__all__ = ["build_app"]


def build_app(table: JobTable, stream_table: StreamTable, metrics: Metrics, token: str = "") -> web.Application:
    """Build the application around the jobs; with a token, work is for those who show it."""
    app = web.Application(middlewares=[errors_as_json], client_max_size=table.limits.segment_bytes)
    app[TABLE] = table
    app[STREAMS] = stream_table
    app[METRICS] = metrics
    app[INTAKE] = Intake(table.limits)
    app.on_cleanup.append(app[INTAKE].close)
    if token:
        protect(app, token)
    app.add_routes(
        [
            # a job id with a slash must reach the check of job ids, hence the greedy patterns
            web.put("/live/{job_id:.+}/source", source.put_source),
            web.delete("/live/{job_id:.+}/source", source.delete_source),
            web.get("/live/{job_id:.+}/transcript", transcript.get_transcript, allow_head=False),
            web.get("/live/{job_id:.+}/output", output.get_output, allow_head=False),
            web.delete("/live/{job_id:.+}", source.delete_job),
            *status.routes(),
            *hardware.routes(),
            *stream_routes(""),
            *stream_routes("/api"),  # older registrations have it
            *openai.routes(),
            *audio_to_text.routes(),
            *websocket.routes(),
            *batch.routes(),  # last: it takes every path of one segment
        ]
    )
    return app


def stream_routes(prefix: str) -> list[web.RouteDef]:
    return [
        web.post(f"{prefix}/stream/start", streams.start_stream),
        web.post(f"{prefix}/live-video-to-video", streams.start_stream),
        web.post(f"{prefix}/stream/stop", streams.stop_stream),
        web.post(f"{prefix}/stream/params", streams.update_stream),
        web.get(f"{prefix}/stream/status", streams.stream_status, allow_head=False),
    ]


@web.middleware
async def errors_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn every error into JSON in its route's shape, with its status; a bug becomes a 500 and a log entry."""
    try:
        return await handler(request)
    except web.HTTPException as error:
        answer = refuse(request, error.status, {"error": f"{request.method} {request.path}: {error.reason}"})
        if "Allow" in error.headers:
            answer.headers["Allow"] = error.headers["Allow"]
        return answer
    except ConnectionError:  # the client is gone: there is nobody to answer
        drop(request)
        return web.Response(status=400)
    except Exception as error:
        return answer_to(request, error)
