"""Video streams: MPEG-TS to frames for the processor, and its frames to H.264 in MPEG-TS with the sound as it came.

Both ways ffmpeg deals in PPM, in which every picture says its size, at a constant frame rate, which keeps picture and
sound together.
"""

import asyncio
import logging
import re
import socket
from collections import deque
from collections.abc import AsyncIterator, Callable
from enum import Enum

from audio.ffmpeg import ffmpeg_environment, frames_from_ts, ts_from_frames
from audio.pcm import FrameAligner
from whisper_byoc.aio import Changed, cancel
from whisper_byoc.errors import BadSegment
from whisper_byoc.process import Program
from whisper_byoc.server.core.job import Job
from whisper_byoc.server.streams.input import Sink
from whisper_byoc.trickle.errors import TrickleError
from whisper_byoc.trickle.publisher import SegmentWriter, TricklePublisher
from whisper_byoc.trickle.remote import ClientOptions

log = logging.getLogger(__name__)

PPM_HEADER = re.compile(rb"P6\n(\d{1,5}) (\d{1,5})\n255\n")
MAX_PPM_HEADER = 24
MAX_SIDE = 4096
MAX_SIZES = 256
TS_PACKET = 188
"""Bytes of an MPEG-TS packet (ISO 13818-1); a segment holds whole ones."""
SEGMENT_S = 1.0
MAX_SOUND = 16 << 20
"""Bytes of the input that may wait for the encoder to take their sound; what comes then is dropped."""
ENCODER_FLUSH_S = 5.0
STALL_S = 3.0
"""An encoder that takes no picture for this long waits for sound that will not come."""
MAX_STALLS = 3


class PpmSplitter:
    """Cuts a stream of PPM pictures into RGB24 frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[tuple[int, int, bytes]]:
        """Return the frames that are complete now: width, height and RGB24 bytes.

        Raises `BadSegment` for bytes that are no PPM.
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
            raise BadSegment("the output of ffmpeg is no picture")
        return frames


class VideoSink(Sink):
    """Decodes MPEG-TS into the job's frames, and passes the same bytes to the output for their sound."""

    def __init__(self, job: Job, output: "VideoOutput", rate: int) -> None:
        super().__init__(job, lambda: frames_from_ts(rate))
        self._output = output
        self._splitter = PpmSplitter()

    async def feed(self, data: bytes, content_type: str) -> None:
        self._output.take_sound(data)
        await super().feed(data, content_type)

    async def flush(self) -> None:
        await super().flush()
        self._splitter = PpmSplitter()

    async def _submit(self, decoded: bytes) -> None:
        for width, height, frame in self._splitter.feed(decoded):
            self._output.sizes.append((width, height))
            await self._job.inbox.submit(frame)


class Ending(Enum):
    """How an encoder came to its end."""

    DONE = "has finished"
    STALLED = "took no more pictures"
    DIED = "died"


