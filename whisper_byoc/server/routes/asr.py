"""Recordings in the dialects of home servers.

`/asr` and `/detect-language` are those of whisper-asr-webservice, as Bazarr calls them; `/inference` is whisper.cpp's.
"""

import json
from dataclasses import replace
from typing import Any, TypedDict

from aiohttp import web

from whisper_byoc.languages import LANGUAGES
from whisper_byoc.params import choice_param, switch_param, text_param
from whisper_byoc.server.core.table import TABLE
from whisper_byoc.server.ingest.forms import Upload
from whisper_byoc.server.ingest.intake import received_upload
from whisper_byoc.server.ingest.recording_jobs import RecordingJob, recording_job
from whisper_byoc.server.routes.answers import CONTENT_TYPES, render
from whisper_byoc.server.routes.telling import tells
from whisper_byoc.speech.formats import in_seconds

OUTPUTS = ("txt", "json", "srt", "vtt", "tsv")
RESPONSE_FORMATS = ("json", "verbose_json", "text", "srt", "vtt")
OUTPUT = choice_param("output", "form of the answer", OUTPUTS, "txt")
FORMAT = choice_param("response_format", "form of the answer", RESPONSE_FORMATS, "json")
WORDS = switch_param("word_timestamps", "times of words")
TRANSLATE = switch_param("translate", "into English")
ENCODE = switch_param("encode", "false: the bytes are PCM16 if they are no media", default=True)
LANGUAGE = text_param("language", "spoken: ISO 639-1, or auto")
TASK = text_param("task", "transcribe or translate")
PROMPT = text_param("initial_prompt", "what to expect")
DETECTED_SECONDS = 30
"""Whisper's window: the language is detected from this much of the beginning of a recording."""


@tells(form=(OUTPUT, TASK, LANGUAGE, PROMPT, WORDS, ENCODE), recording="audio_file", answers={200: "*/*"})
async def post_asr(request: web.Request) -> web.Response:
    """Transcribe the field `audio_file`."""
    async with received_upload(request, form_only=True) as upload:
        wanted = upload.read(OUTPUT)
        params: dict[str, Any] = {**upload.given("task", "language")}
        params |= {"prompt": prompt} if (prompt := upload.field("initial_prompt")) else {}
        params |= {"words": upload.read(WORDS)}
        pipeline = request.app[TABLE].pipelines.find_speech()
        async with recording_job(request, pipeline, params, _as_sent(upload)) as job:
            return await _answer(job, "text" if wanted == "txt" else wanted)


class Detected(TypedDict):
    detected_language: str
    language_code: str


@tells(form=(ENCODE,), recording="audio_file", answers={200: Detected})
async def post_detect_language(request: web.Request) -> web.Response:
    """Detect the language of the beginning of the field `audio_file`."""
    async with received_upload(request, form_only=True) as upload:
        pipeline = request.app[TABLE].pipelines.find_speech()
        async with recording_job(request, pipeline, {"language": "auto"}, _as_sent(upload), DETECTED_SECONDS) as job:
            code = (await job.transcription()).language
            name = LANGUAGES.get(code, code)
            detected: Detected = {"detected_language": name, "language_code": code}
            return web.json_response(detected)


@tells(form=(FORMAT, LANGUAGE, TRANSLATE), recording="file", answers={200: "*/*"})
async def post_inference(request: web.Request) -> web.Response:
    """Transcribe the field `file`, as whisper.cpp's server does."""
    async with received_upload(request, form_only=True) as upload:
        wanted = upload.read(FORMAT)
        params = upload.given("language", "prompt")
        if upload.read(TRANSLATE):
            params["task"] = "translate"
        pipeline = request.app[TABLE].pipelines.find_speech()
        async with recording_job(request, pipeline, params, upload) as job:
            if wanted != "json":
                return await _answer(job, "json" if wanted == "verbose_json" else wanted)
            text = (await job.transcription()).text
            return web.json_response({"text": text, **job.warning_fields})


def _as_sent(upload: Upload) -> Upload:
    """With `encode=false`, bytes that are not media are PCM16, as in a body without a form."""
    return upload if upload.read(ENCODE) else replace(upload, in_form=False)


async def _answer(job: RecordingJob, wanted: str) -> web.Response:
    transcription = await job.transcription()
    if wanted == "json":
        segments = [{"id": at, **each} for at, each in enumerate(map(in_seconds, transcription.segments))]
        fields = {"text": transcription.text, "segments": segments, "language": transcription.language}
        text = json.dumps(fields | job.warning_fields, ensure_ascii=False)
    elif wanted == "tsv":
        rows = (f"{each.start * 1000:.0f}\t{each.end * 1000:.0f}\t{each.text}\n" for each in transcription.segments)
        text, wanted = "start\tend\ttext\n" + "".join(rows), "text"
    else:
        text = render(transcription, wanted)
    return web.Response(body=text.encode(), headers=job.headers(CONTENT_TYPES[wanted]))
