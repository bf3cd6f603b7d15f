"""One BYOC stream: a job between the channels that an orchestrator made for it."""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from whisper_byoc.aio import cancel, every
from whisper_byoc.errors import BadParam
from whisper_byoc.http import json_value
from whisper_byoc.params import choice, switch, whole
from whisper_byoc.server.core.job import Job
from whisper_byoc.server.core.pipeline import Pipeline
from whisper_byoc.server.streams.input import AudioSink, Sink, StreamInput, declared_input
from whisper_byoc.server.streams.monitor import Monitor
from whisper_byoc.server.streams.output import DATA_FORMATS, DataWriter, EventWriter
from whisper_byoc.server.streams.video import VideoOutput, VideoSink
from whisper_byoc.trickle.errors import TrickleError
from whisper_byoc.trickle.remote import ClientOptions
from whisper_byoc.trickle.subscriber import SegmentReader, TrickleSubscriber

log = logging.getLogger(__name__)

STOP_LIMIT_S = 8.0
"""A stop is answered within this time; an orchestrator waits 10 s."""
LAST_EVENTS_S = 1.0
"""Longest time for the last events."""
TOUCH_S = 5.0
MAX_CONTROL = 1 << 20
DEFAULT_RATE = 30
"""Frames per second, unless `max_framerate` is given."""
URLS = ("subscribe_url", "publish_url", "control_url", "events_url", "data_url")
MOST = {"width": 16384, "height": 16384, "max_framerate": 60}


@dataclass(frozen=True)
class StartRequest:
    """Who wants a stream, and the channels that the orchestrator made for it; any may be missing."""

    stream_id: str
    subscribe_url: str | None = None
    publish_url: str | None = None
    control_url: str | None = None
    events_url: str | None = None
    data_url: str | None = None
    params: Mapping[str, Any] = field(default_factory=dict)

    @property
    def urls(self) -> tuple[str | None, ...]:
        """The URLs of its channels."""
        return tuple(getattr(self, name) for name in URLS)

    @classmethod
    def parse(cls, body: object, stream_id: str | None = None) -> Self:
        """Check the body of a start as pytrickle does; `stream_id` is the `X-Stream-Id` header.

        Raises `BadParam`.
        """
        if not isinstance(body, dict):
            raise BadParam("body", "the body must be a JSON object")
        request_id = body.get("gateway_request_id")
        if not isinstance(request_id, str) or not request_id:
            raise BadParam("gateway_request_id", "gateway_request_id must be a non-empty string")
        urls = {name: body.get(name) or None for name in URLS}
        for name, url in urls.items():
            if not isinstance(url, str | None):
                raise BadParam(name, f"{name} must be a string, not {url!r:.40}")
        return cls(stream_id or request_id, **urls, params=check_params(body.get("params")))


def check_params(params: object) -> dict[str, Any]:
    """Check and convert the stream parameters that are not the processor's; None means there are none.

    Raises `BadParam`.
    """
    if params is None:
        return {}
    if not isinstance(params, dict):
        raise BadParam("params", f"params must be a JSON object, not {type(params).__name__}")
    if not isinstance(params.get("pipeline") or "", str):
        raise BadParam("pipeline", f"pipeline must be a string, not {type(params['pipeline']).__name__}")
    if ("width" in params) != ("height" in params):
        raise BadParam("width", "width and height go together: give both, or neither")
    checked = params | {name: whole(name, params[name], 1, most) for name, most in MOST.items() if name in params}
    declared_input(params)
    if "partials" in params:
        checked["partials"] = switch("partials", params["partials"])
    if "data_format" in params:
        choice("data_format", params["data_format"], DATA_FORMATS)
    return checked


