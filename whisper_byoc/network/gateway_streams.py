"""The gateway's streams: `/process/stream/…`, as clients of go-livepeer's gateway start, read, change and stop them."""

import logging
import re
import secrets
import time
from collections.abc import Mapping
from typing import Any

from aiohttp import web

from whisper_byoc import livepeer
from whisper_byoc.errors import RequestRefused
from whisper_byoc.http import json_object
from whisper_byoc.network.directory import Directory
from whisper_byoc.network.relay import ClientAnswer
from whisper_byoc.network.serving import Node, StreamTable, read_small
from whisper_byoc.network.session import Session

log = logging.getLogger("whisper_byoc.network.gateway")

LARGEST_BODY = 10 << 20
"""As go-livepeer's gateway takes it."""
STREAM_ID = re.compile(r"[A-Za-z0-9._~-]{1,100}")
KEPT_S = 300.0
"""Records and status of a stream that has ended can be read for so long …"""
MOST_KEPT = 256
"""… and of so many."""


class GatewayStreams(StreamTable[Session]):
    """All streams of one gateway. `public_host` is how clients reach it, if not as they did for the start."""

    def __init__(self, node: Node, directory: Directory, public_host: str = "") -> None:
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
        self._forget_old()
        self._node.check_draining()
        session = Session(stream_id, job, params_in(fields), self._node)
        async with self.starting(stream_id):
            if len(self) >= self._node.limits.jobs:
                raise RequestRefused(503, f"{len(self)} streams are running, which is all this gateway takes", 1)
            await session.start(await self._directory.with_places(job.capability))
            self._streams[stream_id] = session
        return web.json_response(self._urls(request, session))

    async def stop(self, request: web.Request) -> web.Response:
        """Stop a stream; the answer comes when its last words can be read."""
        session = self._find(request)
        body = await read_small(request, LARGEST_BODY)
        answer = await session.stop(body, request.headers.get("Content-Type", "text/plain"))
        return web.Response(body=answer, content_type="application/json" if answer else "text/plain")

    async def update(self, request: web.Request) -> web.Response:
        livepeer.JobHeader.parse(request.headers.get(livepeer.JOB))
        session = self._find(request)
        body = await read_small(request, LARGEST_BODY)
        answer = await session.update(body, request.headers.get("Content-Type", "application/json"))
        kind = answer.headers.get("Content-Type", "text/plain")
        return web.Response(status=answer.status, body=answer.body, headers={"Content-Type": kind})

    async def status(self, request: web.Request) -> web.Response:
        return web.json_response(self._find(request).status())

    async def data(self, request: web.Request) -> web.StreamResponse:
        """Send a stream's records as server-sent events, from the first that is kept to the end."""
        session = self._find(request)
        if not session.has_data:
            raise RequestRefused(503, f"stream {session.id!r} was started without enable_data_output")
        last = request.headers.get("Last-Event-ID", "")
        start = int(last) + 1 if last.isascii() and last.isdigit() and len(last) < 16 else 0
        client = ClientAnswer(request, self._node.limits.stall_seconds)
        headers = {"Content-Type": "text/event-stream", "Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        await client.begin(200, headers)
        await client.write(b": stream %b\n\n" % session.id.encode())  # a reader knows at once that it is connected
        async for numbered in session.records.read(start):
            await client.write(b"id: %d\ndata: %b\n\n" % numbered if numbered else b": keep-alive\n\n")
        return await client.end(b'event: end\ndata: {"type":"stream_ended"}\n\n')

    def _find(self, request: web.Request) -> Session:
        stream_id = request.match_info["stream_id"]
        self._forget_old()
        if session := self._streams.get(stream_id):
            return session
        raise RequestRefused(404, f"no stream {stream_id!r:.140} here: it never began, or ended a while ago")

    def _forget_old(self) -> None:
        ended = sorted((each.ended_at, name) for name, each in self._streams.items() if each.ended_at is not None)
        before = time.monotonic() - KEPT_S
        for _, name in ended[: max(0, len(ended) - MOST_KEPT)] + [each for each in ended if each[0] < before]:
            self._streams.pop(name, None)

    def _urls(self, request: web.Request, session: Session) -> dict[str, str]:
        host = self._public_host or request.host
        base = host if "://" in host else f"{request.scheme}://{host}"
        route, trickle = f"{base}/process/stream/{session.id}", base + self._node.trickle.base_path
        return {
            "stream_id": session.id,
            "whip_url": "",
            "whep_url": "",
            "rtmp_url": "",
            "rtmp_output_url": "",
            "update_url": f"{route}/update",
            "status_url": f"{route}/status",
            "data_url": f"{route}/data" if session.has_data else "",
            "stop_url": f"{route}/stop",
            "publish_url": trickle + session.input_name if session.input_name else "",
            "subscribe_url": trickle + session.output_name if session.output_name else "",
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
    if not STREAM_ID.fullmatch(stream_id) or not stream_id.strip("."):  # "." and ".." would be lost in URLs
        raise RequestRefused(400, f"bad stream id {stream_id!r:.60}: use 1-100 characters of A-Z a-z 0-9 . _ ~ -")
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
