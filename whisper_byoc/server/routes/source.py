"""`PUT` and `DELETE /live/{job_id}/source`: a job's input."""

import asyncio
import logging
from typing import NotRequired, TypedDict

from aiohttp import web
from multidict import MultiDict

from audio.errors import AudioError, DecoderFailed, MediaError
from audio.raw import PLAIN, RawFormat
from audio.sniff import is_media
from whisper_byoc.aiohttp_internals import take_unread
from whisper_byoc.connections import client_of
from whisper_byoc.errors import BadParam, RequestRefused
from whisper_byoc.http import CONNECTION_ERRORS
from whisper_byoc.params import number_param, switch_param, text_param, whole
from whisper_byoc.processors.base import Media
from whisper_byoc.server.core.admission import RETRY_AFTER_SECONDS
from whisper_byoc.server.core.job import Job
from whisper_byoc.server.core.pipeline import Pipeline
from whisper_byoc.server.core.table import SHUTTING_DOWN, TABLE
from whisper_byoc.server.ingest.declared import DECLARED, NAMES, declared_format
from whisper_byoc.server.ingest.feed import LiveFeed
from whisper_byoc.server.ingest.feed_readers import WANTED
from whisper_byoc.server.ingest.forms import Upload, params_without
from whisper_byoc.server.ingest.framing import Framing, LiveInput, VideoFraming, WholeBody
from whisper_byoc.server.ingest.intake import INTAKE, STRICT
from whisper_byoc.server.ingest.recordings import NOT_SOUND
from whisper_byoc.server.ingest.sound_feed import SoundFeed
from whisper_byoc.server.routes.telling import SOUND, tells

log = logging.getLogger(__name__)

WAV_TYPES = frozenset({"audio/wav", "audio/x-wav", "audio/wave", "audio/vnd.wave"})
MAX_FRAME_SIDE = 16384
MAX_ALONE_SECONDS = 86400.0
"""Values beyond the idle limit have no effect, but clients need not know that limit."""
PIPELINE = text_param("pipeline", "where the server has several")
MORE = switch_param("more", "the end of the body is not that of the input")
ALONE = number_param("alone", "seconds without a feed or a reader that end the job", 0, MAX_ALONE_SECONDS, None)
BROKEN = (*CONNECTION_ERRORS, asyncio.IncompleteReadError)
"""What a body that breaks off raises."""


class Taken(TypedDict):
    job_id: str
    segments: int
    bytes: int
    warnings: NotRequired[list[str]]


class InputEnded(TypedDict):
    job_id: str
    queued: int


class Abandoned(TypedDict):
    job_id: str


@tells(PIPELINE, MORE, ALONE, STRICT, *DECLARED, body=SOUND, answers={200: Taken})
async def put_source(request: web.Request) -> web.Response:
    """Take one segment (Content-Length) or a live feed (chunked), and say how much was taken.

    Other parameters are the pipeline's own.
    """
    table, query = request.app[TABLE], request.query
    limits = table.limits
    _check_length(request, limits.segment_bytes)
    strict, more, given = STRICT.of(query), MORE.of(query), ALONE.of(query)
    alone = limits.idle_seconds if given is None else min(given, limits.idle_seconds)
    job_id, name = request.match_info["job_id"], PIPELINE.of(query)
    pipeline = table.pipeline_of(job_id, name)
    params = params_without(
        query, "pipeline", "more", "alone", STRICT.name, *(NAMES if pipeline.media == "audio" else ())
    )
    _check_type(request, pipeline.media)
    declared = declared_format(request.headers.get("Content-Type", ""), query) if pipeline.media == "audio" else None
    live = request.content_length is None and request.body_exists
    framing = _make_framing(request, pipeline, limits.segment_bytes) if live and pipeline.media != "audio" else None
    # last: a refused request leaves no job behind
    job = await table.open(job_id, name, params, alone, client=client_of(request))
    warnings: tuple[str, ...] = ()
    segments, size = 0, 0
    try:
        if live:
            async with (
                LiveFeed(job, framing) if framing else _sound_feed(request, job, declared, live=pipeline.live) as feed
            ):
                segments, size = await _Body(request, job, feed, more=more).take()
                warnings = feed.warnings if size else ("nothing came: the body has no bytes",)
        elif request.content_length:
            segments, size, warnings = await _take_segment(request, job, pipeline.media, declared, strict=strict)
        else:
            job.touch()
    except AudioError as error:
        if live and not more:  # a refused feed holds no place
            job.end_input()
        elif not (job.inbox.fed or job.has_reader):
            await table.forget(job_id, "its first segment was refused")
        if isinstance(error, MediaError) and not isinstance(error, DecoderFailed):
            raise RequestRefused(415, str(error)) from None
        raise
    body: Taken = {"job_id": job.info.job_id, "segments": segments, "bytes": size}
    unknown = [f"pipeline {pipeline.name} has no parameter {each[:40]}" for each in pipeline.unknown_params(params)]
    if unknown or warnings:
        body["warnings"] = [*unknown, *warnings]
    return web.json_response(body)


