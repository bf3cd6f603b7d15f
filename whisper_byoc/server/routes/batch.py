"""BYOC batch: `POST /{capability}` with one recording (or frame), answered when it is done, or as it gets done."""

from __future__ import annotations

import json
from contextlib import aclosing
from typing import Any

from aiohttp import web

from whisper_byoc.errors import RequestRefused
from whisper_byoc.server.core.pipeline import Pipeline
from whisper_byoc.server.core.table import JobTable
from whisper_byoc.server.ingest.forms import FieldRefused, Upload
from whisper_byoc.server.ingest.recording_job import Run, gives_text, received, running, speech_pipeline
from whisper_byoc.server.routes.answers import CONTENT_TYPES, EventStream, render, segments_in_seconds
from whisper_byoc.server.routes.keys import TABLE

__all__ = ["routes"]

NOT_PARAMS = frozenset({"pipeline", "format", "response_format"})
BYTES = "bytes"
"""The form of an answer that is the processor's own bytes."""


def routes() -> list[web.RouteDef]:
    """Make the routes.

    They are to be registered last, as the pattern takes every path of one segment.
    """
    return [web.post("/", post_capability), web.route("*", "/{name}", post_capability)]


async def post_capability(request: web.Request) -> web.StreamResponse:
    """Work on one recording or frame, and answer in the form that was asked for."""
    table = request.app[TABLE]
    pipeline = named_pipeline(table, request.match_info.get("name", ""))
    if request.method != "POST":
        raise web.HTTPMethodNotAllowed(request.method, ["POST"])
    async with received(request) as upload:
        if wanted := upload.field("pipeline"):
            pipeline = table.named(wanted) or speech_pipeline(table, wanted)
        form = wanted_form(request, upload, pipeline)
        params = {name: value for name, value in upload.fields.items() if name not in NOT_PARAMS}
        async with running(request, pipeline, params, upload) as run:
            return await answer(request, run, form)


def named_pipeline(table: JobTable, name: str) -> Pipeline:
    """Find the pipeline behind a path.

    Raises `RequestRefused` (404) with the names there are.
    """
    if found := table.named(name):
        return found
    if not name:
        return next(iter(table.pipelines.values()))  # the one that is registered
    if name == "transcribe":
        return speech_pipeline(table)
    names = ", ".join(f"/{each}" for each in table.pipelines)
    raise RequestRefused(404, f"model not found: nothing is served at /{name}; recordings are taken at {names}")


def wanted_form(request: web.Request, upload: Upload, pipeline: Pipeline) -> str:
    """Choose the form: by a field, since neither query nor `Accept` passes an orchestrator, else by `Accept`.

    Raises `FieldRefused` (400) for one that there is not.
    """
    named = next((name for name in ("response_format", "format") if upload.field(name)), "")
    if not gives_text(pipeline):
        if named:
            raise FieldRefused(named, f"pipeline {pipeline.name} gives bytes, not text; leave {named} out")
        return BYTES
    if named:
        return upload.choice(named, tuple(CONTENT_TYPES), "json")
    types = {value.partition(";")[0]: form for form, value in CONTENT_TYPES.items()}
    accepted = (each.partition(";")[0].strip().lower() for each in request.headers.get("Accept", "").split(","))
    return next((types[each] for each in accepted if each in types), "json")


async def answer(request: web.Request, run: Run, form: str) -> web.StreamResponse:
    """Write the answer."""
    if form == "sse":
        return await stream(request, run)
    headers = run.headers(run.pipeline.content_type if form == BYTES else CONTENT_TYPES[form])
    if form == BYTES:
        return web.Response(body=b"".join([each.result.body for each in await run.outcome()]), headers=headers)
    if form == "ndjson":
        return web.Response(body=b"".join([each.json() + b"\n" for each in await run.outcome()]), headers=headers)
    return web.Response(body=await text(run, form), headers=headers)


async def text(run: Run, form: str) -> bytes:
    """Write the whole text."""
    heard = await run.transcription()
    if form != "json":
        return render(heard, form).encode()
    body: dict[str, Any] = {"text": heard.text, "language": heard.language, "duration": run.recording.seconds}
    return json.dumps({**body, "segments": segments_in_seconds(heard)}, ensure_ascii=False).encode()


async def stream(request: web.Request, run: Run) -> web.StreamResponse:
    """Write the records as they come. The first error ends them."""
    timeout = request.app[TABLE].limits.idle_seconds
    async with (
        EventStream(request, run.headers(CONTENT_TYPES["sse"]), timeout, as_event) as events,
        aclosing(run.records()) as records,
    ):
        async for record in records:
            await events.send(record.fields())
            if record.kind == "error":
                break
    return events.response


def as_event(error: RequestRefused) -> object:
    """Build an error event."""
    return {"type": "error", "error": str(error)}
