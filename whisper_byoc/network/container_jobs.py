"""The orchestrator's jobs that are one request: batch jobs, frames and live feeds."""

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

import aiohttp
from aiohttp import web
from yarl import URL

from whisper_byoc import livepeer
from whisper_byoc.aio import cancel, first_of
from whisper_byoc.errors import PeerFailed, RequestRefused
from whisper_byoc.http import CONNECTION_ERRORS
from whisper_byoc.network.peers import first_to_take, refusal, talking_to
from whisper_byoc.network.pool import Pool, Slot
from whisper_byoc.network.records import record_stream
from whisper_byoc.network.relay import ClientAnswer, RequestBody, forward
from whisper_byoc.network.serving import Context, as_json, as_text

BATCH_HEADERS = ("Content-Type", "Content-Encoding", "Accept")
"""What of a batch request passes; go-livepeer keeps the first."""
ANSWER_HEADERS = (
    "Content-Type", "Content-Encoding", "Content-Length", "X-Metadata", "Cache-Control", "X-Livepeer-Work-Units",
)  # fmt: skip
"""What of a container's answer passes; go-livepeer keeps two of them."""
LIVE_HEADERS = ("Content-Type", "Content-Encoding")
FRAME_HEADERS = ("Content-Type", "Content-Length", "Lp-Trickle-Seq")
CLOSED = "Lp-Trickle-Closed"
ALONE_S = "30"
"""A job that nobody feeds or reads ends after so many seconds: should we die, nobody comes back to it."""
RESULT_WAIT_S = "300"


class ContainerJobs:
    """The routes."""

    def __init__(self, context: Context, pool: Pool) -> None:
        self._context = context
        self._pool = pool

    def routes(self) -> list[web.RouteDef]:
        return [
            web.post("/process/request", as_text(self.batch)),
            web.post("/process/request/{route:.*}", as_text(self.batch)),
            web.post("/live/video-to-video", as_json(self.live)),
        ]

    async def batch(self, request: web.Request) -> web.StreamResponse:
        """Bring a batch job to a container, and its answer back as it comes (go-livepeer, byoc)."""
        context, limits = self._context, self._context.limits
        context.check_draining()
        job = livepeer.JobHeader.parse(request.headers.get(livepeer.JOB))
        route = request.match_info.get("route", "").strip("/")
        if ".." in route.split("/"):  # the container's other paths are not ours to give
            raise RequestRefused(400, f"bad route {route!r:.100}: it must not have '..' in it")
        if not self._pool.of(job.capability):
            raise RequestRefused(503, f"No capacity available for capability {job.capability}: no container offers it")
        client = ClientAnswer(request, limits.stall_seconds)

        async def attempt(slot: Slot) -> web.StreamResponse:
            container = slot.container
            url = URL(container.url) / route if route else URL(container.url)
            headers = picked(request.headers, BATCH_HEADERS) | container.headers
            try:
                return await forward(
                    context.http, slot, container.peer, url, request, headers, body, client, job.timeout_seconds,
                    lambda answer: picked(answer.headers, ANSWER_HEADERS) | {livepeer.BALANCE: "0"},
                )  # fmt: skip
            finally:
                slot.free()

        with RequestBody(request, context.memory, limits.frame_bytes, limits.frame_bytes) as body:
            return await self._on_some_container(job.capability, attempt, body)

    async def live(self, request: web.Request) -> web.StreamResponse:
        """Bring a frame or a live feed to a container, and its results back."""
        context, limits = self._context, self._context.limits
        context.check_draining()
        model = request.headers.get(livepeer.MODEL, "")
        if not model:
            names = ", ".join(self._pool.names) or "none yet"
            raise RequestRefused(400, f"name the model in the {livepeer.MODEL} header; there are: {names}")
        if request.content_length is None:
            client = ClientAnswer(request, limits.stall_seconds, record_stream(request.headers.get("Accept", "")))
            body = RequestBody(request, context.memory, limits.feed_bytes)
        else:
            client = ClientAnswer(request, limits.stall_seconds)
            body = RequestBody(request, context.memory, limits.frame_bytes, limits.frame_bytes)

        async def attempt(slot: Slot) -> web.StreamResponse:
            return await LiveJob(context, slot, request, body, client).run()

        with body:
            return await self._on_some_container(model, attempt, body)

    async def _on_some_container(
        self, name: str, attempt: Callable[[Slot], Awaitable[web.StreamResponse]], body: RequestBody
    ) -> web.StreamResponse:
        async def noting_failure(slot: Slot) -> web.StreamResponse:
            try:
                return await attempt(slot)
            except PeerFailed as error:
                if not error.reached:
                    slot.container.not_ready(str(error))
                raise

        return await first_to_take(self._pool.slots(name), noting_failure, lambda: body.repeatable)