@tells(answers={200: InputEnded})
async def delete_source(request: web.Request) -> web.Response:
    """End the input; the tail is processed, and results stay readable."""
    job = request.app[TABLE].get(request.match_info["job_id"])
    job.end_input()
    ended: InputEnded = {"job_id": job.info.job_id, "queued": job.inbox.items}
    return web.json_response(ended)


@tells(answers={200: Abandoned})
async def delete_job(request: web.Request) -> web.Response:
    """Abandon the job: its work is cancelled, its results are gone."""
    job_id = request.match_info["job_id"]
    await request.app[TABLE].forget(job_id, "the job was abandoned by its client")
    abandoned: Abandoned = {"job_id": job_id}
    return web.json_response(abandoned)


def _check_length(request: web.Request, limit: int) -> None:
    """Refuse a one-segment body over the limit (413), unread."""
    if (request.content_length or 0) > limit:
        message = f"the segment of {request.content_length} bytes is larger than the limit of {limit} bytes"
        raise RequestRefused(413, f"{message}; send smaller segments, or a chunked body")


def _check_type(request: web.Request, media: Media) -> None:
    kind = request.content_type.lower()
    if media == "video" and kind.startswith(("audio/", "video/")):
        raise RequestRefused(415, f"this pipeline does not read {kind}; send RGB24 frames")
    if media == "audio" and kind.startswith(NOT_SOUND):
        raise RequestRefused(415, f"this pipeline does not read {kind}; {WANTED}")


def _sound_feed(request: web.Request, job: Job, declared: RawFormat | None, *, live: bool) -> SoundFeed:
    kind = request.content_type.lower()
    raw = not kind.startswith(("audio/", "video/"))
    declared = "wav" if kind in WAV_TYPES else declared
    return SoundFeed(job, live=live, raw=raw, declared=declared, intake=request.app[INTAKE])


async def _take_segment(
    request: web.Request, job: Job, media: Media, declared: RawFormat | None, *, strict: bool
) -> tuple[int, int, tuple[str, ...]]:
    """Return the numbers of segments and bytes, and sentences about what could not be read."""
    limits = request.app[TABLE].limits
    size = request.content_length or 0
    if job.closing.is_set():
        raise job.inbox.over()
    if not await job.inbox.reserve(size, limits.admission_seconds):
        message = f"job {job.info.job_id} has {job.inbox.items} segments waiting; read its output, or send more slowly"
        raise RequestRefused(503, message, retry_after=1, reason="queue")
    try:
        async with asyncio.timeout(limits.idle_seconds):
            body = await request.content.readexactly(size)
        body, warnings = await _decoded(request, body, declared, strict=strict) if media == "audio" else (body, ())
    except BaseException as error:
        job.inbox.release(size)
        if isinstance(error, (*BROKEN, asyncio.CancelledError)):
            log.warning("job %s: dropped a segment whose body of %d bytes broke off", job.info.job_id, size)
        if isinstance(error, BROKEN):
            raise RequestRefused(400, f"the body broke off before its {size} bytes were there") from None
        raise
    job.inbox.enqueue(body, size)
    return 1, size, warnings


