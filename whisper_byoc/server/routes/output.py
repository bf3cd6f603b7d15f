"""`GET /live/{job_id}/output` and `/transcript`: a job's results and text.

A result counts as read only once it has been written to the socket.
"""

import asyncio
import json
import logging
from collections.abc import Callable
from typing import Any, TypedDict

from aiohttp import web

from whisper_byoc.params import choice_param, number_param, switch_param, whole_param
from whisper_byoc.server.core.job import Job
from whisper_byoc.server.core.results import Record
from whisper_byoc.server.core.table import TABLE
from whisper_byoc.server.routes.answers import CONTENT_TYPES, WIDTH, deliver, render
from whisper_byoc.server.routes.telling import tells
from whisper_byoc.speech.formats import in_seconds
from whisper_byoc.speech.transcript import Transcription, from_records, with_marks
from whisper_byoc.trickle.protocol import CLOSED, LATEST, NOT_FOUND, SEQ, TERMINATED

log = logging.getLogger(__name__)

DEFAULT_WAIT_SECONDS = 30.0
LONGEST_WAIT_SECONDS = 300.0
TRANSCRIPT_FORMATS = ("txt", "json", "verbose_json", "srt", "vtt", "ndjson")
FORMAT = choice_param("format", "of the text", TRANSCRIPT_FORMATS, "txt")
WAIT = number_param("wait", "seconds to wait for a result", 0, LONGEST_WAIT_SECONDS, DEFAULT_WAIT_SECONDS)
WAIT_FOR_END = number_param("wait", "seconds to wait for the end of the job", 0, LONGEST_WAIT_SECONDS, 0)
RECORD = whole_param("seq", "number of a result to read again", 0, 2**63 - 1, None)
FOLLOW = switch_param("follow", "all results from now on, back to back")


class Gone(TypedDict):
    error: str
    seq: int


@tells(WAIT, RECORD, FOLLOW, answers={200: "*/*", 204: None, NOT_FOUND: Gone})
async def get_output(request: web.Request) -> web.StreamResponse:
    """Answer with the next unread result, a kept one, or all that follow, as the request asks."""
    table, query, loop = request.app[TABLE], request.query, asyncio.get_running_loop()
    wait, seq, raw = WAIT.of(query), RECORD.of(query), FOLLOW.of(query)
    deadline = loop.time() + wait
    job = await table.find(request.match_info["job_id"], wait)
    if seq is not None:
        return await _again(job, seq, deadline - loop.time())
    accept = request.headers.get("Accept", "")
    with job.reading():
        if "text/event-stream" in accept:
            return await _follow(request, job, "text/event-stream", _as_event)
        if "application/x-ndjson" in accept:
            return await _follow(request, job, "application/x-ndjson", lambda record: record.json() + b"\n")
        if raw:
            encode = _as_text if job.content_type.startswith("text/") else _as_body
            return await _follow(request, job, job.content_type, encode)
        while (record := await job.results.next_unread(deadline - loop.time())) is not None and record.partial:
            job.results.mark_read(record)  # only followers of records see partial text
        if record is None:
            return web.Response(status=204)
        response = _answer(record)
        await response.prepare(request)
        await deliver(request, response.write_eof())
        job.results.mark_read(record)
        return response


async def _again(job: Job, seq: int, wait: float) -> web.Response:
    record = await job.results.wait_for(seq, wait)
    if record is not None:
        return _answer(record)
    latest = str(job.results.next_seq)
    if seq >= job.results.next_seq:
        closed = {CLOSED: TERMINATED} if job.results.ended else {}
        return web.Response(status=204, headers={LATEST: latest, **closed})
    body: Gone = {"error": f"result {seq} is no longer kept", "seq": seq}
    return web.json_response(body, status=NOT_FOUND, headers={SEQ: str(seq), LATEST: latest})


def _answer(record: Record) -> web.Response:
    headers = {SEQ: str(record.seq)}
    if record.kind == "end":
        return web.Response(status=204, headers={**headers, CLOSED: TERMINATED})
    if record.kind == "error":
        failed: Gone = {"error": record.error, "seq": record.seq}
        return web.json_response(failed, status=500, headers=headers)
    return web.Response(body=record.result.body, headers={**headers, "Content-Type": record.content_type})


async def _follow(
    request: web.Request, job: Job, content_type: str, encode: Callable[[Record], bytes]
) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": content_type, "Cache-Control": "no-cache"})
    response.enable_chunked_encoding()
    await response.prepare(request)
    async for record in job.results.unread_records(request.app[TABLE].limits.keep_alive_seconds):
        if record is not None:
            await deliver(request, response.write(encode(record)))
            job.touch()
        elif encode is _as_event:
            await deliver(request, response.write(b": keep-alive\n\n"))
    await deliver(request, response.write_eof())
    return response


def _as_event(record: Record) -> bytes:
    return b"id: %d\ndata: %b\n\n" % (record.seq, record.json())


def _as_body(record: Record) -> bytes:
    """Return a record's raw bytes, to be written back to back.

    Raises `ConnectionAbortedError` for an error record, which stays unread: raw bytes cannot express it, and without it
    the client would miscount the results.
    """
    if record.kind == "error":
        log.warning("job %s: the answer breaks off: result %d is an error", record.job_id, record.seq)
        raise ConnectionAbortedError(record.error)
    return record.result.body


def _as_text(record: Record) -> bytes:
    """Return one line for each result that has text: back to back, texts would run together."""
    body = _as_body(record)
    return body + b"\n" if body else b""


@tells(FORMAT, WIDTH, WAIT_FOR_END, answers={200: "*/*"})
async def get_transcript(request: web.Request) -> web.Response:
    """Answer with the text so far, after waiting at most `?wait=` seconds for the end of the job.

    `Lp-Trickle-Closed` says that no more text will come, `X-Transcript-Dropped` that the beginning is gone.
    """
    table, query = request.app[TABLE], request.query
    wanted, width = FORMAT.of(query), WIDTH.of(query)
    job = table.get(request.match_info["job_id"])
    await job.results.until_ended(WAIT_FOR_END.of(query))
    headers = {CLOSED: TERMINATED} if job.results.ended else {}
    if job.transcript.dropped:
        headers["X-Transcript-Dropped"] = str(job.transcript.dropped)
    lines = job.transcript.lines()
    body = await asyncio.to_thread(_write_transcript, lines, wanted, width)  # a day's talk takes a while
    content_type = CONTENT_TYPES[{"txt": "text", "verbose_json": "json"}.get(wanted, wanted)]
    return web.Response(body=body, headers={**headers, "Content-Type": content_type})


def _write_transcript(lines: tuple[bytes, ...], wanted: str, width: int) -> bytes:
    if wanted == "ndjson":
        return b"".join(line + b"\n" for line in lines)
    records = [json.loads(line) for line in lines]
    transcription = from_records(records)
    if wanted in ("json", "verbose_json"):
        body: dict[str, Any] = {"text": transcription.text, "language": transcription.language}
        if wanted == "verbose_json":
            body["segments"] = [*map(in_seconds, transcription.segments)]
        return json.dumps(body, ensure_ascii=False).encode() + b"\n"
    if wanted == "txt":
        parts = with_marks(Transcription(record["text"], "") for record in records)
        return "".join(f"{part.text}\n" for part in parts).encode()
    return render(transcription, wanted, width).encode()
