"""Wires the orchestrator together, and runs it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from whisper_byoc.network.limits import NetworkLimits
from whisper_byoc.network.orchestrator.batch import Batch
from whisper_byoc.network.orchestrator.context import Context
from whisper_byoc.network.orchestrator.health import Follower
from whisper_byoc.network.orchestrator.live import Live
from whisper_byoc.network.orchestrator.pool import Container, Pool
from whisper_byoc.network.orchestrator.registration import Registration
from whisper_byoc.network.orchestrator.streams import Streams
from whisper_byoc.network.serving import Address, listening, open_session
from whisper_byoc.network.status import status_routes
from whisper_byoc.network.tasks import Tasks
from whisper_byoc.signals import stop_on_signals
from whisper_byoc.trickle import TrickleServer
from whisper_byoc.trickle.limits import Memory

__all__ = ["OrchestratorConfig", "Running", "running", "serve"]

log = logging.getLogger("whisper_byoc.network.orchestrator")

BASE_PATH = "/ai/trickle/"
LAST_WORDS_S = 1.0
"""For jobs whose time is up: so long they have to tell their clients."""


@dataclass(frozen=True)
class OrchestratorConfig:
    """How to run an orchestrator."""

    service: Address
    """Where gateways reach it."""
    listen: Address | None = None
    """Where it listens, if that is elsewhere."""
    secret: str = field(default="", repr=False)
    """What containers must show to register."""
    containers: Sequence[Container] = ()
    """Containers that need not register."""
    trickle_host: str = ""
    """`host:port` of the channels as containers reach them, if that is another than gateways use."""
    limits: NetworkLimits = field(default_factory=NetworkLimits)


class Running:
    """An orchestrator that serves."""

    def __init__(self, context: Context, streams: Streams, port: int, url: str) -> None:
        self.context = context
        self.streams = streams
        self.port = port
        self.url = url

    async def drain(self) -> None:
        """Take no new work, and give what there is time to end."""
        self.context.draining = True
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.context.limits.drain_seconds
        log.info("shutting down: %d jobs and %d streams to end", self.context.pool.jobs, len(self.streams))
        await self.streams.stop_all("the orchestrator is shutting down")
        await self._no_jobs(deadline)
        for container in self.context.pool:
            for slot in tuple(container.slots):
                slot.lose("the orchestrator is shutting down")
        await self._no_jobs(loop.time() + LAST_WORDS_S)

    async def _no_jobs(self, deadline: float) -> None:
        loop = asyncio.get_running_loop()
        while self.context.pool.jobs and loop.time() < deadline:  # noqa: ASYNC110 - polled: jobs end in many ways
            await asyncio.sleep(0.05)


@asynccontextmanager
async def running(config: OrchestratorConfig) -> AsyncIterator[Running]:
    """Serve while the context lasts.

    Raises `StartError` when the address cannot be had.
    """
    listen = config.listen or config.service
    async with open_session() as http:
        pool, limits = Pool(), config.limits
        follower = Follower(pool, http, limits)
        context = Context(pool, follower, http, Memory(limits.total_bytes), limits, Tasks())
        trickle = TrickleServer(BASE_PATH)
        streams = Streams(context, trickle, config.trickle_host)
        registration = Registration(pool, follower, config.secret)

        def counts() -> dict[str, Any]:
            return {"jobs": pool.jobs - len(streams), "streams": len(streams), "draining": context.draining}

        app = web.Application(client_max_size=0)
        trickle.add_routes(app)
        for part in (registration, Batch(context), Live(context), streams):
            app.add_routes(part.routes())
        app.add_routes(status_routes("orchestrator", lambda: capabilities(pool), counts))
        try:
            async with listening(app, listen.listen_host, listen.port, "orchestrator") as port:
                url = f"http://{config.service.host or '127.0.0.1'}:{config.service.port or port}"
                registration.service_url = streams.service_url = url
                for container in config.containers:
                    follower.follow(pool.add(container).url)
                try:
                    yield Running(context, streams, port, url)
                finally:
                    await streams.stop_all("the orchestrator is shutting down")
        finally:  # last, as requests that are cut off still tell their containers so
            await follower.close()
            await context.tasks.close(LAST_WORDS_S)


def capabilities(pool: Pool) -> dict[str, Any]:
    """Describe what there is."""
    return {
        "capabilities": [
            {"name": name, "available": pool.free(name), "containers": [shown(each) for each in pool.of(name)]}
            for name in pool.names
        ]
    }


def shown(container: Container) -> dict[str, Any]:
    """Describe a container, without its token."""
    return {
        "url": container.url,
        "ready": container.ready,
        "capacity": container.capacity,
        "load": container.load,
        "registered": container.registered,
        "trouble": container.trouble,
    }


async def serve(config: OrchestratorConfig, stop: asyncio.Event | None = None) -> None:
    """Serve until `stop` is set (default: by SIGTERM or SIGINT), then drain.

    Raises `StartError` when the address cannot be had.
    """
    stop = stop or stop_on_signals()  # before anybody can know that we listen
    async with running(config) as orchestrator:
        await stop.wait()
        await orchestrator.drain()
