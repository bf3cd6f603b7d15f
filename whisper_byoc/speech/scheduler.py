"""The worker threads of a model: each has an engine, and makes steps of several inferences together.

Transcriptions come first, that with the oldest deadline before the others. Drafts wait for them: one begins only while
no transcription waits, and is cancelled when one has no place. Work whose result nobody waits for is cancelled.

As the load grows there are fewer drafts (`Scheduler.may_draft`), then live text is found with a smaller beam, then with
none; beyond that it is for whoever gives it work to take no more (`Scheduler.workload`).
"""

import asyncio
import heapq
import itertools
import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from audio.pcm import SAMPLE_RATE
from whisper_byoc.aio import STOP_SECONDS
from whisper_byoc.errors import ProcessorError
from whisper_byoc.speech.capacity import DRAFT_SHARE, LATE_SECONDS, Costs, Kind, Workload, try_out
from whisper_byoc.speech.engine import DecodeOptions, Draft, Engine, Inference, IsCancelled, Samples
from whisper_byoc.speech.transcript import Transcription

log = logging.getLogger(__name__)

T = TypeVar("T")

PATIENCE_SECONDS = 30.0
"""By so much the deadline of a recording is later than that of live speech that came at the same time."""
SMALL_BEAM = 2
"""For live speech that is not alone: finds half of what a beam of 5 does, for a fifth more time than none takes."""
IDLE_LOAD = 0.25
"""With live text and drafts taking a larger share of the workers' time, live text goes on in no sentence before, and is
found by following `SMALL_BEAM` texts at most …"""
BUSY_LOAD = 0.4
"""… and from this share on only the likeliest."""
TRIAL_SECONDS = 1.0
"""Longest time for trying numbers of workers and threads, beyond that of the first one."""
BETTER = 1.1
"""So many times the streams must fit with another number of workers, or it is not worth leaving the first one."""
WATCH_SECONDS = 1.0
"""Between two looks at the workers. A process that was paused has not had them, so that its workers do not hang."""
HANG_SECONDS = 10.0
"""A worker hangs when one step takes longer than this and …"""
HANG_FACTOR = 20.0
"""… so many times what its sound costs: the trial was of one text, on a machine that may have been idle."""
START_SECONDS = 120.0
"""The same for a new worker, which compiles its graphs and makes its trial."""
STEP_SECONDS = 30.0
"""Longest sound of one inference in a step of an engine that makes several, Whisper's window; else all of it."""


@dataclass(frozen=True)
class Timed(Generic[T]):
    """What an engine returned, and how long the work waited and ran, in milliseconds."""

    value: T
    queue_ms: float
    inference_ms: float
    beam: int = 1
    """How many texts were followed at once."""


