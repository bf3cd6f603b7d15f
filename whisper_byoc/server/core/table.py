"""All jobs of one server: opened on first use, ended when idle, forgotten some time after they end."""

import asyncio
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from aiohttp import web

from whisper_byoc.aio import Changed, cancel, every
from whisper_byoc.errors import RequestRefused
from whisper_byoc.livepeer import check_id
from whisper_byoc.processors.base import JobInfo
from whisper_byoc.server.core.admission import RETRY_AFTER_SECONDS, Admission
from whisper_byoc.server.core.job import Job
from whisper_byoc.server.core.limits import Limits
from whisper_byoc.server.core.metrics import Metrics
from whisper_byoc.server.core.pipeline import Pipeline, Pipelines

log = logging.getLogger(__name__)

SHUTTING_DOWN = "the server is shutting down"


class JobTable:
    """All jobs, and the pipelines that they may run on."""

    def __init__(self, pipelines: Pipelines, limits: Limits, metrics: Metrics) -> None:
        self.pipelines = pipelines
        self.limits = limits
        self.draining = False
        self.metrics = metrics
        self.admission = Admission(limits, lambda: self.jobs)
        self._jobs: dict[str, Job] = {}
        self._opened = Changed()
        self._opening = asyncio.Lock()  # a session may take a moment to open
        self._sweeper: asyncio.Task[None] | None = None
        busy = "Jobs with open input or unfinished work"
        metrics.gauge("byoc_sessions_active", busy, lambda: sum(job.busy for job in self.jobs))
        metrics.gauge("byoc_sessions_free", "New jobs that would be taken", lambda: self.free)
        metrics.capacity(self.capacity)
        metrics.gauge("byoc_segments_queued", "Segments that wait or are at work", lambda: self.queued)

    @property
    def busy(self) -> bool:
        return any(job.busy for job in self._jobs.values())

    @property
    def queued(self) -> int:
        return sum(job.inbox.items for job in self._jobs.values())

    @property
    def jobs(self) -> tuple[Job, ...]:
        return tuple(self._jobs.values())

    def pipeline_of(self, job_id: str, name: str | None) -> Pipeline:
        """Return the pipeline on which a job runs, or would run if it were opened.

        Raises `RequestRefused`: 400 bad id, or no name where one is needed; 404 unknown pipeline; 409 another pipeline.
        """
        check_id(job_id)
        job = self._jobs.get(job_id)
        names = ", ".join(self.pipelines.names)
        if name is None and job is not None:
            name = job.info.pipeline
        if name is None:
            if len(self.pipelines.names) == 1:
                return self.pipelines.first
            message = "this container serves several pipelines; name one with ?pipeline= (send --pipeline)"
            raise RequestRefused(400, f"{message}: {names}")
        pipeline = self.pipelines.find(name)
        if pipeline is None:
            message = f"model not found: this container has no pipeline {name!r}; it serves: {names}"
            raise RequestRefused(404, message)
        if job is not None and job.info.pipeline != pipeline.name:
            raise RequestRefused(409, f"job {job_id} runs on pipeline {job.info.pipeline}, not {name}")
        return pipeline

    async def open(
        self,
        job_id: str,
        pipeline_name: str | None,
        params: Mapping[str, Any],
        alone_seconds: float | None = None,
        *,
        recording: bool = False,
        client: str = "",
    ) -> Job:
        """Return the job of that id, opening it if it is new.

        Given the address of its `client`, the job makes room for others as long as no byte has come. It is ended when
        nobody feeds or reads it for `alone_seconds` (default: the server's idle limit). Raises whatever the processor
        raises for parameters that it refuses, and `RequestRefused`: as `pipeline_of` does, and 503 when draining, full
        or not ready.
        """
        pipeline = self.pipeline_of(job_id, pipeline_name)
        if self.draining:
            raise RequestRefused(503, SHUTTING_DOWN, RETRY_AFTER_SECONDS, reason="shutting_down")
        if job_id in self._jobs:
            return self._jobs[job_id]
        if not await pipeline.wait_ready(self.limits.admission_seconds):
            message = f"pipeline {pipeline.name} is not ready yet"
            raise RequestRefused(503, message, RETRY_AFTER_SECONDS, reason="loading")
        try:
            async with asyncio.timeout(self.limits.admission_seconds), self._opening:
                if job_id not in self._jobs:  # else another request has opened it in the meantime
                    await self._make_place(pipeline, client, recording=recording)
                    job = await self._make(
                        JobInfo(job_id, pipeline.name, dict(params), recording), pipeline, alone_seconds
                    )
                    job.client = client
                    self._jobs[job_id] = job
                    self._opened.notify()
                return self._jobs[job_id]
        except TimeoutError:
            message = f"pipeline {pipeline.name} did not open a session in {self.limits.admission_seconds:g} s"
            raise RequestRefused(503, message, RETRY_AFTER_SECONDS, reason="processor") from None

    async def _make(self, info: JobInfo, pipeline: Pipeline, alone_seconds: float | None) -> Job:
        if unknown := pipeline.unknown_params(info.params):
            log.warning("job %s: pipeline %s has no parameters %s", info.job_id, pipeline.name, ", ".join(unknown))
        session = await pipeline.open_session(info)
        if self.draining:
            raise RequestRefused(503, SHUTTING_DOWN, RETRY_AFTER_SECONDS, reason="shutting_down")
        job = Job(info, session, pipeline, self.limits, self.metrics)
        job.alone_limit = self.limits.idle_seconds if alone_seconds is None else alone_seconds
        return job

    def get(self, job_id: str) -> Job:
        """Return the job of that id.

        Raises `RequestRefused`: 400 bad id, 404 unknown job.
        """
        check_id(job_id)
        job = self._jobs.get(job_id)
        if job is None:
            raise RequestRefused(404, f"no job {job_id!r} ; it never began, or ended a while ago")
        return job

    async def find(self, job_id: str, timeout: float) -> Job:
        """Return the job of that id, waiting up to `timeout` seconds for it to be opened.

        Raises as `get` does.
        """
        check_id(job_id)
        await self._opened.until(lambda: job_id in self._jobs or self.draining, timeout)
        return self.get(job_id)

    async def forget(self, job_id: str, reason: str) -> None:
        """Stop the job and free its memory.

        Raises as `get` does.
        """
        job = self.get(job_id)
        del self._jobs[job_id]
        await job.stop(reason)

    def start(self) -> None:
        self._sweeper = asyncio.create_task(every(self.limits.sweep_seconds, self._sweep, "the sweep of jobs"))

    async def drain(self) -> None:
        """Let feeds go on for a while, end all input, then wait until every result is read; both have time limits."""
        self.draining = True
        self._opened.notify()
        for job in self.jobs:
            if not job.has_feed:
                job.end_input()
        await _until(lambda: not any(job.has_feed for job in self.jobs), self.limits.drain_live_seconds)
        for job in self.jobs:
            job.end_input()
        await _until(lambda: all(map(self._may_go, self.jobs)), self.limits.drain_seconds)

    def _may_go(self, job: Job) -> bool:
        return job.fully_read or (job.results.ended and job.alone_seconds > self.limits.reader_grace_seconds)

    async def close(self) -> None:
        self.draining = True
        if self._sweeper is not None:
            await cancel(self._sweeper)
        for job in self.jobs:
            if job.inbox.items:
                log.warning("job %s: stopped with %d segments unfinished", job.info.job_id, job.inbox.items)
            await job.stop("the server shut down")

    @property
    def free(self) -> int:
        """How many new live jobs the pipeline with the most room would accept."""
        return max(map(self.admission.free, self.pipelines))

    def capacity(self) -> dict[str, dict[str, float]]:
        """Return how much work the pipelines that measure it can do, and how much they have now, for `/health`."""
        return {
            pipeline.name: {
                **{name: round(value, 4) if isinstance(value, float) else value for name, value in figures.items()},
                "live_jobs": self.admission.live(pipeline),
                "live_free": self.admission.free(pipeline),
                "recording_seconds": round(self.admission.recorded(pipeline), 1),
            }
            for pipeline in self.pipelines
            if (capacity := pipeline.capacity) is not None and (figures := asdict(capacity))
        }

    async def _make_place(self, pipeline: Pipeline, client: str, *, recording: bool) -> None:
        """Refuse (503) a job too many: by `admission`, or when as many ended ones have yet to be read.

        To make room, a job that has received no byte is forgotten, and so is an ended one whose results have been read.
        """
        self.admission.check_share(client)
        while refusal := self.admission.refusal(pipeline, recording=recording):
            empty = self.admission.dispensable(pipeline if refusal.reason == "capacity" else None)
            if empty is None:
                raise refusal
            await self._forget_empty(empty, "it had received no bytes, and another job needed its place")
        ended = [job for job in self.jobs if job.results.ended]
        if len(ended) >= self.limits.jobs:
            read = next((job for job in ended if job.fully_read), None)
            if read is None:
                message = f"{len(ended)} jobs have ended with results still unread"
                raise RequestRefused(503, message, RETRY_AFTER_SECONDS, reason="jobs")
            del self._jobs[read.info.job_id]

    async def _forget_empty(self, job: Job, reason: str) -> None:
        log.warning("job %s: forgotten, %s", job.info.job_id, reason)
        await self.forget(job.info.job_id, reason)

    async def _sweep(self) -> None:
        for job in self.jobs:
            if job.results.ended:
                if job.alone_seconds > self.limits.linger_seconds:
                    self._jobs.pop(job.info.job_id, None)
            elif job.empty_seconds > self.limits.empty_seconds and not (job.has_feed or job.has_reader):
                await self._forget_empty(job, f"no bytes arrived within {self.limits.empty_seconds:g} s")
            elif job.idle_seconds > self.limits.idle_seconds:
                log.warning("job %s: ended, idle for %.0f s", job.info.job_id, job.idle_seconds)
                await job.stop(f"the job was idle for {self.limits.idle_seconds:g} s: no input, and no reads")
            elif job.alone_seconds > job.alone_limit:
                log.warning("job %s: ended, as nobody feeds or reads it", job.info.job_id)
                await job.stop(f"nobody fed or read the job for {job.alone_limit:g} s")


TABLE = web.AppKey("TABLE", JobTable)


async def _until(condition: Callable[[], bool], seconds: float) -> None:
    """Wait until `condition` holds, at most `seconds`; polled, because it depends on how long ago a reader left."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            while not condition():  # noqa: ASYNC110
                await asyncio.sleep(0.05)
