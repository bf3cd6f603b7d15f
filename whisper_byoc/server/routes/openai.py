"""Recordings in the dialects of other services.

`/v1/audio/transcriptions` and `/v1/audio/translations` are OpenAI's, `/audio-to-text` is that of Livepeer's ai-runner.
"""

import json
import math
from collections.abc import Sequence
from contextlib import aclosing
from typing import Any

from aiohttp import web

from whisper_byoc.errors import BadParam, RequestRefused
from whisper_byoc.languages import LANGUAGES
from whisper_byoc.params import choice, number, switch
from whisper_byoc.server.core.pipeline import Pipeline
from whisper_byoc.server.core.table import TABLE
from whisper_byoc.server.ingest.forms import Upload
from whisper_byoc.server.ingest.recordings import RecordingJob, received_upload, recording_job
from whisper_byoc.server.routes.answers import (
    CONTENT_TYPES,
    EventStream,
    errors_as,
    openai_error,
    render,
    segments_in_seconds,
)
from whisper_byoc.speech.transcript import TextSegment, Transcription, Word

RESPONSE_FORMATS = ("json", "text", "srt", "verbose_json", "vtt")
DELTA_CHARACTERS = 4096
"""Longest piece of text in one event, so that its line stays under 64 KiB whatever the characters."""
TIMESTAMPS = {"true": "segments", "1": "segments", "sentence": "segments", "word": "words", "false": "", "0": ""}
"""`return_timestamps` -> what the chunks are."""


async def post_transcription(request: web.Request) -> web.StreamResponse:
    return await _post_audio(request, "transcribe")


async def post_translation(request: web.Request) -> web.StreamResponse:
    return await _post_audio(request, "translate")


async def get_models(request: web.Request) -> web.Response:
    """List the speech pipelines as OpenAI's models."""
    return web.json_response({"object": "list", "data": [_model(each) for each in request.app[TABLE].pipelines.speech]})


async def get_model(request: web.Request) -> web.Response:
    return web.json_response(_model(request.app[TABLE].pipelines.find_speech(request.match_info["name"])))


def _model(pipeline: Pipeline) -> dict[str, Any]:
    return {"id": pipeline.name, "object": "model", "created": 0, "owned_by": "whisper-byoc"}


async def _post_audio(request: web.Request, task: str) -> web.StreamResponse:
    async with received_upload(request, form_only=True) as upload:
        pipeline = request.app[TABLE].pipelines.find_speech(upload.field("model"))
        wanted = choice("response_format", upload.field("response_format", "json"), RESPONSE_FORMATS)
        granularities = _granularities(upload)
        number("temperature", upload.field("temperature", "0"), 0, 1)  # it changes nothing: decoding is greedy
        streamed = switch("stream", upload.field("stream", "false"))
        if streamed and wanted not in ("json", "text"):
            raise BadParam("response_format", f"a stream is of events, it cannot be {wanted}; use json")
        params: dict[str, Any] = {name: upload.field(name) for name in ("language", "prompt") if upload.field(name)}
        params |= {"task": task} if task != "transcribe" else {}
        params |= {"words": True} if "word" in granularities else {}
        async with recording_job(request, pipeline, params, upload) as job:
            if streamed:
                return await _stream(request, job)
            transcription = await job.transcription()
            if wanted not in ("json", "verbose_json"):
                text = render(transcription, wanted)
                return web.Response(body=text.encode(), headers=job.headers(CONTENT_TYPES[wanted]))
            body: dict[str, Any] = {"text": transcription.text}
            if wanted == "verbose_json":
                body |= _verbose_fields(transcription, job, task, granularities)
            body["usage"] = {"type": "duration", "seconds": math.ceil(job.recording.seconds)}
            return _json_answer(job, body)


def _json_answer(job: RecordingJob, body: dict[str, Any]) -> web.Response:
    text = json.dumps(body | job.recording.warning_fields, ensure_ascii=False)
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
    segments = segments_in_seconds(transcription)
    language = "english" if task == "translate" else LANGUAGES.get(transcription.language, transcription.language)
    fields: dict[str, Any] = {"task": task, "language": language, "duration": job.recording.seconds}
    if "segment" in granularities:
        fields["segments"] = [
            {
                "id": number,
                "seek": int(each["start"] * 100),  # in frames of 10 ms, as openai-whisper has it
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
        await events.send({"type": "transcript.text.done", "text": "".join(parts)})
    return events.response


def _as_detail(_: web.Request, error: RequestRefused) -> object:
    return {"detail": {"msg": str(error)}}


@errors_as(_as_detail, unreadable=415)
async def post_audio_to_text(request: web.Request) -> web.StreamResponse:
    """Transcribe one recording. `metadata` is taken and not needed: the length is known from the sound."""
    async with received_upload(request, form_only=True) as upload:
        try:
            pipeline = request.app[TABLE].pipelines.find_speech(upload.field("model_id"))
        except RequestRefused as error:
            raise RequestRefused(400, str(error)) from None  # this dialect has no 404
        wanted = upload.field("return_timestamps", "true").lower()
        kind = TIMESTAMPS[choice("return_timestamps", wanted, TIMESTAMPS)]
        async with recording_job(request, pipeline, {"words": True} if kind == "words" else {}, upload) as job:
            transcription = await job.transcription()
            timed: Sequence[TextSegment | Word] = transcription.segments if kind else ()
            if kind == "words":
                timed = [word for each in transcription.segments for word in each.words]
            chunks = [{"timestamp": [each.start, each.end], "text": each.text} for each in timed]
            return _json_answer(job, {"text": transcription.text, "chunks": chunks})
