"""`POST /audio-to-text`: the dialect of Livepeer's ai-runner, fields and errors."""

import json
from collections.abc import Sequence

from aiohttp import web

from whisper_byoc.errors import RequestRefused
from whisper_byoc.params import choice
from whisper_byoc.server.core.table import TABLE
from whisper_byoc.server.ingest.recording_job import received, running, speech_pipeline
from whisper_byoc.server.routes.answers import CONTENT_TYPES, errors_as
from whisper_byoc.speech.transcript import TextSegment, Word

TIMESTAMPS = {"true": "segments", "1": "segments", "sentence": "segments", "word": "words", "false": "", "0": ""}
"""`return_timestamps` -> what the chunks are."""


def _as_detail(_: web.Request, error: RequestRefused) -> object:
    """Make an error body as ai-runner's clients read it."""
    return {"detail": {"msg": str(error)}}


@errors_as(_as_detail, unreadable=415)
async def post_audio(request: web.Request) -> web.StreamResponse:
    """Transcribe one recording. `metadata` is taken and not needed: the length is known from the sound."""
    async with received(request, form_only=True) as upload:
        try:
            pipeline = speech_pipeline(request.app[TABLE], upload.field("model_id"))
        except RequestRefused as error:
            raise RequestRefused(400, str(error)) from None  # this dialect has no 404
        wanted = upload.field("return_timestamps", "true").lower()
        kind = TIMESTAMPS[choice("return_timestamps", wanted, TIMESTAMPS)]
        async with running(request, pipeline, {"words": kind == "words"}, upload) as job:
            transcription = await job.transcription()
            pieces: Sequence[TextSegment | Word] = transcription.segments if kind else ()
            if kind == "words":
                pieces = [word for each in transcription.segments for word in each.words]
            chunks = [{"timestamp": [each.start, each.end], "text": each.text} for each in pieces]
            text = json.dumps({"text": transcription.text, "chunks": chunks}, ensure_ascii=False)
            return web.Response(body=text.encode(), headers=job.headers(CONTENT_TYPES["json"]))
