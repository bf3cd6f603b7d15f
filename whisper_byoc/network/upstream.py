"""A stream's connection to its orchestrator: the requests that drive it, and the channels it flows through."""

import asyncio
import contextlib
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp

from whisper_byoc import livepeer
from whisper_byoc.aio import cancel, first_of
from whisper_byoc.errors import PeerFailed, RequestRefused
from whisper_byoc.http import json_value, reason_of
from whisper_byoc.network.peers import Answer, post, refused
from whisper_byoc.network.records import RecordLog, is_fragment
from whisper_byoc.trickle import (
    ClientOptions,
    LocalPublisher,
    LocalSubscriber,
    SegmentBroken,
    TrickleError,
    TricklePublisher,
    TrickleSubscriber,
)

log = logging.getLogger("whisper_byoc.network.gateway")

OPTIONS = ClientOptions(verify=False, answer_seconds=5.0, patience_seconds=8.0, longest_pause=1.0)
"""An orchestrator that is away for so long has lost its streams: it keeps them in memory."""
KEEP_ALIVE_S = 10.0
HEARTBEAT_S = 40.0
"""Without an event for so long the stream counts as lost (go-livepeer: 30 s, seen at its 10 s ticks)."""
MARGIN_S = 5.0
STOP_S = 12.0
LAST_S = 2.0
"""When one of its channels has ended: longest wait for what is still on its way in the others."""
LARGEST_EVENT = 1 << 20
LARGEST_LINE = 8 << 20


@dataclass
class StreamEnds:
    """The gateway's side of a stream: what comes from the client, and where the container's results go."""

    input: LocalSubscriber | None
    pcm: bool
    """Whether the input is bare PCM16."""
    output: LocalPublisher | None
    records: RecordLog
    on_event: Callable[[dict[str, Any]], None]
    """Called with every event of the container."""


