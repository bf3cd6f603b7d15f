"""One BYOC stream at the orchestrator: its channels, its place at a container, and the watch that ends it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import Mapping
from typing import Any

import aiohttp

from whisper_byoc.errors import PeerFailed, RequestRefused
from whisper_byoc.network.answers import says
from whisper_byoc.network.limits import NetworkLimits
from whisper_byoc.network.orchestrator.pool import Slot
from whisper_byoc.network.out import PEER_ERRORS, peer_failed
from whisper_byoc.network.reading import json_value, read_answer
from whisper_byoc.network.tasks import ended, within
from whisper_byoc.trickle import NEXT, LocalPublisher, LocalSubscriber, TrickleError, TrickleServer

__all__ = ["BUSY", "Channels", "Stream"]

log = logging.getLogger("whisper_byoc.network.orchestrator")

WATCH_S = 0.5
BUSY = (429, 503)
LARGEST_ANSWER = 1 << 20
LARGEST_EVENT = 1 << 20


class Channels:
    """The channels of one stream, made before the container is told (go-livepeer, byoc/stream_orchestrator.go)."""

    def __init__(self, trickle: TrickleServer, stream_id: str, options: Mapping[str, Any]) -> None:
        self._trickle = trickle
        kinds = {"control": "application/json", "events": "application/json"}
        if options.get("enable_video_ingress"):
            kinds[""] = "video/MP2T"
        if options.get("enable_video_egress"):
            kinds["out"] = "video/MP2T"
        if options.get("enable_data_output"):
            kinds["data"] = "application/jsonl"
        self.names = {kind: f"{stream_id}-{kind}" if kind else stream_id for kind in kinds}
        if taken := [name for name in self.names.values() if name in trickle.channels]:
            raise RequestRefused(400, f"stream {stream_id!r} cannot have the channel {taken[0]!r}: it is in use")
        try:
            for kind, name in self.names.items():
                trickle.create(name, kinds[kind])
        except TrickleError:  # too many channels
            self.close()
            raise

    def urls(self, base: str, names: Mapping[str, str]) -> dict[str, str]:
        """Give the URLs of the channels below `base`, under the names that `names` has for their kinds."""
        return {name: f"{base}{self.names[kind]}" for kind, name in names.items() if kind in self.names}

    def quiet_seconds(self, kind: str) -> float:
        """Seconds since the newest segment of a channel began; infinite when somebody closed the channel."""
        channel = self._trickle.channels.get(self.names[kind])
        return time.monotonic() - channel.active_at if channel else float("inf")

    def begun(self, kind: str) -> bool:
        """Whether anything was ever written to a channel."""
        channel = self._trickle.channels.get(self.names[kind])
        return channel is not None and channel.next_write > 0

    def reader(self, kind: str) -> LocalSubscriber:
        """Read a channel from what is written next."""
        return LocalSubscriber(self._trickle.get(self.names[kind]), NEXT)

    def writer(self, kind: str) -> LocalPublisher:
        """Write to a channel."""
        return LocalPublisher(self._trickle.get(self.names[kind]))

    def close(self) -> None:
        """End all of them."""
        for name in self.names.values():
            if name in self._trickle.channels:
                self._trickle.close(name)


class Stream:
    """A stream at a container, which has taken it on when `start` returns.

    From then on `over` is a task; it is done when the place is free and the channels are closed.
    """

    over: asyncio.Task[None]

    def __init__(
        self, stream_id: str, slot: Slot, channels: Channels, http: aiohttp.ClientSession, limits: NetworkLimits
    ) -> None:
        self.id = stream_id
        self._limits = limits
        self._slot = slot
        self._channels = channels
        self._http = http
        self._ending = asyncio.Event()
        self._stopping: asyncio.Task[tuple[int, bytes, str]] | None = None

    @property
    def ending(self) -> bool:
        """Whether it will be over soon: somebody has ended it, or its container is gone."""
        return self._ending.is_set()

    async def start(self, body: Mapping[str, Any], seconds: float) -> None:
        """Tell the container to begin; when it does not, channels and place are freed.

        Raises `RequestRefused` with the container's status and words, or `PeerFailed`.
        """
        try:
            status, answer, _ = await self.tell("start", json.dumps(body).encode(), "application/json", seconds)
            if status >= 400:
                busy = 1 if status in BUSY else None
                raise RequestRefused(status, says(answer, f"the container answered {status}"), busy)
        except BaseException:
            self._channels.close()
            self._slot.free()
            raise
        self.over = asyncio.get_running_loop().create_task(self._watch(), name=f"stream {self.id}")

    async def tell(self, action: str, body: bytes, content_type: str, seconds: float) -> tuple[int, bytes, str]:
        """Send the container a request about the stream, and give its status, body and content type.

        Raises `PeerFailed`.
        """
        container = self._slot.container
        headers = {"X-Stream-Id": self.id, **container.headers}
        if content_type:
            headers["Content-Type"] = content_type
        limit = aiohttp.ClientTimeout(total=seconds, sock_connect=5.0)
        try:
            with self._slot.alive():
                async with self._http.post(
                    f"{container.url}/stream/{action}", data=body, headers=headers, params=container.query,
                    timeout=limit, allow_redirects=False,
                ) as answer:  # fmt: skip
                    data = await read_answer(answer, LARGEST_ANSWER + 1)
        except PEER_ERRORS as error:
            raise peer_failed(f"the container at {container.url}", error) from None
        if answer.status == 401:
            raise PeerFailed(f"the container at {container.url} does not take the token that it registered with")
        if len(data) > LARGEST_ANSWER:
            raise PeerFailed(f"the container at {container.url} answered with more than {LARGEST_ANSWER} bytes")
        return answer.status, data, answer.headers.get("Content-Type", "")

    async def stop(self, body: bytes, content_type: str = "") -> tuple[int, bytes, str]:
        """Have the container deliver its last words, then end the stream; all callers get the container's one answer.

        Raises `PeerFailed`.
        """
        if self._stopping is None:
            loop = asyncio.get_running_loop()
            self._stopping = loop.create_task(self.tell("stop", body, content_type, self._limits.stop_seconds))
            self._stopping.add_done_callback(lambda task: task.cancelled() or task.exception())
            self._ending.set()
        return await asyncio.shield(self._stopping)

    async def _watch(self) -> None:
        """Wait for the end, whoever brings it about, then free everything."""
        try:
            events = asyncio.get_running_loop().create_task(self._read_events())
            try:
                with self._slot.watched(self._ending.set):
                    reason = await self._until_over()
            except PeerFailed as error:
                reason = str(error)
            finally:
                await ended(events)
            await self._end(reason)
        finally:
            self._channels.close()
            self._slot.free()

    async def _until_over(self) -> str:
        """Give the reason of the end, empty for one that somebody asked for."""
        while not self._ending.is_set():
            if reason := self._silence():
                return reason
            with contextlib.suppress(asyncio.TimeoutError):
                await within(WATCH_S, self._ending.wait())
        return self._slot.lost or ""

    def _silence(self) -> str:
        """Say who has gone without a word; empty if both are there."""
        events, control = self._channels.quiet_seconds("events"), self._channels.quiet_seconds("control")
        if events > self._limits.events_seconds:
            quiet = "closed the channel of events" if events == float("inf") else f"published none for {events:.0f} s"
            return f"the container at {self._slot.container.url} should publish events, and {quiet}"
        if control == float("inf") or (control > self._limits.control_seconds and self._channels.begun("control")):
            return "the gateway is gone: it says nothing on the control channel any more"
        return ""

    async def _end(self, reason: str) -> None:
        if reason:
            log.warning("stream %s: %s", self.id, reason)
            await self._publish_error(reason)
        if self._slot.lost is None:
            try:
                await self.stop(reason.encode())
            except RequestRefused as error:
                log.warning("stream %s: %s", self.id, error)
        await asyncio.sleep(self._limits.linger_seconds)
        log.info("stream %s has ended", self.id)

    async def _publish_error(self, reason: str) -> None:
        """Tell the gateway, which reads the events."""
        event = {"event": {"type": "stream_lost", "stream_id": self.id, "message": reason}}
        try:
            await self._channels.writer("events").publish(json.dumps(event).encode())
        except TrickleError as error:
            log.debug("stream %s: %s", self.id, error)

    async def _read_events(self) -> None:
        """Notice when the container ends the stream by itself."""
        with contextlib.suppress(TrickleError):  # a channel that was closed is noticed elsewhere
            async for segment in self._channels.reader("events"):
                try:
                    message = json_value(await segment.read(LARGEST_EVENT))
                    if message.get("event", message).get("type") == "stream_stopped":
                        self._ending.set()
                except (ValueError, AttributeError, TrickleError) as error:
                    log.debug("stream %s: an event that is none: %s", self.id, error)
