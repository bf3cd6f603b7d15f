"""One client's stream at the gateway, from its start to its last record."""

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

from whisper_byoc.aio import cancel, first_of
from whisper_byoc.errors import PeerFailed, RequestRefused
from whisper_byoc.livepeer import JobHeader
from whisper_byoc.network.peers import Answer, first_to_take
from whisper_byoc.network.records import RecordLog
from whisper_byoc.network.serving import Node
from whisper_byoc.network.upstream import StreamEnds, Upstream
from whisper_byoc.trickle import LocalPublisher, LocalSubscriber
from whisper_byoc.trickle.channel import Channel

log = logging.getLogger("whisper_byoc.network.gateway")

PCM_NAMES = ("pcm16", "s16le", "pcm")
FLUSH_S = 3.0
"""After a stop: longest time for which input that has arrived is still sent."""
LAST_WORDS_S = 4.0
"""After the container's answer to a stop: longest wait for its end record."""
LINGER_S = 0.5
"""The video channel stays open for so long after the end: readers ask for what was written last."""


class Session:
    """A stream from `start` until `over`; its records and status outlive it."""

    over: asyncio.Task[None]

    def __init__(self, stream_id: str, job: JobHeader, params: Mapping[str, Any], node: Node) -> None:
        self.id = stream_id
        self.records = RecordLog()
        self.has_data = bool(job.options.get("enable_data_output"))
        """Whether the client wanted text."""
        self.input_name = stream_id if job.options.get("enable_video_ingress") else ""
        """Name of the channel that takes the client's media; empty if the stream has no input."""
        self.output_name = f"{stream_id}-out" if job.options.get("enable_video_egress") else ""
        """Name of the channel with the video; empty if the stream has none."""
        self.ended_at: float | None = None
        self._job = job.asking(stream_id=stream_id)
        self._params = params
        self._node = node
        self._trickle = node.trickle
        self._channels: list[Channel] = []
        self._ends = StreamEnds(None, self._pcm, None, self.records, self._on_event)
        self._upstream: Upstream | None = None
        self._stopper: asyncio.Task[bytes] | None = None
        self._container_status: dict[str, Any] = {}
        self._error = ""

    @property
    def ending(self) -> bool:
        """Whether it is over, or will be soon: all has been said, or somebody is stopping it."""
        return self.ended_at is not None or self.records.ended or self._stopper is not None

    async def start(self, orchestrators: Sequence[str]) -> None:
        """Begin at the first of these orchestrators that takes the stream.

        Raises `RequestRefused` with the words of whoever refused, or `TrickleError` when there is no room for channels.
        """
        try:
            if self.input_name:
                self._ends.input = LocalSubscriber(self._open_channel(self.input_name))
            if self.output_name:
                self._ends.output = LocalPublisher(self._open_channel(self.output_name))
            upstream = await first_to_take(orchestrators, self._start_at)
        except BaseException:
            self._close_channels()
            raise
        self._upstream = upstream
        log.info("stream %s runs at %s", self.id, upstream.url)
        self.over = asyncio.get_running_loop().create_task(self._run(upstream), name=f"stream {self.id}")

    async def _start_at(self, url: str) -> Upstream:
        upstream = Upstream(url, self._job, self._node.http)
        try:
            await upstream.start({"params": self._params or None})
        except BaseException as error:
            if isinstance(error, asyncio.CancelledError) or (isinstance(error, PeerFailed) and error.reached):
                self._stop_later(upstream)  # it may have begun
            raise
        return upstream

    async def end(self, reason: str) -> None:
        """Stop it if it is running, and wait until it is over."""
        if self._stopper is not None or not self.over.done():
            await self.stop(reason.encode(), "text/plain")
        await asyncio.wait({self.over})

    async def stop(self, body: bytes, content_type: str) -> bytes:
        """Send on what has arrived, have the last words said, and return the container's answer, empty if it has none.

        All callers get the same answer; a caller who goes away does not interrupt it.
        """
        if self._stopper is None:
            self._stopper = asyncio.get_running_loop().create_task(self._stop(body, content_type))
        return await asyncio.shield(self._stopper)

    async def update(self, body: bytes, content_type: str) -> Answer:
        """Hand parameters to the container, and return its answer.

        Raises `RequestRefused`.
        """
        if self.over.done() or self._upstream is None:
            raise RequestRefused(404, f"stream {self.id!r} has ended")
        return await self._upstream.update(body, content_type)

    def status(self) -> dict[str, Any]:
        """Describe the stream; what the container says of itself comes first."""
        own = {
            "stream_id": self.id,
            "state": "running" if self.ended_at is None else "ended",
            "orchestrator": self._upstream.url if self._upstream else "",
            "whep_url": "",
        }
        return {**self._container_status, **own, **({"error": self._error} if self._error else {})}

    async def _run(self, upstream: Upstream) -> None:
        reason = "the stream was stopped, and its last words did not come in time"
        try:
            reason = await upstream.run(self._ends)
        except Exception:
            log.exception("stream %s failed", self.id)
            reason = "the gateway failed on this stream; its log says why"
        finally:
            await self._finish(upstream, reason)

    async def _finish(self, upstream: Upstream, reason: str) -> None:
        """Let readers come to the end, and free everything, at the orchestrator too."""
        if reason and not self.records.ended:
            self._error = self._error or reason
            log.warning("stream %s: %s", self.id, reason)
            self.records.fail(self.id, reason)
        self.records.close()
        stopping = () if upstream.stopped else (self._stop_later(upstream),)
        try:
            if self._ends.output is not None and self._ends.output.channel.next_write:
                await asyncio.sleep(LINGER_S)
        finally:
            self._close_channels()
            self.ended_at = time.monotonic()
        if stopping:
            await first_of(*stopping, timeout=LAST_WORDS_S)

    async def _stop(self, body: bytes, content_type: str) -> bytes:
        if self.over.done() or self._upstream is None:
            return b""
        if self._ends.input is not None:
            self._close(self._ends.input.channel)
        await self._upstream.input_sent(FLUSH_S)
        answer = await self._upstream.stop(body, content_type)
        await first_of(self.over, timeout=LAST_WORDS_S)
        await cancel(self.over)
        return answer

    def _stop_later(self, upstream: Upstream) -> asyncio.Task[None]:
        async def stop() -> None:
            await upstream.stop(b"", "text/plain")

        return self._node.tasks.start(stop())

    def _open_channel(self, name: str) -> Channel:
        self._channels.append(self._trickle.create(name, "video/MP2T"))
        return self._channels[-1]

    def _close_channels(self) -> None:
        for channel in self._channels:
            self._close(channel)
        self._channels.clear()
        self._ends.input = self._ends.output = None  # they hold on to the channels' last segments

    def _close(self, channel: Channel) -> None:
        if not channel.closed:
            self._trickle.close(channel.name)

    @property
    def _pcm(self) -> bool:
        return str(self._params.get("input", "")).lower() in PCM_NAMES

    def _on_event(self, event: dict[str, Any]) -> None:
        if event.get("type") in ("status", "inference_status"):
            self._container_status = event
        elif event.get("type") == "error" and not self._error:
            self._error = str(event.get("message", event.get("error", "")))
