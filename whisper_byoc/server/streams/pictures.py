"""The way in of a video stream: MPEG-TS to frames for the job's processor.

ffmpeg decodes to PPM, a picture format in which every frame says its size, at a constant frame rate.
"""

from __future__ import annotations

import re

from audio.ffmpeg import ffmpeg_path
from whisper_byoc.errors import BadSegment
from whisper_byoc.server.jobs import Job
from whisper_byoc.server.streams.decoder import LiveDecoder
from whisper_byoc.server.streams.video import VideoOutput

__all__ = ["FrameSplitter", "VideoSink"]

HEADER = re.compile(rb"P6\n(\d{1,5}) (\d{1,5})\n255\n")
MAX_HEADER = 24
MAX_SIDE = 4096


class FrameSplitter:
    """Cuts a stream of PPM pictures into RGB24 frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._frame: tuple[int, int] | None = None

    def feed(self, data: bytes) -> list[tuple[int, int, bytes]]:
        """Give the frames that are complete now, as width, height and RGB24 bytes.

        Raises `BadSegment` for bytes that are no PPM.
        """
        self._buffer += data
        frames: list[tuple[int, int, bytes]] = []
        while True:
            if self._frame is None and not self._take_header():
                return frames
            assert self._frame is not None
            width, height = self._frame
            size = width * height * 3
            if len(self._buffer) < size:
                return frames
            frames.append((width, height, bytes(memoryview(self._buffer)[:size])))
            del self._buffer[:size]
            self._frame = None

    def _take_header(self) -> bool:
        found = HEADER.match(self._buffer)
        if found is None:
            if len(self._buffer) >= MAX_HEADER:
                raise BadSegment("ffmpeg gave something that is no picture")
            return False
        width, height = int(found[1]), int(found[2])
        if not (1 <= width <= MAX_SIDE and 1 <= height <= MAX_SIDE):
            raise BadSegment(f"pictures of {width}x{height} are larger than {MAX_SIDE}x{MAX_SIDE}")
        self._frame = width, height
        del self._buffer[: found.end()]
        return True


class VideoSink:
    """Turns MPEG-TS into the job's frames, and hands the same bytes on for their sound."""

    def __init__(self, job: Job, output: VideoOutput, rate: int) -> None:
        self._job = job
        self._output = output
        self._splitter = FrameSplitter()
        self._decoder = LiveDecoder(f"stream {job.info.job_id}", self._pictures, lambda: frames_from_ts(rate))

    async def feed(self, data: bytes, _: str) -> None:
        """Take the next bytes."""
        self._output.take_sound(data)
        await self._decoder.feed(data)

    async def flush(self) -> None:
        """Hand over what ffmpeg still has."""
        await self._decoder.finish()
        self._splitter = FrameSplitter()

    def tails(self) -> list[bytes | BadSegment]:
        """Nothing is left between frames."""
        return []

    async def kill(self) -> None:
        """End ffmpeg."""
        await self._decoder.kill()

    async def _pictures(self, data: bytes) -> None:
        for width, height, frame in self._splitter.feed(data):
            self._output.sizes.append((width, height))
            await self._job.inbox.submit(frame)


def frames_from_ts(rate: int) -> list[str]:
    """MPEG-TS to PPM pictures, `rate` a second.

    Raises `MediaError` when there is no ffmpeg.
    """
    return [
        *(ffmpeg_path(), "-hide_banner", "-loglevel", "error", "-nostdin", "-fflags", "+discardcorrupt"),
        *("-probesize", "1M", "-analyzeduration", "1000000", "-protocol_whitelist", "pipe"),
        *("-f", "mpegts", "-i", "pipe:0", "-map", "0:v:0", "-an", "-sn", "-dn"),
        *("-vf", f"fps={rate}", "-pix_fmt", "rgb24", "-c:v", "ppm"),
        *("-f", "image2pipe", "-flush_packets", "1", "pipe:1"),
    ]
