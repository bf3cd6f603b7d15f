"""The gateway: jobs that are a single request, and how it is run."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from aiohttp import web
from yarl import URL

from whisper_byoc import __version__, livepeer
from whisper_byoc.aio import cancel
from whisper_byoc.errors import RequestRefused
from whisper_byoc.languages import LANGUAGES
from whisper_byoc.network.directory import Directory
from whisper_byoc.network.gateway_streams import GatewayStreams
from whisper_byoc.network.peers import MARGIN_S, AbortScope, first_to_take
from whisper_byoc.network.relay import REQUEST_HEADERS, Relay, picked
from whisper_byoc.network.serving import Node, NodeConfig
from whisper_byoc.origins import host_names
from whisper_byoc.page import page_routes


@dataclass(frozen=True)
class GatewayConfig(NodeConfig):
    """How to run a gateway."""

    orchestrators: Sequence[str] = ()
    """Base URLs."""
    public_host: str = ""
    """`host:port` at which clients reach it, if not the one they used to start a stream."""
    token: str = field(default="", repr=False)
    """Bearer token that clients must show; empty for none."""


class Gateway(Node):
    """A gateway: frames, live feeds and batch jobs here, streams in `GatewayStreams`."""

    role = "gateway"
    streams: GatewayStreams

    def __init__(self, config: GatewayConfig, session: aiohttp.ClientSession) -> None:
        super().__init__(config, session)
        self.names = host_names(config.public_host)
        self.client_token = config.token
        self.directory = Directory(config.orchestrators, session)
        self.streams = GatewayStreams(self, self.directory, config.public_host)
        self._scope = AbortScope()
        """Contains all jobs; it is aborted when the time for draining is over."""

    def abort_jobs(self, reason: str) -> None:
        self._scope.abort(reason)

    def capabilities(self) -> dict[str, Any]:
        return self.directory.capabilities()

    def routes(self) -> list[web.RouteDef]:
        return page_routes(lambda _: self._described())

    def _described(self) -> Mapping[str, Any]:
        pipelines = [{"name": name} for name in self.directory.available]
        known = {"role": self.role, "version": __version__, "wants_token": bool(self.client_token)}
        return known | {"pipelines": pipelines, "languages": dict(LANGUAGES)}

    @contextlib.asynccontextmanager
    async def working(self) -> AsyncIterator[None]:
        asking = asyncio.create_task(self.directory.keep_asking())
        try:
            yield
        finally:
            await cancel(asking)

    async def live(self, request: web.Request) -> web.StreamResponse:
        model = self.model_of(request)
        headers = passed_on(request, livepeer.MODEL)
        seconds = self.limits.job_seconds + MARGIN_S
        with self.counted(), Relay(self, request, live=True) as relay:
            return await self._on_some_orchestrator(model, relay, headers, seconds)

    async def batch(self, request: web.Request) -> web.StreamResponse:
        """Pass a BYOC batch job to an orchestrator (go-livepeer, byoc/job_gateway.go)."""
        job = livepeer.JobHeader.parse(request.headers.get(livepeer.JOB))
        headers = passed_on(request) | {livepeer.JOB: job.encode()}
        with self.counted(), Relay(self, request) as relay:
            return await self._on_some_orchestrator(job.capability, relay, headers, job.timeout_seconds + MARGIN_S)

    async def _on_some_orchestrator(
        self, capability: str, relay: Relay, headers: Mapping[str, str], seconds: float
    ) -> web.StreamResponse:
        async def attempt(url: str) -> web.StreamResponse:
            target = URL(url + relay.request.rel_url.raw_path, encoded=True)  # keeps %2F and %3F as they are
            peer = f"the orchestrator at {url}"
            return await relay.post(self._scope, peer, target, headers, seconds, {"X-Orchestrator-Url": url})

        return await first_to_take(self.directory.ranked(capability), attempt)


def passed_on(request: web.Request, *others: str) -> dict[str, str]:
    """Return the client's headers that are passed on to an orchestrator.

    Raises `RequestRefused` (400) for one that is not text.
    """
    found = picked(request.headers, (*REQUEST_HEADERS, *others))
    for name, value in found.items():
        if any(0xD800 <= ord(letter) < 0xE000 for letter in value):  # how aiohttp represents bytes that are not UTF-8
            raise RequestRefused(400, f"the {name} header is not UTF-8: {value!r:.80}")
    return found
