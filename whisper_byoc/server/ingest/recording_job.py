"""A whole recording through one job: what every request/response way in shares.

A request takes a place, is read, opens a job, is decoded and cut, and reads its job's records. Whatever happens to it,
its job is freed.
"""

import asyncio
import json
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, asynccontextmanager, contextmanager, suppress
from typing import Any

from aiohttp import web

from whisper_byoc.aio import cancel
from whisper_byoc.errors import RequestRefused
from whisper_byoc.server.core.job import Job
from whisper_byoc.server.core.limits import Limits
from whisper_byoc.server.core.pipeline import Pipeline, PipelineState
from whisper_byoc.server.core.results import Record
from whisper_byoc.server.core.table import SHUTTING_DOWN, TABLE, JobTable
from whisper_byoc.server.ingest.forms import Upload, read_upload
from whisper_byoc.server.ingest.recordings import Recording, read_recording
from whisper_byoc.speech.transcript import Transcription, from_records

BUSY_SECONDS = 5
DECODERS = 2
"""Recordings decoded at once: ffmpeg is fast, and the model needs the CPUs."""
UNKNOWN_LANGUAGE = "und"
"""ISO 639-2's code for a language that nobody determined."""
ANY_SPEECH = ("", "whisper-1")
"""`whisper-1` is what clients of OpenAI send when they want Whisper, whichever there is."""


class Intake:
    """Bounds how many uploads are held, and how many are decoded, at once."""

    def __init__(self, limits: Limits) -> None:
        self._free = limits.jobs
        self._limits = limits
        self._decoders = ThreadPoolExecutor(DECODERS, "decoder")

    @contextmanager
    def place(self) -> Iterator[None]:
        """Hold a place.

        Raises `RequestRefused` (429) when all are taken.
        """
        if self._free == 0:
            raise RequestRefused(429, "this server is busy with as many recordings as it takes at once", BUSY_SECONDS)
        self._free -= 1
        try:
            yield
        finally:
            self._free += 1

    async def decode(self, upload: Upload) -> Recording:
        """Decode and cut an upload. Without a form, bytes of no known kind are PCM16.

        Raises as `read_recording` does, and `RequestRefused` (429) when too much else is being decoded.
        """
        limit, seconds = self._limits.segment_bytes, self._limits.segment_seconds
        try:
            async with asyncio.timeout(seconds):
                return await asyncio.get_running_loop().run_in_executor(
                    self._decoders,
                    lambda: read_recording(upload.data, upload.content_type, limit, raw_by_default=not upload.in_form),
                )
        except TimeoutError:
            message = f"the recording was not decoded within {seconds:g} s, as there were others"
            raise RequestRefused(429, message, BUSY_SECONDS) from None

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
        return {**headers, "X-Metadata": json.dumps(metadata)}

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
        """Collect the text. A pipeline that returns no more than text has no segments, and no language."""
        found = [record.fields() for record in await self.outcome() if record.kind == "result"]
        if any(each["type"] != "transcript" for each in found):
            return Transcription(" ".join(filter(None, (each.get("text", "") for each in found))), UNKNOWN_LANGUAGE)
        return from_records(found, found[0]["language"] if found else UNKNOWN_LANGUAGE)

    async def _feed(self) -> None:
        try:
            with self.job.feeding():
                for segment in self.recording.segments:
                    await self.job.inbox.submit(segment)
                self.job.end_input()
        except RequestRefused:
            raise RequestRefused(429, f"{SHUTTING_DOWN}, or waited too long", BUSY_SECONDS) from None


@asynccontextmanager
async def received(request: web.Request, *, form_only: bool = False) -> AsyncIterator[Upload]:
    """Hold a place for the request, and read its body.

    Raises `RequestRefused`: 415 for a body that is no form where only that is read, 429 when busy; and as `read_upload`
    does.
    """
    if form_only and request.content_type != "multipart/form-data":
        raise RequestRefused(415, "this route reads forms; send the recording as multipart/form-data")
    with request.app[INTAKE].place():
        if request.app[TABLE].draining:
            raise RequestRefused(429, SHUTTING_DOWN, BUSY_SECONDS)
        yield await read_upload(request, request.app[TABLE].limits)


@asynccontextmanager
async def running(
    request: web.Request, pipeline: Pipeline, params: Mapping[str, Any], upload: Upload
) -> AsyncIterator[RecordingJob]:
    """Open a job for the upload, and decode it; free the job in the end.

    Raises as `opened` and `Intake.decode` do.
    """
    async with opened(request.app[TABLE], pipeline, params) as job:
        if pipeline.media == "audio":
            recording = await request.app[INTAKE].decode(upload)
        else:
            recording = Recording((upload.data,), 0)
        yield RecordingJob(job, pipeline, recording)


@asynccontextmanager
async def opened(table: JobTable, pipeline: Pipeline, params: Mapping[str, Any]) -> AsyncIterator[Job]:
    """Open a job under a fresh id, and free it in the end.

    Raises `UsageError` for bad parameters, `RequestRefused`: 429 when busy, 503 while the pipeline is loading.
    """
    try:
        job = await table.open(uuid.uuid4().hex, pipeline.name, params)
    except RequestRefused as error:
        # Loading is not being busy: nobody knows how long it takes, and an orchestrator is not told of us before.
        if error.status == 503 and pipeline.state is PipelineState.READY:
            raise RequestRefused(429, str(error), error.retry_after) from None
        raise
    try:
        yield job
    finally:
        with suppress(RequestRefused):  # forgotten already, as it had ended
            await table.forget(job.info.job_id, "the request is over")


def speech_pipeline(table: JobTable, name: str = "") -> Pipeline:
    """Choose a pipeline that makes text of sound: by its name or its model's; the first, if no matter which.

    Raises `RequestRefused` (404) with the names there are.
    """
    speech = {each.name: each for each in table.pipelines.values() if each.media == "audio" and each.gives_text}
    if name and name == table.capability and (alias := table.named(name)):
        name = alias.name
    if name in ANY_SPEECH and speech:
        return next(iter(speech.values()))
    model = name.removeprefix("openai/")  # as Hugging Face calls the same weights
    for known in (model, f"whisper-{model}"):
        if known in speech:
            return speech[known]
    wanted = repr(name[:100]) if name else "there is none for speech"
    raise RequestRefused(
        404, f"model not found: {wanted}; this container has for speech: {', '.join(speech) or '-'}", param="model"
    )
