"""Schedules a model's work: which worker does what, and when.

Transcriptions come first, in order of their deadlines. Drafts wait for them: one begins only while no transcription is
waiting, and is cancelled when one has no place. Work whose result nobody waits for is cancelled.

As the load grows, there are fewer drafts (`Scheduler.may_draft`), then live text is decoded with a smaller beam, then
with none; beyond that, it is up to the callers to accept no more (`Scheduler.workload`).
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from audio.pcm import SAMPLE_RATE
from whisper_byoc.aio import STOP_SECONDS, in_daemon_thread
from whisper_byoc.errors import ProcessorError
from whisper_byoc.speech.capacity import DRAFT_SHARE, LATE_SECONDS, Costs, Kind, Workload
from whisper_byoc.speech.engine import DecodeOptions, Draft, Engine, Inference, IsCancelled, Samples
from whisper_byoc.speech.transcript import Transcription
from whisper_byoc.speech.workers import IDLE_LOAD, Crew, Timed, Work

log = logging.getLogger(__name__)

T = TypeVar("T")

PATIENCE_SECONDS = 30.0
"""A recording's deadline is this much later than that of live speech that came at the same time."""
TRIAL_SECONDS = 1.0
"""Longest time for trying other numbers of workers and threads, in addition to the first trial."""
BETTER = 1.1
"""At least this many times the streams must fit for another number of workers to replace the first one."""
WATCH_SECONDS = 1.0
"""Time between two checks of the workers."""


class Scheduler:
    """`workers` threads, whose engines compute with `threads` CPU threads each.

    Jobs are treated fairly because each has only one segment, or one draft, in the queue at a time. Drafts may starve;
    transcriptions never do.
    """

    def __init__(self, workers: int, threads: int, others: Sequence[tuple[int, int]] = ()) -> None:
        """`others` are numbers of workers and threads to try as well; that with which most streams fit is taken."""
        self._sizes = ((workers, threads), *others)
        self._crew: Crew | None = None
        self._stopping = threading.Event()
        self._watching: threading.Thread | None = None
        self._continues = False
        self.costs: tuple[Costs, ...] = ()
        """What each worker's trial found."""
        self.workload = Workload([Costs(0.0)])
        """What the workers do; meaningful once they have been started."""

    @property
    def size(self) -> tuple[int, int]:
        """The number of workers, and of CPU threads in each."""
        return self._crew.size if self._crew else self._sizes[0]

    @property
    def late(self) -> bool:
        """Whether live text waits so long that no more should be accepted."""
        return self.workload.late or (self._crew is not None and self._crew.queue.overdue(LATE_SECONDS))

    @property
    def may_draft(self) -> bool:
        """Whether there is time for a draft and no other is waiting, so that drafts are of the newest sound."""
        waits = self._crew is not None and self._crew.queue.patient
        return not waits and self.workload.share(Kind.LIVE, Kind.DRAFT) < DRAFT_SHARE

    async def start(self, load: Callable[[], Engine]) -> Engine:
        """Load the model in a thread, start the workers, and wait until each has finished its trial.

        Raises what `load` and the engine raise.
        """
        engine = await in_daemon_thread(load, name="whisper-load")
        self._continues = engine.continues
        began = time.monotonic()
        self._crew = Crew(engine, *self._sizes[0])
        costs = await self._crew.tried()
        took, deadline = time.monotonic() - began, time.monotonic() + TRIAL_SECONDS
        for size in self._sizes[1:]:
            began = time.monotonic()
            if began + took > deadline:
                break
            other = Crew(engine.fresh(), *size)
            try:
                found = await other.tried()
                if Workload(found).streams > BETTER * Workload(costs).streams:
                    self._crew, other, costs = other, self._crew, found
            finally:
                await other.stop()
            took = time.monotonic() - began
        self.costs, self.workload = tuple(costs), Workload(costs)
        self._crew.begin(self.workload)
        self._watching = threading.Thread(target=self._watch, args=(self._crew,), name="hang-watch", daemon=True)
        self._watching.start()
        return engine

    def continues(self, options: DecodeOptions) -> bool:
        """Whether to use `DecodeOptions.before` now: the engine supports it, and has time or a prescribed beam."""
        busy = options.beam is None and self.workload.share(Kind.LIVE, Kind.DRAFT) > IDLE_LOAD
        return self._continues and not busy

    async def transcribe(self, samples: Samples, options: DecodeOptions, *, live: bool = False) -> Timed[Transcription]:
        """Have a worker transcribe; raises what the engine raises. Cancelling this cancels the work.

        `live` speech comes before recordings.
        """
        kind = Kind.LIVE if live else Kind.RECORDING
        timed = await self._do(
            lambda engine, options, is_cancelled: engine.transcribe(samples, options, is_cancelled),
            options,
            kind,
            len(samples) / SAMPLE_RATE,
        )
        if live:
            self.workload.answered(timed.queue_ms / 1000, timed.inference_ms / 1000)
        else:
            self.workload.heard(kind, len(samples) / SAMPLE_RATE)
        return timed

    async def draft(self, samples: Samples, options: DecodeOptions) -> Timed[Draft]:
        """Have a worker draft while no transcription waits; raises `Cancelled` when one needs the worker."""
        return await self._do(
            lambda engine, options, is_cancelled: engine.draft(samples, options, is_cancelled),
            replace(options, beam=1),
            Kind.DRAFT,
            len(samples) / SAMPLE_RATE,
        )

    def trouble(self) -> str | None:
        """One sentence when a worker seems to hang, or takes the place of one that did and is not ready; else None."""
        workers = self._crew.workers if self._crew else ()
        return next(filter(None, (worker.trouble() for worker in workers)), None)

    async def stop(self) -> None:
        """Let every worker end after the waiting transcriptions, and wait for it; drafts are cancelled.

        Python aborts a process that ends while a daemon thread is in torch, even if only to free its tensors.
        """
        self._stopping.set()
        if self._watching is not None:
            await asyncio.to_thread(self._watching.join, STOP_SECONDS)
        if self._crew is not None:
            await self._crew.stop()

    def _watch(self, crew: Crew) -> None:
        while not self._stopping.wait(WATCH_SECONDS):
            try:
                crew.watch(self.workload)
            except Exception:  # it is tried again
                log.exception("a worker that hangs could not be replaced")

    async def _do(
        self,
        begin: Callable[[Engine, DecodeOptions, IsCancelled], Inference[T]],
        options: DecodeOptions,
        kind: Kind,
        seconds: float,
    ) -> Timed[T]:
        assert self._crew is not None, "start() comes first"
        queue, abandoned, low = self._crew.queue, threading.Event(), kind is Kind.DRAFT
        work = Work(begin, options, lambda: abandoned.is_set() or (low and queue.overloaded()), kind, seconds)
        deadline = work.submitted + (0.0 if kind is Kind.LIVE else PATIENCE_SECONDS)
        if not queue.put(work, deadline, low=low):
            raise ProcessorError("the workers have been stopped")
        try:
            return await asyncio.wrap_future(work.future)
        finally:
            abandoned.set()
            queue.remove(work)  # frees its sound if still waiting: drafts may wait long
