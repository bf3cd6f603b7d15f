"""`POST /live/video-to-video`: one frame or a live feed through a container's `/live/{job}/source` and `/output`."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Mapping

import aiohttp
from aiohttp import web

from whisper_byoc.errors import PeerBusy, PeerFailed, RequestRefused
from whisper_byoc.network.answers import as_json, says
from whisper_byoc.network.feed import Feed
from whisper_byoc.network.form import form_for
from whisper_byoc.network.header import MODEL_HEADER
from whisper_byoc.network.orchestrator.context import Context
from whisper_byoc.network.orchestrator.pool import Slot
from whisper_byoc.network.out import PEER_ERRORS, Out, peer_failed
from whisper_byoc.network.reading import read_answer
from whisper_byoc.network.tasks import ended, within

__all__ = ["Live"]

ALONE_S = "30"
"""A job that nobody feeds or reads ends after so many seconds: should we die, nobody comes back to it."""
CLOSED = "Lp-Trickle-Closed"
SEQ = "Lp-Trickle-Seq"
PASSED_ON = ("Content-Type", "Content-Encoding")
"""Headers of a request that a container is to see."""


class Live:
    """The route."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def routes(self) -> list[web.RouteDef]:
        """Give the route."""
        return [web.post("/live/video-to-video", as_json(self.post))]

    async def post(self, request: web.Request) -> web.StreamResponse:
        """Bring a request to a container, and once to another if the first fails before it has produced anything."""
        context = self._context
        context.check_draining()
        model = request.headers.get(MODEL_HEADER, "")
        if not model:
            names = ", ".join(context.pool.names) or "none yet"
            raise RequestRefused(400, f"name the model in the {MODEL_HEADER} header; there are: {names}")
        limits = context.limits
        one = request.content_length is not None
        most, hold = (limits.frame_bytes, limits.frame_bytes) if one else (None, limits.hold_bytes)
        out = Out(request, form_for("" if one else request.headers.get("Accept", "")), limits.stall_seconds)
        async with Feed(request, context.memory, hold, most) as feed:

            async def run(slot: Slot) -> web.StreamResponse:
                attempt = Attempt(context, slot, request, feed)
                return await (attempt.frame(out) if one else attempt.feed_through(out))

            return await context.on_some_container(model, run, feed, out)


