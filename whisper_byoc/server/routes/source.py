"""`PUT` and `DELETE /live/{job_id}/source`: the way in."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from contextlib import suppress

from aiohttp import ClientPayloadError, web

from audio import pcm
from audio.errors import AudioError
from audio.riff import begins_like_wav
from audio.wav import read_wav
from whisper_byoc.errors import RequestRefused
from whisper_byoc.processors.base import Media
from whisper_byoc.server.core.job import Job
from whisper_byoc.server.core.pipeline import Pipeline
from whisper_byoc.server.core.table import JobTable
from whisper_byoc.server.ingest.framing import (
    PCM_TYPES,
    Framing,
    SoundFraming,
    VideoFraming,
    WavFraming,
    WholeBody,
    pcm_trouble,
)
from whisper_byoc.server.ingest.live_input import Arrivals
from whisper_byoc.server.routes.keys import TABLE
from whisper_byoc.server.routes.query import number, switch

__all__ = ["delete_job", "delete_source", "put_source"]

log = logging.getLogger(__name__)

WAV_TYPES = frozenset({"audio/wav", "audio/x-wav", "audio/wave", "audio/vnd.wave"})
MAX_FRAME_SIDE = 16384
MAX_ALONE_S = 86400.0
"""Beyond the idle limit it has no effect; who asks for more need not know that limit."""
NOT_PARAMS = frozenset({"pipeline", "more", "alone"})
BROKEN = (ClientPayloadError, ConnectionError, asyncio.IncompleteReadError, asyncio.TimeoutError)


async def put_source(request: web.Request) -> web.Response:
    """Take one segment (Content-Length) or a live feed (chunked), and say how much was taken."""
    table = request.app[TABLE]
    check_length(request, table.limits.segment_bytes)
    params = {name: value for name, value in request.query.items() if name not in NOT_PARAMS}
    alone = min(number(request, "alone", table.limits.idle_seconds, MAX_ALONE_S), table.limits.idle_seconds)
    job_id, name = request.match_info["job_id"], request.query.get("pipeline")
    pipeline = table.pipeline_of(job_id, name)
    check_type(request, pipeline.media)
    live = request.content_length is None and request.body_exists
    framing = make_framing(request, pipeline, table.limits.segment_bytes) if live else None
    job = await table.open(job_id, name, params, alone)  # last: what is refused leaves no job behind
    if framing is not None:
        segments, size = await take_feed(request, job, framing, table)
    elif request.content_length:
        segments, size = await take_segment(request, job, pipeline.media, table)
    else:
        job.touch()
        segments, size = 0, 0
    return web.json_response({"job_id": job.info.job_id, "segments": segments, "bytes": size})


async def delete_source(request: web.Request) -> web.Response:
    """End the input; the tail is worked on, results stay readable."""
    job = request.app[TABLE].get(request.match_info["job_id"])
    job.end_input()
    return web.json_response({"job_id": job.info.job_id, "queued": job.inbox.items})


async def delete_job(request: web.Request) -> web.Response:
    """Abandon the job: its work is cancelled, its results are gone."""
    job_id = request.match_info["job_id"]
    await request.app[TABLE].forget(job_id, "the job was abandoned by its client")
    return web.json_response({"job_id": job_id})


def check_length(request: web.Request, limit: int) -> None:
    """Refuse a one-segment body over the limit (413), or whose length is that of something else (415), unread."""
    if (request.content_length or 0) > limit:
        message = f"the segment of {request.content_length} bytes is larger than the limit of {limit} bytes"
        raise RequestRefused(413, f"{message}; send smaller segments, or a chunked body")
    encoding = request.headers.get("Content-Encoding", "identity")
    if request.content_length and encoding.strip().lower() != "identity":
        # aiohttp unpacks it, so that its length says nothing of the bytes that come
        raise RequestRefused(415, f"a segment in Content-Encoding {encoding[:40]!r} is not read; send it as it is")


def check_type(request: web.Request, media: Media) -> None:
    """Refuse (415) a body that says it is something this pipeline does not read."""
    kind = request.content_type.lower()
    known = WAV_TYPES | PCM_TYPES if media == "audio" else frozenset[str]()
    if media != "bytes" and kind.startswith(("audio/", "video/")) and kind not in known:
        wanted = "16 kHz mono PCM16, or WAV as audio/wav" if media == "audio" else "RGB24 frames"
        raise RequestRefused(415, f"this pipeline does not read {kind}; send {wanted}")
    if media == "audio" and kind in PCM_TYPES and (trouble := pcm_trouble(request.headers["Content-Type"])):
        raise RequestRefused(415, trouble)


async def take_segment(request: web.Request, job: Job, media: Media, table: JobTable) -> tuple[int, int]:
    """Take a body with a length as one segment; a broken one is dropped whole."""
    size = request.content_length or 0
    if job.closing.is_set():
        raise job.inbox.over()
    if not await job.inbox.reserve(size, table.limits.admission_seconds):
        message = f"job {job.info.job_id} has {job.inbox.items} segments waiting; read its output, or send more slowly"
        raise RequestRefused(503, message, retry_after=1)
    try:
        body = await asyncio.wait_for(request.content.readexactly(size), table.limits.idle_seconds)
        if media == "audio" and is_wav(request, body):
            body = await asyncio.to_thread(wav_to_pcm, body, table.limits.segment_bytes)
    except BaseException as error:
        job.inbox.release(size)
        if isinstance(error, (*BROKEN, asyncio.CancelledError)):
            log.warning("job %s: dropped a segment whose body of %d bytes broke off", job.info.job_id, size)
        if isinstance(error, BROKEN):
            raise RequestRefused(400, f"the body broke off before its {size} bytes were there") from None
        raise
    job.inbox.enqueue(body, size)
    return 1, size


async def take_feed(request: web.Request, job: Job, framing: Framing, table: JobTable) -> tuple[int, int]:
    """Take a chunked body as it arrives; whatever arrived is worked on, however the feed ends."""
    segments, size, complete, rest = 0, 0, False, b""
    waiting: deque[bytes] = deque()
    arrivals = Arrivals(request.content, job.closing, table.limits.idle_seconds)
    with job.feeding():
        try:
            async for chunk in arrivals.chunks():
                size += len(chunk)
                job.touch()
                await cut(framing, chunk, waiting)
                while waiting:
                    await job.inbox.submit(waiting[0], live=framing.live)
                    waiting.popleft()
                    segments += 1
            complete = not job.closing.is_set()
            rest = b"" if complete else arrivals.rest()
        except (*BROKEN, asyncio.CancelledError) as error:
            rest, complete = arrivals.rest(), request.content.is_eof()
            gone = isinstance(error, asyncio.CancelledError)  # aiohttp's way to say so
            why = "its client has gone" if gone else repr(error)
            log.warning("job %s: the feed broke off after %d bytes: %s", job.info.job_id, size + len(rest), why)
            raise
        finally:
            size += len(rest)
            with suppress(AudioError, RequestRefused):  # `finish` tells of what cannot be read
                waiting += framing.feed(rest) if rest else ()
            for tail in (*waiting, *framing.finish(complete=complete)):
                job.inbox.submit_now(tail, live=framing.live)
                segments += isinstance(tail, bytes)
            if complete and not switch(request, "more"):
                job.end_input()
    if not complete and table.draining:
        raise RequestRefused(503, f"the server is shutting down; {size} bytes of the feed were taken", retry_after=5)
    return segments, size


async def cut(framing: Framing, chunk: bytes, into: deque[bytes]) -> None:
    """Have a framing cut what came, in a thread if it decodes; who is cancelled meanwhile waits for that thread."""
    if not framing.blocking:
        into += framing.feed(chunk)
        return
    work = asyncio.ensure_future(asyncio.to_thread(framing.feed, chunk))
    try:
        await asyncio.shield(work)
    finally:
        await asyncio.wait({work})  # until then the framing is the thread's alone
        into += work.result() if work.exception() is None else ()


def make_framing(request: web.Request, pipeline: Pipeline, limit: int) -> Framing:
    """Choose how a live feed is cut.

    Raises `RequestRefused` (400) for video without a usable `?width=&height=`.
    """
    if pipeline.media == "audio":
        framing = WavFraming if request.content_type.lower() in WAV_TYPES else SoundFraming
        return framing(live=pipeline.live)
    if pipeline.media == "video" or "width" in request.query:
        width, height = side(request, "width"), side(request, "height")
        if width * height * 3 > limit:
            raise RequestRefused(413, f"a frame of {width}x{height} is larger than the limit of {limit} bytes")
        return VideoFraming(width, height)
    return WholeBody(limit)


def side(request: web.Request, name: str) -> int:
    """Read the width or height of a video feed's frames, in pixels."""
    text = request.query.get(name, "")
    value = int(text) if text.isascii() and text.isdigit() and len(text) <= len(str(MAX_FRAME_SIDE)) else 0
    if not 1 <= value <= MAX_FRAME_SIDE:
        message = f"a chunked video body needs ?width=&height= in pixels (1-{MAX_FRAME_SIDE}); {name} is {text!r}"
        raise RequestRefused(400, message)
    return value


def is_wav(request: web.Request, body: bytes) -> bool:
    """Whether the body says it is a WAV file, or looks like one."""
    return request.content_type.lower() in WAV_TYPES or begins_like_wav(body)


def wav_to_pcm(body: bytes, limit: int) -> bytes:
    """WAV of any kind to at most `limit` bytes of 16 kHz mono PCM16.

    Raises `audio.errors.WavError`.
    """
    return pcm.encode(read_wav(body, max_samples=limit // pcm.SAMPLE_WIDTH))
