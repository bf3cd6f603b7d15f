"""One job: takes segments in order, has its session work on them, and numbers the outcomes.

Every accepted segment gets exactly one outcome. Every route (`/live`, streams, batch) ends in a job.
"""

import asyncio
import logging
from collections.abc import Coroutine, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, cast

from audio.errors import AudioError
from whisper_byoc.aio import first_of
from whisper_byoc.errors import ByocError, ProcessorError, RequestRefused, SegmentError, SegmentTimeout
from whisper_byoc.logs import of_author
from whisper_byoc.processors.base import JobInfo, LiveSession, Result, Session, check_results
from whisper_byoc.server.core.inbox import Inbox, QueuedPieces, QueuedSegment, Sentinel
from whisper_byoc.server.core.limits import Limits
from whisper_byoc.server.core.metrics import Metrics
from whisper_byoc.server.core.pipeline import Pipeline
from whisper_byoc.server.core.results import ResultRing, TranscriptLog

log = logging.getLogger(__name__)

MAX_WARNINGS = 16
SUMMARY_SECONDS = 1.0
"""Longest wait for a session to close and sum up: a stream must be stopped within seconds."""


class Job:
    """One stream of one client, and the task that works on it until `results.ended`.

    Nothing that it refers to refers back to it, so its results are freed with it, without the garbage collector.
    """

    def __init__(self, info: JobInfo, session: Session, pipeline: Pipeline, limits: Limits, metrics: Metrics) -> None:
        self.info = info
        self.content_type = pipeline.content_type
        self.inbox = Inbox(info.job_id, limits)
        self.results = ResultRing(info.job_id, self.content_type, limits.kept_results, limits.kept_bytes)
        self.transcript = TranscriptLog(limits.transcript_bytes)
        self.closing = asyncio.Event()
        """Set when no more input is wanted; a connected feed may still hand in its tail."""
        self.alone_limit = limits.idle_seconds
        """The job is ended after this many `alone_seconds`."""
        self.client = ""
        """The address of the client that opened it, if the job is to make room for others while it is without a
        byte."""
        self.has_feed = False
        self.has_reader = False
        self._session = session
        self._call = pipeline.call
        self._limits = limits
        self._metrics = metrics
        self._loop = asyncio.get_running_loop()
        self._errors = 0
        self._warnings: list[str] = []
        self._at_work: QueuedSegment | QueuedPieces | None = None
        self._computing = False
        self._is_live = pipeline.live
        self._live = cast("LiveSession", session)  # used only if it is live
        self._feed_open = False  # the session has had pieces of a live feed; a whole segment ends it
        self._opened = self._touched = self._loop.time()
        self._abandoned: set[asyncio.Task[Any]] = set()
        self._task = self._loop.create_task(self._run(), name=f"job {info.job_id}")

    async def update(self, params: Mapping[str, Any]) -> None:
        """Change the session's parameters from the next segment on.

        Raises `UsageError` for an impossible value, and `RequestRefused` (503) when the processor does not answer; then
        nothing is changed.
        """
        update = getattr(self._session, "update", None)
        if update is None:
            return
        try:
            async with asyncio.timeout(self._limits.admission_seconds):
                await self._call(update, params)
        except TimeoutError:
            raise RequestRefused(503, "the processor is busy, and did not accept the parameters", 1) from None

    def end_input(self) -> None:
        """Finish once a connected feed has handed in its tail and the queue is empty. Harmless when repeated."""
        self.closing.set()
        if not self.has_feed:
            self.inbox.close()

    @contextmanager
    def feeding(self) -> Iterator[None]:
        """Hold the job's input for one live feed.

        Raises `RequestRefused` (409) when another feed has it, or the input has ended.
        """
        if self.closing.is_set():
            raise self.inbox.over()
        if self.has_feed:
            raise RequestRefused(409, f"job {self.info.job_id} is being fed by another request", retry_after=1)
        self.has_feed = True
        try:
            yield
        finally:
            self.has_feed = False
            self.touch()
            if self.closing.is_set():
                self.inbox.close()

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Hold the job's output for one reader, so that its results are not divided among several.

        Raises `RequestRefused` (409) when another reader has it.
        """
        if self.has_reader:
            message = f"the output of job {self.info.job_id} is being read by another request; one reader at a time"
            raise RequestRefused(409, message, retry_after=1)
        self.has_reader = True
        try:
            yield
        finally:
            self.has_reader = False
            self.touch()

    def warn(self, sentence: str) -> None:
        """Have the `end` record say something that no error record says; of many sentences, only the first are kept."""
        if len(self._warnings) < MAX_WARNINGS and sentence not in self._warnings:
            self._warnings.append(sentence)

    def touch(self) -> None:
        self._touched = self._loop.time()

    @property
    def age_seconds(self) -> float:
        """Seconds since it was opened."""
        return self._loop.time() - self._opened

    @property
    def idle_seconds(self) -> float:
        """Seconds since the last input, read or work."""
        return 0.0 if self._computing else self._loop.time() - max(self._touched, self.inbox.touched)

    @property
    def alone_seconds(self) -> float:
        """Seconds since the last of its clients left; 0 while a feed or a reader is connected, or work goes on."""
        return 0.0 if self.has_feed or self.has_reader else self.idle_seconds

    @property
    def empty_seconds(self) -> float:
        """Seconds for which it has held its place without a byte, where that counts."""
        return self.age_seconds if self.client and not self.inbox.fed else 0.0

    @property
    def busy(self) -> bool:
        """Whether a feed is connected or there is work; a closing job still has its last words to process."""
        at_work = self._computing or self.inbox.items > 0 or self.closing.is_set()
        return not self.results.ended and (self.has_feed or at_work)

    @property
    def fully_read(self) -> bool:
        """Whether it has ended and all of its results have been read."""
        return self.results.ended and self.results.unread == 0 and not self.has_reader

    async def stop(self, reason: str) -> None:
        """End the job now, with an error record for each segment without an outcome, and one for the job."""
        if self.results.ended:
            return
        self.closing.set()
        left = self.inbox.drain()
        self._task.cancel()
        await asyncio.wait({self._task})
        summary = {} if self.results.ended else await self._sum_up()
        if self.results.ended:  # it came to its own end first
            return
        waiting = [self._at_work, *left] if self._at_work else left
        for segment in waiting:
            self._release(segment)
            self.results.force_error(f"not processed: {reason}")
        self._count_errors("stopped", len(waiting) + 1)
        self.results.force_error(reason)
        self._end(summary)

    async def _run(self) -> None:
        with suppress(asyncio.CancelledError):  # by `stop`; kept by the task, its frames would keep the job
            await self._work()

    async def _work(self) -> None:
        if self._is_live:
            await self._attempt(self._begin_live(), "the start of the session")
        flush_after: float | None = None
        while (item := await self.inbox.next(flush_after)) is not Sentinel.END:
            if item is Sentinel.READY:
                await self._attempt(self._call(self._live.ready), "a partial text")
                continue
            if item is Sentinel.FLUSH:
                await self._attempt(self._call(self._live.flush), "an utterance")
            else:
                self._at_work = item
                await (self._feed_live(item) if isinstance(item, QueuedPieces) else self._feed(item))
                self._at_work = None
                self._release(item)
            flush_after = self._limits.flush_seconds if isinstance(item, QueuedPieces) else None
        await self._attempt(self._call(self._session.finish), "the end of the stream")
        self._end(await self._sum_up())

    async def _begin_live(self) -> list[Result]:
        await self._call(self._live.when_ready, partial(_wake, self._loop, self.inbox))
        return []

    async def _feed(self, segment: QueuedSegment) -> None:
        what = f"a segment of {segment.size} bytes"
        if self._feed_open:  # text from before an error comes out before it
            self._feed_open = False
            await self._attempt(self._call(self._live.end_feed), "the end of a feed")
        if isinstance(segment.data, SegmentError):
            await self._fail(segment.data, what)
            return
        await self._attempt(self._call(self._session.feed, segment.data), what)

    async def _feed_live(self, item: QueuedPieces) -> None:
        self._feed_open = True
        for piece, arrived in item.pieces:
            await self._attempt(self._call(self._live.feed_live, piece, arrived), f"a piece of {len(piece)} bytes")

    async def _attempt(self, work: Coroutine[Any, Any, Any], what: str) -> None:
        try:
            for result in check_results(await self._within_time_limit(work)):
                if result.error:
                    await self._fail(SegmentError(result.error), "an utterance")
                else:
                    self.transcript.add(await self.results.add(result))
                self._metrics.result(self.info.pipeline, result)
        except Exception as error:
            await self._fail(error, what)

    async def _within_time_limit(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Await the processor's work; abandon it after the time limit, even if it ignores cancellation."""
        task = self._loop.create_task(work)
        self._computing = True
        try:
            await first_of(task, timeout=self._limits.segment_seconds)
        finally:
            self._computing = False
            self.touch()
            if not task.done():
                task.cancel()
                self._abandoned.add(task)
                task.add_done_callback(self._abandoned_done)
        if not task.done():
            limit = self._limits.segment_seconds
            raise SegmentTimeout(f"the processor took longer than the segment time limit of {limit:g} s")
        if task.cancelled():
            raise ProcessorError("the processor was cancelled: a task that it awaited was")
        return task.result()

    def _abandoned_done(self, task: asyncio.Task[Any]) -> None:
        self._abandoned.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.debug("job %s: abandoned work ended with %r", self.info.job_id, task.exception())

    async def _fail(self, error: Exception, what: str) -> None:
        seq = self.results.next_seq
        kind = getattr(error, "kind", "input" if isinstance(error, AudioError) else "processor")
        if isinstance(error, (ByocError, AudioError)):
            message = str(error)
            log.warning("job %s seq %d: %s failed: %s", self.info.job_id, seq, what, message)
        else:
            message = f"the processor failed with {type(error).__name__}: {error}"
            log.error("job %s seq %d: %s failed", self.info.job_id, seq, what, exc_info=of_author(error))
        await self.results.add_error(message)
        self._count_errors(kind)  # not earlier: a job stopped during the wait counts another error instead

    def _count_errors(self, kind: str, number: int = 1) -> None:
        self._errors += number
        self._metrics.failed(self.info.pipeline, kind, number)

    def _release(self, item: QueuedSegment | QueuedPieces) -> None:
        self.inbox.release(item.reserved)
        if isinstance(item, QueuedPieces):
            self._metrics.received(self.info.pipeline, item.reserved)
        else:
            self._metrics.segment(self.info.pipeline, item.size, self._loop.time() - item.arrived)

    async def _sum_up(self) -> dict[str, Any]:
        try:
            async with asyncio.timeout(SUMMARY_SECONDS):
                if self._is_live:
                    await self._call(self._live.close)
                return dict(await self._call(self._session.summary))
        except Exception:
            log.exception("job %s: its session has no summary", self.info.job_id)
            return {}

    def _end(self, summary: dict[str, Any]) -> None:
        self.closing.set()
        self.touch()
        silent = summary.pop("warnings", []) if isinstance(summary.get("warnings"), list) else []
        warnings = [*self._warnings, *(silent if not self._errors else ())]
        errors = {"errors": self._errors} | ({"warnings": warnings} if warnings else {})
        try:
            self.results.end(summary | errors)
        except ProcessorError as error:
            log.error("job %s: the summary of its session is left out: %s", self.info.job_id, error)
            self.results.end(errors)


def _wake(loop: asyncio.AbstractEventLoop, inbox: Inbox) -> None:
    with suppress(RuntimeError):  # the server and its loop are gone
        loop.call_soon_threadsafe(inbox.put_ready)
