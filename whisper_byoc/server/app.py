"""The application: the table of all routes, the responses to errors, and the checks on every request."""

import functools
import json
import logging
import time
from collections.abc import Mapping
from typing import Any

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler

from whisper_byoc import __version__
from whisper_byoc.errors import RequestRefused
from whisper_byoc.http import abort
from whisper_byoc.languages import LANGUAGES
from whisper_byoc.origins import OriginPolicy, check_pages
from whisper_byoc.page import PATHS, page_routes
from whisper_byoc.server.core.table import TABLE, JobTable
from whisper_byoc.server.ingest.intake import INTAKE, Intake
from whisper_byoc.server.openapi import document
from whisper_byoc.server.routes import asr, batch, deepgram, openai, output, realtime, source, status, websocket
from whisper_byoc.server.routes.answers import error_answer
from whisper_byoc.server.streams import routes as streams
from whisper_byoc.tokens import ask_for_token

log = logging.getLogger(__name__)

ROUTES = (
    # a job id with a slash must reach the check of job ids, hence the greedy patterns
    web.put("/live/{job_id:.+}/source", source.put_source),
    web.delete("/live/{job_id:.+}/source", source.delete_source),
    web.get("/live/{job_id:.+}/output", output.get_output, allow_head=False),
    web.get("/live/{job_id:.+}/transcript", output.get_transcript, allow_head=False),
    web.delete("/live/{job_id:.+}", source.delete_job),
    web.get("/health", status.get_health),
    web.get("/healthz", status.get_ready),
    web.get("/readyz", status.get_ready),
    web.get("/version", status.get_version),
    web.get("/app-version", status.get_app_version),
    web.get("/metrics", status.get_metrics),
    web.get("/hardware/info", status.get_hardware_info),
    web.get("/hardware/stats", status.get_hardware_stats),
    web.post("/stream/start", streams.start_stream),
    web.post("/stream/stop", streams.stop_stream),
    web.post("/stream/params", streams.update_stream),
    web.get("/stream/status", streams.stream_status, allow_head=False),
    web.post("/live-video-to-video", streams.start_stream),
    web.post("/api/stream/start", streams.start_stream),  # older registrations have /api
    web.post("/api/stream/stop", streams.stop_stream),
    web.post("/api/stream/params", streams.update_stream),
    web.get("/api/stream/status", streams.stream_status, allow_head=False),
    web.post("/api/live-video-to-video", streams.start_stream),
    web.post("/v1/audio/transcriptions", openai.post_transcription),
    web.post("/v1/audio/translations", openai.post_translation),
    web.post("/v1/audio/transcriptions/", openai.post_transcription),  # some clients add the slash
    web.get("/v1/models", openai.get_models),
    web.get("/v1/models/{name:.+}", openai.get_model),
    web.get("/v1/realtime", realtime.get_realtime, allow_head=False),
    web.get("/v1/listen", deepgram.get_listen, allow_head=False),
    web.post("/inference", asr.post_inference),
    web.post("/asr", asr.post_asr),
    web.post("/detect-language", asr.post_detect_language),
    web.post("/audio-to-text", openai.post_audio_to_text),
    web.post("/audio-to-text/", openai.post_audio_to_text),
    web.get("/transcribe", websocket.get_transcribe, allow_head=False),
    web.post("/", batch.post_capability),
    web.route("*", "/{name}", batch.post_capability),  # last: it matches every path of one segment
)
WITH_TOKEN = (web.get("/debug/jobs", status.get_jobs),)
"""Routes that exist only when a token keeps strangers out: whoever knows a job's id can use the job."""
OPENAPI_PATH = "/openapi.json"
PLAIN_ENCODINGS = frozenset(("", "identity", "chunked"))
CLIENT_GONE = 499
"""nginx's status for a request whose client did not wait for the response; nobody receives it."""
OPEN_PATHS = frozenset(
    ("/health", "/healthz", "/readyz", "/version", "/app-version", "/hardware/info", "/hardware/stats", "/metrics")
)
"""What monitors request: they have no token, and an orchestrator that gets a 401 ends the registration."""


def build_app(
    table: JobTable,
    stream_table: streams.StreamTable,
    worker_type: str = "byoc",
    token: str = "",
    origins: frozenset[str] = frozenset(),
    names: frozenset[str] = frozenset(),
) -> web.Application:
    """Build the application; with a token, every path but `OPEN_PATHS` requires it.

    `origins` and `names` are those of an `OriginPolicy`.
    """
    app = web.Application(middlewares=[_observe, _answer_errors], client_max_size=table.limits.segment_bytes)
    app[TABLE] = table
    app[streams.STREAMS] = stream_table
    app[status.WORKER_TYPE] = worker_type
    app[INTAKE] = Intake(table.limits, table.metrics)
    app.on_cleanup.append(app[INTAKE].close)
    check_pages(app, OriginPolicy(origins, names, has_token=bool(token), open_paths=OPEN_PATHS))
    ask_for_token(app, token, OPEN_PATHS | PATHS | {OPENAPI_PATH})
    app.middlewares.append(_refuse_encoded)
    pages = page_routes(lambda request: _described(request.app[TABLE], wants_token=bool(token)))
    routes = (*ROUTES, *WITH_TOKEN) if token else ROUTES

    @functools.cache  # made on the first request: starting need not wait for it
    def described() -> str:
        return json.dumps(document(routes, has_token=bool(token)))

    async def get_openapi(_: web.Request) -> web.Response:
        return web.Response(text=described(), content_type="application/json")

    app.add_routes([*pages, web.get(OPENAPI_PATH, get_openapi), *routes])
    return app


def _described(table: JobTable, *, wants_token: bool) -> Mapping[str, Any]:
    pipelines = [{"name": each.name, "media": each.media, "notice": each.notice} for each in table.pipelines]
    return {
        "role": "container",
        "version": __version__,
        "wants_token": wants_token,
        "pipelines": pipelines,
        "languages": dict(LANGUAGES),
    }


@web.middleware
async def _observe(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Count and log every request, without its query and headers, which may contain secrets."""
    began, status = time.monotonic(), CLIENT_GONE
    try:
        response = await handler(request)
        status = response.status
        return response
    finally:
        seconds, route = time.monotonic() - began, request.match_info.route
        method, pattern = (route.method, route.resource.canonical) if route.resource else ("*", "none")
        request.app[TABLE].metrics.answered(method, pattern, status, seconds)
        log.debug("%s %s from %s: %d after %.3f s", request.method, request.path, request.remote, status, seconds)


@web.middleware
async def _answer_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn every error into JSON in its route's shape, with its status; a bug becomes a 500 and a log entry."""
    try:
        return await handler(request)
    except web.HTTPException as error:
        answer = error_answer(request, RequestRefused(error.status, f"{request.method} {request.path}: {error.reason}"))
        if "Allow" in error.headers:
            answer.headers["Allow"] = error.headers["Allow"]
        return answer
    except ConnectionError:  # the client is gone or does not read, or the response cannot go on
        abort(request)
        return web.Response(status=CLIENT_GONE)
    except Exception as error:
        return error_answer(request, error)


@web.middleware
async def _refuse_encoded(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuse a compressed body unread: its length does not tell how much would have to be held and processed."""
    if request.body_exists:
        for name in (hdrs.CONTENT_ENCODING, hdrs.TRANSFER_ENCODING):
            given = ", ".join(request.headers.getall(name, ()))
            if not {each.strip().lower() for each in given.split(",")} <= PLAIN_ENCODINGS:
                raise RequestRefused(415, f"a body in {name} {given[:40]!r} is not accepted; send it unencoded")
    return await handler(request)