class Attempt:
    """One job at one container."""

    def __init__(self, context: Context, slot: Slot, request: web.Request, feed: Feed) -> None:
        self._context = context
        self._http = context.http
        self._slot = slot
        self._container = slot.container
        self._request = request
        self._feed = feed
        self._job = f"{self._container.url}/live/{uuid.uuid4().hex}"
        self._headers = {name: request.headers[name] for name in PASSED_ON if name in request.headers}
        self._headers |= self._container.headers

    async def frame(self, out: Out) -> web.StreamResponse:
        """Send one frame and answer with its result.

        Raises `RequestRefused` with the container's own words, `PeerFailed` or `PeerBusy`.
        """
        try:
            if self._feed.empty:  # a keep-alive: nothing is to be done
                return web.Response(body=b"")
            with self._slot.alive():
                return await within(self._context.limits.job_seconds, self._frame(out))
        except PEER_ERRORS as error:
            raise self._feed.error or peer_failed(f"the container at {self._container.url}", error) from None
        finally:
            self._leave()

    async def feed_through(self, out: Out) -> web.StreamResponse:
        """Send a live feed while its results come back.

        Raises as `frame` does.
        """
        sending = asyncio.get_running_loop().create_task(self._put(out))
        try:
            with self._slot.alive():
                async with self._output(sending) as answer:
                    await self._copy(answer, out, sending)
                    await asyncio.wait({sending}, timeout=self._context.limits.stall_seconds)
                    if not sending.done():
                        raise TimeoutError
                    sending.result()
                    return await out.finish()
        except PEER_ERRORS as error:
            raise self._feed.error or peer_failed(f"the container at {self._container.url}", error) from None
        except PeerFailed:
            if self._feed.error:
                raise self._feed.error from None
            raise
        finally:
            await ended(sending)
            self._leave()

    async def _copy(self, answer: aiohttp.ClientResponse, out: Out, sending: asyncio.Task[None]) -> None:
        """Pass results on, unless the container refuses the feed: a job of which it has half a feed never ends."""
        headers = {name: answer.headers[name] for name in ("Content-Type",) if name in answer.headers}
        copying = asyncio.get_running_loop().create_task(out.copy(answer, headers, lambda: not sending.done()))
        try:
            await asyncio.wait({copying, sending}, return_when=asyncio.FIRST_COMPLETED)
            if sending.done() and not copying.done():
                sending.result()
            await copying
        finally:
            await ended(copying)

    async def _frame(self, out: Out) -> web.StreamResponse:
        await self._put(out)
        while True:
            async with self._get(params={"wait": "300"}) as answer:
                if answer.status == 200:
                    headers = {name: answer.headers[name] for name in ("Content-Type", SEQ) if name in answer.headers}
                    length = answer.headers.get("Content-Length")
                    await out.copy(answer, headers | ({"Content-Length": length} if length else {}))
                    return await out.finish()
                if answer.status >= 400:
                    message = says(await read_answer(answer), f"the container answered {answer.status}")
                    raise RequestRefused(502, message)  # it is well, and says that this frame has no result
                if CLOSED in answer.headers:  # a session that gives no result for this frame
                    return web.Response(body=b"")

    async def _put(self, out: Out) -> None:
        """Send the body."""
        params: Mapping[str, str] = {**self._request.query, **self._container.query, "alone": ALONE_S}
        headers = dict(self._headers)
        if self._feed.length is not None:
            headers["Content-Length"] = str(self._feed.length)
        async with self._http.put(
            f"{self._job}/source",
            data=self._feed.chunks(lambda: out.produced),
            params=params,
            headers=headers,
            allow_redirects=False,
        ) as answer:
            if answer.status >= 400:
                raise refusal(self._container.url, answer.status, await read_answer(answer))
            await answer.read()

    @contextlib.asynccontextmanager
    async def _output(self, sending: asyncio.Task[None]) -> AsyncIterator[aiohttp.ClientResponse]:
        """Follow the output, unless the feed is refused before there is one."""
        patience = self._context.limits.open_seconds
        accept = self._request.headers.get("Accept", "*/*")
        following = self._get(headers={"Accept": accept}, params={"follow": "1", "wait": f"{patience:g}"})
        async with contextlib.AsyncExitStack() as stack:
            opening = asyncio.ensure_future(stack.enter_async_context(following))
            try:
                await asyncio.wait({opening, sending}, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
                if sending.done() and not opening.done():
                    sending.result()
                    await asyncio.wait({opening}, timeout=patience)
                if not opening.done():
                    raise TimeoutError
            finally:
                await ended(opening)
            answer = opening.result()
            if answer.status != 200:
                raise refusal(self._container.url, answer.status, await read_answer(answer))
            yield answer

    def _get(
        self, params: Mapping[str, str], headers: Mapping[str, str] | None = None
    ) -> contextlib.AbstractAsyncContextManager[aiohttp.ClientResponse]:
        headers = {**(headers or {}), **self._container.headers}
        return self._http.get(f"{self._job}/output", params=params, headers=headers, allow_redirects=False)

    def _leave(self) -> None:
        """Free the container's memory and the place, behind the client's back."""
        self._context.tasks.start(self._abandon())

    async def _abandon(self) -> None:
        try:
            limit = aiohttp.ClientTimeout(total=self._context.limits.answer_seconds)
            with contextlib.suppress(*PEER_ERRORS):
                async with self._http.delete(self._job, headers=self._container.headers, timeout=limit):
                    pass
        finally:
            self._slot.free()


def refusal(url: str, status: int, body: bytes) -> RequestRefused:
    """Make an error answer of a container an error."""
    message = says(body, f"the container at {url} answered {status}")
    if status in (429, 503):
        return PeerBusy(message)
    if status == 401:
        return PeerFailed(f"the container at {url} does not take the token that it registered with")
    return PeerFailed(message) if status >= 500 else RequestRefused(status, message)
