"""Waiting, cancelling and owning tasks: what asyncio leaves to its users."""

import asyncio
import concurrent.futures
import inspect
import logging
import os
import random
import signal
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from typing import Any, TypeVar

log = logging.getLogger(__name__)

T = TypeVar("T")

STOP_SECONDS = 3.0
"""Longest wait for our own threads to end."""


class Changed:
    """Wakes all waiters each time something has changed.

    Unlike `asyncio.Condition` it needs no lock, and `notify` creates no task.
    """

    __slots__ = ("_waiters",)

    def __init__(self) -> None:
        self._waiters: set[asyncio.Future[None]] = set()

    def notify(self) -> None:
        """Wake everyone waiting now."""
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def wait(self, timeout: float | None = None) -> bool:
        """Wait for the next `notify`; return False when `timeout` seconds passed first."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.add(waiter)
        try:
            await asyncio.wait((waiter,), timeout=timeout)
        finally:
            self._waiters.discard(waiter)
        return waiter.done()

    async def until(self, condition: Callable[[], bool], timeout: float | None = None) -> bool:
        """Wait until `condition()` holds; return False when `timeout` seconds passed first."""
        loop = asyncio.get_running_loop()
        deadline = None if timeout is None else loop.time() + timeout
        while not condition():
            left = None if deadline is None else deadline - loop.time()
            if left is not None and left <= 0:
                return False
            await self.wait(left)
        return True


class Alarm:
    """Calls `ring` once the given number of seconds has passed since it was last set.

    For alarms that are set ten times a second and hardly ever ring: setting one again starts no new timer; the running
    timer checks the latest deadline when it expires.
    """

    __slots__ = ("_due", "_ring", "_timer")

    def __init__(self, ring: Callable[[], None]) -> None:
        self._ring = ring
        self._due: float | None = None
        self._timer: asyncio.TimerHandle | None = None

    def set(self, seconds: float) -> None:
        """Ring in `seconds` from now, replacing any earlier deadline."""
        loop = asyncio.get_running_loop()
        self._due = loop.time() + seconds
        if self._timer is not None and self._timer.when() > self._due:
            self._timer.cancel()
            self._timer = None
        if self._timer is None:
            self._timer = loop.call_at(self._due, self._look)

    def clear(self) -> None:
        """Cancel the deadline."""
        self._due = None

    def _look(self) -> None:
        loop, due = asyncio.get_running_loop(), self._due
        self._timer = None
        if due is None:
            return
        if loop.time() < due:
            self._timer = loop.call_at(due, self._look)
        else:
            self._due = None
            self._ring()


async def first_of(*futures: asyncio.Future[Any], timeout: float | None = None) -> bool:
    """Wait until one of the futures is done; return False when `timeout` seconds passed first.

    No future is cancelled and no result is retrieved: both are up to the owner of the futures.
    """
    loop = asyncio.get_running_loop()
    woken: asyncio.Future[None] = loop.create_future()

    def wake(_: object = None) -> None:
        if not woken.done():
            woken.set_result(None)

    for future in futures:
        future.add_done_callback(wake)
    timer = None if timeout is None else loop.call_later(timeout, wake)
    try:
        await woken  # `asyncio.wait` does the same at twice the cost
    finally:
        if timer is not None:
            timer.cancel()
        for future in futures:
            future.remove_done_callback(wake)
    return any(future.done() for future in futures)


async def cancel(*futures: asyncio.Future[Any]) -> None:
    """Cancel tasks that are no longer needed, and wait until they have ended. Their errors are dropped."""
    for future in futures:
        future.cancel()
    if futures:
        await asyncio.wait(futures)
    for future in futures:
        if not future.cancelled():
            future.exception()  # marks it as retrieved


async def race(*work: Coroutine[Any, Any, T]) -> T:
    """Run coroutines until the first one ends, cancel the others, and return or raise what it did."""
    tasks = [asyncio.ensure_future(each) for each in work]
    try:
        await first_of(*tasks)
        return next(task.result() for task in tasks if task.done())
    finally:
        await cancel(*tasks)


async def in_daemon_thread(function: Callable[..., T], *arguments: object, name: str = "") -> T:
    """Call a function that may block for ever; unlike `asyncio.to_thread`, it cannot keep the program from ending."""
    outcome: concurrent.futures.Future[T] = concurrent.futures.Future()
    outcome.set_running_or_notify_cancel()  # a caller that stops waiting does not cancel it

    def call() -> None:
        try:
            outcome.set_result(function(*arguments))
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=call, name=name or function.__name__, daemon=True).start()
    return await asyncio.wrap_future(outcome)


class Tasks:
    """Background tasks that outlive the call that started them: each runs to its end, or until `close`."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def __len__(self) -> int:
        return len(self._tasks)

    def start(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run `work` in the background; an exception that it raises is logged."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    async def close(self, grace_seconds: float = 0.0) -> None:
        """Wait `grace_seconds` for the tasks to end, then cancel the rest."""
        if self._tasks and grace_seconds:
            await asyncio.wait(self._tasks, timeout=grace_seconds)
        await cancel(*self._tasks)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a background task failed", exc_info=error)


async def stop_listening(listener: asyncio.Server) -> None:
    """Close a listener, but first let every accepted socket become a connection of its protocol.

    `close` alone drops a connection whose transport has not been created yet, without closing it.
    """
    loop = asyncio.get_running_loop()
    try:
        for each in listener.sockets:
            loop.remove_reader(each)
        for _ in range(2):  # the first turn makes the transport, the second notifies its protocol
            await asyncio.sleep(0)
    finally:
        listener.close()


async def every(seconds: float, action: Callable[[], Awaitable[object] | object], what: str) -> None:
    """Call `action` every `seconds` seconds until cancelled; `what` names it in the log when it raises."""
    while True:
        await asyncio.sleep(seconds)
        try:
            outcome = action()
            if inspect.isawaitable(outcome):
                await outcome
        except Exception:  # one failure must not end what has to run for months
            log.exception("%s failed; the next try is in %g s", what, seconds)


def backoff(first: float, longest: float) -> Iterator[float]:
    """Yield the pauses between attempts, in seconds, doubling from `first` up to `longest`.

    Each is shortened by up to half, at random, so that the many clients of one server do not all return at once.
    """
    chance = random.SystemRandom()
    pause = min(first, longest)
    while True:
        yield chance.uniform(pause / 2, pause)
        pause = min(pause * 2, longest)


def die_of(number: signal.Signals) -> None:
    """Let a signal end the process at once, even as PID 1 of a container, where signals have no default effect."""
    if os.getpid() > 1:
        signal.signal(number, signal.SIG_DFL)
    else:
        signal.signal(number, lambda *_: os._exit(128 + number))


def stop_on_signals(*numbers: signal.Signals, die: bool = True) -> asyncio.Event:
    """Return an event that the first of these signals sets (default: SIGTERM and SIGINT).

    The second signal ends the process at once; without `die`, it has Python's default effect.
    """
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    numbers = numbers or (signal.SIGTERM, signal.SIGINT)

    def on_signal() -> None:
        for number in numbers:
            loop.remove_signal_handler(number)
            if die:
                die_of(number)
        stop.set()

    for number in numbers:
        loop.add_signal_handler(number, on_signal)
    return stop
