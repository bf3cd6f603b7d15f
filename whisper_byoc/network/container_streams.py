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
from whisper_byoc.http import json_object, read_request
from whisper_byoc.network.peers import Answer, first_to_take, post, refused
from whisper_byoc.network.pool import Pool, Slot
from whisper_byoc.network.serving import Node
from whisper_byoc.network.streams import RelayedStream, Streams, close_channels, read_event
from whisper_byoc.origins import check_json_type
from whisper_byoc.trickle import NEXT, LocalPublisher, LocalSubscriber, TrickleError, TrickleServer
from whisper_byoc.trickle.channel import Channel

log = logging.getLogger("whisper_byoc.network.orchestrator")


class ChannelKind(NamedTuple):
    """A kind of channel: its name's suffix, its type, and what each side calls its URL."""

    name: str
    mime: str
    option: str
    """Job option that asks for it; every stream has the kinds without one."""
    body_key: str
    """Key in the body for the container."""
    header: str
    """Header for the gateway, which writes where the container reads."""


CONTROL = ChannelKind("control", "application/json", "", "control_url", "X-Control-Url")
EVENTS = ChannelKind("events", "application/json", "", "events_url", "X-Events-Url")
KINDS = (
    CONTROL,
    EVENTS,
    ChannelKind("", "video/MP2T", "enable_video_ingress", "subscribe_url", "X-Publish-Url"),
    ChannelKind("out", "video/MP2T", "enable_video_egress", "publish_url", "X-Subscribe-Url"),
    ChannelKind("data", "application/jsonl", "enable_data_output", "data_url", "X-Data-Url"),
)
Channels = dict[ChannelKind, Channel]
"""The channels of one stream."""


class ContainerStreams(Streams["ContainerStream"]):
    """All streams of one orchestrator.

    `service_url` is where gateways reach it; containers are given `trickle_host` instead, if set.
    """

    def __init__(self, node: Node, pool: Pool, trickle_host: str) -> None:
        super().__init__(node.memory)
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
        check_json_type(request)
        self._node.check_draining()
        job = livepeer.JobHeader.parse(request.headers.get(livepeer.JOB))
        stream_id = livepeer.check_id(job.stream_id or job.id, "stream id")
        async with self.body_of(request) as body, self.starting(stream_id):
            self._node.check_draining()
            with contextlib.ExitStack() as undo:
                channels: Channels = {}
                undo.callback(lambda: close_channels(self._trickle, channels.values()))
                open_channels(self._trickle, stream_id, job.options, channels)
                stream = self._streams[stream_id] = await self._on_some_container(
                    job, stream_id, channels, json_object(body)
                )
                undo.pop_all()
        stream.over.add_done_callback(lambda _: self._streams.pop(stream_id, None))
        base = self.service_url + self._trickle.base_path
        urls = {kind.header: base + channel.name for kind, channel in channels.items()}
        return web.Response(headers={**urls, livepeer.BALANCE: "0"})

    async def _on_some_container(
        self, job: livepeer.JobHeader, stream_id: str, channels: Channels, body: Mapping[str, Any]
    ) -> "ContainerStream":
        parts = urlsplit(self.service_url)
        base = f"{parts.scheme}://{self._trickle_host or parts.netloc}{self._trickle.base_path}"
        urls = {kind.body_key: base + channel.name for kind, channel in channels.items()}
        start = json.dumps({"gateway_request_id": stream_id, **urls, **body}).encode()

        async def attempt(slot: Slot) -> ContainerStream:
            stream = ContainerStream(stream_id, slot, channels, self._node, job.timeout_seconds)
            await stream.start(start)
            log.info("stream %s runs at %s", stream_id, slot.container.url)
            return stream

        return await first_to_take(self._pool.slots(job.capability), attempt)

    def of(self, request: web.Request) -> "ContainerStream":
        return self.find(livepeer.JobHeader.parse(request.headers.get(livepeer.JOB)).stream_id)

    async def payment(self, request: web.Request) -> web.Response:
        """Acknowledge a payment; off-chain, nothing is owed."""
        await read_request(request)
        return web.Response(headers={livepeer.BALANCE: "0"})


