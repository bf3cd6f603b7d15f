"""The answer to a client, written as a peer's answer comes in."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Mapping

import aiohttp
from aiohttp import web

from whisper_byoc.errors import PeerFailed, RequestRefused
from whisper_byoc.network.form import Form

__all__ = ["PEER_ERRORS", "Out", "peer_failed"]

log = logging.getLogger("whisper_byoc.network")

PEER_ERRORS = (aiohttp.ClientError, asyncio.TimeoutError, OSError)
"""What a request to a peer raises when the peer is gone, breaks off or is too slow."""


class Out:
    """One answer, begun when the first peer answers, and ended in its form whatever happens to the peers.

    A reader that takes nothing for `stall_seconds` is cut off.
    """

    def __init__(self, request: web.Request, form: Form, stall_seconds: float) -> None:
        self.produced = False
        """Whether the client has got anything of a result."""
        self._request = request
        self._form = form
        self._stall = stall_seconds
        self._response: web.StreamResponse | None = None

    async def copy(self, answer: aiohttp.ClientResponse, headers: Mapping[str, str]) -> None:
        """Pass a peer's answer on as it comes; the end of it is left to `finish`.

        Raises `PeerFailed` when the peer breaks off.
        """
        await self.begin(answer.status, headers)
        while True:
            try:
                data = await answer.content.readany()
            except PEER_ERRORS as error:
                raise peer_failed(answer.url.origin(), error) from None
            if not data:
                return
            await self._write(self._form.feed(data))

    async def begin(self, status: int, headers: Mapping[str, str]) -> None:
        """Send the head, unless that was done for an earlier peer."""
        if self._response is None:
            self._response = web.StreamResponse(status=status, headers=dict(headers))
            if self._form.content_type:
                self._response.headers["Content-Type"] = self._form.content_type
                self._response.headers["Cache-Control"] = "no-cache"
            await self._response.prepare(self._request)

    async def finish(self) -> web.StreamResponse:
        """End the answer: all went well."""
        assert self._response is not None
        await self._write(self._form.close())
        await self._response.write_eof()
        return self._response

    async def fail(self, error: RequestRefused) -> web.StreamResponse:
        """End the answer with the error, in the form's way.

        Raises the error itself where nothing was sent yet.
        """
        if self._response is None:
            raise error
        log.warning("%s %s: %s", self._request.method, self._request.path, error)
        tail = self._form.failed(uuid.uuid4().hex, str(error))
        if tail is None:
            self._cut()
            return self._response
        await self._write(tail)
        await self._response.write_eof()
        return self._response

    async def _write(self, data: bytes) -> None:
        if not data:
            return
        assert self._response is not None
        self.produced = self.produced or not data.startswith(b":")  # a comment of an event stream is no result
        try:
            await asyncio.wait_for(self._response.write(data), self._stall)
        except asyncio.TimeoutError:
            self._cut()
            raise ConnectionResetError("the reader does not read") from None

    def _cut(self) -> None:
        if self._request.transport is not None:
            self._request.transport.abort()


def peer_failed(peer: object, error: BaseException) -> PeerFailed:
    """Say of a peer what went wrong with it."""
    if isinstance(error, asyncio.TimeoutError):
        return PeerFailed(f"{peer} did not answer in time", 504)
    if isinstance(error, aiohttp.ClientConnectorError):
        return PeerFailed(f"{peer} cannot be reached: {error.strerror}", reached=False)
    if isinstance(error, aiohttp.ClientPayloadError):
        return PeerFailed(f"{peer} broke off in the middle of its answer")
    return PeerFailed(f"{peer} failed: {str(error) or type(error).__name__}")
