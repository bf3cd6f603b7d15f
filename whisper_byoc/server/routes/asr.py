"""Recordings in the dialects of home servers.

`/asr` and `/detect-language` are those of whisper-asr-webservice, as Bazarr calls them; `/inference` is whisper.cpp's.
"""

import json
from dataclasses import replace
from typing import Any

from aiohttp import web

from audio import pcm
from whisper_byoc.languages import LANGUAGES
from whisper_byoc.params import choice, switch
from whisper_byoc.server.core.table import TABLE
from whisper_byoc.server.ingest.forms import Upload
from whisper_byoc.server.ingest.recordings import Recording, RecordingJob, received_upload, recording_job
from whisper_byoc.server.routes.answers import CONTENT_TYPES, render, segments_in_seconds

OUTPUTS = ("txt", "json", "srt", "vtt", "tsv")
RESPONSE_FORMATS = ("json", "verbose_json", "text", "srt", "vtt")
DETECTED_SECONDS = 30
"""Whisper's window: so much of the beginning of a recording tells its language."""


async def post_asr(request: web.Request) -> web.Response:
    """Transcribe the field `audio_file`."""
    async with received_upload(request, form_only=True) as upload:
        wanted = choice("output", upload.field("output", "txt"), OUTPUTS)
        params: dict[str, Any] = {name: upload.field(name) for name in ("task", "language") if upload.field(name)}
        params |= {"prompt": prompt} if (prompt := upload.field("initial_prompt")) else {}
        params |= {"words": switch("word_timestamps", upload.field("word_timestamps", "false"))}
        pipeline = request.app[TABLE].pipelines.find_speech()
        async with recording_job(request, pipeline, params, _as_sent(upload)) as job:
            return await _answer(job, "text" if wanted == "txt" else wanted)


async def post_detect_language(request: web.Request) -> web.Response:
    """Tell the language of the beginning of the field `audio_file`."""
    async with received_upload(request, form_only=True) as upload:
        pipeline = request.app[TABLE].pipelines.find_speech()
        async with recording_job(request, pipeline, {"language": "auto"}, _as_sent(upload)) as job:
            job.recording = _beginning(job.recording)
            code = (await job.transcription()).language
            name = LANGUAGES.get(code, code)
            return web.json_response({"detected_language": name, "language_code": code})


async def post_inference(request: web.Request) -> web.Response:
    async with received_upload(request, form_only=True) as upload:
        wanted = choice("response_format", upload.field("response_format", "json"), RESPONSE_FORMATS)
        params = {name: upload.field(name) for name in ("language", "prompt") if upload.field(name)}
        if switch("translate", upload.field("translate", "false")):
            params["task"] = "translate"
        pipeline = request.app[TABLE].pipelines.find_speech()
        async with recording_job(request, pipeline, params, upload) as job:
            if wanted != "json":
                return await _answer(job, "json" if wanted == "verbose_json" else wanted)
            text = (await job.transcription()).text
            return web.json_response({"text": text, **job.recording.warning_fields})


def _as_sent(upload: Upload) -> Upload:
    """With `encode=false` the bytes are PCM16 if they are no media, as in a body without a form."""
    return upload if switch("encode", upload.field("encode", "true")) else replace(upload, in_form=False)


def _beginning(recording: Recording) -> Recording:
    left = DETECTED_SECONDS * pcm.SAMPLE_RATE * pcm.SAMPLE_WIDTH
    sound = b"".join(recording.blocks)[:left]
    return replace(recording, blocks=(sound,), samples=len(sound) // pcm.SAMPLE_WIDTH)


async def _answer(job: RecordingJob, wanted: str) -> web.Response:
    transcription = await job.transcription()
    if wanted == "json":
        segments = [{"id": at, **each} for at, each in enumerate(segments_in_seconds(transcription))]
        fields = {"text": transcription.text, "segments": segments, "language": transcription.language}
        text = json.dumps(fields | job.recording.warning_fields, ensure_ascii=False)
    elif wanted == "tsv":
        rows = (f"{each.start * 1000:.0f}\t{each.end * 1000:.0f}\t{each.text}\n" for each in transcription.segments)
        text, wanted = "start\tend\ttext\n" + "".join(rows), "text"
    else:
        text = render(transcription, wanted)
    return web.Response(body=text.encode(), headers=job.headers(CONTENT_TYPES[wanted]))
