"""What a BYOC stream reads: trickle segments of MPEG-TS or raw sound, passed to a sink that submits them to the job."""

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any

from audio.errors import AudioError
from audio.ffmpeg import wav_from_feed
from audio.raw import RawFormat
from audio.riff import WavFormat
from whisper_byoc.aio import cancel, first_of
from whisper_byoc.errors import BadParam, BadSegment, RequestRefused
from whisper_byoc.params import has_pcm_input
from whisper_byoc.server.core.job import Job
from whisper_byoc.server.core.table import SHUTTING_DOWN
from whisper_byoc.server.ingest.declared import declared_format
from whisper_byoc.server.ingest.decoder import LiveDecoder
from whisper_byoc.server.ingest.feed import LiveFeed
from whisper_byoc.server.ingest.framing import WavFraming, raw_framing
from whisper_byoc.server.streams.monitor import Monitor
from whisper_byoc.trickle.errors import ChannelNotFound, SegmentBroken, TrickleError
from whisper_byoc.trickle.remote import ClientOptions
from whisper_byoc.trickle.subscriber import SegmentReader, TrickleSubscriber

log = logging.getLogger(__name__)

QUIET_S = 0.3
"""After a stop: once no input has come for this long, no more is expected."""
STOP_READING_S = 2.0
"""After a stop: input is read for this long at most."""


class Sink:
    """Decodes the input of a stream with ffmpeg, and submits it to the job, waiting while the job's queue is full.

    Lost input becomes an error record of the job, at its place, and an error event of `monitor`.
    """

    def __init__(self, job: Job, command: Callable[[], list[str]], monitor: Monitor) -> None:
        self._job = job
        self._monitor = monitor
        self._decoder = LiveDecoder(f"stream {job.info.job_id}", self._submit, command, self._ffmpeg_lost)

    async def feed(self, data: bytes, content_type: str) -> None:
        await self._decoder.feed(data)

    async def flush(self) -> None:
        await self._decoder.finish()

    def submit_rest(self) -> None:
        """Submit an incomplete last segment, when the input ends or another ffmpeg begins."""

    def skip(self) -> None:
        """Go on after a gap in the input. ffmpeg does so by itself."""

    async def kill(self) -> None:
        await self._decoder.kill()

    def lost(self, message: str) -> None:
        """Note that some of the input was lost."""
        self._monitor.error(message)
        self._job.inbox.submit_now(BadSegment(message))

    def _ffmpeg_lost(self, message: str) -> None:
        self.submit_rest()  # the next ffmpeg begins with a whole sample
        self.lost(message)

    async def _submit(self, decoded: bytes) -> None:
        raise NotImplementedError


def declared_input(params: Mapping[str, Any]) -> RawFormat | None:
    """Return the raw sound format that a stream's parameters declare; None if they do not.

    Raises `BadParam` for an impossible value.
    """
    return declared_format("audio/pcm" if has_pcm_input(params) else "", params)


class AudioSink(Sink):
    """Cuts sound into the job's segments: raw sound in process, anything else with ffmpeg."""

    def __init__(self, job: Job, monitor: Monitor, *, declared: RawFormat | None, live: bool) -> None:
        """`declared` is the input's format as given by the parameters; without it, the segments' content types tell."""
        super().__init__(job, lambda: wav_from_feed(self._container), monitor)
        self._declared = declared
        self._live = live
        self._content_type: str | None = None
        self._raw: WavFormat | None = None
        self._container = "mpegts"
        self._feed: LiveFeed | None = None

    async def feed(self, data: bytes, content_type: str) -> None:
        """Take the next bytes.

        Raises `BadParam` for a content type that cannot be read.
        """
        if content_type != self._content_type:
            await self._begin(content_type)
        await (self._submit(data) if self._raw else super().feed(data, content_type))

    async def _begin(self, content_type: str) -> None:
        declared = self._declared or declared_format(content_type, {})
        raw, container = (None, declared) if isinstance(declared, str) else (declared, "mpegts")
        if self._content_type is not None and (raw, container) != (self._raw, self._container):
            await self.flush()
            self.submit_rest()
        self._content_type, self._raw, self._container = content_type, raw, container

    def skip(self) -> None:
        if self._raw:
            self.submit_rest()

    def submit_rest(self) -> None:
        feed, self._feed = self._feed, None
        if feed is not None:
            feed.hand_in(complete=False)

    async def _submit(self, decoded: bytes) -> None:
        self._monitor.audio_in.count()
        if self._feed is None:
            framing = raw_framing(self._raw, live=self._live) if self._raw else WavFraming(live=self._live)
            self._feed = LiveFeed(self._job, framing)
        await self._feed.take(decoded)