def open_channels(trickle: TrickleServer, stream_id: str, options: Mapping[str, Any], opened: Channels) -> None:
    """Add the channels of a stream with these options to `opened`; they exist before the container is told.

    Raises `RequestRefused` (400) when a name is taken, `TrickleError` when there are too many channels.
    """
    for kind in KINDS:
        if kind.option and not options.get(kind.option):
            continue
        name = f"{stream_id}-{kind.name}" if kind.name else stream_id
        if name in trickle.channels:
            raise RequestRefused(400, f"stream {stream_id!r} cannot have the channel {name!r}: it is in use")
        opened[kind] = trickle.create(name, kind.mime)


class ContainerStream(RelayedStream):
    """A stream at a container, which has accepted it once `start` returns."""

    def __init__(self, stream_id: str, slot: Slot, channels: Channels, node: Node, seconds: float) -> None:
        super().__init__(stream_id)
        self._slot = slot
        self._peer = slot.container.peer
        self._channels = channels
        self._node = node
        self._limits = node.limits
        self._seconds = seconds

    async def start(self, body: bytes) -> None:
        """Tell the container to begin; if it does not, its place is freed.

        Raises `RequestRefused`.
        """
        try:
            answer = await self._post("start", body, self._seconds)
            if answer.status >= 400:
                raise refused(self._peer, answer.status, answer.body)
        except BaseException:
            self._slot.free()
            raise
        self.begin()

    async def update(self, body: bytes, _: str) -> Answer:
        return await self._post("params", body, self._seconds)  # containers want JSON, whatever the client called it

    async def _post(self, action: str, body: bytes, seconds: float, content_type: str = "application/json") -> Answer:
        container = self._slot.container
        headers = {livepeer.STREAM_ID: self.id, **container.headers, "Content-Type": content_type}
        async with self._slot.guard():
            url = f"{container.url}/stream/{action}"
            return await post(self._node.http, self._peer, url, body, headers, seconds, container.query)

    async def _stop(self, body: bytes, content_type: str) -> Answer:
        return await self._post("stop", body, self._limits.stop_seconds, content_type)

    async def _run(self) -> None:
        """Wait for the end, whichever side causes it, then free everything."""
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
                    await LocalPublisher(self._channels[EVENTS]).publish(json.dumps({"event": event}).encode())
            if not self._slot.reason:
                try:
                    await self.stop(reason.encode())
                except RequestRefused as error:
                    log.warning("stream %s: %s", self.id, error)
            await asyncio.sleep(self._limits.linger_seconds)
            log.info("stream %s has ended", self.id)
        finally:
            close_channels(self._node.trickle, self._channels.values())
            self._slot.free()

    async def _asked_to_end(self) -> str:
        await self._ending.wait()
        return ""

    async def _container_ends(self) -> str:
        """Read events until the container ends the stream itself or falls silent; return why if that is a failure."""
        seconds, loop = self._limits.events_seconds, asyncio.get_running_loop()
        try:
            async with asyncio.timeout(seconds) as silence:
                async for segment in LocalSubscriber(self._channels[EVENTS], NEXT):
                    silence.reschedule(loop.time() + seconds)
                    if (await read_event(segment)).get("type") == "stream_stopped":
                        return ""
        except TimeoutError:
            return f"{self._peer} should publish events, and published none for {seconds:g} s"
        return f"{self._peer} should publish events, and closed the channel of events"

    async def _gateway_goes(self) -> str:
        """Wait until the gateway falls silent: once it has begun writing to the control channel, it has to go on."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(None) as silence:
                async for _ in LocalSubscriber(self._channels[CONTROL], NEXT):
                    silence.reschedule(asyncio.get_running_loop().time() + self._limits.control_seconds)
        return "the gateway is gone: it says nothing on the control channel any more"
