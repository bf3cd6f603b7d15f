"""BYOC batch: `POST /{capability}` with one recording (or frame), answered when it is done, or as it gets done."""

import json
from contextlib import aclosing
from typing import Any

from aiohttp import web

from whisper_byoc.errors import BadParam, RequestRefused
from whisper_byoc.params import choice
from whisper_byoc.server.core.pipeline import Pipeline
from whisper_byoc.server.core.table import TABLE, JobTable
from whisper_byoc.server.ingest.forms import Upload
from whisper_byoc.server.ingest.recordings import RecordingJob, received, running
from whisper_byoc.server.routes.answers import CONTENT_TYPES, EventStream, render, segments_in_seconds

NOT_PARAMS = frozenset({"pipeline", "format", "response_format"})
BYTES = "bytes"
"""The form of an answer that is the processor's own bytes."""


async def post_capability(request: web.Request) -> web.StreamResponse:
    """Work on one recording or frame, and answer in the form that was asked for."""
    table = request.app[TABLE]
    pipeline = _named_pipeline(table, request.match_info.get("name", ""))
    if request.method != "POST":
        raise web.HTTPMethodNotAllowed(request.method, ["POST"])
    async with received(request) as upload:
        if wanted := upload.field("pipeline"):
            pipeline = table.named(wanted) or table.speech_pipeline(wanted)
        form = _wanted_form(request, upload, pipeline)
        params = {name: value for name, value in upload.fields.items() if name not in NOT_PARAMS}
        async with running(request, pipeline, params, upload) as job:
            return await _answer(request, job, form)


def _named_pipeline(table: JobTable, name: str) -> Pipeline:
    if found := table.named(name):
        return found
    if not name:
        return next(iter(table.pipelines.values()))  # the one that is registered
    if name == "transcribe":
        return table.speech_pipeline()
    names = ", ".join(f"/{each}" for each in table.pipelines)
    raise RequestRefused(404, f"model not found: nothing is served at /{name}; recordings are taken at {names}")


def _wanted_form(request: web.Request, upload: Upload, pipeline: Pipeline) -> str:
    """Choose the form: by a field, since neither query nor `Accept` passes an orchestrator, else by `Accept`."""
    named = next((name for name in ("response_format", "format") if upload.field(name)), "")
    if not pipeline.gives_text:
        if named:
            raise BadParam(named, f"pipeline {pipeline.name} gives bytes, not text; leave {named} out")
        return BYTES
    if named:
        return choice(named, upload.field(named), CONTENT_TYPES)
    types = {value.partition(";")[0]: form for form, value in CONTENT_TYPES.items()}
    accepted = (each.partition(";")[0].strip().lower() for each in request.headers.get("Accept", "").split(","))
    return next((types[each] for each in accepted if each in types), "json")


async def _answer(request: web.Request, job: RecordingJob, form: str) -> web.StreamResponse:
    if form == "sse":
        return await _stream(request, job)
    headers = job.headers(job.pipeline.content_type if form == BYTES else CONTENT_TYPES[form])
    if form == BYTES:
        body = b"".join([each.result.body for each in await job.outcome()])
    elif form == "ndjson":
        body = b"".join([each.json() + b"\n" for each in await job.outcome()])
    else:
        transcription = await job.transcription()
        text: dict[str, Any] = {
            "text": transcription.text,
            "language": transcription.language,
            "duration": job.recording.seconds,
        }
        text["segments"] = segments_in_seconds(transcription)
        body = (json.dumps(text, ensure_ascii=False) if form == "json" else render(transcription, form)).encode()
    return web.Response(body=body, headers=headers)


async def _stream(request: web.Request, job: RecordingJob) -> web.StreamResponse:
    async with (
        EventStream(request, job.headers(CONTENT_TYPES["sse"]), _error_event) as events,
        aclosing(job.records()) as records,
    ):
        async for record in records:
            await events.send(record.json())
            if record.kind == "error":
                break
    return events.response


def _error_event(_: web.Request, error: RequestRefused) -> object:
    return {"type": "error", "error": str(error)}
