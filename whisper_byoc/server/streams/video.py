"""Video streams: MPEG-TS to frames for the processor, and its frames to H.264 in MPEG-TS with the original sound.

In both directions ffmpeg uses PPM, in which every picture states its size, at a constant frame rate, which keeps
pictures and sound in step.
"""

import asyncio
import logging
import re
from collections import deque
from collections.abc import AsyncIterator
from enum import Enum

from audio.ffmpeg import ffmpeg_environment, frames_from_ts, ts_from_frames
from whisper_byoc.aio import cancel
from whisper_byoc.errors import BadSegment
from whisper_byoc.process import Program
from whisper_byoc.server.core.job import Job
from whisper_byoc.server.streams.input import Sink
from whisper_byoc.server.streams.monitor import Monitor
from whisper_byoc.server.streams.mpegts import CLOCK, SoundMixer, SoundReader, Unit
from whisper_byoc.trickle.errors import TrickleError
from whisper_byoc.trickle.publisher import SegmentWriter, TricklePublisher
from whisper_byoc.trickle.remote import ClientOptions

log = logging.getLogger(__name__)

PPM_HEADER = re.compile(rb"P6\n(\d{1,5}) (\d{1,5})\n255\n")
MAX_PPM_HEADER = 24
MAX_SIDE = 4096
MAX_SIZES = 256
SEGMENT_S = 1.0
MAX_SOUND = 16 << 20
"""Bytes of sound that may wait for its pictures; any more is dropped."""
ENCODER_FLUSH_S = 3.0
"""An encoder that gets no more pictures, or has died, and produces nothing for this long hangs; a stop has to be
answered, with the output of the next one."""
STALL_S = 10.0
"""An encoder that takes no picture for this long hangs."""
MAX_FAILURES = 3
"""This many encoders in a row that produce nothing end the output."""


