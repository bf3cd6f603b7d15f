"""A stream's connection to one orchestrator: the channels, and what flows through them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Callable, Mapping
from typing import Any

import aiohttp

from whisper_byoc.errors import PeerBusy, PeerFailed, RequestRefused
from whisper_byoc.http import reason_of as describe
from whisper_byoc.network.answers import says
from whisper_byoc.network.gateway.backlog import Backlog
from whisper_byoc.network.gateway.records import RecordLog, is_fragment
from whisper_byoc.network.header import HEADER, JobHeader
from whisper_byoc.network.out import PEER_ERRORS, peer_failed
from whisper_byoc.network.reading import json_value, read_answer
from whisper_byoc.trickle import (
    ClientOptions,
    LocalPublisher,
    SegmentBroken,
    TrickleError,
    TricklePublisher,
    TrickleSubscriber,
)

__all__ = ["Link"]

log = logging.getLogger("whisper_byoc.network.gateway")

OPTIONS = ClientOptions(verify=False, answer_seconds=5.0, patience_seconds=8.0, longest_pause=1.0)
"""An orchestrator that is away for so long has lost its streams: it keeps them in memory."""
KEEP_ALIVE_S = 10.0
HEARTBEAT_S = 40.0
"""Without an event for so long the stream counts as lost (go-livepeer: 30 s, seen at its 10 s ticks)."""
TICK_S = 1.0
STOP_S = 12.0
LAST_S = 2.0
"""When one of its channels has ended: longest wait for what is still on its way in the others."""
LARGEST_ANSWER = 10 << 20
LARGEST_EVENT = 1 << 20
LARGEST_DATA = 8 << 20


class Link:
    """One attempt of a stream at one orchestrator, which has accepted it when `start` returns."""

    def __init__(self, url: str, job: JobHeader, http: aiohttp.ClientSession, *, pcm: bool = False) -> None:
        self.url = url
        self.stopped = False
        """Whether the container ended the stream in order: it said so, or was asked to stop and did."""
        self.produced = False
        """Whether any video has come back; text is in the records."""
        self._job = job
        self._http = http
        self._pcm = pcm
        self._channels: dict[str, str] = {}
        self._heard_at = 0.0
        self._trouble = ""

    async def start(self, body: Mapping[str, Any]) -> None:
        """Have the orchestrator find a container.

        Raises `RequestRefused` with its words, `PeerBusy` or `PeerFailed`.
        """
        seconds = self._job.timeout_seconds + 5.0
        status, answer, headers = await self._post("start", json.dumps(body).encode(), "application/json", seconds)
        if status >= 400:
            message = says(answer, f"the orchestrator at {self.url} answered {status}")
            if status in (429, 503):
                raise PeerBusy(message)
            raise PeerFailed(message, status) if status >= 500 else RequestRefused(status, message)
        for kind in ("Control", "Events", "Publish", "Subscribe", "Data"):
            if address := headers.get(f"X-{kind}-Url"):
                self._channels[kind] = address
        if "Control" not in self._channels or "Events" not in self._channels:
            raise PeerFailed(f"the orchestrator at {self.url} named no channels for control and events")

    async def run(
        self,
        backlog: Backlog | None,
        records: RecordLog,
        output: LocalPublisher | None,
        on_event: Callable[[dict[str, Any]], None],
    ) -> str:
        """Pass everything on until the stream has ended; give the reason if that was too early, else an empty one."""
        loop = asyncio.get_running_loop()
        self._heard_at = loop.time()
        answers = [loop.create_task(self._events(on_event))]
        if "Data" in self._channels:
            answers.append(loop.create_task(self._data(records, backlog)))
        helpers = [loop.create_task(self._control())]
        if "Publish" in self._channels and backlog is not None:
            helpers.append(loop.create_task(self._input(backlog)))
        video = []
        if "Subscribe" in self._channels and output is not None:
            video.append(loop.create_task(self._output(output, backlog)))
        try:
            await self._until_over(answers, [*helpers, *video])
            last = {*answers[1:], *video} if records.ended else {*answers, *video}
            if last:
                await asyncio.wait(last, timeout=LAST_S)
            return self._reason(records, [*answers[1:], *answers, *video, *helpers])
        finally:
            tasks = [*answers, *helpers, *video]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def stop(self, body: bytes, content_type: str) -> bytes:
        """Have the container deliver its last words, and give its answer.

        Raises `RequestRefused`.
        """
        status, answer, _ = await self._post("stop", body, content_type, STOP_S)
        if status >= 400:
            raise RequestRefused(status, says(answer, f"the orchestrator answered {status}"))
        self.stopped = True
        return answer

    async def update(self, body: bytes, content_type: str) -> tuple[int, bytes, str]:
        """Hand parameters to the container, and give its status, answer and content type.

        Raises `PeerFailed`.
        """
        seconds = self._job.timeout_seconds + 5.0
        status, answer, headers = await self._post("update", body, content_type, seconds)
        return status, answer, headers.get("Content-Type", "text/plain")

    async def _until_over(self, answers: list[asyncio.Task[None]], others: list[asyncio.Task[None]]) -> None:
        """Return when text or events have ended, or anything has failed."""
        loop = asyncio.get_running_loop()
        while not any(task.done() for task in answers) and not any(map(failure_of, others)):
            waiting = {task for task in (*answers, *others) if not task.done()}
            await asyncio.wait(waiting, timeout=TICK_S, return_when=asyncio.FIRST_COMPLETED)
            if loop.time() - self._heard_at > HEARTBEAT_S:
                self._trouble = f"the container has published no event for {HEARTBEAT_S:g} s"
                return

    def _reason(self, records: RecordLog, tasks: list[asyncio.Task[None]]) -> str:
        """Say why it ended too early; empty if it did not. Not every container's text has an end record."""
        if records.ended:
            return ""
        if self._trouble:
            return self._trouble
        failures = [describe(error) for task in tasks if (error := failure_of(task))]
        if self.stopped and not (failures and failure_of(tasks[0])):
            return ""
        return failures[0] if failures else "the orchestrator ended the stream"

    async def _data(self, records: RecordLog, backlog: Backlog | None) -> None:
        """Collect lines as they come, until the end record or the end of the channel."""
        async with TrickleSubscriber(self._channels["Data"], start=0, options=OPTIONS) as subscriber:
            async for segment in subscriber:
                if segment.missed:
                    records.lost(self._job.stream_id, segment.missed)
                rest = b""
                try:
                    async for data in segment:
                        *lines, rest = (rest + data).split(b"\n")
                        for line in lines:
                            records.add(line)
                        if len(rest) > LARGEST_DATA:
                            raise PeerFailed(f"the container wrote a line of more than {LARGEST_DATA} bytes")
                        if records.produced and backlog is not None:
                            backlog.settle()
                except SegmentBroken as error:
                    log.warning("stream %s: %s", self._job.stream_id, error)
                    records.lost(self._job.stream_id, 1)
                    continue
                if is_fragment(rest):  # a writer that is still there sends all of it again
                    log.warning("stream %s: a record broke off after %d bytes", self._job.stream_id, len(rest))
                else:
                    records.add(rest)
                if records.produced and backlog is not None:
                    backlog.settle()
                if records.ended:
                    return

    async def _events(self, on_event: Callable[[dict[str, Any]], None]) -> None:
        async with TrickleSubscriber(self._channels["Events"], start=0, options=OPTIONS) as subscriber:
            async for segment in subscriber:
                try:
                    message = json_value(await segment.read(LARGEST_EVENT))
                    event = message.get("event", message)
                    kind = event.get("type")
                except (ValueError, AttributeError, TrickleError):
                    continue  # go-livepeer passes over such an event, too
                self._heard_at = asyncio.get_running_loop().time()
                if kind == "stream_lost":
                    self._trouble = str(event.get("message", "")) or "the orchestrator lost the stream"
                elif kind == "stream_stopped":
                    self.stopped = True
                on_event(event)

    async def _control(self) -> None:
        """Show the orchestrator and the container that somebody is there."""
        async with TricklePublisher(self._channels["Control"], "application/json", options=OPTIONS) as publisher:
            while True:
                await publisher.publish(b'{"keep":"alive"}')
                await asyncio.sleep(KEEP_ALIVE_S)

    async def _input(self, backlog: Backlog) -> None:
        """Send the input, segment by segment as its bytes come; its end is the end of the orchestrator's channel."""
        address = self._channels["Publish"]
        async with TricklePublisher(address, "video/MP2T", continuous=True, options=OPTIONS) as publisher:
            async for segment in backlog.read():
                async with await publisher.next() as writer:
                    size = 0
                    async for data in segment.read():
                        await writer.write(data)
                        size += len(data)
                    if self._pcm and size % 2 and not segment.whole:  # who sends it again, or goes on, begins a sample
                        await writer.write(b"\0")
            await publisher.close(delete_channel=True)

    async def _output(self, output: LocalPublisher, backlog: Backlog | None) -> None:
        async with TrickleSubscriber(self._channels["Subscribe"], start=0, options=OPTIONS) as subscriber:
            async for segment in subscriber:
                self.produced = True
                if backlog is not None:
                    backlog.settle()
                async with await output.next() as writer:
                    with contextlib.suppress(TrickleError):  # a broken segment costs what is missing of it
                        async for data in segment:
                            await writer.write(data)

    async def _post(
        self, action: str, body: bytes, content_type: str, seconds: float
    ) -> tuple[int, bytes, Mapping[str, str]]:
        headers = {HEADER: self._job.encode()} | ({"Content-Type": content_type} if content_type else {})
        limit = aiohttp.ClientTimeout(total=seconds, sock_connect=5.0)
        try:
            async with self._http.post(
                f"{self.url}/ai/stream/{action}", data=body, headers=headers, timeout=limit, allow_redirects=False
            ) as answer:
                return answer.status, await read_answer(answer, LARGEST_ANSWER), answer.headers
        except PEER_ERRORS as error:
            raise peer_failed(f"the orchestrator at {self.url}", error) from None


def failure_of(task: asyncio.Task[None]) -> BaseException | None:
    """Give what a task has failed with, if it has."""
    return task.exception() if task.done() and not task.cancelled() else None
