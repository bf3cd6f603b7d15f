"""BYOC batch: `POST /{capability}` with one recording (or frame), answered when it is done, or as it gets done."""

import json
from contextlib import aclosing
from typing import Any

from aiohttp import web

from whisper_byoc.errors import BadParam, RequestRefused
from whisper_byoc.params import Param, choice_param, text_param
from whisper_byoc.server.core.pipeline import Pipeline, Pipelines
from whisper_byoc.server.core.table import TABLE
from whisper_byoc.server.ingest.declared import DECLARED, NAMES
from whisper_byoc.server.ingest.forms import Upload, params_without
from whisper_byoc.server.ingest.intake import STRICT, received_upload
from whisper_byoc.server.ingest.recording_jobs import RecordingJob, recording_job
from whisper_byoc.server.routes.answers import CONTENT_TYPES, WIDTH, EventStream, render
from whisper_byoc.server.routes.telling import SOUND, tells
from whisper_byoc.speech.formats import in_seconds

PIPELINE = text_param("pipeline", "instead of the one in the path")
FORMATS = tuple(choice_param(name, "of the answer", CONTENT_TYPES, "json") for name in ("response_format", "format"))
FIELDS: tuple[Param[Any], ...] = (PIPELINE, *FORMATS, WIDTH, STRICT)
BYTES = "bytes"
"""The format of a response that is the processor's own bytes."""


@tells(*FIELDS, *DECLARED, body=SOUND, form=FIELDS, recording="file", answers={200: "*/*"})
async def post_capability(request: web.Request) -> web.StreamResponse:
    """Process one recording or frame, and answer in the requested format."""
    pipelines = request.app[TABLE].pipelines
    pipeline = _named_pipeline(pipelines, request.match_info.get("name", ""))
    if request.method != "POST":
        raise web.HTTPMethodNotAllowed(request.method, ["POST"])
    async with received_upload(request) as upload:
        if name := upload.read(PIPELINE):
            pipeline = pipelines.find(name) or pipelines.find_speech(name)
        wanted = _wanted_format(request, upload, pipeline)
        width = upload.read(WIDTH)
        raw = NAMES if pipeline.media == "audio" else ()
        params = params_without(upload.fields, *(each.name for each in FIELDS), *raw)
        async with recording_job(request, pipeline, params, upload) as job:
            return await _answer(request, job, wanted, width)


def _named_pipeline(pipelines: Pipelines, name: str) -> Pipeline:
    if found := pipelines.find(name):
        return found
    if not name:
        return pipelines.first  # the one that is registered
    if name == "transcribe":
        return pipelines.find_speech()
    names = ", ".join(f"/{each}" for each in pipelines.names)
    raise RequestRefused(404, f"model not found: nothing is served at /{name}; recordings are taken at {names}")


def _wanted_format(request: web.Request, upload: Upload, pipeline: Pipeline) -> str:
    """Choose the format: by a field, since neither query nor `Accept` passes an orchestrator, else by `Accept`."""
    named = next((each for each in FORMATS if upload.field(each.name)), None)
    if not pipeline.gives_text:
        if named:
            raise BadParam(named.name, f"pipeline {pipeline.name} gives bytes, not text; leave {named.name} out")
        return BYTES
    if named:
        return upload.read(named)
    types = {value.partition(";")[0]: name for name, value in CONTENT_TYPES.items()}
    accepted = (each.partition(";")[0].strip().lower() for each in request.headers.get("Accept", "").split(","))
    return next((types[each] for each in accepted if each in types), "json")


async def _answer(request: web.Request, job: RecordingJob, wanted: str, width: int) -> web.StreamResponse:
    if wanted == "sse":
        return await _stream(request, job)
    if wanted == BYTES:
        body = b"".join([each.result.body for each in await job.outcome()])
    elif wanted == "ndjson":
        body = b"".join([each.json() + b"\n" for each in await job.outcome()])
    elif wanted == "json":
        transcription = await job.transcription()
        fields = {
            "text": transcription.text,
            "language": transcription.language,
            "duration": job.recording.seconds,
            **({} if job.speech_seconds is None else {"speech": job.speech_seconds}),
            "segments": [*map(in_seconds, transcription.segments)],
            **job.warning_fields,
        }
        body = json.dumps(fields, ensure_ascii=False).encode()
    else:
        body = render(await job.transcription(), wanted, width).encode()
    content_type = job.pipeline.content_type if wanted == BYTES else CONTENT_TYPES[wanted]
    return web.Response(body=body, headers=job.headers(content_type))


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