class PpmSplitter:
    """Cuts a stream of PPM pictures into RGB24 frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[tuple[int, int, bytes]]:
        """Return the frames now complete: width, height and RGB24 bytes.

        Raises `BadSegment` for bytes that are not PPM.
        """
        self._buffer += data
        frames: list[tuple[int, int, bytes]] = []
        while header := PPM_HEADER.match(self._buffer):
            width, height = int(header[1]), int(header[2])
            if not (1 <= width <= MAX_SIDE and 1 <= height <= MAX_SIDE):
                raise BadSegment(f"pictures of {width}x{height} are larger than {MAX_SIDE}x{MAX_SIDE}")
            start, end = header.end(), header.end() + width * height * 3
            if len(self._buffer) < end:
                return frames
            frames.append((width, height, bytes(memoryview(self._buffer)[start:end])))
            del self._buffer[:end]
        if len(self._buffer) >= MAX_PPM_HEADER:
            raise BadSegment("ffmpeg's output is not a picture")
        return frames


class VideoSink(Sink):
    """Decodes MPEG-TS into the job's frames, and passes its sound to the output."""

    def __init__(self, job: Job, output: "VideoOutput", rate: int, monitor: Monitor) -> None:
        super().__init__(job, lambda: frames_from_ts(rate), monitor)
        self._output = output
        self._rate = rate
        self._splitter = PpmSplitter()
        self._sound: SoundReader | None = None
        self._submitted = 0

    async def feed(self, data: bytes, content_type: str) -> None:
        if self._sound is None:  # its time begins with that of the ffmpeg that gets the same bytes
            self._sound = SoundReader(self._submitted * CLOCK // self._rate)
        self._output.take_sound(self._sound.feed(data))
        await super().feed(data, content_type)

    async def flush(self) -> None:
        await super().flush()
        self._begin_anew()

    def lost(self, message: str) -> None:
        super().lost(message)
        self._submitted += 1  # the previous picture is shown again
        if self._sound is not None:
            self._sound.start += CLOCK // self._rate

    def _ffmpeg_lost(self, message: str) -> None:
        super()._ffmpeg_lost(message)
        self._begin_anew()

    def _begin_anew(self) -> None:
        if self._sound is not None:
            self._output.take_sound(self._sound.finish())
        self._splitter, self._sound = PpmSplitter(), None

    async def _submit(self, decoded: bytes) -> None:
        for width, height, frame in self._splitter.feed(decoded):
            self._output.sizes.append((width, height))
            self._submitted += 1
            self._monitor.video_in.count()
            await self._job.inbox.submit(frame)


class Ending(Enum):
    """How an encoder ended."""

    DONE = "has finished"
    STALLED = "took no more pictures"
    DIED = "died"


class VideoOutput:
    """Encodes the job's results and publishes them; where one failed, the previous picture is shown again."""

    def __init__(self, job: Job, url: str | None, rate: int, options: ClientOptions, monitor: Monitor) -> None:
        self.sizes: deque[tuple[int, int]] = deque(maxlen=MAX_SIZES)
        """Width and height of the frames whose results are yet to come."""
        self._job = job
        self._url = url
        self._rate = rate
        self._options = options
        self._monitor = monitor
        self._mixer = SoundMixer(MAX_SOUND)
        self._records = self._outputs = 0
        self._unencoded: deque[bytes] = deque()  # pictures that no encoder has output yet
        self._ended = False

    def take_sound(self, units: list[Unit]) -> None:
        """Keep sound until its pictures are encoded."""
        self._monitor.audio_in.count(len(units))
        if self._url is None:
            return
        complete = self._mixer.dropped == 0
        self._mixer.add(units)
        if complete and self._mixer.dropped:
            self._monitor.error("the pictures are so far behind that some of the sound was dropped")

    async def run(self) -> None:
        """Publish everything until the job's end. If the channel is gone, end the input."""
        with self._job.reading():
            pictures = self._pictures()
            if self._url is not None:
                try:
                    async with TricklePublisher(self._url, "video/mp2t", options=self._options) as publisher:
                        await self._encode_all(pictures, publisher)
                except TrickleError as error:
                    self._monitor.error(f"the output is gone: {error}")
                    self._job.end_input()
            async for _ in pictures:  # unread results would hold up the job
                pass

    async def _encode_all(self, pictures: AsyncIterator[bytes], publisher: TricklePublisher) -> None:
        """Run an encoder; when it hangs or dies, run another one, which gets the pictures that were still inside."""
        failures = 0
        while self._unencoded or await self._next_picture(pictures):
            before = self._mixer.pictures
            ending = await self._encode(pictures, publisher)
            if ending is Ending.DONE:
                return
            failures = 0 if self._mixer.pictures > before else failures + 1
            if failures == MAX_FAILURES:
                message = f"{len(self._unencoded)} pictures cannot be encoded; the output ends"
                self._monitor.error(message)
                self._job.inbox.submit_now(BadSegment(message))
                self._job.end_input()
                return
            self._monitor.error(f"the encoder {ending.value}; another one takes over")

    async def _next_picture(self, pictures: AsyncIterator[bytes]) -> bool:
        picture = await anext(pictures, None)
        if picture is not None:
            self._unencoded.append(picture)
        return picture is not None

    async def _encode(self, pictures: AsyncIterator[bytes], publisher: TricklePublisher) -> Ending:
        first = self._records - len(self._unencoded)
        command = await asyncio.to_thread(ts_from_frames, self._rate, first / self._rate)
        self._mixer.begin(first * CLOCK // self._rate)
        async with Program(command, environment=ffmpeg_environment()) as encoder:
            published = asyncio.create_task(self._publish(encoder.stdout, publisher))
            try:
                ending = await self._feed_pictures(encoder.stdin, pictures, published)
                if ending is not Ending.STALLED:
                    encoder.stdin.close()
                    await self._flushed(published)
                if published.done():
                    published.result()
                elif ending is Ending.DONE:
                    ending = Ending.STALLED
            finally:
                await cancel(published)
        if encoder.last_error:
            log.warning("stream %s: encoder: %s", self._job.info.job_id, encoder.last_error)
        return Ending.DIED if ending is Ending.DONE and self._unencoded else ending

    async def _flushed(self, published: asyncio.Task[None]) -> None:
        """Wait for the rest of an encoder's output as long as any comes."""
        before = -1
        while not published.done() and before != self._outputs:
            before = self._outputs
            await asyncio.wait({published}, timeout=ENCODER_FLUSH_S)

    async def _pictures(self) -> AsyncIterator[bytes]:
        last = b""
        async for record in self._job.results.unread_records():
            self._records += record.kind != "end"
            if record.kind == "result" and (size := self._size_of(record.result.body)) is not None:
                last = b"P6\n%d %d\n255\n%b" % (*size, record.result.body)
            if last and record.kind != "end":
                yield last

    def _size_of(self, frame: bytes) -> tuple[int, int] | None:
        """Find the width and height of a result, skipping earlier frames that had no result."""
        while self.sizes:
            width, height = self.sizes.popleft()
            if width * height * 3 == len(frame):
                return width, height
        return None

    async def _feed_pictures(
        self, encoder: asyncio.StreamWriter, pictures: AsyncIterator[bytes], published: asyncio.Task[None]
    ) -> Ending:
        """Write pictures until the last, or until the encoder takes no more."""
        try:
            for picture in tuple(self._unencoded):
                await _write(encoder, picture)
            async for picture in pictures:
                self._unencoded.append(picture)
                if published.done():
                    return Ending.DIED
                await _write(encoder, picture)
        except TimeoutError:
            return Ending.STALLED
        except ConnectionError:
            return Ending.DIED
        self._ended = True
        return Ending.DONE

    async def _publish(self, encoded: asyncio.StreamReader, publisher: TricklePublisher) -> None:
        loop = asyncio.get_running_loop()
        writer: SegmentWriter | None = None
        began = 0.0
        while data := await encoded.read(256 * 1024):
            self._outputs += 1
            if writer is not None and loop.time() - began >= SEGMENT_S:
                await writer.close()
                writer = None
            if writer is None:
                writer, began = await publisher.next(), loop.time()
            before, sound = self._mixer.pictures, self._mixer.sounds
            await writer.write(self._mixer.feed(data))
            self._monitor.video_out.count(self._mixer.pictures - before)
            self._monitor.audio_out.count(self._mixer.sounds - sound)
            self._monitor.gave_segment()
            for _ in range(min(self._mixer.pictures - before, len(self._unencoded))):
                self._unencoded.popleft()
        if writer is not None:
            if self._ended and not self._unencoded:
                await writer.write(self._mixer.rest())
            await writer.close()


async def _write(encoder: asyncio.StreamWriter, picture: bytes) -> None:
    encoder.write(picture)
    async with asyncio.timeout(STALL_S):
        await encoder.drain()
