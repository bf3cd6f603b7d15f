"""One client's stream at the gateway, over one orchestrator or, should that one fail at the start, two."""

from __future__ import annotations

import asyncio
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
from whisper_byoc.network.reading import json_value
from whisper_byoc.trickle import LocalPublisher, LocalSubscriber, TrickleServer
from whisper_byoc.trickle.channel import Channel

__all__ = ["Session"]

log = logging.getLogger("whisper_byoc.network.gateway")

PCM_NAMES = ("pcm16", "s16le", "pcm")
FLUSH_S = 3.0
"""After a stop: longest time for which input that has arrived is still sent."""
LAST_WORDS_S = 4.0
"""After the container's answer to a stop: longest wait for its end record."""
LINGER_S = 0.5
"""The video channel stays open for so long after the end: readers ask for what was written last."""
CUT = "the stream was stopped, and its last words did not come in time"


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
        self._input: Channel | None = None
        self._backlog: Backlog | None = None
        self._intake: asyncio.Task[None] | None = None
        self._output: LocalPublisher | None = None
        self._stopper: asyncio.Task[bytes] | None = None
        self._farewell: asyncio.Task[None] | None = None
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

    @property
    def _pcm(self) -> bool:
        params = self._body.get("params") or {}
        return str(params.get("input", "")).lower() in PCM_NAMES

    @property
    def busy(self) -> bool:
        """Whether anything of it is still going on."""
        return not self.over.done() or (self._stopper is not None and not self._stopper.done())

    @property
    def ending(self) -> bool:
        """Whether it is over, or will be soon: all has been said, or somebody is stopping it."""
        return self.ended_at is not None or self.records.ended or self._stopper is not None

    async def gone(self) -> None:
        """Wait until nothing is left of it, at its orchestrator either; its name is free then."""
        await asyncio.wait({self.over})
        if self._farewell is not None:
            await asyncio.wait({self._farewell})

    async def start(self) -> None:
        """Find an orchestrator and a container, and begin.

        Raises `RequestRefused` with the words of whoever refused, or `TrickleError` when there is no room for channels.
        """
        link = await self._connect()
        loop = asyncio.get_running_loop()
        try:
            if self.input_name:
                self._input = self._trickle.create(self.input_name, "video/MP2T")
                source, hold_bytes = LocalSubscriber(self._input), self._context.limits.hold_bytes
                self._backlog = Backlog(source, hold_bytes, lambda missed: self.records.unheard(self.id, missed))
            if self.output_name:
                self._output = LocalPublisher(self._trickle.create(self.output_name, "video/MP2T"))
        except BaseException:
            self._close_channels()
            self._end(link)
            raise
        if self._backlog is not None:
            self._intake = loop.create_task(self._backlog.run())
        self.over = loop.create_task(self._run(link), name=f"stream {self.id}")

    async def stop(self, body: bytes, content_type: str) -> bytes:
        """Send on what has arrived, have the last words said, and give the container's answer, empty if it has none.

        All callers get the same answer; a caller who goes away does not interrupt it.
        """
        if self._stopper is None:
            self._stopper = asyncio.get_running_loop().create_task(self._stop(body, content_type))
        return await asyncio.shield(self._stopper)

    async def update(self, body: bytes, content_type: str) -> tuple[int, bytes, str]:
        """Hand parameters to the container; a later container gets them at its start.

        Raises `RequestRefused`.
        """
        if self.over.done() or self._link is None:
            raise RequestRefused(404, f"stream {self.id!r} has ended")
        status, answer, answer_type = await self._link.update(body, content_type)
        if status < 400:
            self._remember(body)
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

    async def _stop(self, body: bytes, content_type: str) -> bytes:
        if self.over.done() or self._link is None:
            return b""
        self._close(self._input)
        await self._flush()
        answer = b""
        try:
            answer = await self._link.stop(body, content_type)
        except RequestRefused as error:
            log.warning("stream %s: %s", self.id, error)
        await asyncio.wait({self.over}, timeout=LAST_WORDS_S)
        if not self.over.done():
            self.over.cancel()
            await asyncio.wait({self.over})
        return answer

    async def _flush(self) -> None:
        """Wait until what has arrived is sent, or the stream has ended; but not for long."""
        if self._backlog is None:
            return
        sending = asyncio.get_running_loop().create_task(self._backlog.sent())
        try:
            await asyncio.wait({sending, self.over}, timeout=FLUSH_S, return_when=asyncio.FIRST_COMPLETED)
        finally:
            sending.cancel()
            await asyncio.wait({sending})

    async def _connect(self, failed: Link | None = None) -> Link:
        """Find an orchestrator that takes the stream; the one that failed before is the last choice.

        Raises `RequestRefused`: a refusal of what the client asked for, if there is one, since others say the same.
        """
        ending = self._end(failed) if failed else None
        places = await self._context.directory.with_places(self._job.capability, self._job.options.get("orchestrators"))
        failure: RequestRefused | None = None
        for url in sorted(places, key=lambda each: failed is not None and each == failed.url):
            if ending is not None and failed is not None and url == failed.url:
                await asyncio.wait({ending})
            link = Link(url, self._job, self._context.http, pcm=self._pcm)
            try:
                await link.start(self._body)
            except RequestRefused as error:
                log.warning("stream %s: %s", self.id, error)
                if isinstance(error, PeerFailed) and error.reached:
                    self._end(link)
                failure = error if failure is None or isinstance(failure, (PeerBusy, PeerFailed)) else failure
            except asyncio.CancelledError:
                self._end(link)
                raise
            else:
                self._link, self._orchestrator = link, url
                log.info("stream %s runs at %s", self.id, url)
                return link
        raise failure or PeerFailed("no orchestrator took the stream")

    async def _run(self, link: Link) -> None:
        """Keep the stream going until its end; once, if nothing has come of it, anew elsewhere."""
        reason = CUT
        try:
            reason = await link.run(self._backlog, self.records, self._output, self._on_event)
            if reason and self._may_repeat(link):
                log.warning("stream %s: %s; trying another place", self.id, reason)
                try:
                    link = await self._connect(link)
                except RequestRefused as error:
                    reason = f"{reason}; and then: {error}"
                else:
                    reason = CUT
                    reason = await link.run(self._backlog, self.records, self._output, self._on_event)
        except Exception:
            log.exception("stream %s failed", self.id)
            reason = "the gateway failed on this stream; its log says why"
        finally:
            await self._finish(link, reason)

    async def _finish(self, link: Link, reason: str) -> None:
        """Let readers come to the end, and free everything."""
        if reason and not self.records.ended:
            self._error = self._error or reason
            log.warning("stream %s: %s", self.id, reason)
            self.records.fail(self.id, reason)
        self.records.close()
        if not link.stopped:
            self._farewell = self._end(link)
        try:
            if self._output is not None and self._output.channel.next_write:
                await asyncio.sleep(LINGER_S)
        finally:
            self._close_channels()
            self.ended_at = time.monotonic()
            if self._intake is not None:
                self._intake.cancel()
                await asyncio.wait({self._intake})

    def _close_channels(self) -> None:
        self._close(self._input)
        self._close(self._output.channel if self._output else None)
        self._input = self._output = None
        self._body = {}
        if self._backlog is not None:
            self._backlog.close()

    def _close(self, channel: Channel | None) -> None:
        """End a channel of ours; its name may be another stream's by now."""
        if channel is not None and self._trickle.channels.get(channel.name) is channel:
            self._trickle.close(channel.name)

    def _end(self, link: Link) -> asyncio.Task[None]:
        """Have the orchestrator free what it may still hold of a stream that nobody stopped."""
        return self._context.tasks.start(told_the_end(link))

    def _may_repeat(self, link: Link) -> bool:
        if self._stopper is not None or self.records.produced or link.produced:
            return False
        return self._backlog is None or self._backlog.replayable

    def _remember(self, body: bytes) -> None:
        """Keep changed parameters for a later container."""
        try:
            changed = json_value(body)
        except ValueError:
            return
        changed = changed.get("params", changed) if isinstance(changed, dict) else None
        if isinstance(changed, dict):
            self._body["params"] = {**(self._body.get("params") or {}), **changed}

    def _on_event(self, event: dict[str, Any]) -> None:
        """Note what the container says of itself."""
        if event.get("type") in ("status", "inference_status"):
            self._said = event
        elif event.get("type") == "error" and not self._error:
            self._error = str(event.get("message", event.get("error", "")))


async def told_the_end(link: Link) -> None:
    """Stop a stream whose orchestrator may be gone, or know nothing of it any more."""
    try:
        await link.stop(b"", "")
    except RequestRefused as error:
        log.debug("%s: %s", link.url, error)
