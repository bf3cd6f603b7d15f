"""The worker threads of a model: each has an engine, and takes the oldest work from one queue.

Drafts wait for transcriptions: a worker drafts only while no transcription waits, and stops drafting when one has no
free worker. Work whose result nobody waits for any more is cancelled.
"""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import numpy as np

from whisper_byoc.aio import STUCK_SECONDS
from whisper_byoc.errors import ProcessorError
from whisper_byoc.speech.engine import DecodeOptions, Draft, Engine, IsCancelled, Samples
from whisper_byoc.speech.transcript import Transcription

T = TypeVar("T")

STOP_SECONDS = 3.0
"""Longest wait for the workers to end."""


@dataclass(frozen=True)
class Timed(Generic[T]):
    """What an engine returned, and how long the work waited and ran, in milliseconds."""

    value: T
    queue_ms: float
    inference_ms: float


class TwoPriorityQueue(Generic[T]):
    """A queue between threads; an item of low priority is taken only when none of high priority waits."""

    def __init__(self) -> None:
        self._high: deque[T] = deque()
        self._low: deque[T] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self.idle = 0
        """Threads that wait in `get`."""

    def put(self, item: T, *, low: bool = False) -> bool:
        """Add an item, of high priority by default; return False when the queue was closed."""
        with self._changed:
            if not self._closed:
                (self._low if low else self._high).append(item)
                self._changed.notify()
            return not self._closed

    def get(self) -> T | None:
        """Wait for the next item; None when the queue was closed and no item of high priority is left."""
        with self._changed:
            while not self._high and not self._low and not self._closed:
                self.idle += 1
                self._changed.wait()
                self.idle -= 1
            if self._high:
                return self._high.popleft()
            return None if self._closed else self._low.popleft()

    def remove(self, item: T) -> None:
        """Remove an item that still waits; does nothing for one that was taken."""
        with self._changed:
            for items in (self._high, self._low):
                if item in items:
                    items.remove(item)

    def overloaded(self) -> bool:
        """Whether an item of high priority waits for which no thread is free."""
        with self._changed:
            return len(self._high) > self.idle

    def close(self) -> list[T]:
        """Let every thread go once no item of high priority is left; return the items of low priority."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            dropped, self._low = list(self._low), deque()
            return dropped


@dataclass(frozen=True, eq=False)
class _Work:
    call: Callable[[Engine, IsCancelled], Any]
    future: Future[Timed[Any]]
    is_cancelled: IsCancelled
    submitted: float = field(default_factory=time.monotonic)


class Scheduler:
    """`workers` threads, whose engines compute with `threads` CPU threads each. First come, first served.

    Jobs are treated fairly because each has one segment, or one draft, in the queue at a time. Drafts may starve;
    transcriptions never do.
    """

    def __init__(self, workers: int, threads: int) -> None:
        self._workers = workers
        self._threads = threads
        self._queue: TwoPriorityQueue[_Work] = TwoPriorityQueue()
        self._busy_since: dict[str, float] = {}
        self._running: list[threading.Thread] = []

    @property
    def idle(self) -> int:
        return self._queue.idle

    async def start(self, load: Callable[[], Engine]) -> Engine:
        """Load the model in a thread, start the workers, and wait until each has made its first inference.

        Raises what `load` and the engine raise.
        """
        engine = await asyncio.wrap_future(_in_thread(load, "whisper-load"))
        engines = [engine, *(engine.replica() for _ in range(1, self._workers))]  # before one of them works
        warm: list[Future[None]] = [Future() for _ in engines]
        for number, each in enumerate(engines):
            worker = threading.Thread(
                target=self._run, args=(each, warm[number]), name=f"whisper-{number}", daemon=True
            )
            worker.start()
            self._running.append(worker)
        await asyncio.gather(*map(asyncio.wrap_future, warm))
        return engine

    async def transcribe(self, samples: Samples, options: DecodeOptions) -> Timed[Transcription]:
        """Have a worker transcribe; raises what the engine raises. Cancelling this cancels the work."""
        return await self._do(lambda engine, is_cancelled: engine.transcribe(samples, options, is_cancelled))

    async def draft(self, samples: Samples, options: DecodeOptions) -> Timed[Draft]:
        """Have a worker draft while no transcription waits; raises `Cancelled` when one needs the worker."""
        return await self._do(lambda engine, is_cancelled: engine.draft(samples, options, is_cancelled), low=True)

    async def detect_language(self, samples: Samples) -> tuple[str, float]:
        """Have a worker detect the language; return its code and probability."""
        return (await self._do(lambda engine, _: engine.detect_language(samples))).value

    def trouble(self) -> str | None:
        """One sentence when a worker is stuck, else None."""
        now = time.monotonic()
        for name, since in list(self._busy_since.items()):
            if now - since > STUCK_SECONDS:
                return f"worker {name} has been at one segment for {now - since:.0f} s"
        return None

    async def stop(self) -> None:
        """Let every worker end after the transcriptions that wait, and wait for it; drafts are cancelled.

        Python aborts a process that ends while a daemon thread is in torch, be it only to free its tensors.
        """
        for work in self._queue.close():
            work.future.cancel()
        deadline = time.monotonic() + STOP_SECONDS
        for worker in self._running:
            await asyncio.to_thread(worker.join, max(0.0, deadline - time.monotonic()))

    async def _do(self, call: Callable[[Engine, IsCancelled], T], *, low: bool = False) -> Timed[T]:
        abandoned = threading.Event()
        work = _Work(call, Future(), lambda: abandoned.is_set() or (low and self._queue.overloaded()))
        if not self._queue.put(work, low=low):
            raise ProcessorError("the workers have been stopped")
        try:
            return await asyncio.wrap_future(work.future)
        finally:
            abandoned.set()
            self._queue.remove(work)  # frees its sound, if it still waits: drafts may wait for long

    def _run(self, engine: Engine, warm: Future[None]) -> None:
        name = threading.current_thread().name
        try:
            engine.use_threads(self._threads)
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
                value = work.call(engine, work.is_cancelled)
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


def _in_thread(function: Callable[[], T], name: str) -> Future[T]:
    """Run a function in a daemon thread, which cannot keep the process from exiting as an executor's would."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name=name, daemon=True).start()
    return future