class LiveJob:
    """One frame or live feed at one container: `PUT /live/{job}/source` and `GET /live/{job}/output`."""

    def __init__(
        self, context: Context, slot: Slot, request: web.Request, body: RequestBody, client: ClientAnswer
    ) -> None:
        self._context = context
        self._slot = slot
        self._container = slot.container
        self._request = request
        self._body = body
        self._client = client
        self._url = f"{slot.container.url}/live/{uuid.uuid4().hex}"

    async def run(self) -> web.StreamResponse:
        """Do the job, and free its place.

        Raises `RequestRefused` as long as the client has been sent nothing.
        """
        if self._body.length == 0:  # a keep-alive: nothing is to be done
            self._slot.free()
            return web.Response(body=b"")
        try:
            async with self._slot.guard():
                with talking_to(self._container.peer):
                    if self._body.length is None:
                        return await self._feed()
                    async with asyncio.timeout(self._context.limits.job_seconds):
                        return await self._frame()
        except RequestRefused as error:
            return await self._client.fail(self._body.error or error)
        finally:
            self._context.tasks.start(self._leave())

    async def _frame(self) -> web.StreamResponse:
        await self._send()
        while True:
            async with self._get({"wait": RESULT_WAIT_S}) as answer:
                if answer.status == 200:
                    await self._client.begin(200, picked(answer.headers, FRAME_HEADERS))
                    self._body.release()
                    await self._client.copy(answer)
                    return await self._client.finish()
                if answer.status >= 400:  # the container is well, and says that this frame has no result
                    raise RequestRefused(502, str(await refusal(self._container.peer, answer)))
                if CLOSED in answer.headers:  # a session that gives no result for this frame
                    return web.Response(body=b"")

    async def _feed(self) -> web.StreamResponse:
        """Send the feed while its results come back."""
        sending = asyncio.get_running_loop().create_task(self._send())
        try:
            async with self._output(sending) as answer:
                await self._client.begin(200, picked(answer.headers, ("Content-Type",)))
                self._body.release()
                await self._copy(answer, sending)
                if not await first_of(sending, timeout=self._context.limits.stall_seconds):
                    raise TimeoutError
                sending.result()
                return await self._client.finish()
        finally:
            await cancel(sending)

    async def _send(self) -> None:
        params = {**self._request.query, **self._container.query, "alone": ALONE_S}
        headers = picked(self._request.headers, LIVE_HEADERS) | self._container.headers
        if self._body.length is not None:
            headers["Content-Length"] = str(self._body.length)
        async with self._context.http.put(
            f"{self._url}/source", data=self._body.chunks(), params=params, headers=headers, allow_redirects=False
        ) as answer:
            if answer.status >= 400:
                raise await refusal(self._container.peer, answer)
            await answer.read()

    @contextlib.asynccontextmanager
    async def _output(self, sending: asyncio.Task[None]) -> AsyncIterator[aiohttp.ClientResponse]:
        """Follow the results, unless the feed is refused before there are any."""
        patience = self._context.limits.open_seconds
        async with contextlib.AsyncExitStack() as stack:
            following = self._get({"follow": "1", "wait": f"{patience:g}"}, self._request.headers.get("Accept", "*/*"))
            opening = asyncio.ensure_future(stack.enter_async_context(following))
            try:
                await first_of(opening, sending, timeout=patience)
                if sending.done() and not opening.done():
                    sending.result()
                    await first_of(opening, timeout=patience)
                if not opening.done():
                    raise TimeoutError
            finally:
                await cancel(opening)
            answer = opening.result()
            if answer.status != 200:
                raise await refusal(self._container.peer, answer)
            yield answer

    async def _copy(self, answer: aiohttp.ClientResponse, sending: asyncio.Task[None]) -> None:
        """Pass results on, unless the container refuses the feed: a job of which it has half a feed never ends."""
        copying = asyncio.get_running_loop().create_task(self._client.copy(answer, lambda: not sending.done()))
        try:
            await first_of(copying, sending)
            if sending.done() and not copying.done():
                sending.result()
            await copying
        finally:
            await cancel(copying)

    def _get(
        self, params: dict[str, str], accept: str | None = None
    ) -> contextlib.AbstractAsyncContextManager[aiohttp.ClientResponse]:
        headers = {**({"Accept": accept} if accept else {}), **self._container.headers}
        return self._context.http.get(f"{self._url}/output", params=params, headers=headers, allow_redirects=False)

    async def _leave(self) -> None:
        """Free the container's memory and the place, behind the client's back."""
        limit = aiohttp.ClientTimeout(total=self._context.limits.answer_seconds)
        try:
            with contextlib.suppress(*CONNECTION_ERRORS):
                async with self._context.http.delete(self._url, headers=self._container.headers, timeout=limit):
                    pass
        finally:
            self._slot.free()


def picked(headers: Mapping[str, str], names: tuple[str, ...]) -> dict[str, str]:
    return {name: headers[name] for name in names if name in headers}
