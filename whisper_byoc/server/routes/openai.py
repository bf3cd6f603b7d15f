"""Recordings in the dialects of other services.

`/v1/audio/transcriptions` and `/v1/audio/translations` are OpenAI's, `/audio-to-text` is Livepeer's ai-runner's.
"""

import json
import math
from collections.abc import Sequence
from contextlib import aclosing
from typing import Any, Literal, TypedDict

from aiohttp import web

from whisper_byoc.errors import BadParam, RequestRefused
from whisper_byoc.languages import LANGUAGES
from whisper_byoc.params import choice_param, number_param, switch_param, text_param
from whisper_byoc.server.core.pipeline import Pipeline
from whisper_byoc.server.core.table import TABLE
from whisper_byoc.server.ingest.forms import Upload
from whisper_byoc.server.ingest.intake import received_upload
from whisper_byoc.server.ingest.recording_jobs import RecordingJob, recording_job
from whisper_byoc.server.routes.answers import (
    CONTENT_TYPES,
    WIDTH,
    EventStream,
    errors_as,
    openai_error,
    render,
)
from whisper_byoc.server.routes.telling import tells
from whisper_byoc.speech.formats import in_seconds
from whisper_byoc.speech.transcript import TextSegment, Transcription, Word

RESPONSE_FORMATS = ("json", "text", "srt", "verbose_json", "vtt")
TIMESTAMPS = {"true": "segments", "1": "segments", "sentence": "segments", "word": "words", "false": "", "0": ""}
"""`return_timestamps` -> what each chunk is."""
MODEL = text_param("model", "name of the pipeline")
FORMAT = choice_param("response_format", "of the answer", RESPONSE_FORMATS, "json")
TEMPERATURE = number_param("temperature", "of no effect: the best text is taken", 0, 1, 0)
STREAM = switch_param("stream", "answer with server-sent events")
LANGUAGE = text_param("language", "spoken: a tag such as en or pt-BR, an English name, or auto")
PROMPT = text_param("prompt", "what to expect")
FORM = (MODEL, FORMAT, WIDTH, TEMPERATURE, STREAM, LANGUAGE, PROMPT)
MODEL_ID = text_param("model_id", "name of the pipeline")
TIMES = choice_param("return_timestamps", "which times the chunks have", tuple(TIMESTAMPS), "true", lower=True)
DELTA_CHARACTERS = 4096
"""Longest piece of text in one event, so that its line stays under 64 KiB whatever the characters."""


@tells(form=FORM, recording="file", answers={200: "*/*"})
async def post_transcription(request: web.Request) -> web.StreamResponse:
    """Transcribe a recording, as OpenAI does."""
    return await _post_audio(request, "transcribe")


@tells(form=FORM, recording="file", answers={200: "*/*"})
async def post_translation(request: web.Request) -> web.StreamResponse:
    """Translate a recording into English, as OpenAI does."""
    return await _post_audio(request, "translate")


class Model(TypedDict):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class Models(TypedDict):
    object: Literal["list"]
    data: list[Model]


@tells(answers={200: Models})
async def get_models(request: web.Request) -> web.Response:
    """List the speech pipelines as OpenAI's models."""
    models: Models = {"object": "list", "data": [_model(each) for each in request.app[TABLE].pipelines.speech]}
    return web.json_response(models)


@tells(answers={200: Model})
async def get_model(request: web.Request) -> web.Response:
    """Describe one speech pipeline as OpenAI's model."""
    return web.json_response(_model(request.app[TABLE].pipelines.find_speech(request.match_info["name"])))


def _model(pipeline: Pipeline) -> Model:
    return {"id": pipeline.name, "object": "model", "created": 0, "owned_by": "whisper-byoc"}


async def _post_audio(request: web.Request, task: str) -> web.StreamResponse:
    async with received_upload(request, form_only=True) as upload:
        pipeline = request.app[TABLE].pipelines.find_speech(upload.read(MODEL) or "")
        wanted = upload.read(FORMAT)
        granularities, width = _granularities(upload), upload.read(WIDTH)
        upload.read(TEMPERATURE)  # it has no effect: decoding is greedy
        streamed = upload.read(STREAM)
        if streamed and wanted not in ("json", "text"):
            raise BadParam("response_format", f"a stream is of events, it cannot be {wanted}; use json")
        params: dict[str, Any] = {**upload.given("language", "prompt")}
        params |= {"task": task} if task != "transcribe" else {}
        params |= {"words": True} if "word" in granularities else {}
        async with recording_job(request, pipeline, params, upload) as job:
            if streamed:
                return await _stream(request, job)
            transcription = await job.transcription()
            if wanted not in ("json", "verbose_json"):
                text = render(transcription, wanted, width)
                return web.Response(body=text.encode(), headers=job.headers(CONTENT_TYPES[wanted]))
            body: dict[str, Any] = {"text": transcription.text}
            if wanted == "verbose_json":
                body |= _verbose_fields(transcription, job, task, granularities)
            body["usage"] = {"type": "duration", "seconds": math.ceil(job.recording.seconds)}
            return _json_answer(job, body)


