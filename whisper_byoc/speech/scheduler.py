"""Worker threads: each owns an engine and takes the oldest work from one queue; drafts only when nothing else waits.

Work that nobody waits for any more is broken off, and so is a draft when something else has no free worker.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from whisper_byoc.errors import ProcessorError
from whisper_byoc.speech.engine import DecodeOptions, Draft, Engine
from whisper_byoc.speech.lanes import Lanes
from whisper_byoc.speech.transcript import Transcription

__all__ = ["Scheduler", "Timed"]

T = TypeVar("T")

STUCK_SECONDS = 300.0
"""A worker that has been at one piece of sound for so long is taken to be stuck."""


@dataclass(frozen=True)
class Timed(Generic[T]):
    """What an engine gave, and what it cost, in milliseconds."""

    value: T
    queue_ms: float
    inference_ms: float


@dataclass(frozen=True, eq=False)
class Work:
    """One call of an engine that waits for a worker."""

    call: Callable[[Engine, Callable[[], bool]], Any]
    """Takes the engine, and what tells it when to break off."""
    future: Future[Timed[Any]]
    dropped: Callable[[], bool]
    submitted: float = field(default_factory=time.monotonic)


class Scheduler:
    """`workers` threads, each with `threads` torch threads. First come, first served.

    Fairness between jobs follows from the core, which has one segment of each job at work at a time, and from live
    jobs, which have one draft at a time. Drafts may starve; transcriptions never do.
    """

    def __init__(self, workers: int, threads: int) -> None:
        self._workers = workers
        self._threads = threads
        self._queue: Lanes[Work] = Lanes()
        self._busy_since: dict[str, float] = {}

    async def start(self, load: Callable[[], Engine]) -> Engine:
        """Load the model in a thread, start the workers, and wait until each has made one inference.

        Raises what `load` raises.
        """
        engine = await in_thread(load, "whisper-load")
        engines = [engine, *(engine.replica() for _ in range(1, self._workers))]  # before one of them works
        ready: list[Future[None]] = []
        for number, mine in enumerate(engines):
            warm: Future[None] = Future()
            ready.append(warm)
            thread = threading.Thread(target=self._run, args=(mine, warm), name=f"whisper-{number}", daemon=True)
            thread.start()  # a daemon, so that a worker that hangs cannot keep the process from exiting
        await asyncio.gather(*(asyncio.wrap_future(each) for each in ready))
        return engine

    async def transcribe(self, samples: NDArray[np.float32], options: DecodeOptions) -> Timed[Transcription]:
        """Have a worker transcribe 16 kHz mono float32 samples (n,); what the engine raises comes out here.

        Cancelling takes the work out of the queue, or breaks it off.
        """
        return await self._do(lambda engine, dropped: engine.transcribe(samples, options, dropped))

    async def draft(self, samples: NDArray[np.float32], options: DecodeOptions) -> Timed[Draft]:
        """Have a worker draft an utterance that is still going on, when it has nothing better to do.

        Raises `Dropped` when something better came.
        """
        return await self._do(lambda engine, dropped: engine.draft(samples, options, dropped), may_wait=True)

    async def language_of(self, samples: NDArray[np.float32]) -> tuple[str, float]:
        """Have a worker name the language of samples, and its probability."""
        return (await self._do(lambda engine, _: engine.language_of(samples))).value

    def trouble(self) -> str | None:
        """One sentence when a worker is stuck, else None."""
        now = time.monotonic()
        for name, since in list(self._busy_since.items()):
            if now - since > STUCK_SECONDS:
                return f"worker {name} has been at one segment for {now - since:.0f} s"
        return None

    def stop(self) -> None:
        """Let every worker go after the work it has; drafts are cancelled."""
        for work in self._queue.close():
            work.future.cancel()

    async def _do(self, call: Callable[[Engine, Callable[[], bool]], T], *, may_wait: bool = False) -> Timed[T]:
        left = threading.Event()  # set when nobody waits for it any more
        work = Work(call, Future(), lambda: left.is_set() or (may_wait and self._queue.urgent))
        if not self._queue.put(work, may_wait=may_wait):
            raise ProcessorError("the workers have been stopped")
        try:
            return await asyncio.wrap_future(work.future)
        finally:
            left.set()
            self._queue.take_back(work)  # its sound, if it still waits: drafts may wait for long

    def _run(self, engine: Engine, warm: Future[None]) -> None:
        import torch

        name = threading.current_thread().name
        torch.set_num_threads(self._threads)  # OpenMP keeps this per thread
        try:
            warm_up(engine)
        except BaseException as error:
            warm.set_exception(error)
            return
        warm.set_result(None)
        while (work := self._queue.get()) is not None:
            if not work.future.set_running_or_notify_cancel():
                continue
            self._busy_since[name] = began = time.monotonic()
            try:
                value = work.call(engine, work.dropped)
            except BaseException as error:
                work.future.set_exception(error)
            else:
                queued, took = began - work.submitted, time.monotonic() - began
                work.future.set_result(Timed(value, queued * 1000, took * 1000))
            finally:
                del self._busy_since[name]


def warm_up(engine: Engine) -> None:
    """Make one inference of each kind on faint noise, so that the first user does not wait for lazy initialisation."""
    noise = np.random.default_rng(0).standard_normal(16_000).astype(np.float32) * np.float32(1e-3)
    engine.transcribe(noise, DecodeOptions())
    engine.draft(noise, DecodeOptions())


def in_thread(function: Callable[[], T], name: str) -> asyncio.Future[T]:
    """Run a function in a daemon thread, which cannot keep the process from exiting as an executor's would."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name=name, daemon=True).start()
    return asyncio.wrap_future(future)
