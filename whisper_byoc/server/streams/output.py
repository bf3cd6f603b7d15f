"""What a BYOC stream publishes: records as JSON lines on its data channel, heartbeats and events on its events channel.

Limits of the readers (go-livepeer's gateway): a line of at most 64 KiB, few lines at a time, an event at least every
30 s, and nothing that is written before a reader can be there.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Mapping
from typing import Any

from whisper_byoc.server.core.job import Job
from whisper_byoc.server.core.results import Record
from whisper_byoc.trickle.errors import ChannelClosed, ChannelNotFound, TrickleError
from whisper_byoc.trickle.http import ClientOptions
from whisper_byoc.trickle.publisher import TricklePublisher

__all__ = ["DATA_FORMATS", "DataWriter", "EventWriter"]

log = logging.getLogger(__name__)

MAX_LINE = 60 * 1024
KEEP_ALIVE_S = 20.0
HEARTBEAT_S = 10.0
FIRST_LINE_S = 1.0
"""Readers subscribe to what comes next, after the start was answered: before that time nothing is written."""
LOST_S = 300.0
"""A data channel that takes nothing for so long is given up."""
MAX_EVENTS = 64
FLUSH_S = 1.0
DATA_FORMATS = ("object", "pytrickle")
"""One JSON object a line; or, as pytrickle does it, an array of strings a line, of exactly one string."""


class DataWriter:
    """Publishes the records of a job in order, one line a segment, until the end record is delivered."""

    def __init__(self, job: Job, url: str | None, data_format: str, options: ClientOptions) -> None:
        self.data_format = data_format
        self._job = job
        self._url = url
        self._options = options

    async def run(self) -> None:
        """Deliver everything. A channel that is gone ends the input, and what comes then is dropped."""
        with self._job.reading():
            if self._url is None:
                await self._drop_rest()
                return
            async with TricklePublisher(self._url, "application/jsonl", options=self._options) as publisher:
                await asyncio.sleep(FIRST_LINE_S)
                try:
                    await self._publish(publisher)
                except TrickleError as error:
                    log.warning("stream %s: the data channel is gone: %s", self._job.info.job_id, error)
                    self._job.end_input()
                    await self._drop_rest()

    async def _publish(self, publisher: TricklePublisher) -> None:
        while True:
            record = await self._job.results.next_unread(KEEP_ALIVE_S)
            if record is None:
                await self._deliver(publisher, {"type": "keepalive", "job_id": self._job.info.job_id})
                continue
            await self._deliver(publisher, short_fields(record))
            self._job.results.mark_read(record)
            if record.kind == "end":
                return

    async def _deliver(self, publisher: TricklePublisher, fields: Mapping[str, Any]) -> None:
        """Publish one line; a server that is away is waited for."""
        line = json.dumps(fields, ensure_ascii=False, separators=(",", ":"))
        if self.data_format == "pytrickle":
            line = json.dumps([line], ensure_ascii=False)
        deadline = time.monotonic() + LOST_S
        while True:
            try:
                await publisher.publish(line.encode("utf-8", "replace") + b"\n")
                return
            except (ChannelNotFound, ChannelClosed):
                raise
            except TrickleError as error:
                if time.monotonic() > deadline:
                    raise
                log.warning("stream %s: a line is sent again: %s", self._job.info.job_id, error)

    async def _drop_rest(self) -> None:
        """Take the results as they come, so that the job is not held up by a reader who is not there."""
        while (record := await self._job.results.next_unread(None)) is not None:
            self._job.results.mark_read(record)
            if record.kind == "end":
                return


class EventWriter:
    """Publishes events as they are emitted, and a heartbeat in between."""

    def __init__(self, stream_id: str, url: str | None, options: ClientOptions) -> None:
        self._stream_id = stream_id
        self._url = url
        self._options = options
        self._events: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue(MAX_EVENTS)

    def emit(self, kind: str, queue_type: str = "ai_stream_events", **fields: Any) -> None:
        """Queue an event; when nobody takes them, the newest are dropped."""
        event = {"type": kind, "stream_id": self._stream_id, "timestamp": int(time.time() * 1000), **fields}
        try:
            self._events.put_nowait({"event": event, "queue_event_type": queue_type})
        except asyncio.QueueFull:
            log.warning("stream %s: event %s dropped, the events channel does not take them", self._stream_id, kind)

    async def run(self) -> None:
        """Publish until `finish`; return early when the channel is gone, which is how a session ends."""
        if self._url is None:
            await asyncio.Event().wait()
        async with TricklePublisher(str(self._url), "application/json", options=self._options) as publisher:
            await asyncio.sleep(FIRST_LINE_S)
            self.emit("heartbeat", "stream_heartbeat")
            while (event := await self._next()) is not None:
                try:
                    # parameters come back in events, and JSON may hold halves of an emoji, which are no UTF-8
                    await publisher.publish(json.dumps(event, ensure_ascii=False).encode("utf-8", "replace"))
                except (ChannelNotFound, ChannelClosed) as error:
                    log.info("stream %s: the events channel has ended: %s", self._stream_id, error)
                    return
                except TrickleError as error:
                    log.warning("stream %s: an event was not delivered: %s", self._stream_id, error)

    async def finish(self, task: asyncio.Task[None]) -> None:
        """Let `run`, which is `task`, deliver what is queued, for a short time."""
        if self._events.full():
            self._events.get_nowait()
        self._events.put_nowait(None)
        if self._url is not None:
            await asyncio.wait({task}, timeout=FLUSH_S)
        task.cancel()
        await asyncio.wait({task})

    async def _next(self) -> dict[str, Any] | None:
        try:
            return await asyncio.wait_for(self._events.get(), HEARTBEAT_S)
        except TimeoutError:
            self.emit("heartbeat", "stream_heartbeat")
            return self._events.get_nowait()


def short_fields(record: Record) -> dict[str, Any]:
    """Give the record's fields, without the parts that would make its line too long for the gateway."""
    fields = record.fields()
    for part in ("words", "segments", "data"):
        if len(json.dumps(fields, ensure_ascii=False).encode("utf-8", "replace")) <= MAX_LINE:
            return fields
        if part == "words":
            fields["segments"] = [
                {name: value for name, value in segment.items() if name != "words"}
                for segment in fields.get("segments", ())
            ]
        else:
            fields.pop(part, None)
        fields["shortened"] = True
    return fields
