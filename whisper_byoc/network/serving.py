"""What the gateway and orchestrator share as servers: addresses, error responses, monitors' routes."""

import abc
import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, ClassVar, Self

import aiohttp
from aiohttp import web
from aiohttp.typedefs import Handler

from whisper_byoc import __version__, http, livepeer
from whisper_byoc.aio import Changed, Tasks, stop_on_signals
from whisper_byoc.connections import MONITORED
from whisper_byoc.errors import ReaderGone, RequestRefused
from whisper_byoc.network.peers import peer_session
from whisper_byoc.network.streams import Streams
from whisper_byoc.origins import OriginPolicy, check_pages
from whisper_byoc.page import PATHS
from whisper_byoc.tokens import ask_for_token
from whisper_byoc.trickle import TrickleError, TrickleLimits, TrickleServer
from whisper_byoc.trickle.limits import ByteBudget
from whisper_byoc.trickle.server import IDLE_CONNECTION_S

log = logging.getLogger("whisper_byoc.network")

SHUTDOWN_S = 1.0
LONGEST_LINE = 64 << 10
"""Longest first line of a request, and longest header: one of them carries a job's parameters."""
LAST_WORDS_S = 1.0
"""Time for interrupted jobs to tell their clients so."""
GO_ROUTES = ("/process/", "/ai/", "/capability/")


@dataclass(frozen=True)
class NetworkLimits:
    """Sizes are bytes, times are seconds."""

    frame_bytes: int = 64 << 20
    """Largest frame, and largest body of a batch job; our container takes as much."""
    total_bytes: int = 1 << 30
    """Total of all bodies held at once; beyond it, 503."""
    jobs: int = 256
    """Requests with a body at once; beyond it, 503."""
    job_seconds: float = 120.0
    """Longest wait for the result of a frame, and for the response to a batch job that names no timeout."""
    stall_seconds: float = 300.0
    """Longest time for which a reader may take nothing, or a container send nothing after the end of a feed."""
    open_seconds: float = 35.0
    """Longest wait for a container to open a job; ours lets a request wait 30 s for room."""
    ask_seconds: float = 1.0
    """How often a container's health is checked."""
    answer_seconds: float = 5.0
    """Longest wait for a container's reply about its health, or about the end of a job."""
    stop_seconds: float = 10.0
    """Longest wait for a container's response to the stop of a stream (go-livepeer)."""
    linger_seconds: float = 0.5
    """Channels stay open for this long after a stop, so that readers can get what was written last."""
    events_seconds: float = 40.0
    """A stream without an event for this long has lost its container: go-livepeer's 30 s, checked every 10 s."""
    control_seconds: float = 40.0
    """A gateway writes to the control channel every 10 s; one that has not done so for this long is gone."""
    drain_seconds: float = 20.0
    """Longest time between SIGTERM and exit."""


@dataclass(frozen=True)
class NodeConfig:
    """How to run a gateway or an orchestrator."""

    host: str
    """Address to listen on, and the port; 0 lets the system choose."""
    port: int
    _: KW_ONLY
    allowed_origins: Sequence[str] = ()
    """Origins of web pages that may use it, as returned by `origins.origin`."""
    limits: NetworkLimits = field(default_factory=NetworkLimits)


def error_answers(role: str) -> Callable[..., Awaitable[web.StreamResponse]]:
    """Answer errors as `{"error": sentence}`, and as plain text on go-livepeer's routes, as Go's `http.Error` does."""

    @web.middleware
    async def answer(request: web.Request, handler: Handler) -> web.StreamResponse:
        headers = {}
        try:
            return await handler(request)
        except (web.HTTPNotFound, web.HTTPMethodNotAllowed) as error:
            # a gateway's address is easily mistaken for a container's: say which role lacks the route
            status, message = error.status, f"{request.method} {request.path}: this {role} has no such route"
            if "Allow" in error.headers:
                headers["Allow"] = error.headers["Allow"]
        except web.HTTPException:  # from the trickle server
            raise
        except RequestRefused as error:
            status, message = error.status, str(error)
            if error.retry_after is not None:
                headers["Retry-After"] = str(error.retry_after)
        except TrickleError as error:
            status, message = 503, str(error)
        except (ConnectionError, ReaderGone):
            http.abort(request)
            return web.StreamResponse()
        except Exception:
            log.exception("%s %s failed", request.method, request.path)
            status, message = 500, "the server failed on this request; its log says why"
        message = message.encode("utf-8", "replace").decode()  # a peer's message may hold a lone surrogate
        if request.path.startswith(GO_ROUTES):
            response = web.Response(text=message + "\n", status=status, headers=headers)
        else:
            response = web.json_response({"error": message}, status=status, headers=headers)
        if not request.content.at_eof():
            response.force_close()  # the rest of the body will not be read
        return response

    return answer


