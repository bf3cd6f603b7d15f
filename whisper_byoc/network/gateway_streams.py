"""The gateway's streams: `/process/stream/…`, and for each stream its orchestrator, channels and records."""

import asyncio
import contextlib
import json
import logging
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from aiohttp import web

from whisper_byoc import livepeer
from whisper_byoc.aio import cancel, first_of
from whisper_byoc.errors import PeerFailed, RequestRefused
from whisper_byoc.http import json_object, lines, reason_of
from whisper_byoc.network.directory import Directory
from whisper_byoc.network.peers import MARGIN_S, Answer, first_to_take, post, refused
from whisper_byoc.network.records import RecordLog
from whisper_byoc.network.relay import ClientAnswer
from whisper_byoc.network.serving import Node
from whisper_byoc.network.streams import RelayedStream, Streams, close_channels, read_event
from whisper_byoc.origins import check_json_type
from whisper_byoc.params import has_pcm_input
from whisper_byoc.trickle import (
    ClientOptions,
    LocalPublisher,
    LocalSubscriber,
    TrickleError,
    TricklePublisher,
    TrickleSubscriber,
)
from whisper_byoc.trickle.channel import Channel
from whisper_byoc.trickle.local import LocalSegment
from whisper_byoc.trickle.subscriber import SegmentReader

log = logging.getLogger("whisper_byoc.network.gateway")

OPTIONS = ClientOptions(verify=False, answer_seconds=4.0, patience_seconds=4.0, longest_pause=0.5)
"""An orchestrator that is away for this long has lost its streams, which it keeps in memory."""
CONTROL_EVERY_S = 10.0
STOP_S = 12.0
FLUSH_S = 3.0
"""After a stop: longest time for sending the input that has already arrived."""
LAST_RECORDS_S = 4.0
"""After the container's answer to a stop: longest wait for its end record."""
LAST_S = 2.0
"""After one of a stream's channels has ended: longest wait for what is still on its way in the others."""
LARGEST_LINE = 8 << 20
MOST_ENDED = 100
"""Records and status of this many ended streams can still be read: those that began last."""
ENDS = ("Data", "Events")
"""The first of these channels to end ends the stream."""
RESULTS = (*ENDS, "Subscribe")
VIDEO = {"Publish": ("enable_video_ingress", ""), "Subscribe": ("enable_video_egress", "-out")}
"""Video channels: the option that asks for one, and its name's suffix."""


