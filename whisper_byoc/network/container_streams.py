"""The orchestrator's streams: `/ai/stream/start|stop|update|payment`, and the channels between gateway and container.

Source: go-livepeer 0.9, byoc/stream_orchestrator.go.
"""

import asyncio
import contextlib
import json
import logging
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from aiohttp import web

from whisper_byoc import livepeer
from whisper_byoc.aio import race
from whisper_byoc.errors import PeerFailed, RequestRefused
from whisper_byoc.network.peers import Answer, first_to_take, post, refused
from whisper_byoc.network.pool import Pool, Slot
from whisper_byoc.network.serving import Node, read_json, read_small
from whisper_byoc.network.streams import LARGEST_BODY, RelayedStream, Streams, passed_back, read_event
from whisper_byoc.trickle import NEXT, LocalPublisher, LocalSubscriber, TrickleError, TrickleServer
from whisper_byoc.trickle.channel import Channel

log = logging.getLogger("whisper_byoc.network.orchestrator")


class ChannelKind(NamedTuple):
    """A kind of channel: the end of its name, its type, and what either side calls its URL."""

    name: str
    mime: str
    option: str
    """Option of a job that asks for it; every stream has those without."""
    body_key: str
    """Key in the body for the container."""
    header: str
    """Header for the gateway, which writes where the container reads."""


KINDS = (
    ChannelKind("control", "application/json", "", "control_url", "X-Control-Url"),
    ChannelKind("events", "application/json", "", "events_url", "X-Events-Url"),
    ChannelKind("", "video/MP2T", "enable_video_ingress", "subscribe_url", "X-Publish-Url"),
    ChannelKind("out", "video/MP2T", "enable_video_egress", "publish_url", "X-Subscribe-Url"),
    ChannelKind("data", "application/jsonl", "enable_data_output", "data_url", "X-Data-Url"),
)


class ContainerStreams(Streams["ContainerStream"]):
    """All streams of one orchestrator.

    `service_url` is how gateways reach it; containers are given `trickle_host` instead, if set.
    """

    def __init__(self, node: Node, pool: Pool, trickle_host: str) -> None:
        super().__init__()
        self.service_url = ""
        self._node = node
        self._pool = pool
        self._trickle = node.trickle
        self._trickle_host = trickle_host

    def routes(self) -> list[web.RouteDef]:
        return [
            web.post("/ai/stream/start", self.start),
            web.post("/ai/stream/stop", self.stop),
            web.post("/ai/stream/update", self.update),
            web.post("/ai/stream/payment", self.payment),
        ]

    async def start(self, request: web.Request) -> web.Response:
        self._node.check_draining()
        job = self._job(request)
        stream_id = livepeer.check_id(job.stream_id or job.id, "stream id")
        body = await read_json(request, LARGEST_BODY)
        async with self.starting(stream_id):
            self._node.check_draining()
            with contextlib.ExitStack() as undo:
                channels = Channels(self._trickle)
                undo.callback(channels.close)
                channels.open(stream_id, job.options)
                stream = self._streams[stream_id] = await self._on_some_container(job, stream_id, channels, body)
                undo.pop_all()
        stream.over.add_done_callback(lambda _: self._streams.pop(stream_id, None))
        urls = channels.urls("header", self.service_url + self._trickle.base_path)
        return web.Response(headers={**urls, livepeer.BALANCE: "0"})

    async def _on_some_container(
        self, job: livepeer.JobHeader, stream_id: str, channels: "Channels", body: Mapping[str, Any]
    ) -> "ContainerStream":
        parts = urlsplit(self.service_url)
        base = f"{parts.scheme}://{self._trickle_host or parts.netloc}{self._trickle.base_path}"
        start = json.dumps({"gateway_request_id": stream_id, **channels.urls("body_key", base), **body}).encode()

        async def attempt(slot: Slot) -> ContainerStream:
            stream = ContainerStream(stream_id, slot, channels, self._node)
            await stream.start(start, job.timeout_seconds)
            log.info("stream %s runs at %s", stream_id, slot.container.url)
            return stream

        return await first_to_take(self._pool.slots(job.capability), attempt)

    async def stop(self, request: web.Request) -> web.Response:
        stream = self.find(self._job(request).stream_id)
        body = await read_small(request, LARGEST_BODY)
        return passed_back(await stream.stop(body, request.headers.get("Content-Type", "text/plain")))

    async def update(self, request: web.Request) -> web.Response:
        job = self._job(request)
        stream = self.find(job.stream_id)
        body = await read_small(request, LARGEST_BODY)
        return passed_back(await stream.post("params", body, job.timeout_seconds))

    async def payment(self, request: web.Request) -> web.Response:
        """Thank for a payment; off-chain nothing is owed."""
        await read_small(request)
        return web.Response(headers={livepeer.BALANCE: "0"})

    @staticmethod
    def _job(request: web.Request) -> livepeer.JobHeader:
        return livepeer.JobHeader.parse(request.headers.get(livepeer.JOB))


