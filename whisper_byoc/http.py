"""HTTP as every part of this project does it: addresses, sessions, listeners, bounded bodies, lines and JSON."""

import asyncio
import contextlib
import errno
import io
import json
import os
import re
import socket
import ssl
from collections.abc import AsyncIterable, AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
from aiohttp import web

from whisper_byoc.aio import stop_listening
from whisper_byoc.aiohttp_internals import defer_continue
from whisper_byoc.connections import ConnectionLimits, Connections, continue_when_asked, keep_reserve
from whisper_byoc.errors import RequestRefused, StartError, UsageError

CONNECTION_ERRORS = (aiohttp.ClientError, TimeoutError, OSError)
"""What a request raises when the server is gone, breaks off or is too slow; a retry may succeed."""

CONNECT_SECONDS = 10.0
BACKLOG = 128
SMALL_BODY = 64 * 1024
"""Bytes; enough for the JSON that peers exchange."""


def base_url(text: str, *, scheme: str = "", port: int | None = None, credentials: bool = False) -> str:
    """Check the address of a server, and return it as a URL without a trailing slash.

    `scheme` and `port` are added if the text has none; without `scheme`, the text must begin with one. A user name
    and password are refused unless `credentials` is true. Raises `UsageError`.
    """
    url = text.strip()
    if scheme and "://" not in url:
        url = f"{scheme}://{url}"
    if "@" in url and not credentials:  # first, because other messages show the address
        raise UsageError("the address of a server must not have a user name or password in it")
    try:
        parts = urlsplit(url)
        (parts.hostname or "").encode("idna")  # raises for impossible host names
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable or not url.isprintable() or any(each in url for each in " ?#\\"):
        example = f"{scheme or 'http'}://localhost:{port or 8000}"
        raise UsageError(f"{text[:200]!r} is not the address of a server, such as {example}")
    if port is not None and parts.port is None:
        url = parts._replace(netloc=f"{parts.netloc}:{port}").geturl()
    return url.rstrip("/")


def without_secrets(url: str) -> str:
    """Return a URL, possibly malformed, as messages show it: without user, password and query."""
    return re.sub("//[^/]*@", "//", url.partition("?")[0])


def reachable(host: str, if_everywhere: str) -> str:
    """Return the host of a URL that reaches a listener on `host`; `if_everywhere` if it is bound to all addresses."""
    return bracketed(if_everywhere if host in ("", "0.0.0.0", "::") else host)


def bracketed(host: str) -> str:
    """Write a host as it appears in URLs: an IPv6 address in brackets."""
    return f"[{host}]" if ":" in host else host


def open_session(
    *,
    verify: bool = True,
    connect_seconds: float = CONNECT_SECONDS,
    total_seconds: float | None = None,
    headers: Mapping[str, str] | None = None,
    buffer_bytes: int = 64 * 1024,
) -> aiohttp.ClientSession:
    """Open a session that does not decompress bodies, keeps no cookies and does not limit connections.

    go-livepeer's orchestrators sign their own certificates, so `verify` is false for them.
    """
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, ssl=verify),
        timeout=aiohttp.ClientTimeout(total=total_seconds, sock_connect=connect_seconds),
        headers={"Accept-Encoding": "identity", **(headers or {})},
        skip_auto_headers=("Content-Type", "User-Agent"),
        auto_decompress=False,
        cookie_jar=aiohttp.DummyCookieJar(),
        read_bufsize=buffer_bytes,
    )


def where(host: str, port: int) -> dict[str, Any]:
    """Return the arguments of asyncio's servers for a listener; `::` includes IPv4, which asyncio leaves out.

    Raises `OSError` when the address is not available.
    """
    if host != "::" or not socket.has_dualstack_ipv6():
        return {"host": host, "port": port}
    return {"sock": socket.create_server((host, port), family=socket.AF_INET6, dualstack_ipv6=True)}


