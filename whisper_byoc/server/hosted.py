"""`run_processor`: the server runs in its own thread, the processor on its author's event loop.

A `process` that blocks (a loop over every byte, a model called directly) then delays only its own frames: the server
goes on reading, answering `/health`, keeping time limits and draining.
"""

import asyncio
import logging
import os
import signal
import ssl
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager

from whisper_byoc.aio import die_of
from whisper_byoc.logs import log_to_stderr
from whisper_byoc.origins import origin
from whisper_byoc.processors.base import Process, Processor, as_processor
from whisper_byoc.server.core.exits import tasks_contained
from whisper_byoc.server.core.limits import Limits
from whisper_byoc.server.registration import RegistrationOptions
from whisper_byoc.server.run import ServerConfig, serve

log = logging.getLogger("whisper_byoc.server")

UNBLOCK_SECONDS = 5.0
"""Longest wait, after the server has ended, for an event loop that the processor blocks."""


async def run_processor(
    processor: Processor | Process,
    host: str = "127.0.0.1",
    port: int = 8000,
    *,
    name: str | None = None,
    limits: Limits | None = None,
    allowed_origins: Sequence[str] = (),
    stream_hosts: Sequence[str] = (),
    token: str = "",
    tls: ssl.SSLContext | None = None,
    registration: RegistrationOptions | None = None,
) -> None:
    """Serve one processor until SIGTERM, SIGINT or cancellation.

    `processor` is any object with `async process(frame: bytes) -> bytes` (or `str`), or a plain async function, which
    gives the pipeline its name; all of its code runs on the running event loop. `host="0.0.0.0"` lets other machines
    reach it. Web pages of `allowed_origins`, such as `http://localhost:3000`, may use the server; the channels of
    streams must be on `stream_hosts`. Clients must show `token`, if given; with `tls`, a context that has a certificate
    and its key, it serves HTTPS; with `registration`, it registers with orchestrators.

    Raises `UsageError` for an invalid origin, and `StartError` when the port is in use or the processor does not
    initialize.
    """
    log_to_stderr("info")
    name = name or str(getattr(processor, "__name__", type(processor).__name__))
    served = as_processor(processor)
    origins = tuple(map(origin, allowed_origins))
    config = ServerConfig(
        host,
        port,
        limits or Limits(),
        token=token,
        tls=tls,
        stream_hosts=stream_hosts,
        allowed_origins=origins,
        registration=registration,
    )
    author_loop = asyncio.get_running_loop()
    ended: asyncio.Future[None] = author_loop.create_future()
    stop_server: Future[Callable[[], object]] = Future()

    async def serve_processor() -> None:
        stop, loop = asyncio.Event(), asyncio.get_running_loop()
        stop_server.set_result(lambda: loop.call_soon_threadsafe(stop.set))
        await serve({name: served}, config, stop, author_loop)

    def run() -> None:
        error: BaseException | None = None
        try:
            asyncio.run(serve_processor())
        except BaseException as caught:
            error = caught
        seen = threading.Event()

        def report() -> None:
            seen.set()
            ended.set_result(None) if error is None else ended.set_exception(error)

        author_loop.call_soon_threadsafe(report)
        if not seen.wait(UNBLOCK_SECONDS):
            log.error("the processor blocks its event loop and cannot be waited for: exiting without it")
            logging.shutdown()
            os._exit(0 if error is None else 1)

    def stop() -> None:
        stop_server.result()()  # returns at once: nothing has gone wrong yet

    with _first_signal_calls(stop), tasks_contained(author_loop):  # before anybody can know that we are listening
        threading.Thread(target=run, name="whisper-byoc-server", daemon=True).start()
        try:
            await asyncio.shield(ended)
        except asyncio.CancelledError:
            stop()
            await ended
            raise


@contextmanager
def _first_signal_calls(stop: Callable[[], object]) -> Iterator[None]:
    """Call `stop` at the first SIGTERM or SIGINT; a second one ends the process at once.

    It uses `signal.signal`, which works even while this thread's event loop is blocked.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread gets signals; elsewhere, run_processor is stopped by cancellation
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def on_signal(*_: object) -> None:
        for number in before:
            die_of(number)
        stop()

    for number in before:
        signal.signal(number, on_signal)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