class Channels:
    """The channels of one stream; they exist before the container is told."""

    def __init__(self, trickle: TrickleServer) -> None:
        self._trickle = trickle
        self._channels: dict[ChannelKind, Channel] = {}

    def open(self, stream_id: str, options: Mapping[str, Any]) -> None:
        """Raise `RequestRefused` (400) when a name is taken, `TrickleError` when there are too many channels."""
        for kind in KINDS:
            if kind.option and not options.get(kind.option):
                continue
            name = f"{stream_id}-{kind.name}" if kind.name else stream_id
            if name in self._trickle.channels:
                raise RequestRefused(400, f"stream {stream_id!r} cannot have the channel {name!r}: it is in use")
            self._channels[kind] = self._trickle.create(name, kind.mime)
        self.control, self.events = (self._channels[kind] for kind in KINDS[:2])

    def urls(self, side: str, base: str) -> dict[str, str]:
        """Return the URLs by what a side calls them: `body_key` or `header`."""
        return {getattr(kind, side): base + channel.name for kind, channel in self._channels.items()}

    def close(self) -> None:
        for channel in self._channels.values():
            if not channel.closed:
                self._trickle.close(channel.name)


class ContainerStream(RelayedStream):
    """A stream at a container, which has taken it on when `start` returns."""

    def __init__(self, stream_id: str, slot: Slot, channels: Channels, node: Node) -> None:
        super().__init__(stream_id)
        self._slot = slot
        self._peer = slot.container.peer
        self._channels = channels
        self._http = node.http
        self._limits = node.limits

    async def start(self, body: bytes, seconds: float) -> None:
        """Tell the container to begin; when it does not, its place is freed.

        Raises `RequestRefused`.
        """
        try:
            answer = await self.post("start", body, seconds)
            if answer.status >= 400:
                raise refused(self._peer, answer.status, answer.body)
        except BaseException:
            self._slot.free()
            raise
        self.begin()

    async def post(self, action: str, body: bytes, seconds: float, content_type: str = "application/json") -> Answer:
        container = self._slot.container
        headers = {livepeer.STREAM_ID: self.id, **container.headers, "Content-Type": content_type}
        async with self._slot.guard():
            url = f"{container.url}/stream/{action}"
            answer = await post(self._http, self._peer, url, body, headers, seconds, container.query)
        if answer.status == 401:
            raise refused(self._peer, 401, answer.body)
        return answer

    async def _stop(self, body: bytes, content_type: str) -> Answer:
        return await self.post("stop", body, self._limits.stop_seconds, content_type)

    async def _run(self) -> None:
        """Wait for the end, whoever brings it about, then free everything."""
        try:
            try:
                async with self._slot.guard():
                    reason = await race(self._container_ends(), self._gateway_goes(), self._asked_to_end())
            except PeerFailed as error:
                reason = str(error)
            self._ending.set()
            if reason:
                log.warning("stream %s: %s", self.id, reason)
                event = {"type": "stream_lost", "stream_id": self.id, "message": reason}
                with contextlib.suppress(TrickleError):  # the channel may be closed
                    await LocalPublisher(self._channels.events).publish(json.dumps({"event": event}).encode())
            if not self._slot.reason:
                try:
                    await self.stop(reason.encode())
                except RequestRefused as error:
                    log.warning("stream %s: %s", self.id, error)
            await asyncio.sleep(self._limits.linger_seconds)
            log.info("stream %s has ended", self.id)
        finally:
            self._channels.close()
            self._slot.free()

    async def _asked_to_end(self) -> str:
        await self._ending.wait()
        return ""

    async def _container_ends(self) -> str:
        """Read events until the container ends the stream by itself, or is silent; return why if that is a failure."""
        seconds, loop = self._limits.events_seconds, asyncio.get_running_loop()
        try:
            async with asyncio.timeout(seconds) as silence:
                async for segment in LocalSubscriber(self._channels.events, NEXT):
                    silence.reschedule(loop.time() + seconds)
                    if (await read_event(segment)).get("type") == "stream_stopped":
                        return ""
        except TimeoutError:
            return f"{self._peer} should publish events, and published none for {seconds:g} s"
        return f"{self._peer} should publish events, and closed the channel of events"

    async def _gateway_goes(self) -> str:
        """Wait until the gateway, which has to write to the control channel once it has begun to, is silent."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(None) as silence:
                async for _ in LocalSubscriber(self._channels.control, NEXT):
                    silence.reschedule(asyncio.get_running_loop().time() + self._limits.control_seconds)
        return "the gateway is gone: it says nothing on the control channel any more"
