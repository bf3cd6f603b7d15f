"""What the clients share: one HTTP session to one server, and every failure as a `ClientError`."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from whisper_byoc.errors import ClientError, SegmentFailed, ServerRefused, ServerUnreachable, UsageError

__all__ = ["MAX_RECORD_BYTES", "SHORT", "Connection", "lines", "reason_of", "refusal", "server_address", "whole"]

CONNECT_SECONDS = 10.0
SHORT = aiohttp.ClientTimeout(total=CONNECT_SECONDS)
"""For requests that a server answers at once."""

MAX_RECORD_BYTES = 128 * 1024 * 1024
"""No answer and no record is read beyond it; a record can carry a whole frame as base64."""

MAX_REFUSAL_BYTES = 64 * 1024


class Connection:
    """An HTTP session to one server; every way in which a request can fail comes out as a `ClientError`.

    `owner` is the class that its user must enter; `token` is the bearer token to show, if any. Raises `UsageError`
    when `base_url` is no address of a server, or names a user beside a token.
    """

    def __init__(self, base_url: str, owner: str, token: str | None) -> None:
        self.base_url = server_address(base_url)
        self._owner = owner
        if token and urlsplit(self.base_url).username is not None:
            raise UsageError("the server's address names a user, and there is a token; only one of them can be shown")
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._session: aiohttp.ClientSession | None = None

    def open(self) -> None:
        """Get ready to send requests."""
        limits = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS)
        self._session = aiohttp.ClientSession(timeout=limits, headers=self._headers)

    async def close(self) -> None:
        """Close what is open; more than once does no harm."""
        if self._session is not None:
            await self._session.close()

    @asynccontextmanager
    async def request(self, method: str, path: str, **options: Any) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send a request and give its answer, whose status is below 400.

        Raises `ServerUnreachable`, `ServerRefused` or `SegmentFailed`.
        """
        if self._session is None:
            raise UsageError(f"{self._owner} must be entered first: async with {self._owner}(…) as client")
        try:
            async with self._session.request(method, self.base_url + path, **options) as answer:
                if answer.status >= 400:
                    raise await refusal(answer)
                yield answer
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            message = f"no answer from {self.base_url}: {reason_of(error)}; is the server running there?"
            raise ServerUnreachable(message) from error


def server_address(url: str) -> str:
    """Give the URL without a slash at its end.

    Raises `UsageError` when it is no address of a server.
    """
    try:
        parts = urlsplit(url)
        (parts.hostname or "").encode("idna")  # as who connects does; raises for a name that no host can have
        usable = url.startswith(("http://", "https://")) and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        known = "it begins with http:// or https://, and HOST or HOST:PORT comes next"
        raise UsageError(f"{url!r} is not the address of a server; {known}")
    return url.rstrip("/")


def reason_of(error: Exception) -> str:
    """Say why a request failed, as the operating system says it where nobody could be connected to."""
    if isinstance(error, aiohttp.ClientConnectorError) and not isinstance(error, aiohttp.ClientSSLError):
        number = error.os_error.errno or 0  # that of a name that is not known is negative, and not the system's
        return os.strerror(number) if number > 0 else error.os_error.strerror or str(error.os_error)
    if isinstance(error, aiohttp.ClientPayloadError):
        return "the connection broke off"
    return str(error) or type(error).__name__


async def refusal(answer: aiohttp.ClientResponse) -> ClientError:
    """Make the server's error answer an exception; one that breaks off still has its status."""
    try:
        text = (await asyncio.wait_for(whole(answer, MAX_REFUSAL_BYTES), CONNECT_SECONDS)).decode(errors="replace")
    except (TimeoutError, aiohttp.ClientError, OSError, ServerRefused):
        text = ""
    try:
        body = json.loads(text)
        message, seq = str(body["error"]), body.get("seq")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        message, seq = text.strip()[:200] or str(answer.reason), None
    if answer.status == 500 and isinstance(seq, int):
        return SegmentFailed(seq, message)
    return ServerRefused(answer.status, message)


async def whole(answer: aiohttp.ClientResponse, limit: int = MAX_RECORD_BYTES) -> bytes:
    """Read a body of up to `limit` bytes.

    Raises `ServerRefused` when there are more.
    """
    body = bytearray()
    async for chunk in answer.content.iter_any():
        body += chunk
        if len(body) > limit:
            raise ServerRefused(answer.status, f"the server sent an answer of more than {limit} bytes")
    return bytes(body)


async def lines(chunks: AsyncIterator[bytes], limit: int = MAX_RECORD_BYTES) -> AsyncIterator[bytes]:
    """Cut chunks into lines of up to `limit` bytes, without their ends; the last one may lack its end.

    Raises `ServerRefused` when a line is longer.
    """
    rest = bytearray()
    async for chunk in chunks:
        *complete, last = chunk.split(b"\n")
        for line in complete:
            rest += line
            check_length(rest, limit)
            yield bytes(rest)
            rest.clear()
        rest += last
        check_length(rest, limit)
    if rest:
        yield bytes(rest)


def check_length(line: bytearray, limit: int) -> None:
    """Raise `ServerRefused` for a line of more than `limit` bytes."""
    if len(line) > limit:
        raise ServerRefused(200, f"the server sent a record of more than {limit} bytes")
