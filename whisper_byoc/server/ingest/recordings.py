"""A whole recording: decoded in a worker thread, and fed to a job of its own.

All routes that answer one request with one transcript share this. The job is freed when the request is over.
"""

import asyncio
import itertools
import json
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from aiohttp import StreamReader, web
from numpy.typing import NDArray

from audio import pcm
from audio.errors import MediaError, UnsupportedWav
from audio.ffmpeg import CONTAINERS
from audio.media import BLOCK_SAMPLES, decoded_blocks, in_blocks
from audio.quiet import QuietCutter
from audio.raw import PLAIN, RawFormat
from audio.riff import WavFormat, begins_like_wav
from audio.sniff import by_magic, is_media
from audio.wav import read_wav
from whisper_byoc.aio import cancel
from whisper_byoc.connections import client_of
from whisper_byoc.errors import RequestRefused
from whisper_byoc.params import switch_param
from whisper_byoc.server.core.admission import RETRY_AFTER_SECONDS, YOUNG_SECONDS
from whisper_byoc.server.core.job import Job
from whisper_byoc.server.core.limits import Limits
from whisper_byoc.server.core.pipeline import Pipeline, PipelineState
from whisper_byoc.server.core.results import Record
from whisper_byoc.server.core.table import SHUTTING_DOWN, TABLE, JobTable
from whisper_byoc.server.ingest.declared import NAMES, TYPES, declared_format, to_pcm16
from whisper_byoc.server.ingest.forms import Upload, read_upload
from whisper_byoc.speech.transcript import Transcription, from_records

WINDOW_SECONDS = 30.0
"""Longest segment for a processor that takes no live feed: Whisper's window."""
NOT_SOUND = ("text/", "image/", "application/json", "application/xml")
STRICT = switch_param("strict", "refuse sound that cannot be read to its end")
UPLOAD_SHARE = 2
"""One client address, which may be an orchestrator's, may hold this part of the places of uploads (one in so many)."""
DECODERS = 2
"""Recordings decoded at once: ffmpeg is fast, and the model needs the CPUs."""
UNKNOWN_LANGUAGE = "und"
"""ISO 639-2's code for a language that nobody determined."""


