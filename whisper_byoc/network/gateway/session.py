"""One client's stream at the gateway, over one orchestrator or, should that one fail at the start, two."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import Mapping
from typing import Any

from whisper_byoc.errors import PeerBusy, PeerFailed, RequestRefused
from whisper_byoc.network.gateway.backlog import Backlog
from whisper_byoc.network.gateway.context import Context
from whisper_byoc.network.gateway.link import Link
from whisper_byoc.network.gateway.records import RecordLog
from whisper_byoc.network.header import JobHeader
from whisper_byoc.trickle import ChannelNotFound, LocalPublisher, LocalSubscriber, TrickleServer

__all__ = ["Session"]

log = logging.getLogger("whisper_byoc.network.gateway")

FLUSH_S = 3.0
"""After a stop: longest time for which input that has arrived is still sent."""
LAST_WORDS_S = 2.0
"""After the container's answer to a stop: longest wait for its end record."""


class Session:
    """A stream from the client's start until `over`; its records and status outlive it."""

    over: asyncio.Task[None]

    def __init__(
        self, stream_id: str, job: JobHeader, body: Mapping[str, Any], context: Context, trickle: TrickleServer
    ) -> None:
        self.id = stream_id
        self.records = RecordLog()
        self.ended_at: float | None = None
        self._job = job.asking(stream_id=stream_id)
        self._body = dict(body)
        self._context = context
        self._trickle = trickle
        self._link: Link | None = None
        self._backlog: Backlog | None = None
        self._output: LocalPublisher | None = None
        self._intake: asyncio.Task[None] | None = None
        self._stopping = False
        self._said: dict[str, Any] = {}
        self._error = ""
        self._orchestrator = ""

    @property
    def input_name(self) -> str:
        """Name of the channel that takes the client's media; empty if the stream has no input."""
        return self.id if self._job.options.get("enable_video_ingress") else ""

    @property
    def output_name(self) -> str:
        """Name of the channel that gives video; empty if the stream has none."""
        return f"{self.id}-out" if self._job.options.get("enable_video_egress") else ""

    @property
    def has_data(self) -> bool:
        """Whether the client wanted text."""
        return bool(self._job.options.get("enable_data_output"))

    async def start(self) -> None:
        """Find an orchestrator and a container, and begin.

        Raises `RequestRefused` with the words of whoever refused.
        """
        link = await self._connect()
        if self.input_name:
            channel = self._trickle.create(self.input_name, "video/MP2T")
            self._backlog = Backlog(LocalSubscriber(channel), self._context.limits.hold_bytes)
            self._intake = asyncio.get_running_loop().create_task(self._backlog.run())
        if self.output_name:
            self._output = LocalPublisher(self._trickle.create(self.output_name, "video/MP2T"))
        self.over = asyncio.get_running_loop().create_task(self._run(link), name=f"stream {self.id}")

    async def stop(self, body: bytes, content_type: str) -> bytes:
        """Send on what has arrived, have the last words said, and give the container's answer, empty if it has none."""
        answer = b""
        self._stopping = True
        if not self.over.done() and self._link is not None:
            self._end_input()
            if self._backlog is not None:
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self._backlog.sent(), FLUSH_S)
            try:
                answer = await self._link.stop(body, content_type)
            except RequestRefused as error:
                log.warning("stream %s: %s", self.id, error)
            await asyncio.wait({self.over}, timeout=LAST_WORDS_S)
        if not self.over.done():
            self.over.cancel()
            await asyncio.wait({self.over})
        return answer

    async def update(self, body: bytes, content_type: str) -> tuple[int, bytes, str]:
        """Hand parameters to the container; a later container gets them at its start.

        Raises `RequestRefused`.
        """
        if self.over.done() or self._link is None:
            raise RequestRefused(404, f"stream {self.id!r} has ended")
        status, answer, answer_type = await self._link.update(body, content_type)
        if status < 400:
            with contextlib.suppress(ValueError):
                changed = json.loads(body)
                self._body["params"] = {**(self._body.get("params") or {}), **changed.get("params", changed)}
        return status, answer, answer_type

    def status(self) -> dict[str, Any]:
        """Describe the stream; what the container says of itself comes first."""
        head: dict[str, Any] = {
            "stream_id": self.id,
            "state": "running" if self.ended_at is None else "ended",
            "orchestrator": self._orchestrator,
            "whep_url": "",
        }
        if self._backlog is not None:
            counts = {"segments": self._backlog.segments, "bytes": self._backlog.bytes, "missed": self._backlog.missed}
            head["ingest_metrics"] = counts
        return {**self._said, **head, **({"error": self._error} if self._error else {})}

    async def _connect(self, without: str = "") -> Link:
        """Find an orchestrator that takes the stream; the one that failed before is the last choice."""
        places = await self._context.directory.with_places(self._job.capability, self._job.options.get("orchestrators"))
        failure: RequestRefused = PeerFailed("no orchestrator took the stream")
        for url in sorted(places, key=lambda each: each == without):
            link = Link(url, self._job, self._context.http)
            try:
                await link.start(self._body)
            except (PeerBusy, PeerFailed) as error:
                failure = error
                log.warning("stream %s: %s", self.id, error)
            else:
                self._link, self._orchestrator = link, url
                log.info("stream %s runs at %s", self.id, url)
                return link
        raise failure

    async def _run(self, link: Link) -> None:
        """Keep the stream going until its end; once, if nothing has come of it, anew elsewhere."""
        reason = "the gateway is shutting down"
        try:
            reason = await link.run(self._backlog, self.records, self._output, self._on_event)
            if reason and not self._stopping and not self.records.produced and self._may_repeat():
                log.warning("stream %s: %s; trying another place", self.id, reason)
                try:
                    link = await self._connect(without=link.url)
                except RequestRefused as error:
                    reason = f"{reason}; and then: {error}"
                else:
                    reason = await link.run(self._backlog, self.records, self._output, self._on_event)
        finally:
            self._finish("" if self.records.ended else reason)
            if not self._stopping:
                self._context.tasks.start(self._tell_the_end(link))
            if self._intake:
                self._intake.cancel()
                await asyncio.wait({self._intake})

    def _finish(self, reason: str) -> None:
        if reason:
            self._error = self._error or reason
            log.warning("stream %s: %s", self.id, reason)
            self.records.fail(self.id, reason)
        self.records.close()
        self.ended_at = time.monotonic()
        self._end_input()
        with contextlib.suppress(ChannelNotFound):
            self._trickle.close(self.output_name)

    async def _tell_the_end(self, link: Link) -> None:
        """Have the orchestrator free what it may still hold of a stream that nobody stopped."""
        with contextlib.suppress(RequestRefused):
            await link.stop(b"", "")

    def _may_repeat(self) -> bool:
        return self._backlog is None or self._backlog.replayable

    def _end_input(self) -> None:
        with contextlib.suppress(ChannelNotFound):
            self._trickle.close(self.input_name)

    def _on_event(self, event: dict[str, Any]) -> None:
        """Note what the container says of itself; a result makes a repetition impossible."""
        if event.get("type") in ("status", "inference_status"):
            self._said = event
        elif event.get("type") == "error" and not self._error:
            self._error = str(event.get("message", event.get("error", "")))
