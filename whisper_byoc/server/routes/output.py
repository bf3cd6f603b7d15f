"""`GET /live/{job_id}/output`: the way out. A result counts as read only once it has been written to the socket."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable

from aiohttp import web

from whisper_byoc.server.core.job import Job
from whisper_byoc.server.core.results import Record
from whisper_byoc.server.routes.answers import drop, taken_within
from whisper_byoc.server.routes.keys import TABLE
from whisper_byoc.server.routes.query import number, switch, whole

__all__ = ["get_output"]

log = logging.getLogger(__name__)

DEFAULT_WAIT_S = 30.0
MAX_WAIT_S = 300.0
GONE = 470
"""Trickle's status for a segment that the stream does not have (any more)."""
SEQ, LATEST, CLOSED = "Lp-Trickle-Seq", "Lp-Trickle-Latest", "Lp-Trickle-Closed"
KEEP_ALIVE_S = 15.0


async def get_output(request: web.Request) -> web.StreamResponse:
    """Answer with the next unread result, a kept one, or all that follow, as the request asks."""
    wait = number(request, "wait", DEFAULT_WAIT_S, MAX_WAIT_S)
    loop = asyncio.get_running_loop()
    deadline = loop.time() + wait
    job = await request.app[TABLE].find(request.match_info["job_id"], wait)
    left = max(0.0, deadline - loop.time())
    if "seq" in request.query:
        return await again(request, job, whole(request, "seq"), left)
    accept = request.headers.get("Accept", "")
    with job.reading():
        if "text/event-stream" in accept:
            return await follow(request, job, "text/event-stream", as_event)
        if "application/x-ndjson" in accept:
            return await follow(request, job, "application/x-ndjson", as_line)
        if switch(request, "follow"):
            encode = as_text if job.content_type.startswith("text/") else as_body
            return await follow(request, job, job.content_type, encode)
        return await one(request, job, left)


async def one(request: web.Request, job: Job, wait: float) -> web.StreamResponse:
    """Answer with the oldest unread result, and mark it read once it is written."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + wait
    while (record := await job.results.next_unread(max(0.0, deadline - loop.time()))) is not None and record.partial:
        job.results.mark_read(record)  # only those who follow records see partial text
    if record is None:
        return web.Response(status=204)
    response = answer(record)
    await response.prepare(request)
    await taken_within(request.app[TABLE].limits.idle_seconds, request, response.write_eof())
    job.results.mark_read(record)
    return response


async def again(request: web.Request, job: Job, seq: int, wait: float) -> web.Response:
    """Answer with result `seq`, which stays as read or unread as it was."""
    record = await job.results.wait_for(seq, wait)
    if record is not None:
        return answer(record)
    latest = str(job.results.next_seq)
    if seq >= job.results.next_seq:
        closed = {CLOSED: "terminated"} if job.results.ended else {}
        return web.Response(status=204, headers={LATEST: latest, **closed})
    body = {"error": f"result {seq} is no longer kept", "seq": seq}
    return web.json_response(body, status=GONE, headers={SEQ: str(seq), LATEST: latest})


def answer(record: Record) -> web.Response:
    """One record as one HTTP answer."""
    headers = {SEQ: str(record.seq)}
    if record.kind == "end":
        return web.Response(status=204, headers={**headers, CLOSED: "terminated"})
    if record.kind == "error":
        return web.json_response({"error": record.error, "seq": record.seq}, status=500, headers=headers)
    return web.Response(body=record.result.body, headers={**headers, "Content-Type": record.content_type})


async def follow(
    request: web.Request, job: Job, content_type: str, encode: Callable[[Record], bytes]
) -> web.StreamResponse:
    """Write every record as it happens, until the end record or the reader's departure."""
    limit = request.app[TABLE].limits.idle_seconds
    response = web.StreamResponse(headers={"Content-Type": content_type, "Cache-Control": "no-cache"})
    response.enable_chunked_encoding()
    await response.prepare(request)
    try:
        async for record in records(job):
            if record is not None:
                await taken_within(limit, request, response.write(encode(record)))
                job.results.mark_read(record)
                job.touch()
            elif encode is as_event:
                await taken_within(limit, request, response.write(b": keep-alive\n\n"))
        await taken_within(limit, request, response.write_eof())
    except BreakOffError as error:
        log.warning("job %s: reader cut off: %s", job.info.job_id, error)
        drop(request)
    return response


async def records(job: Job) -> AsyncIterator[Record | None]:
    """Yield what is unread, up to and with the end record; None for every time of silence."""
    while True:
        record = await job.results.next_unread(KEEP_ALIVE_S)
        yield record
        if record is not None and record.kind == "end":
            return


def as_line(record: Record) -> bytes:
    """NDJSON."""
    return record.json() + b"\n"


def as_event(record: Record) -> bytes:
    """One server-sent event; its id is the sequence number."""
    return b"id: %d\ndata: %b\n\n" % (record.seq, record.json())


def as_body(record: Record) -> bytes:
    """Raw bytes, back to back.

    Raises `BreakOffError` for an error: raw bytes have no way to tell of one, and leaving it out would shift all that
    follows. The error stays unread.
    """
    if record.kind == "error":
        raise BreakOffError(f"result {record.seq} is an error: {record.error}")
    return record.result.body


def as_text(record: Record) -> bytes:
    """One line for each result that has text, since texts back to back would run together.

    Raises as `as_body` does.
    """
    body = as_body(record)
    return body + b"\n" if body else b""


class BreakOffError(Exception):
    """The answer cannot go on."""
