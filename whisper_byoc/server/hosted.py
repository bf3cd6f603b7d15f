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
from concurrent.futures import Future
from contextlib import contextmanager

from whisper_byoc.processors.base import Processor
from whisper_byoc.server.core.limits import Limits
from whisper_byoc.server.run import LOG_FORMAT, ServerConfig, serve

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
    config = ServerConfig(host, port, limits or Limits())
    home = asyncio.get_running_loop()
    over: asyncio.Future[None] = home.create_future()
    stop_server: Future[Callable[[], object]] = Future()

    async def body() -> None:
        stop, loop = asyncio.Event(), asyncio.get_running_loop()
        stop_server.set_result(lambda: loop.call_soon_threadsafe(stop.set))
        await serve({name: processor}, config, stop, home)

    def run() -> None:
        error: BaseException | None = None
        try:
            asyncio.run(body())
        except BaseException as caught:
            error = caught
        noticed = threading.Event()

        def finish() -> None:
            noticed.set()
            over.set_result(None) if error is None else over.set_exception(error)

        home.call_soon_threadsafe(finish)
        if not noticed.wait(UNBLOCK_SECONDS):
            log.error("the processor blocks its event loop and cannot be waited for: exiting without it")
            logging.shutdown()
            os._exit(0 if error is None else 1)

    threading.Thread(target=run, name="whisper-byoc-server", daemon=True).start()
    stop = stop_server.result()  # at once: nothing has gone wrong yet
    with _first_signal_calls(stop):
        try:
            await asyncio.shield(over)
        except asyncio.CancelledError:
            stop()
            await over
            raise


@contextmanager
def _first_signal_calls(stop: Callable[[], object]) -> Iterator[None]:
    """Have the first SIGTERM or SIGINT call `stop`, and a second one do what it usually does.

    By `signal.signal`, which reaches even a thread whose event loop is blocked.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread gets signals; whoever serves from another one stops by cancelling
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def on_signal(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        stop()

    for number in before:
        signal.signal(number, on_signal)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
