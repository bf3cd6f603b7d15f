"""The gateway: jobs that are one request, and running it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Handler
from yarl import URL

from whisper_byoc import livepeer
from whisper_byoc.aio import cancel
from whisper_byoc.errors import RequestRefused
from whisper_byoc.network.directory import Directory
from whisper_byoc.network.gateway_streams import GatewayStreams
from whisper_byoc.network.limits import NetworkLimits
from whisper_byoc.network.peers import AbortScope, first_to_take
from whisper_byoc.network.records import record_stream
from whisper_byoc.network.relay import ClientAnswer, RequestBody, forward
from whisper_byoc.network.serving import (
    LAST_WORDS_S,
    TRICKLE_PATH,
    Address,
    Context,
    Running,
    as_json,
    as_text,
    listening,
    open_session,
    serve_until_stopped,
    status_routes,
)
from whisper_byoc.trickle import TrickleLimits, TrickleServer
from whisper_byoc.trickle.limits import Memory

MARGIN_S = 5.0
"""The orchestrator has its own limit; ours is for an orchestrator that does not keep it (go-livepeer: 5 s)."""
REQUEST_HEADERS = ("Content-Type", "Content-Encoding", "Accept")
NOT_PASSED_BACK = frozenset(
    {"connection", "date", "keep-alive", "server", "te", "trailer", "transfer-encoding", "upgrade"}
)


class GatewayJobs:
    """The routes of frames, live feeds and batch jobs."""

    def __init__(self, context: Context, directory: Directory) -> None:
        self.count = 0
        self.scope = AbortScope()
        """All jobs are in it; it is aborted when the time for draining is over."""
        self._context = context
        self._directory = directory

    def routes(self) -> list[web.RouteDef]:
        return [
            web.post("/live/video-to-video", as_json(self.live)),
            web.post("/process/request", as_text(self.batch)),
            web.post("/process/request/{route:.*}", as_text(self.batch)),
        ]

    async def live(self, request: web.Request) -> web.StreamResponse:
        """Bring one frame, or a live feed, to an orchestrator that offers the model."""
        limits = self._context.limits
        model = request.headers.get(livepeer.MODEL, "")
        if not model:
            names = ", ".join(self._directory.available) or "none yet"
            raise RequestRefused(400, f"name the model in the {livepeer.MODEL} header; there are: {names}")
        headers = passed_on(request, livepeer.MODEL)
        feed = request.content_length is None
        client = ClientAnswer(
            request, limits.stall_seconds, record_stream(request.headers.get("Accept", "")) if feed else None
        )
        seconds = limits.job_seconds + MARGIN_S
        keep, most = (limits.feed_bytes, None) if feed else (limits.frame_bytes, limits.frame_bytes)
        with self._counted(), RequestBody(request, self._context.memory, keep, most) as body:
            return await self._on_some_orchestrator(
                self._directory.ranked(model), request, headers, body, client, seconds
            )

    async def batch(self, request: web.Request) -> web.StreamResponse:
        """Bring a BYOC batch job to an orchestrator that has a place for it (go-livepeer, byoc/job_gateway.go)."""
        limits = self._context.limits
        if ".." in request.path.split("/"):  # the orchestrator's other paths are not ours to give
            raise RequestRefused(400, f"bad route {request.path!r:.100}: it must not have '..' in it")
        job = livepeer.JobHeader.parse(request.headers.get(livepeer.JOB))
        headers = passed_on(request) | {livepeer.JOB: job.encode()}
        client = ClientAnswer(request, limits.stall_seconds)
        with self._counted():
            urls = await self._directory.with_places(job.capability)
            with RequestBody(request, self._context.memory, limits.frame_bytes, limits.frame_bytes) as body:
                return await self._on_some_orchestrator(
                    urls, request, headers, body, client, job.timeout_seconds + MARGIN_S
                )

    async def _on_some_orchestrator(
        self,
        urls: Sequence[str],
        request: web.Request,
        headers: dict[str, str],
        body: RequestBody,
        client: ClientAnswer,
        seconds: float,
    ) -> web.StreamResponse:
        async def attempt(url: str) -> web.StreamResponse:
            target = URL(url + request.rel_url.raw_path, encoded=True)  # %2F and %3F stay what they are
            return await forward(
                self._context.http, self.scope, f"the orchestrator at {url}", target, request, headers, body, client,
                seconds, lambda answer: passed_back(answer.headers, url),
            )  # fmt: skip

        return await first_to_take(urls, attempt, lambda: body.repeatable)

    @contextlib.contextmanager
    def _counted(self) -> Iterator[None]:
        self._context.check_draining()
        if self.count >= self._context.limits.jobs:
            raise RequestRefused(503, f"{self.count} jobs are going on, which is all this gateway takes", retry_after=1)
        self.count += 1
        try:
            yield
        finally:
            self.count -= 1


def passed_on(request: web.Request, *others: str) -> dict[str, str]:
    """Return the client's headers that an orchestrator is to see.

    Raises `RequestRefused` (400) for one that is not text.
    """
    found = {name: request.headers[name] for name in (*REQUEST_HEADERS, *others) if name in request.headers}
    for name, value in found.items():
        if any(0xD800 <= ord(letter) < 0xE000 for letter in value):  # how aiohttp shows bytes that are not UTF-8
            raise RequestRefused(400, f"the {name} header is not UTF-8: {value!r:.80}")
    return found


def passed_back(headers: Mapping[str, str], url: str) -> dict[str, str]:
    kept = {name: value for name, value in headers.items() if name.lower() not in NOT_PASSED_BACK}
    return kept | {"X-Orchestrator-Url": url}


@dataclass(frozen=True)
class GatewayConfig:
    """How to run a gateway."""

    listen: Address
    orchestrators: Sequence[str]
    """Base URLs."""
    public_host: str = ""
    """`host:port` under which clients reach it, if that is not what they used for the start of a stream."""
    cross_origin: bool = False
    """Whether pages of other origins may use it."""
    limits: NetworkLimits = field(default_factory=NetworkLimits)


@dataclass
class RunningGateway(Running):
    """A gateway that serves."""

    directory: Directory


@contextlib.asynccontextmanager
async def running(config: GatewayConfig) -> AsyncIterator[RunningGateway]:
    """Serve while the context lasts.

    Raises `StartError` when the address cannot be had.
    """
    limits = config.limits
    async with open_session() as http:
        context = Context("gateway", http, limits, Memory(limits.total_bytes))
        directory = Directory(config.orchestrators, http)
        trickle = TrickleServer(TRICKLE_PATH, limits=TrickleLimits(segment_bytes=limits.frame_bytes))
        jobs = GatewayJobs(context, directory)
        streams = GatewayStreams(context, directory, trickle, config.public_host)

        def counts() -> dict[str, Any]:
            return {"jobs": jobs.count, "streams": len(streams), "draining": context.draining}

        app = web.Application(client_max_size=0)
        trickle.add_routes(app)
        app.add_routes([*jobs.routes(), *streams.routes()])
        app.add_routes(status_routes(context.role, directory.capabilities, counts))
        if config.cross_origin:
            allow_other_origins(app)
        asking = asyncio.get_running_loop().create_task(directory.keep_asking())
        try:
            async with listening(app, config.listen, context.role) as port:
                url = f"http://{config.listen.host or '127.0.0.1'}:{port}"
                try:
                    yield RunningGateway(
                        context, trickle, streams, lambda: jobs.count, jobs.scope.abort, port, url, directory
                    )
                finally:
                    context.draining = True
                    await streams.stop_all("the gateway is shutting down")
        finally:
            await cancel(asking)
            await context.tasks.close(LAST_WORDS_S)


def allow_other_origins(app: web.Application) -> None:
    """Let pages of any origin call every route, `/data` included."""

    async def add_headers(_: web.Request, response: web.StreamResponse) -> None:
        for name in ("Allow-Origin", "Allow-Headers", "Allow-Methods", "Expose-Headers"):
            response.headers[f"Access-Control-{name}"] = "*"

    @web.middleware
    async def preflight(request: web.Request, handler: Handler) -> web.StreamResponse:
        return web.Response() if request.method == "OPTIONS" else await handler(request)

    app.on_response_prepare.append(add_headers)
    app.middlewares.append(preflight)


async def serve(config: GatewayConfig, stop: asyncio.Event | None = None) -> None:
    """Serve until `stop` is set (default: by SIGTERM or SIGINT), then drain.

    Raises `StartError` when the address cannot be had.
    """
    await serve_until_stopped(running(config), stop)
