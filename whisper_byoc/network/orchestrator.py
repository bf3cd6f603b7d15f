"""Wires the orchestrator together, and runs it."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from whisper_byoc.network.container_jobs import ContainerJobs
from whisper_byoc.network.container_streams import ContainerStreams
from whisper_byoc.network.limits import NetworkLimits
from whisper_byoc.network.pool import Container, HealthCheck, Pool
from whisper_byoc.network.registration import Registration
from whisper_byoc.network.serving import (
    LAST_WORDS_S,
    TRICKLE_PATH,
    Address,
    Context,
    Running,
    listening,
    open_session,
    serve_until_stopped,
    status_routes,
)
from whisper_byoc.trickle import TrickleServer
from whisper_byoc.trickle.limits import Memory


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


@dataclass
class RunningOrchestrator(Running):
    """An orchestrator that serves."""

    pool: Pool


@asynccontextmanager
async def running(config: OrchestratorConfig) -> AsyncIterator[RunningOrchestrator]:
    """Serve while the context lasts.

    Raises `StartError` when the address cannot be had.
    """
    async with open_session() as http:
        pool, limits = Pool(), config.limits
        health = HealthCheck(pool, http, limits)
        context = Context("orchestrator", http, limits, Memory(limits.total_bytes))
        trickle = TrickleServer(TRICKLE_PATH)
        streams = ContainerStreams(context, pool, trickle, config.trickle_host)
        registration = Registration(pool, health, config.secret)

        def jobs() -> int:
            return pool.jobs - len(streams)

        def abort_jobs(reason: str) -> None:
            for container in pool:
                container.abort_jobs(reason)

        def counts() -> dict[str, Any]:
            return {"jobs": jobs(), "streams": len(streams), "draining": context.draining}

        app = web.Application(client_max_size=0)
        trickle.add_routes(app)
        for part in (registration, ContainerJobs(context, pool), streams):
            app.add_routes(part.routes())
        app.add_routes(status_routes(context.role, lambda: capabilities(pool), counts))
        try:
            async with listening(app, config.listen or config.service, context.role) as port:
                url = f"http://{config.service.host or '127.0.0.1'}:{config.service.port or port}"
                registration.service_url = streams.service_url = url
                for container in config.containers:
                    health.follow(pool.add(container).url)
                try:
                    yield RunningOrchestrator(context, trickle, streams, jobs, abort_jobs, port, url, pool)
                finally:
                    await streams.stop_all("the orchestrator is shutting down")
        finally:  # last, as requests that are cut off still tell their containers so
            await health.close()
            await context.tasks.close(LAST_WORDS_S)


def capabilities(pool: Pool) -> dict[str, Any]:
    """Describe what there is, without the tokens of the containers."""

    def shown(container: Container) -> dict[str, Any]:
        return {
            "url": container.url,
            "ready": container.ready,
            "capacity": container.capacity,
            "load": container.load,
            "registered": container.registered,
            "trouble": container.trouble,
        }

    return {
        "capabilities": [
            {"name": name, "available": pool.free(name), "containers": [shown(each) for each in pool.of(name)]}
            for name in pool.names
        ]
    }


async def serve(config: OrchestratorConfig, stop: asyncio.Event | None = None) -> None:
    """Serve until `stop` is set (default: by SIGTERM or SIGINT), then drain.

    Raises `StartError` when the address cannot be had.
    """
    await serve_until_stopped(running(config), stop)
