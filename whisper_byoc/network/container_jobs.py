"""A frame or a live feed at a container."""

import asyncio
import contextlib
import uuid

import aiohttp
from aiohttp import web

from whisper_byoc.errors import PeerBusy, PeerFailed, RequestRefused
from whisper_byoc.http import CONNECTION_ERRORS
from whisper_byoc.network.peers import refusal, talking_to
from whisper_byoc.network.pool import Slot
from whisper_byoc.network.relay import Relay, picked
from whisper_byoc.network.serving import Node
from whisper_byoc.trickle.protocol import CLOSED, SEQ

LIVE_HEADERS = ("Content-Type", "Content-Encoding")
FRAME_HEADERS = ("Content-Type", "Content-Length", SEQ)
ALONE_S = "30"
"""A job that nobody feeds or reads ends after this many seconds: if we die, nobody comes back to it."""
RESULT_WAIT_S = "300"


class LiveJob:
    """One frame or live feed at one container: `PUT /live/{job}/source` and `GET /live/{job}/output`."""

    def __init__(self, node: Node, slot: Slot, relay: Relay) -> None:
        self._node = node
        self._limits = node.limits
        self._slot = slot
        self._container = slot.container
        self._relay = relay
        self._headers = relay.request.headers
        self._url = f"{slot.container.url}/live/{uuid.uuid4().hex}"

    async def run(self) -> web.StreamResponse:
        """Do the job, then free its place.

        Raises `RequestRefused`, as long as nothing has been sent to the client.
        """
        if self._relay.request.content_length == 0:  # a keep-alive: nothing to do
            self._slot.free()
            return web.Response(body=b"")
        try:
            async with self._slot.guard():
                with talking_to(self._container.peer):
                    if self._relay.body.live:
                        return await self._feed()
                    async with asyncio.timeout(self._limits.job_seconds):
                        return await self._frame()
        except RequestRefused as error:
            if isinstance(error, PeerFailed) and self._relay.body.sent:
                error.reached = True  # a later request of the job may have been too late to get a connection
            return await self._relay.fail(error)
        finally:
            self._node.tasks.start(self._leave())  # the client need not wait for this

    async def _frame(self) -> web.StreamResponse:
        await self._send()
        while True:
            async with self._get({"wait": RESULT_WAIT_S}) as answer:
                if answer.status == 200:
                    await self._relay.begin(200, picked(answer.headers, FRAME_HEADERS))
                    await self._relay.client.copy(answer)
                    return await self._relay.client.finish()
                if answer.status >= 400:  # the container is healthy, but this frame has no result
                    raise RequestRefused(502, str(await refusal(self._container.peer, answer)))
                if CLOSED in answer.headers:  # a session that gives no result for this frame
                    return web.Response(body=b"")

    async def _feed(self) -> web.StreamResponse:
        client, seconds = self._relay.client, self._limits.open_seconds
        following = {"follow": "1", "wait": f"{seconds:g}"}
        try:
            # a container that refuses a feed sends no output: a failure of either side ends the other
            async with asyncio.TaskGroup() as group, contextlib.AsyncExitStack() as stack:
                sending = group.create_task(self._send_feed())
                async with asyncio.timeout(seconds):
                    opening = self._get(following, self._headers.get("Accept", "*/*"))
                    answer = await stack.enter_async_context(opening)
                if answer.status != 200:
                    raise await refusal(self._container.peer, answer)
                await self._relay.begin(200, picked(answer.headers, ("Content-Type",)))
                await client.copy(answer, lambda: not sending.done())
                async with asyncio.timeout(self._limits.stall_seconds):
                    cut = await sending
            if cut:
                raise cut
            return await client.finish()
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None

    async def _send_feed(self) -> PeerBusy | None:
        """Send the feed; return why the container took no more: one that shuts down works on what it took before."""
        try:
            await self._send()
        except PeerBusy as error:
            if not self._relay.body.sent:
                raise
            return error
        return None

    async def _send(self) -> None:
        data, length = await self._relay.body.for_peer()
        params = {**self._relay.request.query, **self._container.query, "alone": ALONE_S}
        headers = picked(self._headers, LIVE_HEADERS) | self._container.headers | length
        async with self._node.http.put(
            f"{self._url}/source", data=data, params=params, headers=headers, allow_redirects=False
        ) as answer:
            if answer.status >= 400:
                raise await refusal(self._container.peer, answer)
            await answer.read()

    def _get(
        self, params: dict[str, str], accept: str | None = None
    ) -> contextlib.AbstractAsyncContextManager[aiohttp.ClientResponse]:
        headers = {**({"Accept": accept} if accept else {}), **self._container.headers}
        return self._node.http.get(f"{self._url}/output", params=params, headers=headers, allow_redirects=False)

    async def _leave(self) -> None:
        limit = aiohttp.ClientTimeout(total=self._limits.answer_seconds)
        try:
            with contextlib.suppress(*CONNECTION_ERRORS):
                async with self._node.http.delete(self._url, headers=self._container.headers, timeout=limit):
                    pass
        finally:
            self._slot.free()
