"""The base class of the clients: one HTTP session to one server, with every failure raised as a `ClientError`."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, Self
from urllib.parse import urlsplit

import aiohttp

from whisper_byoc.errors import ClientError, SegmentFailed, ServerRefused, ServerUnreachable, UsageError
from whisper_byoc.http import (
    CONNECT_SECONDS,
    CONNECTION_ERRORS,
    base_url,
    json_value,
    open_session,
    read_body,
    reason_of,
)

SHORT = aiohttp.ClientTimeout(total=CONNECT_SECONDS)
"""Timeout of requests that a server answers at once."""
MAX_RECORD_BYTES = 128 * 1024 * 1024
"""Limit for a response and for a record, which can carry a whole frame as base64."""
SHOWN_CHARACTERS = 200
"""How much is shown of an error response that is not in our format."""


class Connection:
    """An HTTP session to one server, within `async with`.

    `token` is the bearer token to show, if any; `timeout` bounds, in seconds, the wait for a result. Raises
    `UsageError` when `url` is not a server's address, or names a user although a token is given.
    """

    def __init__(self, url: str, token: str | None, timeout: float) -> None:
        self.base_url = base_url(url, credentials=True)
        if token and urlsplit(self.base_url).username is not None:
            raise UsageError("the server's address names a user, and there is a token; only one of them can be shown")
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._timeout = timeout
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = open_session(headers=self._headers)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    @asynccontextmanager
    async def _time_limit(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self._timeout):
                yield
        except TimeoutError:
            raise ServerUnreachable(f"{self.base_url} had no result within {self._timeout:g} s") from None

    @asynccontextmanager
    async def _request(self, method: str, path: str, **options: Any) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send a request and yield its response, whose status is below 400.

        Raises `ServerUnreachable`, `ServerRefused` or `SegmentFailed`.
        """
        if self._session is None:
            name = type(self).__name__
            raise UsageError(f"{name} must be entered first: async with {name}(…) as client")
        try:
            async with self._session.request(method, self.base_url + path, **options) as answer:
                if answer.status >= 400:
                    raise await error_of(answer)
                yield answer
        except CONNECTION_ERRORS as error:
            message = f"no answer from {self.base_url}: {reason_of(error)}; is the server running there?"
            raise ServerUnreachable(message) from error


async def error_of(answer: aiohttp.ClientResponse) -> ClientError:
    """Return the exception for an error response; one that breaks off still has its status."""
    body = b""
    with suppress(*CONNECTION_ERRORS):
        async with asyncio.timeout(CONNECT_SECONDS):
            body = await read_body(answer.content)
    text = body.decode(errors="replace")
    try:
        fields = json_value(text)
        message, seq = str(fields["error"]), fields.get("seq")
    except (ValueError, TypeError, KeyError, AttributeError):
        message, seq = text.strip()[:SHOWN_CHARACTERS] or str(answer.reason), None
    if answer.status == 500 and isinstance(seq, int):
        return SegmentFailed(seq, message)
    return ServerRefused(answer.status, message)


async def whole_body(answer: aiohttp.ClientResponse) -> bytes:
    """Read a body of up to `MAX_RECORD_BYTES`.

    Raises `ServerRefused` when there is more.
    """
    too_large = ServerRefused(answer.status, f"the server sent an answer of more than {MAX_RECORD_BYTES} bytes")
    return await read_body(answer.content, MAX_RECORD_BYTES, too_large)
