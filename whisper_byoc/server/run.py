"""Serving until SIGTERM or SIGINT: listen, load, work, drain."""

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass, field
from typing import Self

from whisper_byoc.aio import cancel, race, stop_on_signals
from whisper_byoc.errors import StartError
from whisper_byoc.http import listening, reachable
from whisper_byoc.origins import host_names, is_loopback
from whisper_byoc.params import choice
from whisper_byoc.processors.base import Processor
from whisper_byoc.server.app import build_app
from whisper_byoc.server.core.limits import Limits
from whisper_byoc.server.core.metrics import Metrics
from whisper_byoc.server.core.pipeline import Pipeline, Pipelines
from whisper_byoc.server.core.table import JobTable
from whisper_byoc.server.registration import OpenJobs, Registrar, RegistrationOptions
from whisper_byoc.server.streams.hosts import StreamHosts
from whisper_byoc.server.streams.output import DATA_FORMATS
from whisper_byoc.server.streams.routes import StreamTable

log = logging.getLogger("whisper_byoc.server")

KEEP_ALIVE_SECONDS = 3600.0  # an orchestrator keeps its connection open between jobs
SHUTDOWN_SECONDS = 5.0


Beside = Callable[[JobTable], AbstractAsyncContextManager[object]]
"""Makes a context in which a server's jobs have an additional way in."""


@dataclass(frozen=True)
class ServerConfig:
    """Where to listen, the limits, and what others are told about this container."""

    host: str = "127.0.0.1"
    port: int = 8000
    limits: Limits = field(default_factory=Limits)
    registration: RegistrationOptions | None = None
    """The orchestrators to register with, if any."""
    token: str = field(default="", repr=False)
    """Bearer token that clients must show; empty for none."""
    tls: ssl.SSLContext | None = None
    """Serve HTTPS with this context, as returned by `http.server_tls`."""
    capability: str = ""
    """Another name for the first pipeline: the one by which orchestrators know it."""
    worker_type: str = "byoc"
    """The `pipeline` of `/version`: Livepeer's word for the type of a worker."""
    stream_hosts: Sequence[str] = ()
    """Hosts that stream channels may be on, besides the orchestrators of `registration` and, with a token, whoever
    starts a stream; `*` is any host."""
    allowed_origins: Sequence[str] = ()
    """Origins of the web pages that may use it, as returned by `origins.origin`."""
    data_format: str = "object"
    """Line format of the data channel of streams that do not choose one (`server.streams.output.DATA_FORMATS`)."""

    def __post_init__(self) -> None:
        choice("data_format", self.data_format, DATA_FORMATS)


async def serve(
    processors: Mapping[str, Processor],
    config: ServerConfig,
    stop: asyncio.Event | None = None,
    loop: asyncio.AbstractEventLoop | None = None,
    beside: Beside | None = None,
) -> None:
    """Serve processors under their names until `stop` is set (default: by SIGTERM or SIGINT), then drain.

    The processors' code runs on `loop`, which may be another thread's; on the running one by default. `beside` is
    entered and left with the server. Raises `StartError` when the port is in use or a processor does not initialize.
    """
    stop = stop or stop_on_signals()
    async with Server(processors, config, loop) as server, AsyncExitStack() as stack:
        if beside is not None:
            await stack.enter_async_context(beside(server.table))

        async def load_and_join() -> None:
            await server.loaded()
            log.info("ready: %s", ", ".join(processors))
            for pipeline in server.table.pipelines:
                if pipeline.notice:
                    log.warning("%s: %s", pipeline.name, pipeline.notice)
            server.join()
            await stop.wait()

        await race(load_and_join(), stop.wait())
        await server.leave()
        log.info("shutting down: %d segments to finish", server.table.queued)
        await server.table.drain()


class Server:
    """The listener and everything it serves. Entering it listens and begins to load; leaving it stops everything."""

    def __init__(
        self,
        processors: Mapping[str, Processor],
        config: ServerConfig,
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        for name, each in processors.items():
            if not callable(getattr(each, "process", None)):
                kind = type(each).__name__
                raise StartError(f"{name}: {kind} has no `async def process(self, frame: bytes) -> bytes`")
        self.port = config.port
        self._config = config
        capability = config.registration.capability.name if config.registration else ""
        pipelines = (Pipeline(name, each, loop) for name, each in processors.items())
        self.table = JobTable(Pipelines(pipelines, capability or config.capability), config.limits, Metrics())
        self.streams = StreamTable(self.table, _stream_hosts(config), config.data_format)
        self._listener = AsyncExitStack()
        self._loading: list[asyncio.Task[None]] = []
        self._registrar: Registrar | None = None

    async def __aenter__(self) -> Self:
        """Raise `StartError` when the port is not available."""
        config = self._config
        url = config.registration.capability.url if config.registration else ""
        origins = frozenset(config.allowed_origins)
        app = build_app(self.table, self.streams, config.worker_type, config.token, origins, host_names(url))
        listener = listening(
            app,
            config.host,
            config.port,
            keep_alive_seconds=KEEP_ALIVE_SECONDS,
            shutdown_seconds=SHUTDOWN_SECONDS,
            handler_cancellation=True,
            tls=config.tls,
        )
        self.port = await self._listener.enter_async_context(listener)
        log.info("Trickle server listening on port %d", self.port)
        if not (config.token or is_loopback(config.host)):
            log.warning("whoever reaches this port may use it: no token is set (--auth-token, AUTH_TOKEN)")
        self.table.start()
        limit = config.limits.load_seconds
        self._loading = [asyncio.ensure_future(each.start(limit)) for each in self.table.pipelines]
        return self

    async def __aexit__(self, *_: object) -> None:
        """Leave the orchestrators, then stop streams, jobs, pipelines and the listener, in this order."""
        await self.leave()
        await cancel(*self._loading)
        await self.streams.close()
        await self.table.close()
        for pipeline in self.table.pipelines:
            await pipeline.stop(SHUTDOWN_SECONDS)
        await self._listener.aclose()

    async def loaded(self) -> None:
        """Wait until every pipeline is ready.

        Raises `StartError` or `ModelError` when one of them never will be.
        """
        await asyncio.gather(*self._loading)

    def join(self) -> None:
        """Begin to register with the orchestrators, if any; to be called once everything is loaded."""
        if self._config.registration is None:
            return
        name, host = self.table.pipelines.first.name, reachable(self._config.host, socket.gethostname())
        address = f"{'https' if self._config.tls else 'http'}://{host}:{self.port}"
        full = self._config.registration.filled(name, address, self._config.token)
        self._registrar = Registrar(full, self._open_jobs)
        self._registrar.start()

    def _open_jobs(self) -> OpenJobs:
        fits = self.table.admission.fits(self.table.pipelines.first)
        return OpenJobs(sum(not job.results.ended for job in self.table.jobs), fits)

    async def leave(self) -> None:
        """Unregister, so that no more work is sent here; the listener stays open for existing work."""
        if self._registrar is not None:
            await self._registrar.stop()
            self._registrar = None


def _stream_hosts(config: ServerConfig) -> StreamHosts:
    orchestrators = config.registration.orchestrators if config.registration else ()
    return StreamHosts({*config.stream_hosts, *host_names(*orchestrators)}, starters=bool(config.token))
