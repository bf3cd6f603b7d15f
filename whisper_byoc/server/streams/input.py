"""What a BYOC stream reads: trickle segments of MPEG-TS or PCM16, passed to a sink that submits them to the job."""

import asyncio
import logging
from collections.abc import Callable

from audio.errors import AudioError
from audio.ffmpeg import pcm_from_ts
from whisper_byoc.aio import cancel, first_of
from whisper_byoc.errors import BadSegment, RequestRefused
from whisper_byoc.server.core.job import Job
from whisper_byoc.server.ingest.decoder import LiveDecoder
from whisper_byoc.server.ingest.framing import PCM_TYPES, AudioFraming, pcm_trouble
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
    """Decodes the input of a stream by ffmpeg, and submits it to the job, waiting while the job's queue is full.

    Input that was lost becomes an error record of the job at its place, and one of `monitor`.
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
        """Submit an incomplete last segment: where the input ends, or goes on behind a gap."""

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


class AudioSink(Sink):
    """Cuts sound into the job's segments: PCM16 as it is, anything else by ffmpeg."""

    def __init__(self, job: Job, monitor: Monitor, *, pcm: bool, live: bool) -> None:
        super().__init__(job, pcm_from_ts, monitor)
        self._pcm = pcm
        self._live = live
        self._framing = AudioFraming(live=live)

    async def feed(self, data: bytes, content_type: str) -> None:
        """Take the next bytes.

        Raises `BadSegment` for PCM16 of another rate, or of more channels.
        """
        raw = self._pcm or content_type.partition(";")[0].strip().lower() in PCM_TYPES
        if raw and not self._pcm and (trouble := pcm_trouble(content_type)):
            raise BadSegment(trouble)
        await (self._submit(data) if raw else super().feed(data, content_type))

    def submit_rest(self) -> None:
        framing, self._framing = self._framing, AudioFraming(live=self._live)
        for each in framing.finish(complete=False):
            self._job.inbox.submit_now(each)

    async def _submit(self, decoded: bytes) -> None:
        self._monitor.audio_in.count()
        for segment in self._framing.feed(decoded):
            await self._job.inbox.submit(segment, live=self._live)


class StreamInput:
    """Reads the input channel of a stream until it ends or the job is stopped."""

    def __init__(self, job: Job, url: str | None, sink: Sink, monitor: Monitor, options: ClientOptions) -> None:
        self._job = job
        self._monitor = monitor
        self._url = url
        self._sink = sink
        self._options = options
        self._loop = asyncio.get_running_loop()
        self._fed_at = 0.0
        self._feeding = False

    async def run(self) -> None:
        with self._job.feeding():
            try:
                await self._read_until_stopped()
                await self._sink.flush()
            except (TrickleError, AudioError, BadSegment) as error:
                self._sink.lost(f"the input was lost: {error}")
            except RequestRefused as error:  # the job was stopped and takes no more
                log.info("stream %s: %s", self._job.info.job_id, error)
            finally:
                await self._sink.kill()
                self._sink.submit_rest()
                self._job.end_input()

    async def _read_until_stopped(self) -> None:
        """Read to the end of the input; after a stop, only what is on its way already."""
        stopped = asyncio.create_task(self._job.closing.wait())
        reading = asyncio.create_task(self._read(self._url)) if self._url else stopped
        try:
            await first_of(stopped, reading)
            since = self._fed_at = self._loop.time()
            while not reading.done() and (self._feeding or self._comes_more(since)):
                await asyncio.wait({reading}, timeout=QUIET_S / 4)
            if reading.done():
                reading.result()
        finally:
            await cancel(stopped, reading)

    def _comes_more(self, since: float) -> bool:
        now = self._loop.time()
        return now - self._fed_at < QUIET_S and now - since < STOP_READING_S

    async def _read(self, url: str) -> None:
        async with TrickleSubscriber(url, options=self._options) as subscriber:
            try:
                async for segment in subscriber:
                    if segment.began_anew:
                        self._sink.lost("the publisher of the input began again; what was not read before is lost")
                        await self._sink.flush()  # its time begins again as well
                        self._sink.submit_rest()
                    if segment.missed:
                        self._sink.lost(f"{segment.missed} segments of the input were gone before they could be read")
                        self._sink.submit_rest()
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