class GatewayStreams(Streams["GatewayStream"]):
    """All streams of one gateway. `public_host` is where clients reach it, if not where they started the stream."""

    def __init__(self, node: Node, directory: Directory, public_host: str) -> None:
        super().__init__(node.memory)
        self._node = node
        self._directory = directory
        self._public_host = public_host

    def routes(self) -> list[web.RouteDef]:
        one = "/process/stream/{stream_id}"
        return [
            web.post("/process/stream/start", self.start),
            web.post(f"{one}/stop", self.stop),
            web.post(f"{one}/update", self.update),
            web.get(f"{one}/status", self.status, allow_head=False),
            web.get(f"{one}/data", self.data, allow_head=False),
        ]

    async def start(self, request: web.Request) -> web.Response:
        check_json_type(request)
        job = livepeer.JobHeader.parse(request.headers.get(livepeer.JOB))
        async with self.body_of(request) as body:
            fields = json_object(body)
        stream_id = id_for(fields)
        self._node.check_draining()
        stream = GatewayStream(stream_id, job, params_in(fields), self._node)
        async with self.starting(stream_id):
            if len(self) >= self._node.limits.jobs:
                raise RequestRefused(503, f"{len(self)} streams are running, which is all this gateway takes", 1)
            await stream.start(self._directory.ranked(job.capability))
            self._streams.pop(stream_id, None)  # the new one comes last in order
            self._streams[stream_id] = stream
        ended = [each.id for each in self._streams.values() if each.over.done()]
        for name in ended[: max(0, len(ended) - MOST_ENDED)]:
            del self._streams[name]
        return web.json_response(self._urls(request, stream))

    def of(self, request: web.Request) -> "GatewayStream":
        return self.find(request.match_info["stream_id"])

    async def status(self, request: web.Request) -> web.Response:
        return web.json_response(self.of(request).status())

    async def data(self, request: web.Request) -> web.StreamResponse:
        """Send a stream's records as server-sent events, from the first one kept to the end."""
        stream = self.of(request)
        if not stream.has_data:
            raise RequestRefused(503, f"stream {stream.id!r} was started without enable_data_output")
        client = ClientAnswer(request, self._node.limits.stall_seconds)
        headers = {"Content-Type": "text/event-stream", "Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        await client.begin(200, headers)
        await client.write(b": stream %b\n\n" % stream.id.encode())  # tells a reader at once that it is connected
        async for line in stream.records.read():
            await client.write(b"data: %b\n\n" % line if line else b": keep-alive\n\n")
        return await client.end(b'event: end\ndata: {"type":"stream_ended"}\n\n')

    def _urls(self, request: web.Request, stream: "GatewayStream") -> dict[str, str]:
        host = self._public_host or request.host
        base = host if "://" in host else f"{request.scheme}://{host}"
        route, trickle = f"{base}/process/stream/{stream.id}", base + self._node.trickle.base_path
        return {
            "stream_id": stream.id,
            **dict.fromkeys(("whip_url", "whep_url", "rtmp_url", "rtmp_output_url"), ""),
            "update_url": f"{route}/update",
            "status_url": f"{route}/status",
            "data_url": f"{route}/data" if stream.has_data else "",
            "stop_url": f"{route}/stop",
            **{f"{kind.lower()}_url": trickle + stream.video[kind] if kind in stream.video else "" for kind in VIDEO},
        }


def id_for(fields: Mapping[str, Any]) -> str:
    """Derive a stream's id from what the client calls it (go-livepeer, byoc/stream_gateway.go).

    Raises `RequestRefused` (400).
    """
    given, name = fields.get("stream_id") or "", fields.get("stream_name") or ""
    if not isinstance(given, str) or not isinstance(name, str):
        raise RequestRefused(400, "stream_id and stream_name must be strings")
    stream_id = given or secrets.token_hex(4)
    stream_id = f"{name}-{stream_id}" if name else stream_id
    if not livepeer.check_id(stream_id, "stream id").strip("."):
        raise RequestRefused(400, f"bad stream id {stream_id!r}: '.' and '..' would be lost in URLs")
    if stream_id.endswith(("-out", "-data", "-control", "-events")):
        raise RequestRefused(400, f"stream id {stream_id!r:.60} ends as the name of a channel does; choose another")
    if fields.get("rtmp_output"):
        log.warning("stream %s: rtmp_output is not supported, and ignored; read subscribe_url", stream_id)
    return stream_id


def params_in(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Read the container's parameters: JSON as text, as in go-livepeer, or plain JSON.

    Raises `RequestRefused` (400).
    """
    params = fields.get("params")
    if params is None or params == "":
        return {}
    return params if isinstance(params, dict) else livepeer.object_in(params, "params")


class GatewayStream(RelayedStream):
    """One stream; its records and status outlive it."""

    def __init__(self, stream_id: str, job: livepeer.JobHeader, params: Mapping[str, Any], node: Node) -> None:
        super().__init__(stream_id)
        self.records = RecordLog()
        self.has_data = bool(job.options.get("enable_data_output"))
        self.video = {kind: stream_id + end for kind, (option, end) in VIDEO.items() if job.options.get(option)}
        """Names of its video channels at the gateway, by kind."""
        self._job = job.asking(stream_id=stream_id)
        self._params = params
        self._node = node
        self._channels: dict[str, Channel] = {}
        self._url = self._peer = ""
        """The orchestrator's URL and name; below, the URLs of its channels, by kind."""
        self._remote: dict[str, str] = {}
        self._sending: asyncio.Task[None] | None = None
        self._stopped = False
        """Whether the container ended the stream normally: it said so, or was asked to stop and did."""
        self._lost = self._error = ""
        self._container_status: dict[str, Any] = {}

    @property
    def ending(self) -> bool:
        return self.records.ended or super().ending

    async def start(self, orchestrators: Sequence[str]) -> None:
        """Begin at the first of these orchestrators that accepts the stream.

        Raises `RequestRefused` with the refusing peer's words, or `TrickleError` when there is no room for channels.
        """
        try:
            for kind, name in self.video.items():
                self._channels[kind] = self._node.trickle.create(name, "video/MP2T")
            await first_to_take(orchestrators, self._start_at)
        except BaseException:
            self._close_channels()
            raise
        log.info("stream %s runs at %s", self.id, self._url)
        self.begin()

    async def update(self, body: bytes, content_type: str) -> Answer:
        if self.over.done():
            raise RequestRefused(404, f"stream {self.id!r} has ended")
        return await self._post("update", body, content_type)

    def status(self) -> dict[str, Any]:
        """Describe the stream; what the container reports about itself takes precedence."""
        state = "ended" if self.over.done() else "running"
        own = {"stream_id": self.id, "state": state, "orchestrator": self._url, "whep_url": ""}
        return {**self._container_status, **own, **({"error": self._error} if self._error else {})}

    async def _start_at(self, url: str) -> None:
        self._url, self._peer = url, f"the orchestrator at {url}"
        try:
            answer = await self._post("start", json.dumps({"params": self._params or None}).encode())
            if answer.status >= 400:
                raise refused(self._peer, answer.status, answer.body)
            urls = {kind: answer.headers.get(f"X-{kind}-Url", "") for kind in ("Control", *RESULTS, "Publish")}
            self._remote = {
                kind: url for kind, url in urls.items() if url and (kind in self.video or kind not in VIDEO)
            }
            if "Control" not in self._remote or "Events" not in self._remote:
                raise PeerFailed(f"{self._peer} named no channels for control and events")
        except BaseException as error:
            if isinstance(error, asyncio.CancelledError) or (isinstance(error, PeerFailed) and error.reached):
                self._node.tasks.start(self._stop_peer())  # it may have begun
            raise

    async def _stop_peer(self, body: bytes = b"", content_type: str = "text/plain") -> Answer:
        """Have the container deliver its last records, and return its response; the orchestrator may be gone."""
        try:
            answer = await self._post("stop", body, content_type)
            if answer.status >= 400:
                raise refused(self._peer, answer.status, answer.body)
        except RequestRefused as error:
            log.warning("stream %s: %s", self.id, error)
            return Answer(200, b"", {})
        self._stopped = True
        return answer

    async def _post(self, action: str, body: bytes, content_type: str = "application/json") -> Answer:
        headers = {livepeer.JOB: self._job.encode(), "Content-Type": content_type}
        seconds = STOP_S if action == "stop" else self._job.timeout_seconds + MARGIN_S
        return await post(self._node.http, self._peer, f"{self._url}/ai/stream/{action}", body, headers, seconds)

    async def _run(self) -> None:
        reason = "the stream was stopped, and its last words did not come in time"
        try:
            reason = await self._pass_on()
        except Exception:
            log.exception("stream %s failed", self.id)
            reason = "the gateway failed on this stream; its log says why"
        finally:
            await self._finish(reason)

    async def _pass_on(self) -> str:
        """Pass everything on until the stream has ended; return the reason if it ended too early, else ""."""
        work = {
            "Data": self._read_data, "Events": self._read_events, "Subscribe": self._copy_video,
            "Publish": self._send_input, "Control": self._keep_alive,
        }  # fmt: skip
        tasks = {kind: asyncio.create_task(each()) for kind, each in work.items() if kind in self._remote}
        failing = asyncio.create_task(asyncio.wait(tasks.values(), return_when=asyncio.FIRST_EXCEPTION))
        self._sending = tasks.get("Publish")
        ends, results = ({kind: tasks[kind] for kind in kinds if kind in tasks} for kinds in (ENDS, RESULTS))
        try:
            await first_of(*ends.values(), failing)
            if self.records.ended:
                del results["Events"]  # nobody needs more of them
            if results:
                await asyncio.wait(results.values(), timeout=LAST_S)
            return self._reason(tasks)
        finally:
            await cancel(failing, *tasks.values())
            self._sending = None  # its failure would hold on to the input

    def _reason(self, tasks: Mapping[str, asyncio.Task[None]]) -> str:
        """Return why it ended too early, if it did; not every container's text has an end record."""
        if self.records.ended:
            return ""
        if self._lost:
            return self._lost
        errors = {kind: error for kind, task in tasks.items() if task.done() and (error := task.exception())}
        if self._stopped and "Data" not in errors:
            return ""
        return reason_of(next(iter(errors.values()))) if errors else "the orchestrator ended the stream"

    async def _stop(self, body: bytes, content_type: str) -> Answer:
        if self.over.done():
            return Answer(200, b"", {})
        if source := self._channels.get("Publish"):
            close_channels(self._node.trickle, [source])
        if self._sending is not None:
            await first_of(self._sending, timeout=FLUSH_S)
        answer = await self._stop_peer(body, content_type)
        await first_of(self.over, timeout=LAST_RECORDS_S)
        await cancel(self.over)
        return answer

    async def _finish(self, reason: str) -> None:
        if reason and not self.records.ended:
            self._error = self._error or reason
            log.warning("stream %s: %s", self.id, reason)
            self.records.fail(self.id, reason)
        self.records.close()
        stopping = () if self._stopped else (self._node.tasks.start(self._stop_peer()),)
        try:
            if "Subscribe" in self.video:
                await asyncio.sleep(self._node.limits.linger_seconds)
        finally:
            self._close_channels()
        if stopping:
            await first_of(*stopping, timeout=LAST_RECORDS_S)

    def _close_channels(self) -> None:
        close_channels(self._node.trickle, self._channels.values())
        self._channels.clear()  # they hold their last segments

    async def _read_events(self) -> None:
        async with self._reader("Events") as subscriber:
            async for segment in subscriber:
                event = await read_event(segment)
                kind, message = event.get("type"), str(event.get("message", event.get("error", "")))
                if kind == "stream_lost":
                    self._lost = message or "the orchestrator lost the stream"
                elif kind == "stream_stopped":
                    self._stopped = True
                elif kind in ("status", "inference_status"):
                    self._container_status = event
                elif kind == "error":
                    self._error = self._error or message

    async def _read_data(self) -> None:
        too_long = PeerFailed(f"the container wrote a line of more than {LARGEST_LINE} bytes")
        async with self._reader("Data") as subscriber:
            async for segment in subscriber:
                self._tell_of_gap(segment, "of the stream's text were gone before they could be read")
                async for line in lines(segment, LARGEST_LINE, too_long):
                    self.records.add(line)
                if self.records.ended:
                    return

    def _tell_of_gap(self, segment: LocalSegment | SegmentReader, what: str) -> None:
        if segment.began_anew:
            self.records.lost(self.id, "a publisher began again; what was not read before is lost")
        if segment.missed:
            self.records.lost(self.id, f"{segment.missed} segments {what}")

    async def _keep_alive(self) -> None:
        async with TricklePublisher(self._remote["Control"], "application/json", options=OPTIONS) as publisher:
            while True:
                await publisher.publish(b'{"keep":"alive"}')
                await asyncio.sleep(CONTROL_EVERY_S)

    async def _send_input(self) -> None:
        """Send the input, segment by segment as its bytes come; when it ends, end the orchestrator's channel."""
        pcm = has_pcm_input(self._params)
        source = LocalSubscriber(self._channels["Publish"])
        publisher = TricklePublisher(self._remote["Publish"], "video/MP2T", continuous=True, options=OPTIONS)
        async with publisher:
            async for segment in source:
                gone = "of the input were gone before they could be sent on; publish no faster than live"
                self._tell_of_gap(segment, gone)
                async with await publisher.next() as writer:
                    size = 0
                    async for data in segment:
                        size += len(data)
                        await writer.write(data)
                    if pcm and size % 2 and not segment.segment.whole:  # what follows a broken one begins a sample
                        await writer.write(b"\0")
            await publisher.close(delete_channel=True)

    async def _copy_video(self) -> None:
        output = LocalPublisher(self._channels["Subscribe"])
        async with self._reader("Subscribe") as subscriber:
            async for segment in subscriber:
                async with await output.next() as writer:
                    with contextlib.suppress(TrickleError):  # a broken segment costs only its missing part
                        async for data in segment:
                            await writer.write(data)

    def _reader(self, kind: str) -> TrickleSubscriber:
        return TrickleSubscriber(self._remote[kind], start=0, options=OPTIONS)
