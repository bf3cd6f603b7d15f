"""One BYOC stream: a job between the channels that an orchestrator made for it."""

from __future__ import annotations

import asyncio
import json
import logging

from whisper_byoc.errors import RequestRefused
from whisper_byoc.server.core.job import Job
from whisper_byoc.server.core.pipeline import Pipeline
from whisper_byoc.server.streams.input import AudioSink, Sink, StreamInput
from whisper_byoc.server.streams.output import DATA_FORMATS, DataWriter, EventWriter
from whisper_byoc.server.streams.start_request import StartRequest, check_params
from whisper_byoc.server.streams.video import VideoOutput, VideoSink
from whisper_byoc.trickle.errors import TrickleError
from whisper_byoc.trickle.http import ClientOptions
from whisper_byoc.trickle.subscriber import TrickleSubscriber

__all__ = ["Stream"]

log = logging.getLogger(__name__)

STOP_S = 8.0
"""A stop is answered within this time; an orchestrator waits 10 s for it."""
BEAT_S = 5.0
MAX_CONTROL = 1 << 20
PCM_NAMES = ("pcm16", "s16le", "pcm")
DEFAULT_RATE = 30
"""Frames a second, where `max_framerate` does not say."""


class Stream:
    """Runs from its making until `over`: input, results, events and control each have a task, all owned here."""

    def __init__(
        self, request: StartRequest, job: Job, pipeline: Pipeline, data_format: str, options: ClientOptions
    ) -> None:
        self.request = request
        self.job = job
        self.params = dict(request.params)
        self._pipeline = pipeline
        self._options = options
        self._events = EventWriter(request.request_id, request.events_url, options)
        self._data = DataWriter(job, request.data_url, data_format, options)
        if request.params:
            self.update(request.params)
        self.over = asyncio.ensure_future(self._run())

    async def stop(self, limit: float = STOP_S) -> None:
        """Take in what has arrived, deliver the last words and the end record, then end."""
        self.job.end_input()
        patience = limit * 0.7  # the rest is for telling the reader and the orchestrator
        await asyncio.wait({self.over}, timeout=patience)
        if not self.over.done():
            log.warning("stream %s: not finished within %g s", self.request.request_id, patience)
            await self.job.stop(f"the stream was stopped, and its last words were not ready within {patience:g} s")
            await asyncio.wait({self.over}, timeout=limit * 0.1)
            self.over.cancel()
            await asyncio.wait({self.over})

    def update(self, params: object) -> None:
        """Change parameters from the next segment on.

        Raises `RequestRefused` (400) and changes nothing then.
        """
        checked = check_params(params)
        data_format = checked.get("data_format", self._data.data_format)
        if data_format not in DATA_FORMATS:
            raise RequestRefused(400, f"data_format must be one of {', '.join(DATA_FORMATS)}, not {data_format!r}")
        if not isinstance(checked.get("partials", True), bool):
            raise RequestRefused(400, f"partials must be true or false, not {checked['partials']!r}")
        self.job.update(checked)
        self._data.data_format = data_format
        self.params |= checked
        self._events.emit("params_updated", params=checked)

    async def _run(self) -> None:
        sink, output = self._ends()
        source = StreamInput(self.job, self.request.subscribe_url, sink, self._options, self._report)
        events = asyncio.ensure_future(self._events.run())
        helpers = {events, *map(asyncio.ensure_future, (self._control(), self._keep_awake()))}
        events.add_done_callback(lambda _: self.job.end_input())  # a channel that is gone is the end of the session
        self._events.emit("stream_started")
        try:
            await asyncio.gather(source.run(), output.run())
        except Exception:
            log.exception("stream %s failed", self.request.request_id)
            await self.job.stop("the stream failed; the server's log says why")
        finally:
            self._events.emit("stream_stopped")
            for task in helpers - {events}:
                task.cancel()
            await self._events.finish(events)
            await asyncio.wait(helpers)

    def _ends(self) -> tuple[Sink, DataWriter | VideoOutput]:
        """Choose what becomes of the input and of the results, by the kind of pipeline."""
        if self._pipeline.media == "video":
            rate = self.params.get("max_framerate", DEFAULT_RATE)
            output = VideoOutput(self.job, self.request.publish_url, rate, self._options, self._report)
            return VideoSink(self.job, output, rate), output
        raw = str(self.params.get("input", "")).lower() in PCM_NAMES
        return AudioSink(self.job, raw, live=self._pipeline.live), self._data

    async def _control(self) -> None:
        """Apply parameters that come on the control channel; what is no such thing is passed over."""
        if self.request.control_url is None:
            return
        async with TrickleSubscriber(self.request.control_url, options=self._options) as subscriber:
            try:
                async for segment in subscriber:
                    try:
                        message = json.loads(await segment.read(MAX_CONTROL))
                        if isinstance(message, dict) and "keep" not in message:
                            self.update(message.get("params", message))
                    except Exception as error:  # whatever is wrong with one, the next may be good
                        self._report(f"a control message was not used: {error}")
            except TrickleError as error:
                log.info("stream %s: the control channel has ended: %s", self.request.request_id, error)
        self.job.end_input()

    async def _keep_awake(self) -> None:
        """Keep the job from being ended as idle: a stream may be silent for as long as it lives."""
        while True:
            self.job.touch()
            await asyncio.sleep(BEAT_S)

    def _report(self, message: str) -> None:
        log.warning("stream %s: %s", self.request.request_id, message)
        self._events.emit("error", message=message)
