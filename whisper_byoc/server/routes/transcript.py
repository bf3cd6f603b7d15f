"""`GET /live/{job_id}/transcript?format=srt`: the whole text of a job, while it goes on or after its end."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from aiohttp import web

from whisper_byoc.errors import RequestRefused
from whisper_byoc.server.routes.answers import CONTENT_TYPES, render, segments_in_seconds
from whisper_byoc.server.routes.keys import TABLE
from whisper_byoc.server.routes.query import number
from whisper_byoc.speech.transcript import from_records

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
    body = await asyncio.to_thread(written, job.transcript.lines(), form)  # a day's talk takes a while
    kind = {"txt": "text", "verbose_json": "json"}.get(form, form)
    return web.Response(body=body, headers={**headers, "Content-Type": CONTENT_TYPES[kind]})


def written(lines: tuple[bytes, ...], form: str) -> bytes:
    """Write records in one of the forms.

    Raises `RequestRefused` (406) for subtitles of text that has no times.
    """
    if form == "ndjson":
        return b"".join(line + b"\n" for line in lines)
    records = [json.loads(line) for line in lines]
    heard = from_records(records)
    if form in ("json", "verbose_json"):
        body: dict[str, Any] = {"text": heard.text, "language": heard.language}
        if form == "verbose_json":
            body["segments"] = segments_in_seconds(heard)
        return json.dumps(body, ensure_ascii=False).encode() + b"\n"
    if form == "txt":
        return "".join(f"{record['text']}\n" for record in records).encode()
    return render(heard, form).encode()