class Upstream:
    """One stream at one orchestrator, which has accepted it when `start` returns."""

    def __init__(self, url: str, job: livepeer.JobHeader, http: aiohttp.ClientSession) -> None:
        self.url = url
        self.stopped = False
        """Whether the container ended the stream in order: it said so, or was asked to stop and did."""
        self._peer = f"the orchestrator at {url}"
        self._job = job
        self._http = http
        self._channels: dict[str, str] = {}
        self._input: asyncio.Task[None] | None = None
        self._lost = ""

    async def start(self, body: Mapping[str, Any]) -> None:
        """Have the orchestrator find a container.

        Raises `RequestRefused`.
        """
        seconds = self._job.timeout_seconds + MARGIN_S
        answer = await self._post("start", json.dumps(body).encode(), "application/json", seconds)
        if answer.status >= 400:
            raise refused(self._peer, answer.status, answer.body)
        for kind in ("Control", "Events", "Publish", "Subscribe", "Data"):
            if address := answer.headers.get(f"X-{kind}-Url"):
                self._channels[kind] = address
        if "Control" not in self._channels or "Events" not in self._channels:
            raise PeerFailed(f"{self._peer} named no channels for control and events")

    async def update(self, body: bytes, content_type: str) -> Answer:
        """Hand parameters to the container, and return its answer.

        Raises `PeerFailed`.
        """
        return await self._post("update", body, content_type, self._job.timeout_seconds + MARGIN_S)

    async def stop(self, body: bytes, content_type: str) -> bytes:
        """Have the container deliver its last words, and return its answer; the orchestrator may be gone."""
        try:
            answer = await self._post("stop", body, content_type, STOP_S)
            if answer.status >= 400:
                raise refused(self._peer, answer.status, answer.body)
        except RequestRefused as error:
            log.warning("stream %s: %s", self._job.stream_id, error)
            return b""
        self.stopped = True
        return answer.body

    async def _post(self, action: str, body: bytes, content_type: str, seconds: float) -> Answer:
        headers = {livepeer.JOB: self._job.encode(), "Content-Type": content_type}
        return await post(self._http, self._peer, f"{self.url}/ai/stream/{action}", body, headers, seconds)

    async def input_sent(self, seconds: float) -> None:
        """Wait until the input has ended and was sent, or cannot be sent; at most so many seconds."""
        if self._input is not None:
            await first_of(self._input, timeout=seconds)

    async def run(self, ends: StreamEnds) -> str:
        """Pass everything on until the stream has ended; return the reason if that was too early, else nothing."""
        start = asyncio.get_running_loop().create_task
        answers, others = [start(self._events(ends))], [start(self._control())]
        if "Data" in self._channels:
            answers.insert(0, start(self._data(ends.records)))
        if "Publish" in self._channels and ends.input is not None:
            self._input = start(self._send_input(ends, ends.input))
            others.append(self._input)
        results = list(answers)
        if "Subscribe" in self._channels and ends.output is not None:
            video = start(self._video(ends.output))
            results.append(video)
            others.append(video)
        try:
            while not any(task.done() for task in answers) and not any(map(_failure, others)):
                await first_of(*(task for task in (*answers, *others) if not task.done()))
            if ends.records.ended:
                results.remove(answers[-1])  # nobody needs more events
            if results:
                await asyncio.wait(results, timeout=LAST_S)
            return self._reason(ends.records, [*answers, *others])
        finally:
            await cancel(*answers, *others)

    def _reason(self, records: RecordLog, tasks: list[asyncio.Task[None]]) -> str:
        """Return why it ended too early; not every container's text has an end record."""
        if records.ended:
            return ""
        if self._lost:
            return self._lost
        failures = [reason_of(error) for task in tasks if (error := _failure(task))]
        if self.stopped and not _failure(tasks[0]):
            return ""
        return failures[0] if failures else "the orchestrator ended the stream"

    async def _events(self, ends: StreamEnds) -> None:
        loop = asyncio.get_running_loop()
        try:
            async with (
                asyncio.timeout(HEARTBEAT_S) as heartbeat,
                TrickleSubscriber(self._channels["Events"], start=0, options=OPTIONS) as subscriber,
            ):
                async for segment in subscriber:
                    try:
                        message = json_value(await segment.read(LARGEST_EVENT))
                        event = message.get("event", message)
                        kind = event.get("type")
                    except (ValueError, AttributeError, TrickleError):
                        continue  # go-livepeer passes over such an event, too
                    heartbeat.reschedule(loop.time() + HEARTBEAT_S)
                    if kind == "stream_lost":
                        self._lost = str(event.get("message", "")) or "the orchestrator lost the stream"
                    elif kind == "stream_stopped":
                        self.stopped = True
                    ends.on_event(event)
        except TimeoutError:
            raise PeerFailed(f"the container has published no event for {HEARTBEAT_S:g} s") from None

    async def _data(self, records: RecordLog) -> None:
        """Collect lines as they come, until the end record or the end of the channel."""
        job_id = self._job.stream_id
        async with TrickleSubscriber(self._channels["Data"], start=0, options=OPTIONS) as subscriber:
            async for segment in subscriber:
                if segment.missed:
                    records.missed(job_id, _gone(segment.missed, "of the stream's text", "be read"))
                rest = b""
                try:
                    async for data in segment:
                        *lines, rest = (rest + data).split(b"\n")
                        for line in lines:
                            records.add(line)
                        if len(rest) > LARGEST_LINE:
                            raise PeerFailed(f"the container wrote a line of more than {LARGEST_LINE} bytes")
                except SegmentBroken as error:
                    log.warning("stream %s: %s", job_id, error)
                    records.missed(job_id, _gone(1, "of the stream's text", "be read"))
                    continue
                if is_fragment(rest):  # a writer that is still there sends all of it again
                    log.warning("stream %s: a record broke off after %d bytes", job_id, len(rest))
                else:
                    records.add(rest)
                if records.ended:
                    return

    async def _control(self) -> None:
        async with TricklePublisher(self._channels["Control"], "application/json", options=OPTIONS) as publisher:
            while True:
                await publisher.publish(b'{"keep":"alive"}')
                await asyncio.sleep(KEEP_ALIVE_S)

    async def _send_input(self, ends: StreamEnds, source: LocalSubscriber) -> None:
        """Send the input, segment by segment as its bytes come; its end is the end of the orchestrator's channel."""
        address = self._channels["Publish"]
        async with TricklePublisher(address, "video/MP2T", continuous=True, options=OPTIONS) as publisher:
            async for segment in source:
                if segment.missed:
                    message = _gone(segment.missed, "of the input", "be sent on") + "; publish no faster than live"
                    ends.records.missed(self._job.stream_id, message)
                async with await publisher.next() as writer:
                    size = 0
                    async for data in segment:
                        size += len(data)
                        await writer.write(data)
                    if ends.pcm and size % 2 and not segment.segment.whole:  # what follows a broken one begins a sample
                        await writer.write(b"\0")
            await publisher.close(delete_channel=True)

    async def _video(self, output: LocalPublisher) -> None:
        async with TrickleSubscriber(self._channels["Subscribe"], start=0, options=OPTIONS) as subscriber:
            async for segment in subscriber:
                async with await output.next() as writer:
                    with contextlib.suppress(TrickleError):  # a broken segment costs what is missing of it
                        async for data in segment:
                            await writer.write(data)


def _gone(segments: int, of_what: str, to_what: str) -> str:
    return f"{segments} segments {of_what} were gone before they could {to_what}"


def _failure(task: asyncio.Task[None]) -> BaseException | None:
    return task.exception() if task.done() and not task.cancelled() else None
