"""Workers in processes of this machine."""

import asyncio
import multiprocessing
import os
import signal
import threading
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any, Self

from whisper_byoc.archive.worker import Outcome, Recipe, Worker, WorkerDied
from whisper_byoc.processors.base import Share

END_SECONDS = 5.0
"""Longest wait for the end of a process that was killed."""

Request = tuple[str, Share]
"""A place, and the share of it that is to be transcribed."""


class LocalPool:
    """As many processes as are asked for, each with an engine of its own."""

    def __init__(self, recipe: Recipe, workers: int) -> None:
        self._recipe = recipe
        self._workers = workers
        self._started: set[LocalWorker] = set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for worker in self._started:
            worker.dismiss()
        await asyncio.gather(*(worker.ended() for worker in self._started))

    async def size(self) -> int:
        return self._workers

    async def hire(self) -> "LocalWorker":
        worker = LocalWorker(self._recipe)
        self._started.add(worker)
        await worker.ask(None)
        return worker


class LocalWorker:
    """A process, at the other end of a pipe."""

    def __init__(self, recipe: Recipe) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would copy threads that hold locks
        self._connection, its_end = context.Pipe()
        self._process = context.Process(target=_serve, args=(recipe, its_end), daemon=True)
        self._process.start()
        its_end.close()

    async def transcribe(self, place: str, share: Share) -> Outcome:
        outcome: Outcome = await self.ask((place, share))
        return outcome

    async def ask(self, what: Request | None) -> Any:
        """Send a request, or None to learn whether the model is loaded; return the answer, or raise it."""
        try:
            with suppress(BrokenPipeError):
                self._connection.send(what)
            answer = await _received(self._connection)
        except (EOFError, OSError):
            await self.ended()
            raise WorkerDied(f"the worker's process ended with {self._process.exitcode}") from None
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def ended(self) -> None:
        """Wait for the end of the process, which frees its memory: not at once."""
        await asyncio.to_thread(self._process.join, END_SECONDS)

    def dismiss(self) -> None:
        self._process.kill()
        self._connection.close()


async def _received(connection: Connection) -> Any:
    """Return what comes through a pipe, without a thread that waits: it could not be cancelled."""
    loop = asyncio.get_running_loop()
    readable: asyncio.Future[None] = loop.create_future()

    def ready() -> None:
        if not readable.done():
            readable.set_result(None)

    loop.add_reader(connection.fileno(), ready)
    try:
        await readable
    finally:
        loop.remove_reader(connection.fileno())
    return connection.recv()


def _serve(recipe: Recipe, connection: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends this process
    asyncio.run(_answer(recipe, connection))


async def _answer(recipe: Recipe, connection: Connection) -> None:
    requests: asyncio.Queue[Request | None] = asyncio.Queue()
    loop = asyncio.get_running_loop()

    def listen() -> None:
        with suppress(EOFError, OSError):
            while True:
                loop.call_soon_threadsafe(requests.put_nowait, connection.recv())
        os._exit(1)  # the parent has gone, and nobody wants what is at work

    threading.Thread(target=listen, daemon=True).start()
    worker = Worker(recipe)
    while True:
        request = await requests.get()
        try:
            connection.send(await worker.start() if request is None else await worker.transcribe(*request))
        except Exception as error:
            connection.send(error)