@dataclass(frozen=True)
class Recording:
    """Sound in order, as 16 kHz mono PCM16."""

    blocks: tuple[bytes, ...]
    """Cut anywhere."""
    samples: int
    warnings: tuple[str, ...] = ()
    """Sentences about what could not be read of it."""

    @property
    def seconds(self) -> float:
        """Its length, to the millisecond."""
        return round(self.samples / pcm.SAMPLE_RATE, 3)

    @property
    def warning_fields(self) -> dict[str, Any]:
        """What JSON answers have of them: nothing if there are none."""
        return {"warnings": self.warnings} if self.warnings else {}

    @property
    def work_units(self) -> int:
        """Whole seconds, rounded up: what Livepeer's audio runners are paid by."""
        return -(-self.samples // pcm.SAMPLE_RATE)


def read_recording(upload: Upload, limit: int, *, strict: bool = False) -> Recording:
    """Decode an upload.

    `limit` is for the bytes of the sound as PCM16. Raw sound is what its fields, its type or the name of its file
    declare; a body that is no form, of no type, and neither like media nor like anything else is PCM16. What is cut off
    is read as far as it goes, with a warning, or refused if `strict`. Raises `AudioError`, `BadParam`, and
    `RequestRefused`: for PCM16 400 when a sample is cut in half and 413 over the limit, 415 for a type that cannot be
    sound.
    """
    data, kind = upload.data, upload.content_type.partition(";")[0].strip().lower() or "application/octet-stream"
    if kind.startswith(NOT_SOUND):
        raise RequestRefused(415, f"{kind} is not sound; send a media file, or 16 kHz mono PCM16 as audio/pcm")
    blocks: Iterable[bytes]
    warnings: list[str] = []
    declared = _declared(upload, kind)
    if isinstance(declared, WavFormat) and declared != PLAIN:
        data = to_pcm16(data, declared, limit)
    if isinstance(declared, WavFormat):
        _check_raw(data, limit)
        size = BLOCK_SAMPLES * pcm.SAMPLE_WIDTH
        blocks = (data[at : at + size] for at in range(0, len(data), size))
    else:
        # encoded block by block, which needs little memory beside that
        blocks = map(pcm.encode, _decode(data, declared, limit // pcm.SAMPLE_WIDTH, strict, warnings.append))
    recording = tuple(blocks)
    samples = sum(map(len, recording)) // pcm.SAMPLE_WIDTH
    if not samples:
        raise MediaError("There is no sound in the recording; check how it was made.")
    return Recording(recording, samples, tuple(warnings))


def _declared(upload: Upload, kind: str) -> RawFormat | None:
    """Return the format of raw sound, as `declared_format` does; None for media."""
    declared = declared_format(upload.content_type, upload.fields, upload.file_name)
    certain = any(upload.field(name) for name in NAMES) or (kind in TYPES and kind != "audio/basic")  # that of .au too
    if declared is not None:
        return declared if certain or not by_magic(upload.data) else None
    pcm16 = not upload.in_form and kind == "application/octet-stream" and not is_media(upload.data)
    return PLAIN if pcm16 else None


def _check_raw(data: bytes, limit: int) -> None:
    if len(data) % pcm.SAMPLE_WIDTH:
        raise RequestRefused(400, f"{len(data)} bytes are not whole 16-bit samples; send an even number of bytes")
    if len(data) > limit:
        raise RequestRefused(413, f"the recording is larger than the limit of {limit} bytes; send it in parts")


def _decode(
    data: bytes, container: str | None, max_samples: int, strict: bool, warn: Callable[[str], object]
) -> Iterable[NDArray[np.float32]]:
    if container is None and begins_like_wav(data):
        with suppress(UnsupportedWav):  # ADPCM and so on are left to ffmpeg
            return in_blocks(read_wav(data, max_samples, strict=strict, warn=warn))
    seconds = max_samples / pcm.SAMPLE_RATE
    return decoded_blocks(data, containers=container or CONTAINERS, max_seconds=seconds, strict=strict, warn=warn)


@dataclass(eq=False)
class _Held:
    """An upload that has a place."""

    client: str
    content: StreamReader
    since: float
    deadline: asyncio.Timeout


class Intake:
    """Bounds how many uploads are held, and how many are decoded, at once."""

    def __init__(self, limits: Limits) -> None:
        self._held: list[_Held] = []  # the oldest first
        self._limits = limits
        self._decoders = ThreadPoolExecutor(DECODERS, "decoder")

    @asynccontextmanager
    async def place(self, client: str, content: StreamReader) -> AsyncIterator[None]:
        """Hold one of the places for a body from the address `client`.

        Raises `RequestRefused`: 429 when all are taken, or the share of one address; 408 when no byte of it has come
        and another one needs its place.
        """
        self._make_place(client)
        deadline = asyncio.timeout(None)
        held = _Held(client, content, asyncio.get_running_loop().time(), deadline)
        self._held.append(held)
        try:
            async with deadline:
                yield
        except TimeoutError:
            if not deadline.expired():
                raise
            message = "no byte of the body had come, and another one needed its place"
            raise RequestRefused(408, message, RETRY_AFTER_SECONDS) from None
        finally:
            self._held.remove(held)

    def _make_place(self, client: str) -> None:
        """Have an upload of which no byte has come give its place to this client, where there is none for it."""
        held = [each for each in self._held if each.deadline.when() is None]  # the others are about to go
        its = [each for each in held if client and each.client == client]
        share = max(self._limits.jobs // UPLOAD_SHARE, 1)
        if len(its) < share and len(held) < self._limits.jobs:
            return
        now = asyncio.get_running_loop().time()
        for each in its if len(its) >= share else held:
            if not each.content.total_bytes and now - each.since > YOUNG_SECONDS:
                each.deadline.reschedule(now)
                return
        if len(its) >= share:
            message = f"this server is busy with {share} recordings from your address, which is its share"
            raise RequestRefused(429, message, RETRY_AFTER_SECONDS, reason="jobs_of_address")
        message = "this server is busy with as many recordings as it takes at once"
        raise RequestRefused(429, message, RETRY_AFTER_SECONDS, reason="jobs")

    async def decode(self, upload: Upload) -> Recording:
        """Decode an upload. Without a form, bytes of no known kind are PCM16. Its field `strict` is a switch.

        Raises as `read_recording` does, `BadParam`, and `RequestRefused` (429) when too much else is being decoded.
        """
        limit, seconds = self._limits.segment_bytes, self._limits.segment_seconds
        strict = upload.read(STRICT)
        try:
            async with asyncio.timeout(seconds):
                return await asyncio.get_running_loop().run_in_executor(
                    self._decoders, lambda: read_recording(upload, limit, strict=strict)
                )
        except TimeoutError:
            message = f"the recording was not decoded within {seconds:g} s, as there were others"
            raise RequestRefused(429, message, RETRY_AFTER_SECONDS) from None

    async def close(self, _: web.Application) -> None:
        self._decoders.shutdown(wait=False, cancel_futures=True)


INTAKE = web.AppKey("INTAKE", Intake)


class RecordingJob:
    """One recording (or frame) and the job that works on it."""

    def __init__(self, job: Job, pipeline: Pipeline, recording: Recording) -> None:
        self.job = job
        self.pipeline = pipeline
        self.recording = recording

    def headers(self, content_type: str) -> dict[str, str]:
        """Return the headers of the answer. `X-Metadata` is the only one that passes an orchestrator and a gateway."""
        metadata: dict[str, Any] = {
            "job_id": self.job.info.job_id, "pipeline": self.pipeline.name, "content_type": content_type,
        }  # fmt: skip
        headers = {"Content-Type": content_type}
        if self.pipeline.media == "audio":
            units = self.recording.work_units
            metadata |= {"audio_ms": self.recording.samples // 16, "work_units": units}
            headers["X-Livepeer-Work-Units"] = str(units)
        return {**headers, "X-Metadata": json.dumps(metadata | self.recording.warning_fields)}

    async def records(self) -> AsyncGenerator[Record, None]:
        """Feed the job and yield its records as they come, the end record too. To be used with `aclosing`."""
        feeder = asyncio.ensure_future(self._feed())
        try:
            with self.job.reading():
                async for record in self.job.results.unread_records():  # the job's limits end it at the latest
                    if record.kind == "end":
                        await feeder
                    yield record
        finally:
            await cancel(feeder)

    async def outcome(self) -> list[Record]:
        """Collect all records.

        Raises `RequestRefused` (422) when a segment has no result; of a 5xx, go-livepeer's gateway makes an empty 200.
        """
        found = []
        async with aclosing(self.records()) as records:
            async for record in records:
                if record.kind == "error":
                    raise RequestRefused(422, record.error)
                found.append(record)
        return found

    async def transcription(self) -> Transcription:
        """Collect the text. Without records of the type `transcript` there are no segments and no language."""
        found = [record.fields() for record in await self.outcome() if record.kind == "result"]
        if any(each["type"] != "transcript" for each in found):
            return Transcription(" ".join(filter(None, (each.get("text", "") for each in found))), UNKNOWN_LANGUAGE)
        return from_records(found, found[0]["language"] if found else UNKNOWN_LANGUAGE)

    async def _segments(self) -> Sequence[bytes]:
        """Cut sound at quiet points; a frame is one segment."""
        if self.pipeline.media != "audio":
            return self.recording.blocks
        cutter = QuietCutter(WINDOW_SECONDS)
        return await asyncio.to_thread(
            lambda: [*itertools.chain.from_iterable(map(cutter.feed, self.recording.blocks)), *cutter.finish()]
        )

    async def _feed(self) -> None:
        try:
            with self.job.feeding():
                live = self.pipeline.live
                for segment in self.recording.blocks if live else await self._segments():
                    await self.job.inbox.submit(segment, live=live)
                self.job.end_input()
        except RequestRefused:
            raise RequestRefused(429, f"{SHUTTING_DOWN}, or waited too long", RETRY_AFTER_SECONDS) from None


@asynccontextmanager
async def received_upload(request: web.Request, *, form_only: bool = False) -> AsyncIterator[Upload]:
    """Hold a place for the request, and read its body.

    Raises `RequestRefused`: 415 for a body that is no form where only that is read, 429 when busy; and as `read_upload`
    does.
    """
    if form_only and request.content_type != "multipart/form-data":
        raise RequestRefused(415, "this route reads forms; send the recording as multipart/form-data")
    async with request.app[INTAKE].place(client_of(request), request.content):
        if request.app[TABLE].draining:
            raise RequestRefused(429, SHUTTING_DOWN, RETRY_AFTER_SECONDS)
        yield await read_upload(request, request.app[TABLE].limits)


@asynccontextmanager
async def recording_job(
    request: web.Request, pipeline: Pipeline, params: Mapping[str, Any], upload: Upload
) -> AsyncIterator[RecordingJob]:
    """Open a job for the upload, and decode it; free the job in the end.

    Raises as `temporary_job` and `Intake.decode` do.
    """
    async with temporary_job(request.app[TABLE], pipeline, params, recording=True) as job:
        if pipeline.media == "audio":
            recording = await request.app[INTAKE].decode(upload)
        else:
            recording = Recording((upload.data,), 0)
        with request.app[TABLE].admission.recording(pipeline, recording.seconds):
            yield RecordingJob(job, pipeline, recording)


@asynccontextmanager
async def temporary_job(
    table: JobTable, pipeline: Pipeline, params: Mapping[str, Any], *, recording: bool = False, client: str = ""
) -> AsyncIterator[Job]:
    """Open a job under a fresh id, for the address of a `client`, and free it in the end.

    Raises `UsageError` for bad parameters, `RequestRefused`: 503 while the pipeline is loading or, for live jobs, busy;
    429 for a recording then.
    """
    try:
        job = await table.open(uuid.uuid4().hex, pipeline.name, params, recording=recording, client=client)
    except RequestRefused as error:
        # only busy is 429: loading takes an unknown time, and orchestrators learn of this server only after it
        if recording and error.status == 503 and pipeline.state is PipelineState.READY:
            raise RequestRefused(429, str(error), error.retry_after) from None
        raise
    try:
        yield job
    finally:
        with suppress(RequestRefused):  # forgotten already, as it had ended
            await table.forget(job.info.job_id, "the request is over")
