"""Serving until SIGTERM or SIGINT: listen, load, work, drain."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field

from aiohttp import web

from whisper_byoc.errors import StartError
from whisper_byoc.processors.base import Processor
from whisper_byoc.server.app import build_app
from whisper_byoc.server.core.limits import Limits
from whisper_byoc.server.core.metrics import Metrics
from whisper_byoc.server.core.pipeline import Pipeline
from whisper_byoc.server.core.table import JobTable
from whisper_byoc.server.joining.registrar import Registrar
from whisper_byoc.server.joining.registration import Registration
from whisper_byoc.server.streams.routes import StreamTable
from whisper_byoc.signals import stop_on_signals

__all__ = ["Server", "ServerConfig", "serve"]

log = logging.getLogger("whisper_byoc.server")

KEEP_ALIVE_S = 3600.0  # an orchestrator keeps its connection open between jobs
SHUTDOWN_S = 5.0
LOG_FORMAT = "%(asctime)s [%(levelname)s] %(name)s - %(message)s"
"""As pytrickle and its applications log."""


@dataclass(frozen=True)
class ServerConfig:
    """Where to listen, and the bounds to keep."""

    host: str = "0.0.0.0"
    port: int = 8000
    limits: Limits = field(default_factory=Limits)
    registration: Registration | None = None
    """At which orchestrators to register, if any."""
    token: str = field(default="", repr=False)
    """Bearer token that clients must show; empty is none."""
    data_format: str = "object"
    """Lines on the data channel of a stream that does not say (`server.streams.output.DATA_FORMATS`)."""


async def serve(processors: Mapping[str, Processor], config: ServerConfig, stop: asyncio.Event | None = None) -> None:
    """Serve processors under their names until `stop` is set (default: by SIGTERM or SIGINT), then drain.

    Raises `StartError` when the port is in use or a processor does not initialize.
    """
    stop = stop or stop_on_signals()
    async with Server(processors, config) as server:
        loading = asyncio.ensure_future(server.loaded())
        stopping = asyncio.ensure_future(stop.wait())
        try:
            await asyncio.wait({loading, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if loading.done():
                loading.result()
                log.info("ready: %s", ", ".join(processors))
                server.join()
                await stopping
        finally:
            loading.cancel()
            stopping.cancel()
        await server.leave()
        log.info("shutting down: %d segments to finish", server.table.queued)
        await server.table.drain()


class Server:
    """The listener with everything behind it. Entering it listens and begins to load; leaving it stops all."""

    def __init__(self, processors: Mapping[str, Processor], config: ServerConfig) -> None:
        for name, processor in processors.items():
            check_processor(name, processor)
        self.port = config.port
        self._config = config
        metrics = Metrics()
        capability = config.registration.capability.name if config.registration else ""
        self.table = JobTable(
            {name: Pipeline(name, each) for name, each in processors.items()}, config.limits, metrics,
            capability or os.environ.get("CAPABILITY_NAME", ""),
        )  # fmt: skip
        self.streams = StreamTable(self.table, config.data_format)
        self._runner = web.AppRunner(
            build_app(self.table, self.streams, metrics, config.token),
            access_log=None,
            handler_cancellation=True,
            keepalive_timeout=KEEP_ALIVE_S,
            shutdown_timeout=SHUTDOWN_S,
        )
        self._loading: list[asyncio.Task[None]] = []
        self._registrar: Registrar | None = None

    async def __aenter__(self) -> Server:
        """Listen.

        Raises `StartError` when the port cannot be had.
        """
        await self._runner.setup()
        try:
            self.port = await listen(self._runner, self._config)
        except BaseException:
            await self._runner.cleanup()
            raise
        log.info("Trickle server listening on port %d", self.port)
        self.table.start()
        limit = self._config.limits.load_seconds
        self._loading = [asyncio.ensure_future(each.start(limit)) for each in self.table.pipelines.values()]
        return self

    async def __aexit__(self, *_: object) -> None:
        """Leave the orchestrators, then stop streams, jobs, pipelines and the listener, in this order."""
        await self.leave()
        for task in self._loading:
            task.cancel()
        await asyncio.gather(*self._loading, return_exceptions=True)
        await self.streams.close()
        await self.table.close()
        for pipeline in self.table.pipelines.values():
            await pipeline.stop(SHUTDOWN_S)
        await self._runner.cleanup()

    async def loaded(self) -> None:
        """Wait until every pipeline is ready.

        Raises `StartError` or `ModelError` when one of them will never be.
        """
        await asyncio.gather(*self._loading)

    def join(self) -> None:
        """Begin to register at the orchestrators, where there are any; to be called when all is loaded."""
        if self._config.registration is None:
            return
        name, address = next(iter(self.table.pipelines)), own_address(self._config.host, self.port)
        full = self._config.registration.filled(name, address, self._config.limits.jobs, self._config.token)
        self._registrar = Registrar(full, lambda: any(job.ended_at is None for job in self.table.jobs))
        self._registrar.start()

    async def leave(self) -> None:
        """Unregister: no more work is sent here then, while the listener stays open for what there is."""
        if self._registrar is not None:
            await self._registrar.stop()
            self._registrar = None


def check_processor(name: str, processor: object) -> None:
    """Raise `StartError` for an object that cannot process anything."""
    if not callable(getattr(processor, "process", None)):
        kind = type(processor).__name__
        raise StartError(f"{name}: {kind} has no `async def process(self, frame: bytes) -> bytes`")


async def listen(runner: web.AppRunner, config: ServerConfig) -> int:
    """Bind the listener and give its port, which the system chose if it was 0."""
    try:
        await web.TCPSite(runner, config.host, config.port).start()
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            message = f"port {config.port} on {config.host} is in use; choose another with --port, or stop its owner"
            raise StartError(message) from None
        raise StartError(f"cannot listen on {config.host} port {config.port}: {error.strerror or error}") from None
    return int(runner.addresses[0][1])


def own_address(host: str, port: int) -> str:
    """Guess where others reach this server: at the address it is bound to, else by the name of the machine."""
    name = socket.gethostname() if host in ("", "0.0.0.0", "::") else host
    return f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}"