async def _decoded(
    request: web.Request, body: bytes, declared: RawFormat | None, *, strict: bool
) -> tuple[bytes, tuple[str, ...]]:
    """Return a segment as PCM16, and sentences about what could not be read."""
    media = request.content_type.lower().startswith(("audio/", "video/")) or is_media(body)
    if declared == PLAIN or (declared is None and not media):
        return body, ()
    fields = MultiDict((name, value) for name, value in request.query.items() if name in NAMES)
    fields[STRICT.name] = str(strict)
    intake, limit = request.app[INTAKE], request.app[TABLE].limits.segment_bytes
    async with intake.spool(client_of(request)) as spool:
        await spool.append(body)
        upload = Upload(spool, request.headers.get("Content-Type", ""), fields=fields)
        async with intake.decoding(upload, limit) as recording:
            found = b"".join([block async for block in recording.blocks()])
            return found, tuple(recording.warnings)


def _make_framing(request: web.Request, pipeline: Pipeline, limit: int) -> Framing:
    if pipeline.media != "video" and "width" not in request.query:
        return WholeBody(limit)
    try:
        width, height = (whole(name, request.query.get(name, ""), 1, MAX_FRAME_SIDE) for name in ("width", "height"))
    except BadParam as error:
        raise BadParam(error.name, f"a chunked video body needs ?width=&height= in pixels: {error}") from None
    if width * height * 3 > limit:
        raise RequestRefused(413, f"a frame of {width}x{height} is larger than the limit of {limit} bytes")
    return VideoFraming(width, height)


class _Body:
    def __init__(self, request: web.Request, job: Job, feed: LiveFeed, *, more: bool) -> None:
        """With `more`, the end of the body is not the end of the job's input."""
        self._request = request
        self._job = job
        self._feed = feed
        self._more = more
        self._size = 0

    async def take(self) -> tuple[int, int]:
        """Take the body as it arrives, everything even if it breaks off. Return the numbers of segments and bytes."""
        table = self._request.app[TABLE]
        idle = RequestRefused(408, f"nothing arrived for {table.limits.idle_seconds:g} s")
        content, job = self._request.content, self._job
        body = LiveInput(content.readany, job.closing, table.limits.idle_seconds, idle)
        complete, rest = False, b""
        with job.feeding():
            try:
                complete = await self._receive(body)
                if not complete:
                    rest = take_unread(content)
            except (*BROKEN, asyncio.CancelledError) as error:
                rest, complete = take_unread(content), content.is_eof()
                gone = isinstance(error, asyncio.CancelledError)  # aiohttp's way of saying so
                why = "its client has gone" if gone else repr(error)
                size = self._size + len(rest)
                log.warning("job %s: the feed broke off after %d bytes: %s", job.info.job_id, size, why)
                raise
            finally:
                self._size += len(rest)
                try:
                    await self._feed.finish(rest, complete=complete)
                finally:
                    if complete and not self._more:
                        job.end_input()
        if not complete and table.draining:
            message = f"{SHUTTING_DOWN}; {self._size} bytes of the feed were taken"
            raise RequestRefused(503, message, RETRY_AFTER_SECONDS, reason="shutting_down")
        return self._feed.segments, self._size

    async def _receive(self, body: LiveInput[bytes]) -> bool:
        """Return whether the body itself ended, rather than the job's input."""
        async with body:
            while (chunk := await body.next()) is not None:
                if not chunk:
                    return True
                self._size += len(chunk)
                self._job.touch()
                await self._feed.take(chunk)
        return False
