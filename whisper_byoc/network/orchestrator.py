"""Wires the orchestrator together, and runs it."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from whisper_byoc.network.container_jobs import ContainerJobs
from whisper_byoc.network.container_streams import ContainerStreams
from whisper_byoc.network.limits import NetworkLimits
from whisper_byoc.network.pool import Container, HealthCheck, Pool
from whisper_byoc.network.registration import Registration
from whisper_byoc.network.serving import Address, Node, open_context, serve_until_stopped


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
class Orchestrator(Node):
    """An orchestrator that serves."""

    pool: Pool = field(default_factory=Pool)


@asynccontextmanager
async def running(config: OrchestratorConfig) -> AsyncIterator[Orchestrator]:
    """Serve while the context lasts.

    Raises `StartError` when the address cannot be had.
    """
    async with open_context("orchestrator", config.limits) as context:
        pool = Pool()
        health = HealthCheck(pool, context.http, config.limits)
        streams = ContainerStreams(context, pool, config.trickle_host)
        registration = Registration(pool, health, config.secret)
        jobs = ContainerJobs(context, pool)

        def abort_jobs(reason: str) -> None:
            for container in pool:
                container.abort_jobs(reason)

        node = Orchestrator(
            context, streams, lambda: pool.jobs - len(streams), abort_jobs, lambda: capabilities(pool), pool=pool
        )
        routes = [*registration.routes(), *jobs.routes(), *streams.routes()]
        try:
            async with node.listening(config.listen or config.service, routes):
                url = f"http://{config.service.host or '127.0.0.1'}:{config.service.port or node.port}"
                registration.service_url = streams.service_url = url
                for container in config.containers:
                    health.follow(pool.add(container).url)
                yield node
        finally:
            await health.close()


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
