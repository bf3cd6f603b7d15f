"""The job that processes a whole recording, or a frame, for one request; it is freed when the request is over.

All routes that answer one request with one transcript share this.
"""

import asyncio
import json
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Any

from aiohttp import web

from audio.errors import AudioError
from audio.quiet import QuietCutter
from whisper_byoc.aio import cancel
from whisper_byoc.errors import RequestRefused
from whisper_byoc.server.core.admission import RETRY_AFTER_SECONDS
from whisper_byoc.server.core.job import Job
from whisper_byoc.server.core.pipeline import Pipeline, PipelineState
from whisper_byoc.server.core.results import Record
from whisper_byoc.server.core.table import SHUTTING_DOWN, TABLE, JobTable
from whisper_byoc.server.ingest.forms import Upload
from whisper_byoc.server.ingest.intake import INTAKE
from whisper_byoc.server.ingest.recordings import Recording
from whisper_byoc.speech.transcript import Transcription, from_records

WINDOW_SECONDS = 30.0
"""Longest segment for a processor that takes no live feed: Whisper's window."""
UNKNOWN_LANGUAGE = "und"
"""ISO 639-2's code for a language that nobody determined."""


class RecordingJob:
    """One recording (or frame) and the job that works on it."""

    def __init__(self, job: Job, pipeline: Pipeline, recording: Recording, frame: bytes = b"") -> None:
        self.job = job
        self.pipeline = pipeline
        self.recording = recording
        self._frame = frame
        self._done_ms = 0
        self._end: dict[str, Any] = {}

    @property
    def seconds_left(self) -> float:
        """Seconds of the recording that have been decoded but have no text yet."""
        return max(self.recording.seconds - self._done_ms / 1000, 0.0)

    @property
    def speech_seconds(self) -> float | None:
        """How many seconds of speech it holds, known at the end; None from a pipeline that does not say."""
        found = self._end.get("speech_ms")
        return found / 1000 if isinstance(found, int) else None

    @property
    def warning_fields(self) -> dict[str, Any]:
        """The warnings' field of a JSON response; empty if there are none. All warnings are known at the end."""
        warnings = self._end.get("warnings") or self.recording.warnings
        return {"warnings": warnings} if warnings else {}

    def headers(self, content_type: str) -> dict[str, str]:
        """Return the response headers. `X-Metadata` is the only one that passes through orchestrators and gateways.

        They give the length of the recording only if it is known.
        """
        metadata: dict[str, Any] = {
            "job_id": self.job.info.job_id, "pipeline": self.pipeline.name, "content_type": content_type,
        }  # fmt: skip
        headers = {"Content-Type": content_type}
        if self.pipeline.media == "audio" and self.recording.decoded:
            units = self.recording.work_units
            metadata |= {"audio_ms": self.recording.samples // 16, "work_units": units}
            headers["X-Livepeer-Work-Units"] = str(units)
        return {**headers, "X-Metadata": json.dumps(metadata | self.warning_fields)}

    async def records(self) -> AsyncGenerator[Record, None]:
        """Feed the job and yield its records as they come, including the end record. To be used with `aclosing`.

        Raises what is wrong with the recording, as soon as that is known.
        """
        feeder = asyncio.ensure_future(self._feed())
        try:
            with self.job.reading():
                async for record in self.job.results.unread_records():  # ended by the job's limits at the latest
                    if feeder.done() or record.kind == "end":
                        await feeder
                    self._end = record.fields() if record.kind == "end" else {}
                    timing = (record.result.record or {}).get("timing")
                    if isinstance(timing, Mapping):  # from a third-party processor it may be anything
                        self._done_ms = int(timing.get("media_window_end_ms", 0))
                    yield record
        finally:
            await cancel(feeder)

    async def outcome(self) -> list[Record]:
        """Collect all records.

        Raises `RequestRefused` (422) when a segment has no result; go-livepeer's gateway turns a 5xx into an empty 200.
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

    async def _segments(self) -> AsyncIterator[bytes]:
        """Cut sound at quiet points, unless the job takes it as a live feed; a frame is one segment."""
        if self.pipeline.media != "audio":
            yield self._frame
            return
        cutter = None if self.pipeline.live else QuietCutter(WINDOW_SECONDS)
        async for block in self.recording.blocks():
            for segment in (block,) if cutter is None else await asyncio.to_thread(cutter.feed, block):
                yield segment
        for segment in () if cutter is None else cutter.finish():
            yield segment

    async def _feed(self) -> None:
        try:
            with self.job.feeding():
                async for segment in self._segments():
                    await self.job.inbox.submit(segment, live=self.pipeline.live)
                for each in self.recording.warnings:
                    self.job.warn(each)
                self.job.end_input()
        except RequestRefused as error:
            if not self.job.closing.is_set():  # it was the recording
                await self._give_up(error)
            raise RequestRefused(429, f"{SHUTTING_DOWN}, or waited too long", RETRY_AFTER_SECONDS) from None
        except AudioError as error:
            await self._give_up(error)

    async def _give_up(self, error: RequestRefused | AudioError) -> None:
        await self.job.stop(str(error))
        raise error


@asynccontextmanager
async def recording_job(
    request: web.Request,
    pipeline: Pipeline,
    params: Mapping[str, Any],
    upload: Upload,
    longest: float | None = None,
) -> AsyncIterator[RecordingJob]:
    """Open a job for the upload, or for its first `longest` seconds, and decode it; free the job at the end.

    Raises as `temporary_job` and `Intake.decoding` do, and `RequestRefused` (413) for a frame over the limit.
    """
    table, intake = request.app[TABLE], request.app[INTAKE]
    async with temporary_job(table, pipeline, params, recording=True) as job:
        if pipeline.media != "audio":
            yield RecordingJob(job, pipeline, Recording(upload.body), _frame(upload, table.limits.segment_bytes))
            return
        async with intake.decoding(upload, table.limits.recording_bytes, longest) as recording:
            found = RecordingJob(job, pipeline, recording)
            with table.admission.recording(pipeline, lambda: found.seconds_left):
                yield found


def _frame(upload: Upload, limit: int) -> bytes:
    if upload.body.size > limit:
        message = f"the frame of {upload.body.size} bytes is larger than the limit of {limit} bytes"
        raise RequestRefused(413, message)
    return upload.body.read(0)


@asynccontextmanager
async def temporary_job(
    table: JobTable, pipeline: Pipeline, params: Mapping[str, Any], *, recording: bool = False, client: str = ""
) -> AsyncIterator[Job]:
    """Open a job under a fresh id, for the address of a `client`, and free it at the end.

    Raises `UsageError` for bad parameters, and `RequestRefused`: 503 while the pipeline is loading; when it is busy,
    503 for live jobs and 429 for recordings.
    """
    try:
        job = await table.open(uuid.uuid4().hex, pipeline.name, params, recording=recording, client=client)
    except RequestRefused as error:
        # 429 only when busy: loading takes an unknown time, and orchestrators hear of this server only after it
        if recording and error.status == 503 and pipeline.state is PipelineState.READY:
            raise RequestRefused(429, str(error), error.retry_after) from None
        raise
    try:
        yield job
    finally:
        with suppress(RequestRefused):  # already forgotten, as it had ended
            await table.forget(job.info.job_id, "the request is over")
