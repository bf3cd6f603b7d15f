"""A listener's connections: how many there may be, and how long each may take to send its request."""

import asyncio
import ipaddress
import json
import logging
import resource
import ssl
import time
from asyncio.sslproto import SSLProtocol
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from aiohttp import StreamReader, hdrs, web
from aiohttp.typedefs import Handler

from whisper_byoc.aiohttp_internals import awaits_head, handler_options, newest_body, send_continue
from whisper_byoc.errors import RequestRefused
from whisper_byoc.logs import one_line

log = logging.getLogger(__name__)

MONITORED = frozenset(("/health", "/healthz", "/readyz"))
"""Paths served to connections in the reserve."""
HANDSHAKE_SECONDS = 10
"""Longest time for the TLS handshake of a client."""
LINGER_SECONDS = 10.0
LINGER_BYTES = 64 << 20
"""How much a client may go on sending after its last response, and for how long, before its connection is reset."""
LOG_SECONDS = 10.0
"""Shortest time between two log lines about the same problem."""
MOST_CONNECTIONS = 10_000
RESERVE_SHARE = 8
"""One client address may hold one in this many places of the reserve."""
TOO_MANY = "there are too many connections; try again later"
IPV6_NETWORK_BITS = 64
"""Leading bits of an address: the network that one client has to itself."""