class StreamInput:
    """Reads a stream's input channel from its first segment until it ends or the job is stopped."""

    def __init__(
        self,
        job: Job,
        url: str | None,
        sink: Sink,
        monitor: Monitor,
        options: ClientOptions,
        shutting_down: Callable[[], bool],
    ) -> None:
        self._job = job
        self._shutting_down = shutting_down
        self._monitor = monitor
        self._url = url
        self._sink = sink
        self._options = options
        self._loop = asyncio.get_running_loop()
        self._fed_at = 0.0
        self._feeding = False

    async def run(self) -> None:
        cut = False
        with self._job.feeding():
            try:
                cut = not await self._read_until_stopped()
                await self._sink.flush()
            except (TrickleError, AudioError, BadParam, BadSegment) as error:
                self._sink.lost(f"the input was lost: {error}")
            except RequestRefused as error:  # the job was stopped and accepts no more
                log.info("stream %s: %s", self._job.info.job_id, error)
            finally:
                await self._sink.kill()
                self._sink.submit_rest()
                if cut and self._shutting_down():
                    self._sink.lost(f"{SHUTTING_DOWN}; what is published from now on is not read")
                self._job.end_input()

    async def _read_until_stopped(self) -> bool:
        """Read to the end of the input; after a stop, only what is already on its way. Return whether it has ended."""
        stopped = asyncio.create_task(self._job.closing.wait())
        if self._url is None:
            return await stopped
        async with TrickleSubscriber(self._url, start=0, options=self._options) as subscriber:
            reading = asyncio.create_task(self._read(subscriber))
            try:
                await first_of(stopped, reading)
                if not reading.done():
                    await self._read_rest(subscriber, reading)
                if reading.done():
                    reading.result()
                return reading.done()
            finally:
                await cancel(stopped, reading)

    async def _read_rest(self, subscriber: TrickleSubscriber, reading: asyncio.Task[None]) -> None:
        """Wait until what was written before the stop has been read, as far as can be known, and nothing more comes."""
        since = self._loop.time()
        wanted = await self._written(subscriber)
        while not reading.done() and (self._feeding or self._loop.time() - since < STOP_READING_S):
            fed_at = self._fed_at
            await asyncio.wait({reading}, timeout=QUIET_S)
            if self._feeding or self._fed_at != fed_at or subscriber.position < wanted:
                continue
            await self._written(subscriber)  # by then a slow sender has had time to send the rest of a segment
            if not self._feeding and self._fed_at == fed_at:
                return
        if not reading.done() and (left := wanted - subscriber.position) > 0:
            self._sink.lost(f"the stream was stopped, and {left} segments of its input could not be read in time")

    async def _written(self, subscriber: TrickleSubscriber) -> int:
        try:
            async with asyncio.timeout(STOP_READING_S / 2):
                return await subscriber.written()
        except TimeoutError:
            return 0

    async def _read(self, subscriber: TrickleSubscriber) -> None:
        try:
            async for segment in subscriber:
                if segment.began_anew:
                    self._sink.lost("the publisher of the input began again; what was not read before is lost")
                    await self._sink.flush()  # its time begins again as well
                    self._sink.submit_rest()
                if segment.missed:
                    self._sink.lost(f"{segment.missed} segments of the input were gone before they could be read")
                    self._sink.skip()
                self._monitor.took_segment()
                await self._read_segment(segment)
        except ChannelNotFound as error:
            log.info("stream %s: the input has ended: %s", self._job.info.job_id, error)

    async def _read_segment(self, segment: SegmentReader) -> None:
        try:
            async for chunk in segment:
                self._feeding = True
                self._job.touch()
                await self._sink.feed(chunk, segment.content_type)
                self._feeding, self._fed_at = False, self._loop.time()
        except SegmentBroken as error:
            self._sink.lost(f"a segment of the input broke off: {error}")
            await self._sink.flush()  # the part before comes out, and the next segment gets a new ffmpeg
            self._sink.submit_rest()