@contextlib.asynccontextmanager
async def listening(
    app: web.Application,
    host: str,
    port: int,
    *,
    keep_alive_seconds: float,
    shutdown_seconds: float,
    limits: ConnectionLimits | None = None,
    tls: ssl.SSLContext | None = None,
    **options: Any,
) -> AsyncIterator[int]:
    """Serve an application while the context lasts, and yield the port (chosen by the system if `port` is 0).

    Bodies arrive as they were sent, even compressed ones: unpacking a megabyte would block the event loop for seconds.
    `limits` bounds the connections; by default it follows from how many files this process may open. With `tls`, from
    `server_tls`, it serves HTTPS. `options` are for `aiohttp.web.AppRunner`. Raises `StartError` when the address is
    not available.
    """
    connections = Connections(limits or ConnectionLimits.of_this_process())
    defer_continue(app)
    app.middlewares.extend((keep_reserve, continue_when_asked))
    runner = web.AppRunner(
        app,
        access_log=None,
        auto_decompress=False,
        keepalive_timeout=keep_alive_seconds,
        shutdown_timeout=shutdown_seconds,
        **options,
    )
    await runner.setup()
    assert runner.server is not None
    loop = asyncio.get_running_loop()
    listener = None
    try:
        try:
            listener = await loop.create_server(
                connections.factory(runner.server, tls), **where(host, port), backlog=BACKLOG
            )
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                advice = "choose another port, or stop the program that listens there"
                raise StartError(f"port {port} on {host} is in use; {advice}") from None
            raise StartError(f"cannot listen on {host} port {port}: {error.strerror or error}") from None
        if loop.get_exception_handler() is None:
            loop.set_exception_handler(connections.on_loop_error)
        yield int(listener.sockets[0].getsockname()[1])
    finally:
        if loop.get_exception_handler() == connections.on_loop_error:
            loop.set_exception_handler(None)
        if listener is not None:
            await stop_listening(listener)
        await runner.cleanup()
        connections.close()


def server_tls(certificate: Path, key: Path | None = None) -> ssl.SSLContext:
    """Read a PEM certificate with its chain, and its PEM key, which may be in the same file.

    Raises `UsageError`.
    """
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)  # TLS 1.2 or newer, no client certificates
    try:
        context.load_cert_chain(certificate, key, password=lambda: b"")  # a service has nobody to prompt
    except (OSError, ValueError) as error:
        names = f"{certificate} and {key}" if key else f"{certificate}"
        why = error.strerror if type(error) is not ssl.SSLError and isinstance(error, OSError) else str(error)
        raise UsageError(f"{names} are no certificate with its key in PEM, without a passphrase: {why}") from None
    return context


def reason_of(error: BaseException) -> str:
    """Say why a request failed; for a failed connection, in the operating system's words."""
    if isinstance(error, aiohttp.ClientConnectorError) and not isinstance(error, aiohttp.ClientSSLError):
        number = error.os_error.errno or 0  # for a failed name lookup it is negative, not the system's
        return os.strerror(number) if number > 0 else error.os_error.strerror or str(error.os_error)
    if isinstance(error, aiohttp.ClientPayloadError):
        return "the connection broke off"
    if isinstance(error, TimeoutError) and not str(error):
        return "no answer in time"
    return str(error) or type(error).__name__


def abort(request: web.Request) -> None:
    """Drop the connection of a client that is gone or does not read: an orderly close could wait for ever."""
    if request.transport is not None:
        request.transport.abort()


async def read_body(
    content: aiohttp.StreamReader, limit: int = SMALL_BODY, too_large: Exception | None = None
) -> bytes:
    """Read a body to its end.

    Beyond `limit` bytes, raise `too_large` if given; otherwise return the first `limit` bytes and leave the rest
    unread.
    """
    body = bytearray()
    await read_into(body, content, limit, too_large)
    return bytes(body)


async def read_into(
    body: bytearray,
    content: aiohttp.StreamReader,
    limit: int,
    too_large: Exception | None,
    count: Callable[[int], None] = lambda size: None,
) -> None:
    """Read as `read_body` does, into `body`; `count` is told of bytes before they are held, and may raise.

    Counting a body only once it is complete would not see many clients that send slowly at the same time.
    """
    while chunk := await content.readany():
        if len(body) + len(chunk) > limit:
            if too_large is not None:
                raise too_large
            body += chunk[: limit - len(body)]
            return
        count(len(chunk))
        body += chunk


async def read_request(request: web.Request, limit: int = SMALL_BODY) -> bytes:
    """Read the body of a request.

    Raises `RequestRefused` (413) beyond `limit` bytes.
    """
    return await read_body(request.content, limit, RequestRefused(413, f"the body is larger than {limit} bytes"))


async def lines(chunks: AsyncIterable[bytes], limit: int, too_long: Exception) -> AsyncIterator[bytes]:
    """Cut chunks of any size into lines, without their line ends.

    A line of more than `limit` bytes raises `too_long`.
    """
    line = bytearray()
    async for chunk in chunks:
        for part in io.BytesIO(chunk):
            line += part.removesuffix(b"\n")
            if len(line) > limit:
                raise too_long
            if part.endswith(b"\n"):
                yield bytes(line)
                line.clear()
    if line:
        yield bytes(line)


def json_value(text: str | bytes) -> Any:
    """Decode JSON from outside.

    Raises `ValueError`, also for nesting deeper than Python can follow.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def json_object(body: str | bytes) -> dict[str, Any]:
    """Decode a request body that must be a JSON object; an empty body is an empty object.

    Raises `RequestRefused` (400).
    """
    try:
        found = json_value(body or b"{}")
    except ValueError as error:
        raise RequestRefused(400, f"the body is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise RequestRefused(400, f"the body must be a JSON object, not {type(found).__name__}")
    return found
