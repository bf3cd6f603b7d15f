"""Wires routes, jobs and pipelines into one aiohttp application."""

from __future__ import annotations

import logging

from aiohttp import web
from aiohttp.typedefs import Handler

from audio.errors import AudioError
from whisper_byoc.errors import RequestRefused
from whisper_byoc.server import (
    audio_to_text,
    batch,
    hardware,
    openai_api,
    output,
    source,
    status,
    transcript,
    websocket,
)
from whisper_byoc.server.auth import protect
from whisper_byoc.server.keys import METRICS, TABLE
from whisper_byoc.server.metrics import Metrics
from whisper_byoc.server.oneshot import INTAKE, Intake
from whisper_byoc.server.refusals import refuse, shape_for
from whisper_byoc.server.streams import routes as stream_routes
from whisper_byoc.server.streams.routes import StreamTable
from whisper_byoc.server.table import JobTable

__all__ = ["build_app"]

log = logging.getLogger(__name__)


def build_app(table: JobTable, streams: StreamTable, metrics: Metrics, token: str = "") -> web.Application:
    """Build the application around the jobs; with a token, work is for those who show it."""
    app = web.Application(middlewares=[errors_as_json], client_max_size=table.limits.segment_bytes)
    app[TABLE] = table
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
            *stream_routes.routes(streams),
            *openai_api.routes(),
            *audio_to_text.routes(),
            *websocket.routes(),
            *batch.routes(),  # last: it takes every path of one segment
        ]
    )
    return app


@web.middleware
async def errors_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn every error into JSON in its route's shape, with its status; a bug becomes a 500 and a log entry."""
    try:
        return await handler(request)
    except RequestRefused as error:
        return refuse(request, error.status, shape_for(request)(error), error.retry_after)
    except AudioError as error:
        return refuse(request, 400, {"error": str(error)})
    except web.HTTPException as error:
        return refuse(request, error.status, {"error": f"{request.method} {request.path}: {error.reason}"})
    except ConnectionError:
        raise  # the client is gone: there is nobody to answer
    except Exception:
        log.exception("%s %s failed", request.method, request.path)
        return refuse(request, 500, {"error": "the server failed on this request; its log says why"})
