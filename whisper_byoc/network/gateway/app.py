"""Wires the gateway together, and runs it."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Handler

from whisper_byoc.network.gateway.context import Context
from whisper_byoc.network.gateway.directory import Directory
from whisper_byoc.network.gateway.jobs import Jobs
from whisper_byoc.network.gateway.streams import Streams
from whisper_byoc.network.limits import NetworkLimits
from whisper_byoc.network.serving import Address, listening, open_session
from whisper_byoc.network.status import status_routes
from whisper_byoc.signals import stop_on_signals
from whisper_byoc.trickle import TrickleLimits, TrickleServer
from whisper_byoc.trickle.limits import Memory

__all__ = ["GatewayConfig", "Running", "running", "serve"]

log = logging.getLogger("whisper_byoc.network.gateway")

BASE_PATH = "/ai/trickle/"
LAST_WORDS_S = 1.0
"""Time in which jobs that are broken off tell their clients so."""
CORS = "LIVE_AI_ALLOW_CORS"
"""go-livepeer's environment variable; pages of other origins may use the gateway when it is set."""


@dataclass(frozen=True)
class GatewayConfig:
    """How to run a gateway."""

    listen: Address
    orchestrators: Sequence[str]
    """Base URLs."""
    public_host: str = ""
    """`host:port` under which clients reach it, if that is not what they used for the start of a stream."""
    limits: NetworkLimits = field(default_factory=NetworkLimits)


class Running:
    """A gateway that serves."""

    def __init__(self, context: Context, streams: Streams, port: int) -> None:
        self.context = context
        self.streams = streams
        self.port = port

    async def drain(self) -> None:
        """Take no new work, have streams say their last words, and give jobs time to end."""
        self.context.draining = True
        log.info("shutting down: %d jobs and %d streams to end", self.context.jobs, len(self.streams))
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.context.limits.drain_seconds
        await self.streams.stop_all()
        await self._no_jobs(deadline)
        self.context.tether.lose("the gateway is shutting down")
        await self._no_jobs(loop.time() + LAST_WORDS_S)

    async def _no_jobs(self, deadline: float) -> None:
        loop = asyncio.get_running_loop()
        while self.context.jobs and loop.time() < deadline:  # noqa: ASYNC110 - polled: jobs end in many ways
            await asyncio.sleep(0.05)


@asynccontextmanager
async def running(config: GatewayConfig) -> AsyncIterator[Running]:
    """Serve while the context lasts.

    Raises `StartError` when the address cannot be had.
    """
    limits = config.limits
    trickle = TrickleServer(BASE_PATH, limits=TrickleLimits(segment_bytes=limits.frame_bytes))
    async with open_session() as http, Directory(config.orchestrators, http) as directory:
        context = Context(directory, http, Memory(limits.total_bytes), limits)
        streams = Streams(context, trickle, config.public_host)

        def counts() -> dict[str, Any]:
            return {"jobs": context.jobs, "streams": len(streams), "draining": context.draining}

        app = web.Application(client_max_size=0)
        trickle.add_routes(app)
        app.add_routes([*Jobs(context).routes(), *streams.routes()])
        app.add_routes(status_routes("gateway", directory.capabilities, counts))
        if os.environ.get(CORS):
            allow_other_origins(app)
        try:
            async with listening(app, config.listen.listen_host, config.listen.port, "gateway") as port:
                try:
                    yield Running(context, streams, port)
                finally:
                    context.draining = True
                    await streams.stop_all()
        finally:
            await context.tasks.close(grace_seconds=1.0)


def allow_other_origins(app: web.Application) -> None:
    """Let pages of any origin call every route, `/data` included."""

    async def add_headers(_: web.Request, response: web.StreamResponse) -> None:
        response.headers["Access-Control-Allow-Origin"] = "*"
        response.headers["Access-Control-Allow-Headers"] = "*"
        response.headers["Access-Control-Allow-Methods"] = "*"
        response.headers["Access-Control-Expose-Headers"] = "*"

    @web.middleware
    async def preflight(request: web.Request, handler: Handler) -> web.StreamResponse:
        return web.Response() if request.method == "OPTIONS" else await handler(request)

    app.on_response_prepare.append(add_headers)
    app.middlewares.append(preflight)


async def serve(config: GatewayConfig, stop: asyncio.Event | None = None) -> None:
    """Serve until `stop` is set (default: by SIGTERM or SIGINT), then drain.

    Raises `StartError` when the address cannot be had.
    """
    stop = stop or stop_on_signals()  # before anybody can know that we listen
    async with running(config) as gateway:
        await stop.wait()
        await gateway.drain()