class Stream:
    """Runs from its creation until `over`: input, results, events and control each have a task, all owned here."""

    def __init__(
        self,
        request: StartRequest,
        job: Job,
        pipeline: Pipeline,
        data_format: str,
        options: ClientOptions,
        shutting_down: Callable[[], bool],
    ) -> None:
        self.request = request
        self.job = job
        self.params = dict(request.params)
        self._pipeline = pipeline
        self._options = options
        self._shutting_down = shutting_down
        self._stopped = False
        self._events = EventWriter(request.stream_id, request.events_url, options)
        self.monitor = Monitor(pipeline.name, self._events)
        data_format = request.params.get("data_format", data_format)
        self._data = DataWriter(job, request.data_url, data_format, options, self._gave_record)
        if request.params:
            self.monitor.params_changed(self.params)
        self.over = asyncio.ensure_future(self._run())

    async def stop(self, limit: float) -> None:
        """Take in what has arrived, deliver the last results and the end record, then end; within `limit` seconds."""
        self._stopped = True
        self.job.end_input()
        patience = limit * 0.7  # the rest is for notifying the reader and the orchestrator
        await asyncio.wait({self.over}, timeout=patience)
        if not self.over.done():
            message = f"the stream was stopped, and its last results were not ready within {patience:g} s"
            self.monitor.error(message)  # results may be ready but not their pictures: then there is no record
            await self.job.stop(message)
            await asyncio.wait({self.over}, timeout=limit * 0.1)
        await cancel(self.over)

    async def update(self, params: object) -> None:
        """Change parameters from the next segment on.

        Raises `UsageError` for an impossible value, and then changes nothing.
        """
        checked = check_params(params)
        await self.job.update(checked)
        self._data.data_format = checked.get("data_format", self._data.data_format)
        self.params |= checked
        self.monitor.params_changed(checked)

    async def _run(self) -> None:
        events = asyncio.create_task(self._events.run(self.monitor.beat))
        events.add_done_callback(lambda _: self.job.end_input())  # a lost channel ends the session
        control = asyncio.create_task(self._follow_control())
        # a stream may be silent for as long as it lives without its job being idle
        touching = asyncio.create_task(every(TOUCH_S, self.job.touch, "keeping a stream's job from being idle"))
        self._events.emit("stream_started")
        try:
            sink, output = self._sink_and_output()
            source = StreamInput(
                self.job,
                self.request.subscribe_url,
                sink,
                self.monitor,
                self._options,
                lambda: self._shutting_down() and not self._stopped,
            )
            async with asyncio.TaskGroup() as both:
                both.create_task(self._or_stop_job(source.run()))
                both.create_task(self._or_stop_job(output.run()))
            self._events.emit("stream_stopped")
            self._events.finish()
            await asyncio.wait({events}, timeout=LAST_EVENTS_S)
        finally:
            await cancel(events, control, touching)

    async def _or_stop_job(self, work: Coroutine[Any, Any, None]) -> None:
        """Do the work of one end; if it fails, stop the job, so that the other end finishes as well."""
        try:
            await work
        except Exception:
            log.exception("stream %s failed", self.request.stream_id)
            await self.job.stop("the stream failed; the server's log says why")

    def _sink_and_output(self) -> tuple[Sink, DataWriter | VideoOutput]:
        if self._pipeline.media == "video":
            rate = self.params.get("max_framerate", DEFAULT_RATE)
            output = VideoOutput(self.job, self.request.publish_url, rate, self._options, self.monitor)
            return VideoSink(self.job, output, rate, self.monitor), output
        sink = AudioSink(self.job, self.monitor, declared=declared_input(self.params), live=self._pipeline.live)
        return sink, self._data

    async def _follow_control(self) -> None:
        """Apply the parameters that come on the control channel; when it ends, so does the session."""
        if self.request.control_url is None:
            return
        async with TrickleSubscriber(self.request.control_url, options=self._options) as subscriber:
            try:
                async for segment in subscriber:
                    await self._apply_control(segment)
            except TrickleError as error:
                log.info("stream %s: the control channel has ended: %s", self.request.stream_id, error)
        self.job.end_input()

    async def _apply_control(self, segment: SegmentReader) -> None:
        try:
            message = json_value(await segment.read(MAX_CONTROL))
            if isinstance(message, dict) and "keep" not in message:
                await self.update(message.get("params", message))
        except Exception as error:  # whatever is wrong with one, the next may be fine
            self.monitor.error(f"a control message was not used: {error}")

    def _gave_record(self) -> None:
        self.monitor.records_out.count()
        self.monitor.gave_segment()
