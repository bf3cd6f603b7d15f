"""The orchestrator: how containers and gateways find each other, and how it is run."""

import contextlib
import hmac
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from aiohttp import web
from yarl import URL

from whisper_byoc import livepeer
from whisper_byoc.errors import RequestRefused, UsageError
from whisper_byoc.http import base_url, json_object, read_request
from whisper_byoc.network.container_jobs import LiveJob
from whisper_byoc.network.container_streams import ContainerStreams
from whisper_byoc.network.peers import first_to_take
from whisper_byoc.network.pool import Container, HealthCheck, Pool, Slot
from whisper_byoc.network.relay import REQUEST_HEADERS, Relay, picked
from whisper_byoc.network.serving import Node, NodeConfig
from whisper_byoc.origins import check_json_type, host_names

MOST_CONTAINERS = 1000
LONGEST_TEXT = 2048


@dataclass(frozen=True)
class OrchestratorConfig(NodeConfig):
    """How to run an orchestrator."""

    service_host: str = "127.0.0.1"
    """Where gateways reach it; port 0 means the port that it listens on."""
    service_port: int = 0
    secret: str = field(default="", repr=False)
    """What containers must show to register."""
    containers: Sequence[Container] = ()
    """Containers that need not register."""
    trickle_host: str = ""
    """`host:port` at which containers reach the channels, if not the one that gateways use."""


class Orchestrator(Node):
    """An orchestrator: registration, tokens and jobs here, streams in `ContainerStreams`."""

    role = "orchestrator"
    streams: ContainerStreams

    def __init__(self, config: OrchestratorConfig, session: aiohttp.ClientSession) -> None:
        super().__init__(config, session)
        self.names = host_names(config.service_host, config.trickle_host)
        self.pool = Pool()
        self.health = HealthCheck(self.pool, session, config.limits)
        self.streams = ContainerStreams(self, self.pool, config.trickle_host)
        self._config = config
        self._secret = config.secret.encode()

    def abort_jobs(self, reason: str) -> None:
        for container in self.pool:
            container.abort_jobs(reason)

    def capabilities(self) -> dict[str, Any]:
        return {
            "capabilities": [
                {
                    "name": name,
                    "available": self.pool.free(name),
                    "capacity": self.pool.size(name),
                    "containers": [each.describe() for each in self.pool.of(name)],
                }
                for name in self.pool.names
            ]
        }

    def routes(self) -> list[web.RouteDef]:
        return [
            web.post("/capability/register", self.register),
            web.post("/capability/unregister", self.unregister),
            web.get("/process/token", self.token, allow_head=False),
        ]

    @contextlib.asynccontextmanager
    async def working(self) -> AsyncIterator[None]:
        port = self._config.service_port or self.port
        self.streams.service_url = f"http://{self._config.service_host}:{port}"
        for container in self._config.containers:
            self.health.add(container)
        try:
            yield
        finally:
            await self.health.close()

    async def batch(self, request: web.Request) -> web.StreamResponse:
        """Pass a batch job to a container, and its response back as it comes (go-livepeer, byoc)."""
        job = livepeer.JobHeader.parse(request.headers.get(livepeer.JOB))
        route = request.match_info["route"].strip("/")
        if not self.pool.of(job.capability):
            raise RequestRefused(503, f"No capacity available for capability {job.capability}: no container offers it")

        async def attempt(slot: Slot) -> web.StreamResponse:
            container = slot.container
            url = URL(container.url) / route if route else URL(container.url)
            headers = picked(request.headers, REQUEST_HEADERS) | container.headers
            try:
                back = {livepeer.BALANCE: "0"}
                return await relay.post(slot, container.peer, url, headers, job.timeout_seconds, back)
            finally:
                slot.free()

        with self.counted(), Relay(self, request) as relay:
            return await first_to_take(self.pool.slots(job.capability, live=False), attempt)

    async def live(self, request: web.Request) -> web.StreamResponse:
        model = self.model_of(request)

        async def attempt(slot: Slot) -> web.StreamResponse:
            return await LiveJob(self, slot, relay).run()

        with self.counted(), Relay(self, request, live=True) as relay:
            return await first_to_take(self.pool.slots(model), attempt)

    async def register(self, request: web.Request) -> web.Response:
        self._check_secret(request)
        check_json_type(request)
        container = parse_container(json_object(await read_request(request)))
        if len(tuple(self.pool)) >= MOST_CONTAINERS and self.pool.find(container.name, container.url) is None:
            raise RequestRefused(503, f"{MOST_CONTAINERS} containers are known, which is all this orchestrator takes")
        self.health.add(container).is_ready()  # it has just said so
        return web.Response(text="ok", content_type="application/json")

    async def unregister(self, request: web.Request) -> web.Response:
        """Send a container no more jobs; those that it has go on. An unknown name is not an error."""
        self._check_secret(request)
        name = (await read_request(request)).decode("utf-8", "replace").strip()
        url = request.headers.get(livepeer.CAPABILITY_URL, "").rstrip("/")
        for each in self.pool.of(name):
            if url in ("", each.url):
                each.not_ready("it has unregistered")
                each.leaving = each.registered
        return web.Response(text="ok", content_type="application/json")

    async def token(self, request: web.Request) -> web.Response:
        """Tell a gateway how many jobs of a capability could be accepted; off-chain, all are free of charge."""
        sender = livepeer.parse_sender(request.headers.get(livepeer.SENDER, ""))
        name = request.headers.get(livepeer.CAPABILITY, "")
        if not name:
            raise RequestRefused(400, f"the {livepeer.CAPABILITY} header is missing")
        free = self.pool.free(name)
        answer = {
            "sender_address": sender,
            "ticket_params": {},  # go-livepeer's gateway fails without these and the price
            "balance": 0,
            "price": {"pixelsPerUnit": 1},
            "service_addr": self.streams.service_url,
        }
        return web.json_response(answer | ({"available_capacity": free} if free else {}))

    def _check_secret(self, request: web.Request) -> None:
        shown = request.headers.get("Authorization", "").encode("utf-8", "surrogateescape")
        if not hmac.compare_digest(shown, self._secret):
            raise RequestRefused(400, "invalid authorization")


def parse_container(fields: Mapping[str, Any]) -> Container:
    """Read what a container reports about itself; its price means nothing off-chain.

    Raises `RequestRefused` (400).
    """
    name, token = _text(fields, "name"), _text(fields, "token")
    capacity = 0 if fields.get("capacity") is None else fields["capacity"]
    if not name:
        raise RequestRefused(400, "name must not be empty")
    try:
        url = base_url(_text(fields, "url"))
    except UsageError as error:
        raise RequestRefused(400, f"url: {error}") from None
    if type(capacity) is not int or not 0 <= capacity <= livepeer.LARGEST_INT:
        raise RequestRefused(400, f"capacity must be a whole number of at least 0, not {capacity!r:.80}")
    return Container(name, url, capacity, token, registered=True)


def _text(fields: Mapping[str, Any], name: str) -> str:
    value = "" if fields.get(name) is None else fields[name]
    if not isinstance(value, str) or len(value) > LONGEST_TEXT or not value.isprintable():
        raise RequestRefused(400, f"{name} must be a string of one line of printable characters, not {value!r:.80}")
    return value
