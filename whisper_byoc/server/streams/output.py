"""What a BYOC stream publishes: records as JSON lines on its data channel, heartbeats and events on its events channel.

Limits of the readers (go-livepeer's gateway): lines of at most 64 KiB, few lines at a time, an event at least every 30
s, and nothing written before a reader can be there.
"""

import asyncio
import json
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

from whisper_byoc.aio import backoff
from whisper_byoc.server.core.job import Job
from whisper_byoc.server.core.results import Record
from whisper_byoc.trickle.errors import ChannelClosed, ChannelNotFound, TrickleError
from whisper_byoc.trickle.publisher import TricklePublisher
from whisper_byoc.trickle.remote import ClientOptions

log = logging.getLogger(__name__)

MAX_LINE = 60 * 1024
KEEP_ALIVE_EVERY_S = 20.0
HEARTBEAT_EVERY_S = 10.0
FIRST_LINE_S = 1.0
"""Readers subscribe to what comes next once the start has been answered: nothing is written before this time."""
LOST_S = 300.0
"""A data or events channel that takes nothing for this long is given up."""
FIRST_PAUSE_S = 0.5
"""Pause after an event is refused; it doubles up to `HEARTBEAT_EVERY_S`."""
MAX_EVENTS = 64
DATA_FORMATS: Final = ("object", "pytrickle")
"""One JSON object per line; or, as in pytrickle, an array of exactly one string per line."""


class DataWriter:
    """Publishes a job's records in order, one line per segment, until the end record is delivered."""

    def __init__(
        self, job: Job, url: str | None, data_format: str, options: ClientOptions, published: Callable[[], None]
    ) -> None:
        """`published` is called after each record."""
        self.data_format = data_format
        self._published = published
        self._job = job
        self._url = url
        self._options = replace(options, patience_seconds=LOST_S)

    async def run(self) -> None:
        """Publish everything. If the channel is gone, end the input and drop later records."""
        with self._job.reading():
            if self._url is None:
                await self._drop_rest()
                return
            keep_alive = _json({"type": "keepalive", "job_id": self._job.info.job_id})
            async with TricklePublisher(self._url, "application/jsonl", options=self._options) as publisher:
                await asyncio.sleep(FIRST_LINE_S)
                try:
                    async for record in self._job.results.unread_records(KEEP_ALIVE_EVERY_S):
                        line = self._line(keep_alive) if record is None else self._short_line(record)
                        await publisher.publish(line)
                        if record is not None:
                            self._published()
                except TrickleError as error:
                    log.warning("stream %s: the data channel is gone: %s", self._job.info.job_id, error)
                    self._job.end_input()
                    await self._drop_rest()

    async def _drop_rest(self) -> None:
        async for _ in self._job.results.unread_records():  # unread ones would hold up the job
            pass

    def _short_line(self, record: Record) -> bytes:
        """Return a record's line, without the parts that would make it too long for the gateway."""
        encoded = record.json()
        line = self._line(encoded)
        if len(line) <= MAX_LINE:
            return line
        fields = json.loads(encoded) | {"shortened": True}
        for segment in fields.get("segments", ()):
            segment.pop("words", None)
        for part in ("segments", "data"):
            if len(self._line(_json(fields))) > MAX_LINE:
                fields.pop(part, None)
        return self._line(_json(fields))

    def _line(self, encoded: bytes) -> bytes:
        if self.data_format == "pytrickle":
            encoded = _json([encoded.decode()])
        return encoded + b"\n"


class EventWriter:
    """Publishes events as they are emitted."""

    def __init__(self, stream_id: str, url: str | None, options: ClientOptions) -> None:
        self.stream_id = stream_id
        self._url = url
        self._options = options
        self._events: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue(MAX_EVENTS)
        self._dropping = False

    def emit(self, kind: str, queue_type: str = "ai_stream_events", **fields: Any) -> None:
        """Queue an event; drop it while the channel accepts none."""
        event = {"type": kind, "stream_id": self.stream_id, "timestamp": int(time.time() * 1000), **fields}
        try:
            self._events.put_nowait({"event": event, "queue_event_type": queue_type})
        except asyncio.QueueFull:
            if not self._dropping:
                log.warning("stream %s: events are dropped, as the channel does not take them", self.stream_id)
            self._dropping = True

    def finish(self) -> None:
        """Have `run` return once it has published what is in the queue."""
        if self._events.full():
            self._events.get_nowait()
        self._events.put_nowait(None)

    async def run(self, beat: Callable[[], None]) -> None:
        """Publish until `finish`, and call `beat`, which emits an event, whenever there has been none for a while.

        Return early when the channel is gone: then the session has ended.
        """
        if self._url is None:
            while await self._events.get() is not None:
                pass
            return
        async with TricklePublisher(self._url, "application/json", options=self._options) as publisher:
            await asyncio.sleep(FIRST_LINE_S)
            beat()
            while (event := await self._next(beat)) is not None:
                try:
                    async with asyncio.timeout(LOST_S):
                        await self._deliver(_json(event), publisher)
                except (ChannelNotFound, ChannelClosed) as error:
                    log.info("stream %s: the events channel has ended: %s", self.stream_id, error)
                    return
                except TimeoutError:
                    log.warning("stream %s: the events channel took nothing for %g s", self.stream_id, LOST_S)
                    return

    async def _deliver(self, event: bytes, publisher: TricklePublisher) -> None:
        failed = False
        for pause in backoff(FIRST_PAUSE_S, HEARTBEAT_EVERY_S):
            try:
                await publisher.publish(event)
            except (ChannelNotFound, ChannelClosed):
                raise
            except TrickleError as error:
                if not failed:
                    log.warning("stream %s: an event is not taken, and tried again: %s", self.stream_id, error)
                failed = True
                await asyncio.sleep(pause)
            else:
                self._dropping = False
                return

    async def _next(self, beat: Callable[[], None]) -> dict[str, Any] | None:
        try:
            async with asyncio.timeout(HEARTBEAT_EVERY_S):
                return await self._events.get()
        except TimeoutError:
            beat()
            return self._events.get_nowait()


def _json(value: object) -> bytes:
    # parameters come back in events, and JSON may hold lone surrogates, which UTF-8 cannot
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
