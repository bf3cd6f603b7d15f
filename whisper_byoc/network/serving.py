"""A server of ours on its address, until SIGTERM or SIGINT."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import AsyncIterator

import aiohttp
from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from whisper_byoc import http
from whisper_byoc.errors import UsageError

__all__ = ["Address", "base_url", "listening", "may_be_looked_up", "open_session"]

log = logging.getLogger("whisper_byoc.network")

KEEP_ALIVE_S = 600.0
"""go-livepeer's idle timeout between two requests."""
CONNECT_S = 5.0
SHUTDOWN_S = 1.0
LONGEST_LINE = 64 * 1024
"""Of a request's first line, and of a header: a job's parameters are in one of them."""
ADDRESS = re.compile(r"(?:(https?)://)?(\[[0-9A-Fa-f:.]+\]|[^:/\s@?#]*)(?::([0-9]{1,5}))?((?:/[^\s?#]*)?)")
LOCAL = re.compile(r"localhost|[0-9.]+|\[.*\]")


class Address:
    """A `host:port` as go-livepeer takes it, with or without a scheme."""

    def __init__(self, text: str, default_port: int) -> None:
        """Raise `UsageError` for what is no address."""
        found = ADDRESS.fullmatch(text.strip())
        if not found or int(found[3] or 0) > 65535 or not text.strip() or not may_be_looked_up(found[2]):
            raise UsageError(f"{text!r} is not an address such as 127.0.0.1:{default_port}")
        self.scheme = found[1] or ""
        self.host = found[2]
        self.port = int(found[3]) if found[3] else default_port
        self.path = found[4].rstrip("/")

    @property
    def listen_host(self) -> str:
        """Where to listen: a number is bound to, a name that others use means all interfaces."""
        return self.host.strip("[]") if self.host and LOCAL.fullmatch(self.host) else "0.0.0.0"


def may_be_looked_up(host: str) -> bool:
    """Whether a host can be asked for at all: none of its labels is empty or too long."""
    try:
        host.encode("idna")
    except UnicodeError:
        return False
    return True


def base_url(text: str, default_port: int) -> str:
    """Make the address of a peer a URL; without a scheme it is plain HTTP.

    Raises `UsageError`.
    """
    address = Address(text, default_port)
    if not address.host:
        raise UsageError(f"{text!r} names no host; write it as 127.0.0.1:{default_port}")
    return f"{address.scheme or 'http'}://{address.host}:{address.port}{address.path}"


@contextlib.asynccontextmanager
async def listening(app: web.Application, host: str, port: int, role: str) -> AsyncIterator[int]:
    """Serve while the context lasts, and give the port, which the system chose if it was 0.

    Raises `StartError` when the address cannot be had.
    """
    app.middlewares.append(no_such_route(role))
    listener = http.listening(
        app, host, port, keep_alive_seconds=KEEP_ALIVE_S, shutdown_seconds=SHUTDOWN_S, handler_cancellation=True,
        max_line_size=LONGEST_LINE, max_field_size=LONGEST_LINE,
    )  # fmt: skip
    async with listener as bound:
        log.info("%s listening on port %d", role, bound)
        yield bound


def no_such_route(role: str) -> Middleware:
    """Say who it is that lacks a route: an address of a gateway is soon taken for a container's."""

    @web.middleware
    async def answer(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except (web.HTTPNotFound, web.HTTPMethodNotAllowed) as error:
            allowed = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else None
            message = f"{request.method} {request.path}: this {role} has no such route"
            return web.json_response({"error": message}, status=error.status, headers=allowed)

    return answer


def open_session() -> aiohttp.ClientSession:
    """Open the session for requests to peers: bytes as they are, no redirects to follow, no time limit of its own.

    Certificates are not checked: go-livepeer's orchestrators sign their own.
    """
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, ssl=False),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S),
        headers={"Accept-Encoding": "identity"},
        skip_auto_headers=("Content-Type", "User-Agent"),
        auto_decompress=False,
        cookie_jar=aiohttp.DummyCookieJar(),
        read_bufsize=256 * 1024,
    )
