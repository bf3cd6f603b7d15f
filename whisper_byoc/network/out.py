"""The answer to a client, written as a peer's answer comes in."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Callable, Mapping

import aiohttp
from aiohttp import web

from whisper_byoc.errors import PeerFailed, ReaderGone, RequestRefused
from whisper_byoc.http import reason_of as describe
from whisper_byoc.network.form import Form
from whisper_byoc.network.tasks import within

__all__ = ["PEER_ERRORS", "Out", "peer_failed"]

log = logging.getLogger("whisper_byoc.network")

PEER_ERRORS = (aiohttp.ClientError, asyncio.TimeoutError, OSError)
"""What a request to a peer raises when the peer is gone, breaks off or is too slow."""


class Out:
    """One answer, begun when the first peer answers, and ended in its form whatever happens to the peers.

    A reader that takes nothing for `stall_seconds` is cut off; it, and one that has gone, is a `ReaderGone`.
    """

    def __init__(self, request: web.Request, form: Form, stall_seconds: float) -> None:
        self._request = request
        self._form = form
        self._stall = stall_seconds
        self._response: web.StreamResponse | None = None

    @property
    def produced(self) -> bool:
        """Whether the client has got anything of a result."""
        return self._form.produced

    async def copy(
        self,
        answer: aiohttp.ClientResponse,
        headers: Mapping[str, str],
        may_be_silent: Callable[[], bool] = lambda: False,
    ) -> None:
        """Pass a peer's answer on as it comes; the end of it is left to `finish`.

        Raises `PeerFailed` when the peer breaks off, or says nothing for `stall_seconds` while it may not be silent.
        """
        self._form.begin()
        if "Content-Length" not in headers:  # the head that has it waits for the first byte: another peer may differ
            await self.begin(answer.status, headers)
        while data := await self._read(answer, may_be_silent):
            passed = self._form.feed(data)
            await self.begin(answer.status, headers)
            await self._write(passed)
        await self.begin(answer.status, headers)

    async def begin(self, status: int, headers: Mapping[str, str]) -> None:
        """Send the head, unless that was done for an earlier peer.

        Raises `PeerFailed` when what this peer gives does not fit under that head.
        """
        head = {"Content-Type": "application/octet-stream", **headers}
        if self._form.content_type:
            head |= {"Content-Type": self._form.content_type, "Cache-Control": "no-cache"}
        if self._response is None:
            self._response = web.StreamResponse(status=status, headers=head)
            await self._response.prepare(self._request)
        elif (self._response.status, self._response.headers["Content-Type"]) != (status, head["Content-Type"]):
            raise PeerFailed(
                "the answer had begun as that of another peer, which failed, and this one's differs in kind"
            )

    async def finish(self) -> web.StreamResponse:
        """End the answer: all went well.

        Raises `PeerFailed` when the peer's answer was not whole.
        """
        assert self._response is not None
        await self._write(self._form.close())
        return await self._ended(self._response)

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
        return await self._ended(self._response)

    async def _read(self, answer: aiohttp.ClientResponse, may_be_silent: Callable[[], bool]) -> bytes:
        while True:
            try:
                return await within(self._stall, answer.content.readany())
            except PEER_ERRORS as error:
                if isinstance(error, asyncio.TimeoutError) and may_be_silent():
                    continue
                raise peer_failed(answer.url.origin(), error) from None

    async def _write(self, data: bytes) -> None:
        if not data:
            return
        assert self._response is not None
        try:
            await within(self._stall, self._response.write(data))
        except (TimeoutError, ConnectionError):
            self._cut()
            raise ReaderGone("the reader is gone, or does not read") from None

    async def _ended(self, response: web.StreamResponse) -> web.StreamResponse:
        try:
            await within(self._stall, response.write_eof())
        except (TimeoutError, ConnectionError):
            self._cut()
            raise ReaderGone("the reader is gone, or does not read") from None
        return response

    def _cut(self) -> None:
        if self._request.transport is not None:
            self._request.transport.abort()


def peer_failed(peer: object, error: BaseException) -> PeerFailed:
    """Say of a peer what went wrong with it."""
    if isinstance(error, asyncio.TimeoutError) and not isinstance(error, aiohttp.ConnectionTimeoutError):
        return PeerFailed(f"{peer} did not answer in time", 504)
    reached = not isinstance(error, (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError))
    if isinstance(error, aiohttp.ClientPayloadError):
        return PeerFailed(f"{peer} broke off in the middle of its answer")
    return PeerFailed(f"{peer} failed: {describe(error)}", reached=reached)
