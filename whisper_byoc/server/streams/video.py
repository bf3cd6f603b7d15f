"""The way out of a video stream: the job's frames to H.264 in MPEG-TS, with the sound passed along as it is.

ffmpeg encodes from PPM at a constant frame rate, as `pictures` decodes, which keeps picture and sound together.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections import deque
from collections.abc import AsyncIterator, Callable
from enum import Enum

from audio.ffmpeg import ffmpeg_environment, ffmpeg_path
from whisper_byoc.server.jobs import Job
from whisper_byoc.server.streams.decoder import ended, tail
from whisper_byoc.trickle.errors import TrickleError
from whisper_byoc.trickle.http import ClientOptions
from whisper_byoc.trickle.publisher import SegmentWriter, TricklePublisher

__all__ = ["VideoOutput"]

log = logging.getLogger(__name__)

MAX_SIZES = 256
PACKET = 188
"""Bytes of an MPEG-TS packet (ISO 13818-1); segments begin and end with whole ones."""
SEGMENT_S = 1.0
MAX_SOUND = 16 << 20
"""Bytes of sound that may wait for their pictures; more is dropped, as when there is no sound in the stream at all."""
FLUSH_S = 5.0
STALL_S = 3.0
"""An encoder that takes no picture for so long waits for something that will not come."""
MAX_STALLS = 3
READ_BYTES = 256 * 1024


class Ending(Enum):
    """How an encoder came to its end."""

    DONE = "has finished"
    STALLED = "took no more pictures"
    DIED = "died"


class VideoOutput:
    """Encodes the job's results and publishes them; a frame that failed is shown as the one before it."""

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
        self._sound_came = asyncio.Event()
        self._sound_over = False

    def take_sound(self, data: bytes) -> None:
        """Keep the stream's bytes until the encoder takes them."""
        if self._url is not None and self._sound_bytes + len(data) <= MAX_SOUND:
            self._sound.append(data)
            self._sound_bytes += len(data)
            self._sound_came.set()

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
            async for _ in pictures:  # what nobody wants must not hold up the job
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
        """Run one encoder, from `first` to the last picture or its own end."""
        sound_in, sound_out = os.pipe()
        pipe = asyncio.subprocess.PIPE
        command = await asyncio.to_thread(ts_from_frames, self._rate, sound_in if with_sound else None)
        process = await asyncio.create_subprocess_exec(
            *command, stdin=pipe, stdout=pipe, stderr=pipe, pass_fds=(sound_in,), env=ffmpeg_environment()
        )
        os.close(sound_in)
        assert process.stdin is not None
        assert process.stdout is not None
        said = asyncio.ensure_future(tail(process))
        sound = asyncio.ensure_future(self._pass_sound(sound_out))
        published = asyncio.ensure_future(self._publish(process.stdout, publisher))
        try:
            ending = await feed_pictures(process.stdin, first, pictures, published)
            if ending is Ending.DONE:
                process.stdin.close()
                self._sound_over = True
                self._sound_came.set()
                await asyncio.wait({published}, timeout=FLUSH_S)
            if published.done():
                published.result()
            return ending
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
            process.stdin.close()
            for task in (sound, published):
                task.cancel()
            await asyncio.wait({sound, published})
            await ended(process)
            if words := (await said).decode("utf-8", "replace").strip():
                log.warning("stream %s: encoder: %s", self._job.info.job_id, words.splitlines()[-1])

    async def _pictures(self) -> AsyncIterator[bytes]:
        """Yield each result as a PPM picture, in order."""
        last = b""
        while (record := await self._job.results.next_unread(None)) is not None:
            if record.kind == "end":
                return
            if record.kind == "result" and (size := self._size_of(record.result.body)) is not None:
                last = b"P6\n%d %d\n255\n%b" % (*size, record.result.body)
            self._job.results.mark_read(record)
            if last:
                yield last

    def _size_of(self, frame: bytes) -> tuple[int, int] | None:
        """Find the width and height of a result; frames before it that had no result are passed over."""
        while self.sizes:
            width, height = self.sizes.popleft()
            if width * height * 3 == len(frame):
                return width, height
        return None

    async def _pass_sound(self, pipe: int) -> None:
        """Write the kept bytes to the encoder's second input."""
        loop = asyncio.get_running_loop()
        transport, protocol = await loop.connect_write_pipe(asyncio.streams.FlowControlMixin, os.fdopen(pipe, "wb"))
        writer = asyncio.StreamWriter(transport, protocol, None, loop)
        try:
            while True:
                while self._sound:
                    data = self._sound.popleft()
                    self._sound_bytes -= len(data)
                    writer.write(data)
                    await writer.drain()
                if self._sound_over:
                    return
                self._sound_came.clear()
                await self._sound_came.wait()
        except ConnectionError:
            return  # the encoder needs no more of it
        finally:
            transport.abort()

    async def _publish(self, encoded: asyncio.StreamReader, publisher: TricklePublisher) -> None:
        """Cut an encoder's output into trickle segments."""
        loop = asyncio.get_running_loop()
        writer: SegmentWriter | None = None
        began, rest = 0.0, b""
        while data := await encoded.read(READ_BYTES):
            data = rest + data
            whole = len(data) - len(data) % PACKET
            data, rest = data[:whole], data[whole:]
            if writer is not None and loop.time() - began >= SEGMENT_S:
                await writer.close()
                writer = None
            if writer is None:
                writer, began = await publisher.next(), loop.time()
            await writer.write(data)
        if writer is not None:
            await writer.close()


async def feed_pictures(
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
            await asyncio.wait_for(encoder.drain(), STALL_S)
    except TimeoutError:
        return Ending.STALLED
    except ConnectionError:
        return Ending.DIED
    return Ending.DONE


def ts_from_frames(rate: int, sound: int | None) -> list[str]:
    """PPM pictures on stdin, and MPEG-TS with the sound on file descriptor `sound` if there is one, to MPEG-TS.

    Raises `MediaError` when there is no ffmpeg.
    """
    second = ("-probesize", "256k", "-analyzeduration", "500000", "-f", "mpegts", "-i", f"pipe:{sound}")
    return [
        *(ffmpeg_path(), "-hide_banner", "-loglevel", "error", "-nostdin", "-protocol_whitelist", "pipe"),
        *("-f", "image2pipe", "-c:v", "ppm", "-framerate", str(rate), "-i", "pipe:0"),
        *(second if sound is not None else ()),
        *("-map", "0:v", *(("-map", "1:a?", "-c:a", "copy") if sound is not None else ())),
        *("-c:v", "libx264", "-preset", "ultrafast", "-tune", "zerolatency", "-pix_fmt", "yuv420p", "-g", str(rate)),
        *("-f", "mpegts", "-pat_period", "0.5", "-flush_packets", "1", "pipe:1"),
    ]
