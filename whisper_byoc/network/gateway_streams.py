"""The gateway's streams: `/process/stream/…`, as clients of go-livepeer's gateway start, read, change and stop them."""

import logging
import secrets
from collections.abc import Mapping
from typing import Any

from aiohttp import web

from whisper_byoc import livepeer
from whisper_byoc.errors import RequestRefused
from whisper_byoc.http import json_object
from whisper_byoc.network.directory import Directory
from whisper_byoc.network.gateway_stream import GatewayStream
from whisper_byoc.network.relay import ClientAnswer
from whisper_byoc.network.serving import Node, read_small
from whisper_byoc.network.streams import LARGEST_BODY, Streams, passed_back

log = logging.getLogger("whisper_byoc.network.gateway")

MOST_ENDED = 100
"""Records and status of so many streams that have ended can still be read: those that began last."""


class GatewayStreams(Streams[GatewayStream]):
    """All streams of one gateway. `public_host` is how clients reach it, if not as they did for the start."""

    def __init__(self, node: Node, directory: Directory, public_host: str) -> None:
        super().__init__()
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
        job = livepeer.JobHeader.parse(request.headers.get(livepeer.JOB))
        fields = json_object(await read_small(request, LARGEST_BODY))
        stream_id = id_for(fields)
        self._node.check_draining()
        stream = GatewayStream(stream_id, job, params_in(fields), self._node)
        async with self.starting(stream_id):
            if len(self) >= self._node.limits.jobs:
                raise RequestRefused(503, f"{len(self)} streams are running, which is all this gateway takes", 1)
            await stream.start(await self._directory.with_places(job.capability))
            self._streams.pop(stream_id, None)  # the new one is the last in order
            self._streams[stream_id] = stream
        ended = [each.id for each in self._streams.values() if each.over.done()]
        for name in ended[: max(0, len(ended) - MOST_ENDED)]:
            del self._streams[name]
        return web.json_response(self._urls(request, stream))

    async def stop(self, request: web.Request) -> web.Response:
        """Stop a stream; the answer comes when its last words can be read."""
        stream = self.find(request.match_info["stream_id"])
        body = await read_small(request, LARGEST_BODY)
        return passed_back(await stream.stop(body, request.headers.get("Content-Type", "text/plain")))

    async def update(self, request: web.Request) -> web.Response:
        livepeer.JobHeader.parse(request.headers.get(livepeer.JOB))
        stream = self.find(request.match_info["stream_id"])
        body = await read_small(request, LARGEST_BODY)
        return passed_back(await stream.update(body, request.headers.get("Content-Type", "application/json")))

    async def status(self, request: web.Request) -> web.Response:
        return web.json_response(self.find(request.match_info["stream_id"]).status())

    async def data(self, request: web.Request) -> web.StreamResponse:
        """Send a stream's records as server-sent events, from the first that is kept to the end."""
        stream = self.find(request.match_info["stream_id"])
        if not stream.has_data:
            raise RequestRefused(503, f"stream {stream.id!r} was started without enable_data_output")
        client = ClientAnswer(request, self._node.limits.stall_seconds)
        headers = {"Content-Type": "text/event-stream", "Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        await client.begin(200, headers)
        await client.write(b": stream %b\n\n" % stream.id.encode())  # a reader knows at once that it is connected
        async for line in stream.records.read():
            await client.write(b"data: %b\n\n" % line if line else b": keep-alive\n\n")
        return await client.end(b'event: end\ndata: {"type":"stream_ended"}\n\n')

    def _urls(self, request: web.Request, stream: GatewayStream) -> dict[str, str]:
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
            "publish_url": trickle + stream.input_name if stream.input_name else "",
            "subscribe_url": trickle + stream.output_name if stream.output_name else "",
        }


def id_for(fields: Mapping[str, Any]) -> str:
    """Make a stream's id of what the client calls it (go-livepeer, byoc/stream_gateway.go).

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
    """Read the container's parameters: JSON as text, as go-livepeer has them, or plain JSON.

    Raises `RequestRefused` (400).
    """
    params = fields.get("params")
    if params is None or params == "":
        return {}
    return params if isinstance(params, dict) else livepeer.object_in(params, "params")