@dataclass(frozen=True)
class ConnectionLimits:
    """How many connections a listener accepts."""

    total: int
    per_address: int
    """From one IPv4 address, or one IPv6 network of 64 bits."""
    reserve: int = 16
    """Places beyond both limits, for monitors: only `MONITORED` is served there."""
    head_seconds: float = 20.0
    """Longest time for a request head to arrive, from the opening of the connection or from the head's first bytes."""

    reserve_head_seconds: float = 2.0
    """The same in the reserve, whose places must become free again soon."""

    @property
    def lingering(self) -> int:
        """How many connections may be `Lingering`; some of them hold no place."""
        return max(1, self.reserve, self.total // 8)

    @classmethod
    def of_this_process(cls) -> "ConnectionLimits":
        """Give clients half of the file descriptors, since a job may need another for a peer, a program or a file."""
        descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        total = MOST_CONNECTIONS if descriptors < 0 else max(1, min(MOST_CONNECTIONS, descriptors // 2))
        return cls(total, max(1, total // 2))


class Seldom:
    """Logs a problem at most once per `LOG_SECONDS`, with the number of occurrences suppressed since the last line."""

    def __init__(self) -> None:
        self._next = 0.0
        self._left_out = 0

    def warning(self, text: str) -> None:
        now = time.monotonic()
        if now < self._next:
            self._left_out += 1
            return
        log.warning("%s%s", text, f" ({self._left_out} more like it before)" if self._left_out else "")
        self._next, self._left_out = now + LOG_SECONDS, 0


class Lingering(asyncio.Protocol):
    """Closes both directions of a connection: ends ours, then drops what the client still sends until it ends its own.

    Closing with bytes unread would reset the connection, and a client that is still sending might lose the response.
    """

    def __init__(self, transport: asyncio.Transport, among: list["Lingering"]) -> None:
        """`among` is the listener's list of lingering connections; this one removes itself when it closes."""
        self.close = transport.close
        self.abort = transport.abort
        self._among = among
        self._before = transport.get_protocol()
        self._left = LINGER_BYTES
        self._timer = asyncio.get_running_loop().call_later(LINGER_SECONDS, transport.abort)
        transport.set_protocol(self)
        try:
            transport.write_eof()
        except OSError:  # the client has reset it, which the event loop has not noticed yet
            transport.abort()
        transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        self._left -= len(data)
        if self._left < 0:
            self.abort()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._timer.cancel()
        if self in self._among:
            self._among.remove(self)
        self._before.connection_lost(exc)  # type: ignore[arg-type]  # typeshed wants an Exception


class Connections:
    """Counts the connections of one listener."""

    def __init__(self, limits: ConnectionLimits) -> None:
        self.limits = limits
        self.refusals, self.slow_heads, self.malformed, self.descriptors = Seldom(), Seldom(), Seldom(), Seldom()
        self._places = Counter[str]()
        self._reserve: list[BoundedHandler] = []  # oldest first
        self._lingering: list[Lingering] = []  # oldest first

    def enter(self, handler: "BoundedHandler") -> bool | None:
        """Count a connection; return whether it is in the reserve, or None if there is no place for it.

        When the reserve is full, its oldest connection between requests gives way to the new one; if the new one's
        address already has its share, one of that address does.
        """
        limits, address = self.limits, handler.address
        if self._places.total() < limits.total and self._places[address] < limits.per_address:
            self._places[address] += 1
            return False
        self.refusals.warning(
            f"{self._places[address]} connections from {address}, {self._places.total()} in all: no more are taken"
        )
        its = [each for each in self._reserve if each.address == address]
        has_share = len(its) >= max(1, limits.reserve // RESERVE_SHARE)
        if has_share or len(self._reserve) >= limits.reserve:
            idle = next((each for each in (its if has_share else self._reserve) if each.idle), None)
            if idle is None:
                return None
            idle.give_way()
        self._reserve.append(handler)
        return True

    def leave(self, handler: "BoundedHandler") -> None:
        """Free the place of a connection, if it has one."""
        if handler in self._reserve:
            self._reserve.remove(handler)
        elif handler.reserved is False:
            self._places[handler.address] -= 1
            if not self._places[handler.address]:
                del self._places[handler.address]
        handler.reserved = None

    def linger(self, transport: asyncio.Transport) -> None:
        """Close a connection that has had its last response; when too many linger, the oldest is reset."""
        if len(self._lingering) >= self.limits.lingering:
            self._lingering.pop(0).abort()
        self._lingering.append(Lingering(transport, self._lingering))

    def close(self) -> None:
        """Close the lingering connections."""
        for each in self._lingering:
            each.close()

    def factory(self, server: web.Server, tls: ssl.SSLContext | None) -> Callable[[], asyncio.BaseProtocol]:
        """Return the factory that makes the protocol of each connection to an application's server."""
        options = handler_options(server)

        def make() -> asyncio.BaseProtocol:
            handler = BoundedHandler(server, self, **options)
            return CountedTls(handler, tls) if tls else handler

        return make

    def on_loop_error(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Log in one line that the system is out of descriptors; asyncio would log a hundred tracebacks a second."""
        if "socket.accept()" in context.get("message", ""):
            self.descriptors.warning(f"no connection can be accepted: {context.get('exception')}")
        else:
            loop.default_exception_handler(context)


class BoundedHandler(web.RequestHandler):
    """One connection."""

    def __init__(self, server: web.Server, connections: Connections, **options: Any) -> None:
        super().__init__(server, **options)
        self.reserved: bool | None = None
        """Whether it is in the reserve; None when it holds no place."""
        self.address = ""
        self._connections = connections
        self._tcp: asyncio.Transport | None = None
        self._head_timer: asyncio.TimerHandle | None = None
        self._body: StreamReader | None = None  # of the newest request

    def count(self, tcp: asyncio.BaseTransport) -> None:
        """Take a place, if there is one, for a newly opened connection; `reserved` says of which kind."""
        assert isinstance(tcp, asyncio.Transport)
        self._tcp, self.address = tcp, client_address(tcp)
        self.reserved = self._connections.enter(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        if self._tcp is None:
            self.count(transport)
        if self.reserved is None:
            self._answer(transport, HTTPStatus.SERVICE_UNAVAILABLE, TOO_MANY)
            return
        super().connection_made(transport)
        self._expect_head()

    def connection_lost(self, exc: BaseException | None) -> None:
        self.leave()
        super().connection_lost(exc)

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Send the response; after the last one, the connection lingers, even if the bytes to come are not a body."""
        resp, gone = await super().finish_response(request, resp, start_time)
        transport = self.transport
        if not gone and not resp.keep_alive and transport is not None and not transport.is_closing():
            assert isinstance(transport, asyncio.Transport)
            if transport.can_write_eof():  # TLS has its own way of ending
                self._linger(transport)
        return resp, gone

    def leave(self) -> None:
        """Give back the place, if one is still held."""
        self._head_is_there()
        self._connections.leave(self)

    @property
    def idle(self) -> bool:
        """Whether none of its requests is being handled."""
        return awaits_head(self)

    def give_way(self) -> None:
        """Give up the place in the reserve to another connection."""
        self._connections.leave(self)
        self._head_is_there()
        if isinstance(self.transport, asyncio.Transport):
            self._answer(self.transport, HTTPStatus.SERVICE_UNAVAILABLE, TOO_MANY)
        elif self._tcp is not None:  # it is in its TLS handshake, or lingering
            self._tcp.abort()

    def data_received(self, data: bytes) -> None:
        if self.reserved is None:
            return
        in_body = self._body is not None and not self._body.is_eof()
        super().data_received(data)
        self._body = newest_body(self) or self._body
        if not awaits_head(self):
            self._head_is_there()
        elif data and not in_body and self._head_timer is None:
            self._expect_head()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer bytes that are not a request with the usual error body, and log one line."""
        if status != HTTPStatus.BAD_REQUEST:
            return super().handle_error(request, status, exc, message)
        why = one_line((message or str(exc) or type(exc).__name__).strip().partition("\n")[0])[:200]
        self._connections.malformed.warning(f"bytes from {self.address} are no HTTP request: {why}")
        response = web.json_response({"error": f"this is no HTTP request: {why}"}, status=status)
        response.force_close()
        return response

    @property
    def _head_seconds(self) -> float:
        limits = self._connections.limits
        return limits.reserve_head_seconds if self.reserved else limits.head_seconds

    def _expect_head(self) -> None:
        seconds = self._head_seconds
        self._head_timer = asyncio.get_running_loop().call_later(seconds, self._head_is_late)

    def _head_is_there(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_is_late(self) -> None:
        self._head_timer = None
        transport = self.transport
        if transport is None or not awaits_head(self):
            return
        seconds = self._head_seconds
        self._connections.slow_heads.warning(f"{self.address} had not sent the head of a request after {seconds:g} s")
        assert isinstance(transport, asyncio.Transport)
        self._answer(
            transport, HTTPStatus.REQUEST_TIMEOUT, f"the head of the request was not there after {seconds:g} s"
        )

    def _answer(self, transport: asyncio.Transport, status: HTTPStatus, message: str) -> None:
        """Answer when there is no request, and close."""
        body = json.dumps({"error": message}).encode()
        head = (
            f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: application/json; charset=utf-8\r\n"
            f"Content-Length: {len(body)}\r\nRetry-After: 1\r\nConnection: close\r\n\r\n"
        )
        transport.write(head.encode() + body)
        if transport.can_write_eof():
            self._linger(transport)
        else:
            transport.close()

    def _linger(self, transport: asyncio.Transport) -> None:
        self._connections.linger(transport)
        self.transport = None  # so that aiohttp does not close it
        self.force_close()


class CountedTls(SSLProtocol):
    """TLS for a connection that holds a place from its opening, not only from the end of its handshake."""

    def __init__(self, handler: BoundedHandler, context: ssl.SSLContext) -> None:
        waiter: Any = None  # only the connecting side has one; a listener does not
        super().__init__(
            asyncio.get_running_loop(),
            handler,
            context,
            waiter,
            server_side=True,
            ssl_handshake_timeout=HANDSHAKE_SECONDS,
        )
        self._handler = handler

    def connection_made(self, transport: Any) -> None:
        self._handler.count(transport)
        super().connection_made(transport)
        if self._handler.reserved is None:
            transport.abort()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._handler.leave()
        super().connection_lost(exc)


@web.middleware
async def keep_reserve(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Let requests on connections in the reserve read what monitors read, and nothing else."""
    if not getattr(request.protocol, "reserved", False):
        return await handler(request)
    if request.path not in MONITORED:
        raise RequestRefused(503, TOO_MANY, retry_after=1, reason="connections")
    response = await handler(request)
    response.force_close()
    return response


@web.middleware
async def continue_when_asked(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Ask for the body of a request that has not been refused, if its client is waiting for `100 Continue`."""
    expected = request.headers.get(hdrs.EXPECT, "")
    if expected and expected.lower() != "100-continue":
        raise RequestRefused(417, f"this server cannot do what the request expects: {expected[:40]!r}")
    if expected and request.version >= (1, 1):
        await send_continue(request)
    return await handler(request)


def client_address(transport: asyncio.BaseTransport) -> str:
    """Return the client's address, or its network for IPv6; empty if it has none."""
    peer = transport.get_extra_info("peername")
    if not isinstance(peer, tuple):
        return ""
    address = ipaddress.ip_address(peer[0].partition("%")[0])
    if not isinstance(address, ipaddress.IPv6Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((address, IPV6_NETWORK_BITS), strict=False))


def client_of(request: web.BaseRequest) -> str:
    """Return the address of a request's client as `client_address` does; empty when it has gone."""
    return client_address(request.transport) if request.transport else ""
