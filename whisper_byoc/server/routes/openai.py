"""`/v1/audio/transcriptions` and `/v1/audio/translations`, as OpenAI's clients send and read them."""

from __future__ import annotations

import asyncio
import functools
import json
import math
import zlib
from contextlib import aclosing
from typing import Any

from aiohttp import web

from whisper_byoc.errors import RequestRefused
from whisper_byoc.server.ingest.forms import FieldRefused, Upload, on_or_off
from whisper_byoc.server.ingest.recording_job import Run, received, running, speech_pipeline
from whisper_byoc.server.routes.answers import CONTENT_TYPES, EventStream, render, segments_in_seconds
from whisper_byoc.server.routes.errors import refusing
from whisper_byoc.server.routes.keys import TABLE
from whisper_byoc.speech.transcript import Transcription

__all__ = ["routes"]

FORMATS = ("json", "text", "srt", "verbose_json", "vtt")
DELTA_CHARACTERS = 4096
"""Longest piece of text in one event, so that its line stays under 64 KiB whatever the characters."""
ERROR_TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
ERROR_CODES = {404: "model_not_found", 413: "file_too_large", 429: "rate_limit_exceeded"}


def routes() -> list[web.RouteDef]:
    """Make the routes."""
    answering = refusing(as_error)
    return [
        web.post("/v1/audio/transcriptions", answering(functools.partial(post_audio, "transcribe"))),
        web.post("/v1/audio/translations", answering(functools.partial(post_audio, "translate"))),
    ]


def as_error(error: RequestRefused) -> object:
    """Build an error body as OpenAI's clients read it."""
    kind = ERROR_TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "server_error")
    param = error.param if isinstance(error, FieldRefused) else "model" if error.status == 404 else None
    return {"error": {"message": str(error), "type": kind, "param": param, "code": ERROR_CODES.get(error.status)}}


async def post_audio(task: str, request: web.Request) -> web.StreamResponse:
    """Read the form, have the recording transcribed, and answer."""
    async with received(request, form_only=True) as upload:
        pipeline = speech_pipeline(request.app[TABLE], upload.field("model"))
        form = upload.choice("response_format", FORMATS, "json")
        grains = granularities(upload)
        check_temperature(upload)
        streamed = on_or_off(upload, "stream")
        if streamed and form not in ("json", "text"):
            raise FieldRefused("response_format", f"a stream is of events, it cannot be {form}; use json")
        params: dict[str, Any] = {"task": task, "words": "word" in grains}
        params |= {name: upload.field(name) for name in ("language", "prompt") if upload.field(name)}
        async with running(request, pipeline, params, upload) as run:
            if streamed:
                return await stream(request, run)
            heard = await run.transcription()
            if form in ("json", "verbose_json"):
                body = await verbose(heard, run, task, grains) if form == "verbose_json" else {"text": heard.text}
                usage = {"usage": {"type": "duration", "seconds": math.ceil(run.recording.seconds)}}
                text, kind = json.dumps(body | usage, ensure_ascii=False), CONTENT_TYPES["json"]
            else:
                text, kind = render(heard, form), CONTENT_TYPES[form]
            return web.Response(body=text.encode(), headers=run.headers(kind))


def granularities(upload: Upload) -> set[str]:
    """Read which times are wanted: `segment` unless told otherwise.

    Raises `FieldRefused` (400) for anything but `word` and `segment`.
    """
    names = ("timestamp_granularities[]", "timestamp_granularities")
    grains = {value for name in names for value in upload.fields.getall(name, [])}
    if not grains <= {"word", "segment"}:
        raise FieldRefused(names[0], f"{names[0]} must be word or segment, not {sorted(grains)}")
    return grains or {"segment"}


def check_temperature(upload: Upload) -> None:
    """Check the temperature, which changes nothing: decoding is greedy.

    Raises `FieldRefused` (400) for what is not a number from 0 to 1.
    """
    try:
        value = float(upload.field("temperature", "0"))
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise FieldRefused("temperature", "temperature must be a number from 0 to 1")


async def verbose(heard: Transcription, run: Run, task: str, grains: set[str]) -> dict[str, Any]:
    """Build the body of `verbose_json`.

    A segment has no `avg_logprob` and no `no_speech_prob`, which records do not carry; `tokens` is empty likewise.
    """
    segments = segments_in_seconds(heard)
    language = "english" if task == "translate" else await asyncio.to_thread(language_name, heard.language)
    body = {"task": task, "language": language, "duration": run.recording.seconds, "text": heard.text}
    if "segment" in grains:
        body["segments"] = [
            {
                "id": number,
                "seek": int(each["start"] * 100),  # in frames of 10 ms, as openai-whisper has it
                "start": each["start"],
                "end": each["end"],
                "text": each["text"],
                "tokens": [],
                "temperature": 0.0,
                "compression_ratio": compression_ratio(each["text"]),
            }
            for number, each in enumerate(segments)
        ]
    if "word" in grains:
        body["words"] = [
            {name: word[name] for name in ("word", "start", "end")}
            for each in segments
            for word in each.get("words", ())
        ]
    return body


def language_name(code: str) -> str:
    """Give the English name that OpenAI answers with, `english` for `en`; the code itself where there is none."""
    from whisper.tokenizer import LANGUAGES  # takes seconds where no model has been loaded

    return str(LANGUAGES.get(code, code))


def compression_ratio(text: str) -> float:
    """Length of the text over its length compressed, by which openai-whisper tells repetition (`utils.py`)."""
    data = text.encode()
    return len(data) / len(zlib.compress(data))


async def stream(request: web.Request, run: Run) -> web.StreamResponse:
    """Write the text as it comes: `transcript.text.delta` events, all of which together are `transcript.text.done`."""
    parts: list[str] = []
    timeout = request.app[TABLE].limits.idle_seconds
    async with (
        EventStream(request, run.headers(CONTENT_TYPES["sse"]), timeout, as_error) as events,
        aclosing(run.records()) as records,
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
