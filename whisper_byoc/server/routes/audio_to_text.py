"""`POST /audio-to-text`: the dialect of Livepeer's ai-runner, fields and errors."""

from __future__ import annotations

import json
from typing import Any

from aiohttp import web

from whisper_byoc.errors import RequestRefused
from whisper_byoc.server.ingest.forms import FieldRefused
from whisper_byoc.server.ingest.recording_job import received, running, speech_pipeline
from whisper_byoc.server.routes.answers import CONTENT_TYPES
from whisper_byoc.server.routes.errors import refusing
from whisper_byoc.server.routes.keys import TABLE
from whisper_byoc.speech.transcript import TextSegment, Transcription, Word

__all__ = ["routes"]

TIMESTAMPS = {"true": "segments", "1": "segments", "sentence": "segments", "word": "words", "false": "", "0": ""}
"""`return_timestamps` -> what the chunks are."""


def routes() -> list[web.RouteDef]:
    """Make the routes."""
    return [web.post("/audio-to-text", post_audio), web.post("/audio-to-text/", post_audio)]


def as_detail(error: RequestRefused) -> object:
    """Build an error body as ai-runner's clients read it."""
    return {"detail": {"msg": str(error)}}


@refusing(as_detail, unreadable=415)
async def post_audio(request: web.Request) -> web.StreamResponse:
    """Transcribe one recording. `metadata` is taken and not needed: the length is known from the sound."""
    async with received(request, form_only=True) as upload:
        try:
            pipeline = speech_pipeline(request.app[TABLE], upload.field("model_id"))
        except RequestRefused as error:
            raise RequestRefused(400, str(error)) from None  # this dialect has no 404
        wanted = upload.field("return_timestamps", "true").lower()
        if wanted not in TIMESTAMPS:
            message = f"return_timestamps must be one of {', '.join(TIMESTAMPS)}, not {wanted[:40]!r}"
            raise FieldRefused("return_timestamps", message)
        async with running(request, pipeline, {"words": wanted == "word"}, upload) as run:
            heard = await run.transcription()
            body = {"text": heard.text, "chunks": chunks(heard, TIMESTAMPS[wanted])}
            text = json.dumps(body, ensure_ascii=False)
            return web.Response(body=text.encode(), headers=run.headers(CONTENT_TYPES["json"]))


def chunks(heard: Transcription, kind: str) -> list[dict[str, Any]]:
    """Give the text in pieces with their times in seconds: `segments`, `words` or none."""
    pieces: list[TextSegment | Word] = []
    if kind:
        pieces = [*heard.segments] if kind == "segments" else [word for each in heard.segments for word in each.words]
    return [{"timestamp": [each.start, each.end], "text": each.text} for each in pieces]
