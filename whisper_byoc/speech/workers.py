"""The worker threads of a model: each has an engine, and makes steps of several inferences at once.

A worker that hangs, or whose thread has ended, is replaced; its work fails.
"""

import asyncio
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from whisper_byoc.aio import STOP_SECONDS
from whisper_byoc.errors import ProcessorError
from whisper_byoc.speech.capacity import Costs, Kind, Workload, try_out
from whisper_byoc.speech.engine import DecodeOptions, Engine, Inference, IsCancelled
from whisper_byoc.speech.step_watch import StepWatch
from whisper_byoc.speech.work_queue import TwoPriorityQueue

log = logging.getLogger(__name__)

T = TypeVar("T")

SMALL_BEAM = 2
"""For live speech that is not alone: finds half of what a beam of 5 does, for a fifth more time than no beam."""
IDLE_LOAD = 0.25
"""When live text and drafts take a larger share of the workers' time, live text continues no previous sentence, and is
decoded with a beam of at most `SMALL_BEAM` …"""
BUSY_LOAD = 0.4
"""… and from this share on, without a beam."""
HANG_SECONDS = 10.0
"""A worker hangs when one step takes longer than this and …"""
HANG_FACTOR = 20.0
"""… this many times what its sound costs: the trial was of one text, on a machine that may have been idle."""
START_SECONDS = 120.0
"""The same for a new worker, which compiles its graphs and runs its trial."""
STEP_SECONDS = 30.0
"""Longest sound of one inference in one step, if the engine works in steps: Whisper's window; otherwise all of it."""


@dataclass(frozen=True)
class Timed(Generic[T]):
    """What an engine returned, and how long the work waited and ran, in milliseconds."""

    value: T
    queue_ms: float
    inference_ms: float
    beam: int = 1
    """How many texts were followed at once."""


class Work(Generic[T]):
    """One piece of work, from its request to its result."""

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


class Worker:
    """One thread and its engine. It begins to take work once it is given the common `workload`."""

    def __init__(self, name: str, engine: Engine, threads: int, queue: TwoPriorityQueue[Work[Any]]) -> None:
        self._engine = engine
        self._threads = threads
        self._queue = queue
        self._running: list[Work[Any]] = []
        self._outcome = threading.Lock()  # held while ending what is running, by this thread or `replacement`
        self._dismissed = False
        self._costs = Costs(0.0)
        self.steps = StepWatch()
        """Of its thread."""
        self.steps.begin(START_SECONDS)
        self.tried: Future[Costs] = _uncancellable()
        self.workload: Future[Workload | None] = _uncancellable()
        self.thread = threading.Thread(target=self._run, name=name, daemon=True)
        self.thread.start()

    def trouble(self) -> str | None:
        """Return one sentence when it may hang, or is new and has not finished its trial."""
        name = self.thread.name
        if not self.tried.done():
            return f"another worker {name} begins, as the one before hung"
        if error := self.tried.exception():
            return f"worker {name} cannot begin: {type(error).__name__}: {error}"
        if self.steps.exceeds(1 / 2):
            return f"worker {name} has been at one step of its work for {self.steps.seconds:.0f} s"
        return None

    def _run(self) -> None:
        try:
            self._engine.use_threads(self._threads)
            self._costs = try_out(self._engine)
        except BaseException as error:
            self.tried.set_exception(error)
        else:
            self.steps.begin(None)
            self.tried.set_result(self._costs)
            workload = self.workload.result()
            while workload and self._step(workload):
                pass
        finally:
            self.steps.begin(HANG_SECONDS)  # a thread that has ended is replaced like one that hangs

    def _step(self, workload: Workload) -> bool:
        """Do a step of the work there is; wait if there is none. Return False at the end of all work."""
        try:
            self.steps.begin(None)
            if not self._take(workload):
                return False
            longest = STEP_SECONDS if self._engine.batch > 1 else float("inf")
            sound = sum(min(work.seconds, longest) for work in self._running)
            self.steps.begin(HANG_SECONDS + HANG_FACTOR * self._costs.alone * sound)
            began = time.monotonic()
            self._engine.advance([work.inference for work in self._running if work.inference])
        except BaseException as error:  # the thread must go on, whatever an engine raises
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

    def replacement(self) -> "Worker":
        """Give up this worker, which hangs, and start another; raises what the engine raises."""
        engine = self._engine.fresh()  # a replica may wait for the same threads
        self._dismissed = True
        self._fail("the worker hung, and another one took its place")
        return Worker(self.thread.name, engine, self._threads, self._queue)

    def _take(self, workload: Workload) -> bool:
        """Begin waiting work that has a place; wait if there is nothing to do. Return False at the end of all work."""
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
            if not self._queue.urgent:  # one draft per step: each is encoded first, while the others wait
                break
        return bool(self._running)

    def _beam(self, work: Work[Any], load: float) -> int:
        if work.kind is not Kind.LIVE:
            hurried = any(each.kind is Kind.LIVE for each in self._running) or self._queue.urgent > self._engine.batch
            return 1 if hurried else self._engine.beam
        if load > BUSY_LOAD:
            return 1
        alone = not self._running and not self._queue.urgent
        return self._engine.beam if alone and load < IDLE_LOAD else min(SMALL_BEAM, self._engine.beam)


class Crew:
    """Several workers, and the queue of their work."""

    def __init__(self, engine: Engine, workers: int, threads: int) -> None:
        """Take an engine that has not computed anything yet."""
        engines = [engine, *(engine.replica() for _ in range(1, workers))]
        self.size = workers, threads
        self.queue: TwoPriorityQueue[Work[Any]] = TwoPriorityQueue(sum(each.batch for each in engines))
        self.workers = [Worker(f"whisper-{n}", each, threads, self.queue) for n, each in enumerate(engines)]

    async def tried(self) -> list[Costs]:
        """Wait until every worker has finished its trial; raises what an engine raises."""
        return await asyncio.gather(*(asyncio.wrap_future(worker.tried) for worker in self.workers))

    def begin(self, workload: Workload | None) -> None:
        """Have the workers take work; without a workload, they end."""
        for worker in self.workers:
            if not worker.workload.done():
                worker.workload.set_result(workload)

    def watch(self, workload: Workload) -> None:
        """Replace workers that hang or have ended; raises what an engine raises."""
        for number, worker in enumerate(self.workers):
            worker.steps.look()
            if worker.steps.exceeds():
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


def _uncancellable() -> Future[Any]:
    """Return a future for work that runs to its end even if nobody waits for it any more."""
    future: Future[Any] = Future()
    future.set_running_or_notify_cancel()
    return future
