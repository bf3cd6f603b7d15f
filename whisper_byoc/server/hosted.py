"""Serving somebody else's processor: the server in a thread of its own, the processor on its author's event loop.

A `process` that blocks (a loop over every byte, a model called directly) then delays its own frames and nothing else:
the server goes on reading, answering `/health`, keeping time limits and draining.
"""

import asyncio
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from whisper_byoc.processors.base import Processor
from whisper_byoc.server.core.limits import Limits
from whisper_byoc.server.run import LOG_FORMAT, ServerConfig, check_processor, serve

log = logging.getLogger("whisper_byoc.server")

UNBLOCK_SECONDS = 5.0
"""After the server's end: longest wait for an event loop that its processor blocks."""


async def run_processor(
    processor: Processor,
    host: str = "0.0.0.0",
    port: int = 8000,
    *,
    name: str | None = None,
    limits: Limits | None = None,
) -> None:
    """Serve one processor until SIGTERM, SIGINT or cancellation.

    `processor` is any object with `async process(frame: bytes) -> bytes`; all of its code runs on the running event
    loop. Raises `StartError` when the port is in use or the processor does not initialize.
    """
    if not logging.getLogger().handlers:
        logging.basicConfig(level=logging.INFO, format=LOG_FORMAT)
    name = name or type(processor).__name__
    check_processor(name, processor)
    config = ServerConfig(host, port, limits or Limits())
    home = asyncio.get_running_loop()
    over: asyncio.Future[None] = home.create_future()
    started = threading.Event()
    stops: list[Callable[[], object]] = []

    async def body() -> None:
        stop, loop = asyncio.Event(), asyncio.get_running_loop()
        stops.append(lambda: loop.call_soon_threadsafe(stop.set))
        started.set()
        await serve({name: processor}, config, stop, home)

    def run() -> None:
        error: BaseException | None = None
        try:
            asyncio.run(body())
        except BaseException as caught:
            error = caught
        started.set()
        noticed = threading.Event()
        home.call_soon_threadsafe(_finish, over, error, noticed)
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

    with _first_signal_calls(stop):
        try:
            await asyncio.shield(over)
        except asyncio.CancelledError:
            stop()
            await over
            raise


def _finish(over: asyncio.Future[None], error: BaseException | None, noticed: threading.Event) -> None:
    noticed.set()
    if error is None:
        over.set_result(None)
    else:
        over.set_exception(error)


@contextmanager
def _first_signal_calls(stop: Callable[[], None]) -> Iterator[None]:
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