class TwoPriorityQueue(Generic[T]):
    """A queue between threads; an item of low priority is taken only when none of high priority waits."""

    def __init__(self, places: int = 0) -> None:
        """`places` is how many items all threads can have taken at once."""
        self._high: list[tuple[float, int, T]] = []  # a heap
        self._low: deque[T] = deque()
        self._numbers = itertools.count()
        self._changed = threading.Condition()
        self._closed = False
        self._waiting = 0  # threads
        self.places = places
        """Items that could be taken now."""

    def put(self, item: T, deadline: float = 0.0, *, low: bool = False) -> bool:
        """Add an item, of high priority by default; return False when the queue was closed."""
        with self._changed:
            if not self._closed:
                if low:
                    self._low.append(item)
                else:
                    heapq.heappush(self._high, (deadline, next(self._numbers), item))
                self._changed.notify()
            return not self._closed

    def get(self, *, wait: bool = True, low: bool = True) -> T | None:
        """Take an item: of high priority, that with the oldest deadline; else, with `low`, one of low priority.

        None when there is none, or another thread waits for it; after a wait, only when the queue was closed.
        """
        with self._changed:
            while wait and not self._high and not self._low and not self._closed:
                self._waiting += 1
                self._changed.wait()
                self._waiting -= 1
            if (self._waiting and not wait) or not (self._high or (low and self._low)):
                return None
            self.places -= 1
            return heapq.heappop(self._high)[2] if self._high else self._low.popleft()

    def free(self) -> None:
        """Note that an item which was taken is done."""
        with self._changed:
            self.places += 1

    def remove(self, item: T) -> None:
        """Remove an item that still waits; does nothing for one that was taken."""
        with self._changed:
            self._high = [each for each in self._high if each[2] != item]
            heapq.heapify(self._high)
            if item in self._low:
                self._low.remove(item)

    @property
    def urgent(self) -> int:
        """How many items of high priority wait."""
        return len(self._high)

    @property
    def patient(self) -> int:
        """How many items of low priority wait."""
        return len(self._low)

    def overdue(self, seconds: float) -> bool:
        """Whether an item of high priority waits whose deadline was so long ago."""
        with self._changed:
            return bool(self._high) and self._high[0][0] < time.monotonic() - seconds

    def overloaded(self) -> bool:
        """Whether an item of high priority waits for which there is no place."""
        with self._changed:
            return len(self._high) > self.places

    def close(self) -> list[T]:
        """Let every thread go once no item of high priority is left; return the items of low priority."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            dropped, self._low = list(self._low), deque()
            return dropped


class _Work(Generic[T]):
    """One piece of work, from the time it is asked for to its result."""

    def __init__(
        self,
        begin: Callable[[Engine, DecodeOptions, IsCancelled], Inference[T]],
        options: DecodeOptions,
        is_cancelled: IsCancelled,
        kind: Kind,
        seconds: float,
    ) -> None:
        self.kind = kind
        self.seconds = seconds  # of sound
        self.future: Future[Timed[T]] = Future()
        self.options = options
        self._begin = begin
        self._is_cancelled = is_cancelled
        self.submitted = time.monotonic()
        self.begun = 0.0
        self.inference: Inference[T] | None = None

    def begin(self, engine: Engine, beam: int) -> None:
        self.begun = time.monotonic()
        self.options = replace(self.options, beam=self.options.beam or beam)
        self.inference = self._begin(engine, self.options, self._is_cancelled)

    def end(self) -> None:
        assert self.inference is not None
        try:
            value = self.inference.result()
        except BaseException as error:
            self.future.set_exception(error)
        else:
            queued, took = self.begun - self.submitted, time.monotonic() - self.begun
            self.future.set_result(Timed(value, queued * 1000, took * 1000, self.options.beam or 1))


class _Worker:
    """One thread and its engine. It begins to take work when it is told of the `workload` of all."""

    def __init__(self, name: str, engine: Engine, threads: int, queue: TwoPriorityQueue[_Work[Any]]) -> None:
        self._engine = engine
        self._threads = threads
        self._queue = queue
        self._running: list[_Work[Any]] = []
        self._outcome = threading.Lock()  # held by whoever ends what is running: this thread, or `dismiss`
        self._dismissed = False
        self._costs = Costs(0.0)
        self._step_number = 0  # the first one is the trial
        self._step_limit: float | None = START_SECONDS  # None while there is nothing to do
        self._watched = 0, 0.0  # the number of a step, and how long it has been seen
        self.tried: Future[Costs] = _uncancellable()
        self.workload: Future[Workload | None] = _uncancellable()
        self.thread = threading.Thread(target=self._run, name=name, daemon=True)
        self.thread.start()

    def watch(self, seconds: float) -> None:
        """Note that so much more time has passed."""
        self._watched = self._step_number, self._at_step + seconds

    @property
    def _at_step(self) -> float:
        number, seconds = self._watched
        at_work = self._step_limit is not None or not self.thread.is_alive()
        return seconds if at_work and number == self._step_number else 0.0

    @property
    def hangs(self) -> bool:
        """Whether it has been at one step for too long, or has ended."""
        return self._at_step > (self._step_limit or HANG_SECONDS)

    def trouble(self) -> str | None:
        """Return one sentence when it may hang, or is new and has not been tried yet."""
        name, seconds = self.thread.name, self._at_step
        if not self.tried.done():
            return f"another worker {name} begins, as the one before hung"
        if error := self.tried.exception():
            return f"worker {name} cannot begin: {type(error).__name__}: {error}"
        if seconds > (self._step_limit or HANG_SECONDS) / 2:
            return f"worker {name} has been at one step of its work for {seconds:.0f} s"
        return None

    def _run(self) -> None:
        try:
            self._engine.use_threads(self._threads)
            self._costs = try_out(self._engine)
        except BaseException as error:
            self._step_limit = None
            self.tried.set_exception(error)
            return
        self._step_limit = None
        self.tried.set_result(self._costs)
        workload = self.workload.result()
        while workload and self._step(workload):
            pass

    def _step(self, workload: Workload) -> bool:
        """Do a piece of what there is to do; wait if there is nothing. False at the end of all work."""
        try:
            self._step_limit = None
            if not self._take(workload):
                return False
            longest = STEP_SECONDS if self._engine.batch > 1 else float("inf")
            self._step_number += 1
            sound = sum(min(work.seconds, longest) for work in self._running)
            self._step_limit = HANG_SECONDS + HANG_FACTOR * self._costs.alone * sound
            began = time.monotonic()
            self._engine.advance([work.inference for work in self._running if work.inference])
        except BaseException as error:  # the thread has to go on, whatever an engine raises
            log.exception("worker %s failed; it goes on", self.thread.name)
            self._fail(f"the worker failed with {type(error).__name__}: {error}")
            return not self._dismissed
        weights = Counter[Kind]()
        for work in self._running:
            weights[work.kind] += work.options.beam or 1
        workload.worked(time.monotonic() - began, weights)
        with self._outcome:
            for work in [work for work in self._running if work.inference and work.inference.done]:
                self._running.remove(work)
                self._queue.free()
                work.end()
        return not self._dismissed

    def _fail(self, why: str) -> None:
        with self._outcome:
            for work in self._running:
                self._queue.free()
                work.future.set_exception(ProcessorError(why))
            self._running.clear()

    def replacement(self) -> "_Worker":
        """Give up this worker, which hangs, and start another one; raises what the engine raises."""
        engine = self._engine.fresh()  # a replica may wait for the same threads
        self._dismissed = True
        self._fail("the worker hung, and another one took its place")
        return _Worker(self.thread.name, engine, self._threads, self._queue)

    def _take(self, workload: Workload) -> bool:
        """Begin what waits and has a place; wait if there is nothing to do. False at the end of all work."""
        while len(self._running) < self._engine.batch:
            drafts = sum(work.kind is Kind.DRAFT for work in self._running)
            work = self._queue.get(wait=not self._running, low=drafts < self._engine.batch / 2)
            if work is None:
                break
            if not work.future.set_running_or_notify_cancel():
                self._queue.free()
                continue
            beam = self._beam(work, workload.share(Kind.LIVE, Kind.DRAFT))
            self._running.append(work)
            work.begin(self._engine, beam)
            if not self._queue.urgent:  # one draft a step: each is encoded first, for which the others wait
                break
        return bool(self._running)

    def _beam(self, work: _Work[Any], load: float) -> int:
        if work.kind is not Kind.LIVE:
            hurried = any(each.kind is Kind.LIVE for each in self._running) or self._queue.urgent > self._engine.batch
            return 1 if hurried else self._engine.beam
        if load > BUSY_LOAD:
            return 1
        alone = not self._running and not self._queue.urgent
        return self._engine.beam if alone and load < IDLE_LOAD else min(SMALL_BEAM, self._engine.beam)


class _Crew:
    """Some workers, and the queue of what they do."""

    def __init__(self, engine: Engine, workers: int, threads: int) -> None:
        """Take an engine with which nothing was computed."""
        engines = [engine, *(engine.replica() for _ in range(1, workers))]
        self.size = workers, threads
        self.queue: TwoPriorityQueue[_Work[Any]] = TwoPriorityQueue(sum(each.batch for each in engines))
        self.workers = [_Worker(f"whisper-{n}", each, threads, self.queue) for n, each in enumerate(engines)]

    async def tried(self) -> list[Costs]:
        """Wait until every worker has made its trial; raises what an engine raises."""
        return await asyncio.gather(*(asyncio.wrap_future(worker.tried) for worker in self.workers))

    def begin(self, workload: Workload | None) -> None:
        """Have the workers take work; without a workload they end."""
        for worker in self.workers:
            if not worker.workload.done():
                worker.workload.set_result(workload)

    def watch(self, seconds: float, workload: Workload) -> None:
        """Put new workers into the places of those that hang; raises what an engine raises."""
        for number, worker in enumerate(self.workers):
            worker.watch(seconds)
            if worker.hangs:
                log.error("%s; another one takes its place", worker.trouble())
                self.workers[number] = worker.replacement()
                self.begin(workload)

    async def stop(self) -> None:
        for work in self.queue.close():
            work.future.cancel()
        self.begin(None)
        deadline = time.monotonic() + STOP_SECONDS
        for worker in self.workers:
            await asyncio.to_thread(worker.thread.join, max(0.0, deadline - time.monotonic()))
        self.workers.clear()  # and their engines with them


class Scheduler:
    """`workers` threads, whose engines compute with `threads` CPU threads each.

    Jobs are treated fairly because each has one segment, or one draft, in the queue at a time. Drafts may starve;
    transcriptions never do.
    """

    def __init__(self, workers: int, threads: int, others: Sequence[tuple[int, int]] = ()) -> None:
        """`others` are numbers of workers and threads to try as well; that with which most streams fit is taken."""
        self._sizes = ((workers, threads), *others)
        self._crew: _Crew | None = None
        self._stopping = threading.Event()
        self._watching: threading.Thread | None = None
        self._continues = False
        self.costs: tuple[Costs, ...] = ()
        """What each worker's trial found."""
        self.workload = Workload([Costs(0.0)])
        """What the workers do; of use when they have been started."""

    @property
    def size(self) -> tuple[int, int]:
        """The number of workers, and of CPU threads in each."""
        return self._crew.size if self._crew else self._sizes[0]

    @property
    def late(self) -> bool:
        """Whether live text waits for so long that no more should be taken."""
        return self.workload.late or (self._crew is not None and self._crew.queue.overdue(LATE_SECONDS))

    @property
    def may_draft(self) -> bool:
        """Whether there is time for a draft. None waits then, so that drafts are of the newest sound."""
        waits = self._crew is not None and self._crew.queue.patient
        return not waits and self.workload.share(Kind.LIVE, Kind.DRAFT) < DRAFT_SHARE

    async def start(self, load: Callable[[], Engine]) -> Engine:
        """Load the model in a thread, start the workers, and wait until each has made its trial.

        Raises what `load` and the engine raise.
        """
        engine = await asyncio.wrap_future(_in_thread(load, "whisper-load"))
        self._continues = engine.continues
        began = time.monotonic()
        self._crew = _Crew(engine, *self._sizes[0])
        costs = await self._crew.tried()
        took, deadline = time.monotonic() - began, time.monotonic() + TRIAL_SECONDS
        for size in self._sizes[1:]:
            began = time.monotonic()
            if began + took > deadline:
                break
            other = _Crew(engine.fresh(), *size)
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
        """Whether to use `DecodeOptions.before` now: the engine does, and has time or was told what beam to use."""
        busy = options.beam is None and self.workload.share(Kind.LIVE, Kind.DRAFT) > IDLE_LOAD
        return self._continues and not busy

    async def transcribe(self, samples: Samples, options: DecodeOptions, *, live: bool = False) -> Timed[Transcription]:
        """Have a worker transcribe; raises what the engine raises. Cancelling this cancels the work.

        `live` speech goes before recordings.
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
        """Let every worker end after the transcriptions that wait, and wait for it; drafts are cancelled.

        Python aborts a process that ends while a daemon thread is in torch, be it only to free its tensors.
        """
        self._stopping.set()
        if self._watching is not None:
            await asyncio.to_thread(self._watching.join, STOP_SECONDS)
        if self._crew is not None:
            await self._crew.stop()

    def _watch(self, crew: _Crew) -> None:
        while not self._stopping.wait(WATCH_SECONDS):
            try:
                crew.watch(WATCH_SECONDS, self.workload)
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
        work = _Work(begin, options, lambda: abandoned.is_set() or (low and queue.overloaded()), kind, seconds)
        deadline = work.submitted + (0.0 if kind is Kind.LIVE else PATIENCE_SECONDS)
        if not queue.put(work, deadline, low=low):
            raise ProcessorError("the workers have been stopped")
        try:
            return await asyncio.wrap_future(work.future)
        finally:
            abandoned.set()
            queue.remove(work)  # frees its sound, if it still waits: drafts may wait for long


def _in_thread(function: Callable[[], T], name: str) -> Future[T]:
    """Run a function in a daemon thread, which cannot keep the process from exiting as an executor's would."""
    future: Future[T] = _uncancellable()

    def run() -> None:
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name=name, daemon=True).start()
    return future


def _uncancellable() -> Future[Any]:
    """Return a future for work that goes on to its end, though nobody may wait for that any more."""
    future: Future[Any] = Future()
    future.set_running_or_notify_cancel()
    return future