class Node(abc.ABC):
    """A gateway or an orchestrator: what its routes share, what monitors read, and how it ends."""

    role: ClassVar[str]
    streams: Streams[Any]

    def __init__(self, config: NodeConfig, session: aiohttp.ClientSession) -> None:
        self.limits = config.limits
        self.http = session
        """For requests to peers."""
        self.memory = ByteBudget(self.limits.total_bytes)
        """Budget of all bodies held."""
        self.trickle = TrickleServer(limits=TrickleLimits(segment_bytes=self.limits.frame_bytes))
        self.tasks = Tasks()
        self.jobs = 0
        """Requests in progress that are not streams."""
        self._job_ended = Changed()
        self.draining = False
        self.names: frozenset[str] = frozenset()
        """Host names by which others reach it."""
        self.origins = frozenset(config.allowed_origins)
        """Origins of web pages that may use it."""
        self.client_token = ""
        """Token that clients must show, if not empty."""
        self.host, self.port = config.host, config.port

    @abc.abstractmethod
    def abort_jobs(self, reason: str) -> None:
        """End all jobs that are not streams."""

    @abc.abstractmethod
    def capabilities(self) -> dict[str, Any]:
        """Describe what is offered, for the public."""

    @abc.abstractmethod
    def routes(self) -> Iterable[web.RouteDef]:
        """Return the routes that the other kind of node does not have."""

    @abc.abstractmethod
    async def live(self, request: web.Request) -> web.StreamResponse:
        """Do a frame or a live feed."""

    @abc.abstractmethod
    async def batch(self, request: web.Request) -> web.StreamResponse:
        """Do a batch job (go-livepeer, byoc)."""

    @abc.abstractmethod
    def working(self) -> contextlib.AbstractAsyncContextManager[None]:
        """Return the context in which peers' health is checked; the node is already listening."""

    def check_draining(self) -> None:
        if self.draining:
            raise RequestRefused(503, self._reason, retry_after=5)

    def model_of(self, request: web.Request) -> str:
        """Return the capability of a frame or a live feed; raises `RequestRefused` (400) when none is named."""
        if model := request.headers.get(livepeer.MODEL):
            return model
        names = ", ".join(each["name"] for each in self.capabilities()["capabilities"]) or "none yet"
        raise RequestRefused(400, f"name the model in the {livepeer.MODEL} header; there are: {names}")

    @contextlib.contextmanager
    def counted(self) -> Iterator[None]:
        """Count a job within the context.

        Raises `RequestRefused` (503) when there are too many, or the node is shutting down.
        """
        self.check_draining()
        if self.jobs >= self.limits.jobs:
            raise RequestRefused(503, f"{self.jobs} jobs are going on, which is all this {self.role} takes", 1)
        self.jobs += 1
        try:
            yield
        finally:
            self.jobs -= 1
            self._job_ended.notify()

    @classmethod
    @contextlib.asynccontextmanager
    async def running(cls, config: NodeConfig) -> AsyncIterator[Self]:
        """Serve while the context lasts. `config` has the subclass's own config type.

        Raises `StartError` when the address cannot be had.
        """
        async with peer_session() as session:
            node = cls(config, session)
            try:
                async with node._listening() as node.port, node.working():
                    log.info("%s listening on port %d", cls.role, node.port)
                    try:
                        yield node
                    finally:
                        node.draining = True
                        await node.streams.stop_all(node._reason)
            finally:  # last, as they tell peers about interrupted requests
                await node.tasks.close(LAST_WORDS_S)

    def _listening(self) -> contextlib.AbstractAsyncContextManager[int]:
        app = web.Application(client_max_size=0, middlewares=[error_answers(self.role)])
        policy = OriginPolicy(self.origins, self.names, has_token=bool(self.client_token), open_paths=MONITORED)
        check_pages(app, policy)
        ask_for_token(app, self.client_token, MONITORED | PATHS)
        self.trickle.add_routes(app)
        jobs = [
            web.post("/live/video-to-video", self.live),
            web.post("/process/request{route:(/.*)?}", self.batch),
        ]
        app.add_routes([*jobs, *self.streams.routes(), *self.routes(), *self._status_routes()])
        return http.listening(
            app,
            self.host,
            self.port,
            keep_alive_seconds=IDLE_CONNECTION_S,
            shutdown_seconds=SHUTDOWN_S,
            handler_cancellation=True,
            max_line_size=LONGEST_LINE,
            max_field_size=LONGEST_LINE,
        )

    async def drain(self) -> None:
        """Accept no new work, stop the streams, and give jobs time to end."""
        self.draining = True
        log.info("shutting down: %d jobs and %d streams to end", self.jobs, len(self.streams))
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.limits.drain_seconds
        await self.streams.stop_all(self._reason)
        if not await self._job_ended.until(lambda: not self.jobs, deadline - loop.time()):
            self.abort_jobs(self._reason)
            await self._job_ended.until(lambda: not self.jobs, LAST_WORDS_S)

    @property
    def _reason(self) -> str:
        return f"the {self.role} is shutting down"

    def _status_routes(self) -> list[web.RouteDef]:
        async def health(_: web.Request) -> web.Response:
            return web.json_response({"status": "OK"})

        async def ready(_: web.Request) -> web.Response:
            reasons = ["shutting down"] if self.draining else []
            if not any(each["available"] for each in self.capabilities()["capabilities"]):
                reasons.append("no capability can take a job")
            return web.json_response({"ready": not reasons, "reasons": reasons}, status=503 if reasons else 200)

        async def capabilities(_: web.Request) -> web.Response:
            return web.json_response(self.capabilities())

        async def status(_: web.Request) -> web.Response:
            counts = {"jobs": self.jobs, "streams": len(self.streams), "draining": self.draining}
            return web.json_response({"role": self.role, "version": __version__, **counts})

        handlers = {
            "/health": health, "/healthz": ready, "/readyz": ready, "/capabilities": capabilities, "/status": status
        }  # fmt: skip
        return [web.get(path, handler) for path, handler in handlers.items()]


async def serve_node(running: contextlib.AbstractAsyncContextManager[Node], stop: asyncio.Event | None = None) -> None:
    """Serve what `Gateway.running(config)` or the orchestrator's returns until `stop` is set, then drain.

    By default SIGTERM and SIGINT set it. Raises `StartError` when the address is not available.
    """
    stop = stop or stop_on_signals()  # before anybody can know that we are listening
    async with running as node:
        await stop.wait()
        await node.drain()
