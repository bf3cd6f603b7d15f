"""`GET /live/{job_id}/transcript?format=srt`: the whole text of a job, while it goes on or after its end."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from aiohttp import web

from whisper_byoc.errors import RequestRefused
from whisper_byoc.server.answers import CONTENT_TYPES, render, segments_in_seconds
from whisper_byoc.server.keys import TABLE
from whisper_byoc.server.query import number
from whisper_byoc.speech.transcript import Transcription, from_records

__all__ = ["get_transcript"]

FORMS = ("txt", "json", "verbose_json", "srt", "vtt", "ndjson")
LONGEST_WAIT_S = 300.0


async def get_transcript(request: web.Request) -> web.Response:
    """Answer with the text there is; with `?wait=` seconds, once the job has ended, if that is in time.

    `Lp-Trickle-Closed` says that it is all there is going to be, `X-Transcript-Dropped` that its beginning is gone.
    """
    form = request.query.get("format", "txt")
    if form not in FORMS:
        raise RequestRefused(400, f"format must be one of {', '.join(FORMS)}, not {form!r:.40}")
    job = request.app[TABLE].get(request.match_info["job_id"])
    await job.results.until_ended(number(request, "wait", 0.0, LONGEST_WAIT_S))
    headers = {"Lp-Trickle-Closed": "terminated"} if job.results.ended else {}
    if job.transcript.dropped:
        headers["X-Transcript-Dropped"] = str(job.transcript.dropped)
    if form == "ndjson":
        return web.Response(body=job.transcript.ndjson(), headers={**headers, "Content-Type": CONTENT_TYPES[form]})
    records = job.transcript.records()
    text = await asyncio.to_thread(written, from_records(records), form)
    kind = {"txt": "text", "verbose_json": "json"}.get(form, form)
    return web.Response(body=text.encode(), headers={**headers, "Content-Type": CONTENT_TYPES[kind]})


def written(heard: Transcription, form: str) -> str:
    """Write a transcription in one of the forms.

    Raises `RequestRefused` (406) for subtitles of text that has no times.
    """
    if form in ("json", "verbose_json"):
        body: dict[str, Any] = {"text": heard.text, "language": heard.language}
        if form == "verbose_json":
            body |= {"task": "transcribe", "segments": segments_in_seconds(heard)}
        return json.dumps(body, ensure_ascii=False) + "\n"
    if form == "txt":
        return "".join(f"{segment.text}\n" for segment in heard.segments)
    return render(heard, form)
