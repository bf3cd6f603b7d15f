"""Wires routes, jobs and pipelines into one aiohttp application."""

from __future__ import annotations

import logging

from aiohttp import web
from aiohttp.typedefs import Handler

from audio.errors import AudioError
from whisper_byoc.errors import RequestRefused
from whisper_byoc.server import hardware, output, source, status
from whisper_byoc.server import streams as stream_routes
from whisper_byoc.server.auth import protect
from whisper_byoc.server.keys import METRICS, TABLE
from whisper_byoc.server.metrics import Metrics
from whisper_byoc.server.streams import StreamTable
from whisper_byoc.server.table import JobTable

__all__ = ["build_app"]

log = logging.getLogger(__name__)


def build_app(table: JobTable, streams: StreamTable, metrics: Metrics, token: str = "") -> web.Application:
    """Build the application around the jobs; with a token, work is for those who show it."""
    app = web.Application(middlewares=[errors_as_json], client_max_size=table.limits.segment_bytes)
    app[TABLE] = table
    app[METRICS] = metrics
    if token:
        protect(app, token)
    app.add_routes(
        [
            # a job id with a slash must reach the check of job ids, hence the greedy patterns
            web.put("/live/{job_id:.+}/source", source.put_source),
            web.delete("/live/{job_id:.+}/source", source.delete_source),
            web.get("/live/{job_id:.+}/output", output.get_output, allow_head=False),
            web.delete("/live/{job_id:.+}", source.delete_job),
            *status.routes(),
            *hardware.routes(),
            *stream_routes.routes(streams),
        ]
    )
    return app


@web.middleware
async def errors_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn every error into `{"error": sentence}` with its status; a bug becomes a 500 and a log entry."""
    try:
        return await handler(request)
    except RequestRefused as error:
        return refuse(request, error.status, str(error), error.retry_after)
    except AudioError as error:
        return refuse(request, 400, str(error))
    except web.HTTPException as error:
        return refuse(request, error.status, f"{request.method} {request.path}: {error.reason}")
    except ConnectionError:
        raise  # the client is gone: there is nobody to answer
    except Exception:
        log.exception("%s %s failed", request.method, request.path)
        return refuse(request, 500, "the server failed on this request; its log says why")


def refuse(request: web.Request, status: int, message: str, retry_after: int | None = None) -> web.Response:
    """Answer with an error, and count it.

    A body that was not read to its end is not read any more: the connection is closed instead.
    """
    request.app[METRICS].refused(status)
    headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
    response = web.json_response({"error": message}, status=status, headers=headers)
    if not request.content.at_eof():
        response.force_close()
    return response
