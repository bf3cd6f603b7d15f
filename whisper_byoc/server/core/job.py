"""The core: one job takes segments in order, has its session work on them, and numbers the outcomes.

Every segment that was accepted gets exactly one outcome. Every way in (`/live`, streams, batch) calls this.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar, cast

from audio.errors import AudioError
from whisper_byoc.errors import ByocError, ProcessorError, RequestRefused, SegmentError, SegmentTimeout
from whisper_byoc.processors.base import JobInfo, LiveSession, Result, Session, check_json, check_results
from whisper_byoc.server.core.inbox import Inbox, Mark, Pieces, Segment
from whisper_byoc.server.core.limits import Limits
from whisper_byoc.server.core.metrics import Metrics
from whisper_byoc.server.core.results import ResultRing
from whisper_byoc.server.core.transcript_log import TranscriptLog

__all__ = ["Job"]

log = logging.getLogger(__name__)

T = TypeVar("T")

LULL_SECONDS = 5.0
"""A live feed that is silent on the wire for so long has ended its utterance: many senders send no silence, and one
that broke off may never come back. Segments of a stream are shorter."""


class Job:
    """One stream of one client. Owns one task, from `start` until `results.ended`."""

    def __init__(self, info: JobInfo, session: Session, content_type: str, limits: Limits, metrics: Metrics) -> None:
        self.info = info
        self.content_type = content_type
        self.inbox = Inbox(info.job_id, limits, self.touch)
        self.results = ResultRing(info.job_id, content_type, limits.kept_results, limits.kept_bytes)
        self.transcript = TranscriptLog()
        self.closing = asyncio.Event()
        """Set when no more input is wanted; a feed that is connected gets its tail in first."""
        self.ended_at: float | None = None
        self.alone_limit = limits.idle_seconds
        """The job is ended after so many `alone_seconds`."""
        self._session = session
        self._limits = limits
        self._metrics = metrics
        self._loop = asyncio.get_running_loop()
        self._errors = 0
        self._at_work: Segment | Pieces | None = None
        self._computing = False
        self._listening = False  # to a live feed, which a whole segment ends
        self._heard = False  # a piece of it, just now
        self._feeding = False
        self._reading = False
        self._touched = self._loop.time()
        self._task = self._loop.create_task(self._run(), name=f"job {info.job_id}")
        self._orphans: set[asyncio.Task[Any]] = set()
        if isinstance(session, LiveSession):
            session.when_ready(lambda: self.inbox.mark(Mark.READY))

    # -- input ---------------------------------------------------------------------------------------------

    def update(self, params: Mapping[str, Any]) -> None:
        """Change the session's parameters from the next segment on.

        Raises `RequestRefused` (400) for a value that cannot be, and changes nothing then.
        """
        update = getattr(self._session, "update", None)
        if update is not None:
            update(params)

    def end_input(self) -> None:
        """Let a connected feed hand in its tail, the queue run dry, then finish. Harmless when repeated."""
        self.closing.set()
        if not self._feeding:
            self.inbox.close()

    # -- who is there --------------------------------------------------------------------------------------

    @contextmanager
    def feeding(self) -> Iterator[None]:
        """Hold the job's input for one live feed.

        Raises `RequestRefused` (409) when another feed has it, or the input has ended.
        """
        if self.closing.is_set():
            raise self.inbox.over()
        if self._feeding:
            raise RequestRefused(409, f"job {self.info.job_id} is being fed by another request", retry_after=1)
        self._feeding = True
        try:
            yield
        finally:
            self._feeding = False
            self.touch()
            if self.closing.is_set():
                self.inbox.close()

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Hold the job's output for one reader, so that no result goes astray between two.

        Raises `RequestRefused` (409) when another reader has it.
        """
        if self._reading:
            message = f"the output of job {self.info.job_id} is being read by another request; one reader at a time"
            raise RequestRefused(409, message, retry_after=1)
        self._reading = True
        try:
            yield
        finally:
            self._reading = False
            self.touch()

    def touch(self) -> None:
        """Remember that somebody cared for this job just now."""
        self._touched = self._loop.time()

    @property
    def idle_seconds(self) -> float:
        """Seconds since the last input, reading or work."""
        return 0.0 if self._computing else self._loop.time() - self._touched

    @property
    def alone_seconds(self) -> float:
        """Seconds since the last of its peers left; 0 while a feed or a reader is connected, or work goes on."""
        return 0.0 if self._feeding or self._reading else self.idle_seconds

    @property
    def busy(self) -> bool:
        """Whether a feed is connected, or there is work: also that on the last words, when the queue is empty."""
        at_work = self._computing or self.inbox.items > 0 or self.closing.is_set()
        return not self.results.ended and (self._feeding or at_work)

    @property
    def settled(self) -> bool:
        """Whether all is done and all has been read."""
        return self.results.ended and self.results.unread == 0 and not self._reading

    @property
    def unattended_seconds(self) -> float:
        """Seconds for which an ended job has had no reader; 0 while it works or is being read."""
        if self.ended_at is None or self._reading:
            return 0.0
        return self._loop.time() - max(self.ended_at, self._touched)

    # -- the end -------------------------------------------------------------------------------------------

    async def stop(self, reason: str) -> None:
        """End the job now: one error record for each segment without an outcome, one for the job."""
        if self.results.ended:
            return
        self.closing.set()
        left = self.inbox.drain()
        self._task.cancel()
        await asyncio.wait({self._task})
        if self.results.ended:  # it came to its own end first
            return
        waiting = [self._at_work, *left] if self._at_work else left
        for segment in waiting:
            self._note(segment)
            self.results.force_error(f"not processed: {reason}")
        self._count_errors(len(waiting) + 1)
        self.results.force_error(reason)
        self._end()

    async def _run(self) -> None:
        while (came := await self.inbox.next(LULL_SECONDS if self._heard else None)) is not Mark.END:
            if came is Mark.READY:
                await self._attempt(cast("LiveSession", self._session).ready(), "a partial text")
                continue
            if came is Mark.LULL:
                await self._attempt(cast("LiveSession", self._session).flush(), "an utterance")
            elif isinstance(came, Pieces):
                await self._listen(came)
            else:
                await self._work(came)
            self._heard = isinstance(came, Pieces)
        await self._attempt(self._session.finish(), "the end of the stream")
        self._end()

    async def _work(self, segment: Segment) -> None:
        """Bring one segment to its outcome: the session's results, or an error record."""
        self._at_work = segment
        if self._listening and not isinstance(segment.data, SegmentError):
            await self._attempt(cast("LiveSession", self._session).end_feed(), "the end of a feed")
            self._listening = False
        try:
            if isinstance(segment.data, SegmentError):
                raise segment.data
            await self._publish(await self._limited(self._session.feed(segment.data)))
        except Exception as error:
            await self._fail(error, f"a segment of {len(segment)} bytes")
        self._at_work = None
        self._note(segment)

    async def _listen(self, pieces: Pieces) -> None:
        """Hand pieces of a live feed to the session, whose results belong to no piece in particular."""
        self._at_work, self._listening = pieces, True
        session = cast("LiveSession", self._session)
        for piece, arrived in pieces.pieces:
            await self._attempt(session.feed_live(piece, arrived), f"a piece of {len(piece)} bytes")
        self._at_work = None
        self._note(pieces)

    async def _attempt(self, work: Coroutine[Any, Any, list[Result]], what: str) -> None:
        """Publish the results of a coroutine of the session, or an error record."""
        try:
            await self._publish(await self._limited(work))
        except Exception as error:
            await self._fail(error, what)

    async def _publish(self, results: list[Result]) -> None:
        """Number results; one that says that there is none becomes an error record."""
        for result in check_results(results):
            if result.error:
                await self._fail(SegmentError(result.error), "an utterance")
            else:
                self.transcript.add(await self.results.add(result))
            if result.lag_ms is not None:
                self._metrics.lag(self.info.pipeline, result.lag_ms, partial=result.partial)

    async def _limited(self, work: Coroutine[Any, Any, T]) -> T:
        """Run the processor's coroutine, and walk away from it after the time limit even if it hangs on."""
        task = self._loop.create_task(work)
        self._computing = True
        try:
            await asyncio.wait({task}, timeout=self._limits.segment_seconds)
        finally:
            self._computing = False
            self.touch()
            if not task.done():
                task.cancel()
                self._orphans.add(task)
                task.add_done_callback(self._orphan_done)
        if not task.done():
            limit = self._limits.segment_seconds
            raise SegmentTimeout(f"the processor took longer than the segment time limit of {limit:g} s")
        if task.cancelled():
            raise ProcessorError("the processor was cancelled from within: a task that it waited for was")
        return task.result()

    def _orphan_done(self, task: asyncio.Task[Any]) -> None:
        self._orphans.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.debug("job %s: abandoned work ended with %r", self.info.job_id, task.exception())

    async def _fail(self, error: Exception, what: str) -> None:
        """Log an error with job and sequence number, and record it."""
        seq = self.results.next_seq
        if isinstance(error, (ByocError, AudioError)):
            message = str(error)
            log.warning("job %s seq %d: %s failed: %s", self.info.job_id, seq, what, message)
        else:
            message = f"the processor failed with {type(error).__name__}: {error}"
            log.error("job %s seq %d: %s failed", self.info.job_id, seq, what, exc_info=error)
        await self.results.add_error(message)
        self._count_errors(1)  # not before: a job that is stopped meanwhile has another error in its place

    def _count_errors(self, number: int) -> None:
        self._errors += number
        self._metrics.failed(self.info.pipeline, number)

    def _note(self, segment: Segment | Pieces) -> None:
        """Free the segment's room and count it."""
        self.inbox.release(segment.reserved)
        if isinstance(segment, Pieces):
            self._metrics.received(self.info.pipeline, segment.reserved)
            return
        latency_ms = (self._loop.time() - segment.arrived) * 1000
        self._metrics.segment(self.info.pipeline, len(segment), latency_ms)

    def _end(self) -> None:
        self.closing.set()
        self.ended_at = self._loop.time()
        try:
            if isinstance(self._session, LiveSession):
                self._session.close()
            summary = dict(self._session.summary())
            check_json("the summary of a session", summary)
        except Exception:
            log.exception("job %s: its session has no summary", self.info.job_id)
            summary = {}
        self.results.end(summary | {"errors": self._errors})
