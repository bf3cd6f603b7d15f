"""What the clients share: one HTTP session to one server, and bodies in pieces and in lines."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterable, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import aiohttp

from whisper_byoc.errors import ClientError, SegmentFailed, ServerRefused, ServerUnreachable, UsageError

__all__ = ["Connection", "chunked", "lines", "refusal", "remember_error"]

CHUNK_BYTES = 64 * 1024
CONNECT_SECONDS = 10.0
MAX_RECORD_BYTES = 128 * 1024 * 1024  # a record can carry a whole frame as base64


class Connection:
    """An HTTP session to one server; every way in which a request can fail comes out as a `ClientError`.

    `owner` is the class that its user must enter; `headers` go along with every request.
    """

    def __init__(self, base_url: str, owner: str, headers: Mapping[str, str]) -> None:
        self.base_url = base_url.rstrip("/")
        self._owner = owner
        self._headers = headers
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
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError) as error:
            reason = str(error) or type(error).__name__
            message = f"no answer from {self.base_url}: {reason}; is the server running there?"
            raise ServerUnreachable(message) from error


async def refusal(answer: aiohttp.ClientResponse) -> ClientError:
    """Make the server's error answer an exception."""
    text = await answer.text(errors="replace")
    try:
        body = json.loads(text)
        message, seq = str(body["error"]), body.get("seq")
    except (ValueError, TypeError, KeyError, AttributeError):
        message, seq = text.strip()[:200] or str(answer.reason), None
    if answer.status == 500 and isinstance(seq, int):
        return SegmentFailed(seq, message)
    return ServerRefused(answer.status, message)


async def chunked(source: AsyncIterable[bytes] | bytes) -> AsyncIterator[bytes]:
    """Yield bytes in pieces, and an iterable as it is, without the empty chunks that would end an HTTP body."""
    if isinstance(source, bytes):
        for at in range(0, len(source), CHUNK_BYTES):
            yield source[at : at + CHUNK_BYTES]
    else:
        async for chunk in source:
            if chunk:
                yield chunk


async def remember_error(source: AsyncIterator[bytes], errors: list[Exception]) -> AsyncIterator[bytes]:
    """Pass bytes on, and keep the source's own exception, which the HTTP client would wrap in one of its own."""
    try:
        async for chunk in source:
            yield chunk
    except Exception as error:
        errors.append(error)
        raise


async def lines(content: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """Split a body into lines of any length, up to `MAX_RECORD_BYTES`."""
    rest = bytearray()
    async for chunk in content.iter_any():
        head, newline, tail = chunk.rpartition(b"\n")
        rest += head if newline else chunk
        if len(rest) > MAX_RECORD_BYTES:
            raise ServerRefused(200, f"the server sent a record of more than {MAX_RECORD_BYTES} bytes")
        if newline:
            for line in bytes(rest).split(b"\n"):
                yield line
            rest = bytearray(tail)