def _json_answer(job: RecordingJob, body: dict[str, Any]) -> web.Response:
    text = json.dumps(body | job.warning_fields, ensure_ascii=False)
    return web.Response(body=text.encode(), headers=job.headers(CONTENT_TYPES["json"]))


def _granularities(upload: Upload) -> set[str]:
    names = ("timestamp_granularities[]", "timestamp_granularities")
    found = {value for name in names for value in upload.fields.getall(name, [])}
    if not found <= {"word", "segment"}:
        raise BadParam(names[0], f"{names[0]} must be word or segment, not {sorted(found)}")
    return found or {"segment"}


def _verbose_fields(
    transcription: Transcription, job: RecordingJob, task: str, granularities: set[str]
) -> dict[str, Any]:
    # records carry no tokens
    segments = [*map(in_seconds, transcription.segments)]
    language = "english" if task == "translate" else LANGUAGES.get(transcription.language, transcription.language)
    fields: dict[str, Any] = {"task": task, "language": language, "duration": job.recording.seconds}
    if "segment" in granularities:
        fields["segments"] = [
            {
                "id": number,
                "seek": int(each["start"] * 100),  # in frames of 10 ms, as in openai-whisper
                **{name: value for name, value in each.items() if name != "words"},
                "tokens": [],
            }
            for number, each in enumerate(segments)
        ]
    if "word" in granularities:
        fields["words"] = [
            {name: word[name] for name in ("word", "start", "end")}
            for each in segments
            for word in each.get("words", ())
        ]
    return fields


async def _stream(request: web.Request, job: RecordingJob) -> web.StreamResponse:
    parts: list[str] = []
    async with (
        EventStream(request, job.headers(CONTENT_TYPES["sse"]), openai_error) as events,
        aclosing(job.records()) as records,
    ):
        async for record in records:
            if record.kind == "error":
                raise RequestRefused(422, record.error)
            if record.kind == "result" and (text := str(record.fields().get("text", ""))):
                delta = f" {text}" if parts else text
                parts.append(delta)
                for at in range(0, len(delta), DELTA_CHARACTERS):
                    await events.send({"type": "transcript.text.delta", "delta": delta[at : at + DELTA_CHARACTERS]})
        await events.send({"type": "transcript.text.done", "text": "".join(parts), **job.warning_fields})
    return events.response


class Chunk(TypedDict):
    timestamp: list[float]
    text: str


class Chunked(TypedDict):
    text: str
    chunks: list[Chunk]


class Detail(TypedDict):
    msg: str


class DetailedError(TypedDict):
    detail: Detail


def _as_detail(_: web.Request, error: RequestRefused) -> DetailedError:
    return {"detail": {"msg": str(error)}}


@errors_as(_as_detail, unreadable=415)
@tells(form=(MODEL_ID, TIMES), recording="audio", answers={200: Chunked})
async def post_audio_to_text(request: web.Request) -> web.StreamResponse:
    """Transcribe one recording. `metadata` is accepted but not needed: the length is known from the sound."""
    async with received_upload(request, form_only=True) as upload:
        try:
            pipeline = request.app[TABLE].pipelines.find_speech(upload.read(MODEL_ID) or "")
        except RequestRefused as error:
            raise RequestRefused(400, str(error)) from None  # this dialect has no 404
        kind = TIMESTAMPS[upload.read(TIMES)]
        async with recording_job(request, pipeline, {"words": True} if kind == "words" else {}, upload) as job:
            transcription = await job.transcription()
            timed: Sequence[TextSegment | Word] = transcription.segments if kind else ()
            if kind == "words":
                timed = [word for each in transcription.segments for word in each.words]
            chunks: list[Chunk] = [{"timestamp": [each.start, each.end], "text": each.text} for each in timed]
            answer: Chunked = {"text": transcription.text, "chunks": chunks}
            return _json_answer(job, {**answer})
