"""Serving somebody else's processor: the server in a thread of its own, the processor on its author's event loop.

A `process` that blocks (a loop over every byte, a model called directly) then delays its own frames and nothing else:
the server goes on reading, answering `/health`, keeping time limits and draining.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import signal
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

from whisper_byoc.processors.base import JobInfo, Media, Processor, Result, Session, session_of
from whisper_byoc.server.core.limits import Limits
from whisper_byoc.server.run import LOG_FORMAT, ServerConfig, check_processor, serve

__all__ = ["HostedProcessor", "run_processor"]

log = logging.getLogger("whisper_byoc.server")

T = TypeVar("T")
STUCK_SECONDS = 300.0
UNBLOCK_SECONDS = 5.0


class Caller:
    """Runs coroutines on another thread's event loop, and knows how long each has been at it."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._numbers = itertools.count()
        self._since: dict[int, float] = {}

    async def __call__(self, function: Callable[..., Awaitable[T]], *arguments: Any) -> T:
        """Await `function(*arguments)` over there."""

        async def call() -> T:
            number = next(self._numbers)
            self._since[number] = time.monotonic()
            try:
                return await function(*arguments)
            finally:
                del self._since[number]

        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(call(), self._loop))

    def longest(self) -> float:
        """Seconds for which the oldest unfinished call has been at work."""
        return time.monotonic() - min(list(self._since.values()), default=time.monotonic())


class HostedProcessor:
    """Passes every call on to the processor's own loop."""

    def __init__(self, processor: Processor, loop: asyncio.AbstractEventLoop) -> None:
        self.media: Media = getattr(processor, "media", "bytes")
        self.content_type = str(getattr(processor, "content_type", "application/octet-stream"))
        self._processor = processor
        self._call = Caller(loop)

    async def initialize(self) -> None:
        """Initialize the processor, if it wants that."""
        if (initialize := getattr(self._processor, "initialize", None)) is not None:
            await self._call(initialize)

    async def process(self, frame: bytes) -> bytes:
        """Have one frame processed."""
        return await self._call(self._processor.process, frame)

    def open_session(self, job: JobInfo) -> HostedSession:
        """Open the processor's session, or the plain one."""
        return HostedSession(session_of(self._processor, job), self._call)

    def trouble(self) -> str | None:
        """One sentence when the processor says so itself, or one of its calls hangs."""
        own: Callable[[], str | None] | None = getattr(self._processor, "trouble", None)
        if own is not None and (sentence := own()) is not None:
            return sentence
        longest = self._call.longest()
        return f"the processor has been at one frame for {longest:.0f} s" if longest > STUCK_SECONDS else None

    async def shutdown(self) -> None:
        """Shut the processor down, if it wants that."""
        if (shutdown := getattr(self._processor, "shutdown", None)) is not None:
            await self._call(shutdown)


class HostedSession:
    """One job of a hosted processor."""

    def __init__(self, session: Session, call: Caller) -> None:
        self._session = session
        self._call = call

    async def feed(self, frame: bytes) -> list[Result]:
        """Pass one frame on."""
        return await self._call(self._session.feed, frame)

    async def finish(self) -> list[Result]:
        """Ask for what is held back."""
        return await self._call(self._session.finish)

    def update(self, params: Mapping[str, Any]) -> None:
        """Pass changed parameters on, to a session that takes them."""
        if (update := getattr(self._session, "update", None)) is not None:
            update(params)

    def summary(self) -> Mapping[str, Any]:
        """Fields for the `end` record."""
        return self._session.summary()


async def run_processor(
    processor: Processor,
    host: str = "0.0.0.0",
    port: int = 8000,
    *,
    name: str | None = None,
    limits: Limits | None = None,
) -> None:
    """Serve one processor until SIGTERM, SIGINT or cancellation.

    `processor` is any object with `async process(frame: bytes) -> bytes`. Raises `StartError` when the port is in use
    or the processor does not initialize.
    """
    if not logging.getLogger().handlers:
        logging.basicConfig(level=logging.INFO, format=LOG_FORMAT)
    name = name or type(processor).__name__
    config = ServerConfig(host, port, limits or Limits())
    check_processor(name, processor)
    home = asyncio.get_running_loop()
    hosted = HostedProcessor(processor, home)
    over: asyncio.Future[None] = home.create_future()
    started = threading.Event()
    stops: list[Callable[[], object]] = []

    async def body() -> None:
        stop, loop = asyncio.Event(), asyncio.get_running_loop()
        stops.append(lambda: loop.call_soon_threadsafe(stop.set))
        started.set()
        await serve({name: hosted}, config, stop)

    def run() -> None:
        error: BaseException | None = None
        try:
            asyncio.run(body())
        except BaseException as caught:
            error = caught
        started.set()
        noticed = threading.Event()
        home.call_soon_threadsafe(finish, over, error, noticed)
        if not noticed.wait(UNBLOCK_SECONDS):
            log.error("the processor blocks its event loop and cannot be waited for: exiting without it")
            logging.shutdown()
            os._exit(0 if error is None else 1)

    thread = threading.Thread(target=run, name="whisper-byoc-server", daemon=True)
    thread.start()
    started.wait()

    def stop() -> None:
        for each in stops:
            each()

    with first_signal_calls(stop):
        try:
            await asyncio.shield(over)
        except asyncio.CancelledError:
            stop()
            await over
            raise


def finish(over: asyncio.Future[None], error: BaseException | None, noticed: threading.Event) -> None:
    """Hand the server's end over to the loop of the processor."""
    noticed.set()
    if error is None:
        over.set_result(None)
    else:
        over.set_exception(error)


@contextmanager
def first_signal_calls(stop: Callable[[], None]) -> Iterator[None]:
    """Have the first SIGTERM or SIGINT call `stop`, and a second one do what it usually does.

    By `signal.signal`, which reaches even a thread whose event loop is blocked.
    """
    numbers = (signal.SIGTERM, signal.SIGINT)
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread gets signals; whoever serves from another one stops by cancelling
        return
    before = {number: signal.getsignal(number) for number in numbers}

    def on_signal(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        stop()

    for number in numbers:
        signal.signal(number, on_signal)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