class VideoOutput:
    """Encodes the job's results and publishes them; the picture before one that failed is shown again."""

    def __init__(
        self, job: Job, url: str | None, rate: int, options: ClientOptions, report: Callable[[str], None]
    ) -> None:
        self.sizes: deque[tuple[int, int]] = deque(maxlen=MAX_SIZES)
        """Width and height of the frames whose results are still to come."""
        self._job = job
        self._url = url
        self._rate = rate
        self._options = options
        self._report = report
        self._sound: deque[bytes] = deque()
        self._sound_bytes = 0
        self._sound_ended = False
        self._sound_changed = Changed()

    def take_sound(self, data: bytes) -> None:
        """Keep MPEG-TS until the encoder takes it."""
        if self._url is not None and self._sound_bytes + len(data) <= MAX_SOUND:
            self._sound.append(data)
            self._sound_bytes += len(data)
            self._sound_changed.notify()

    async def run(self) -> None:
        """Publish everything until the job's end. A channel that is gone ends the input."""
        with self._job.reading():
            pictures = self._pictures()
            if self._url is not None:
                try:
                    async with TricklePublisher(self._url, "video/mp2t", options=self._options) as publisher:
                        await self._encode_all(pictures, publisher)
                except TrickleError as error:
                    self._report(f"the output is gone: {error}")
                    self._job.end_input()
            async for _ in pictures:  # results that nobody takes would hold up the job
                pass

    async def _encode_all(self, pictures: AsyncIterator[bytes], publisher: TricklePublisher) -> None:
        """Run an encoder, and another one when it stalls or dies; the last resort is to go without sound."""
        with_sound = True
        stalls = 0
        while (first := await anext(pictures, None)) is not None:
            ending = await self._encode(first, pictures, publisher, with_sound=with_sound)
            if ending is Ending.DIED and not with_sound:
                self._report("pictures cannot be encoded; the output ends")
                self._job.end_input()
                return
            if ending is not Ending.DONE:
                stalls += 1
                with_sound = with_sound and ending is Ending.STALLED and stalls < MAX_STALLS
                self._report(f"the encoder {ending.value}; going on {'with' if with_sound else 'without'} sound")

    async def _encode(
        self, first: bytes, pictures: AsyncIterator[bytes], publisher: TricklePublisher, *, with_sound: bool
    ) -> Ending:
        ours, theirs = socket.socketpair()  # ffmpeg reads the sound from it as from a pipe
        with ours, theirs:
            command = await asyncio.to_thread(ts_from_frames, self._rate, theirs.fileno() if with_sound else None)
            async with Program(command, environment=ffmpeg_environment(), pass_fds=(theirs.fileno(),)) as encoder:
                theirs.close()
                sound = asyncio.create_task(self._pass_sound(ours))
                published = asyncio.create_task(self._publish(encoder.stdout, publisher))
                try:
                    ending = await _feed_pictures(encoder.stdin, first, pictures, published)
                    if ending is Ending.DONE:
                        encoder.stdin.close()
                        self._sound_ended = True
                        self._sound_changed.notify()
                        await asyncio.wait({published}, timeout=ENCODER_FLUSH_S)
                    if published.done():
                        published.result()
                finally:
                    await cancel(sound, published)
            if encoder.last_error:
                log.warning("stream %s: encoder: %s", self._job.info.job_id, encoder.last_error)
            return ending

    async def _pictures(self) -> AsyncIterator[bytes]:
        last = b""
        async for record in self._job.results.unread_records():
            if record.kind == "result" and (size := self._size_of(record.result.body)) is not None:
                last = b"P6\n%d %d\n255\n%b" % (*size, record.result.body)
            if last and record.kind != "end":
                yield last

    def _size_of(self, frame: bytes) -> tuple[int, int] | None:
        """Find the width and height of a result; frames before it that had no result are passed over."""
        while self.sizes:
            width, height = self.sizes.popleft()
            if width * height * 3 == len(frame):
                return width, height
        return None

    async def _pass_sound(self, connection: socket.socket) -> None:
        _, writer = await asyncio.open_connection(sock=connection)
        try:
            while not self._sound_ended or self._sound:
                await self._sound_changed.until(lambda: bool(self._sound) or self._sound_ended)
                while self._sound:
                    data = self._sound.popleft()
                    self._sound_bytes -= len(data)
                    writer.write(data)
                    await writer.drain()
            writer.close()
            await writer.wait_closed()
        except ConnectionError:
            return  # the encoder needs no more of it
        finally:
            writer.transport.abort()

    async def _publish(self, encoded: asyncio.StreamReader, publisher: TricklePublisher) -> None:
        loop = asyncio.get_running_loop()
        writer: SegmentWriter | None = None
        began = 0.0
        packets = FrameAligner(TS_PACKET)
        while data := await encoded.read(256 * 1024):
            if writer is not None and loop.time() - began >= SEGMENT_S:
                await writer.close()
                writer = None
            if writer is None:
                writer, began = await publisher.next(), loop.time()
            await writer.write(bytes(packets.feed(data)))
        if writer is not None:
            await writer.close()


async def _feed_pictures(
    encoder: asyncio.StreamWriter, first: bytes, pictures: AsyncIterator[bytes], published: asyncio.Task[None]
) -> Ending:
    """Write pictures until the last, or until the encoder takes no more.

    An encoder stalls where the sound has fallen behind the pictures for good: it waits for sound, which waits behind
    the pictures that it does not take.
    """
    try:
        encoder.write(first)
        async for picture in pictures:
            if published.done():
                return Ending.DIED
            encoder.write(picture)
            async with asyncio.timeout(STALL_S):
                await encoder.drain()
    except TimeoutError:
        return Ending.STALLED
    except ConnectionError:
        return Ending.DIED
    return Ending.DONE
