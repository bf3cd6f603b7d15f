"""What a BYOC stream reads: trickle segments of MPEG-TS or PCM16, handed to what makes the job's segments of them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol

from audio.errors import AudioError
from whisper_byoc.errors import BadSegment, RequestRefused
from whisper_byoc.server.core.job import Job
from whisper_byoc.server.ingest.framing import PCM_TYPES, AudioFraming, pcm_trouble
from whisper_byoc.server.streams.decoder import LiveDecoder
from whisper_byoc.trickle.errors import ChannelNotFound, SegmentBroken, TrickleError
from whisper_byoc.trickle.http import ClientOptions
from whisper_byoc.trickle.subscriber import SegmentReader, TrickleSubscriber

__all__ = ["AudioSink", "Sink", "StreamInput"]

log = logging.getLogger(__name__)

QUIET_S = 0.3
"""After a stop: input that pauses for so long is taken to be all there is."""
LINGER_S = 2.0
"""After a stop: longest time for which input is still read."""


class Sink(Protocol):
    """What becomes of the bytes of a stream's input."""

    async def feed(self, data: bytes, content_type: str) -> None:
        """Take the next bytes; waits while the job's queue is full."""
        ...

    async def flush(self) -> None:
        """Hand over what is still inside a decoder."""
        ...

    def take_rest(self) -> list[bytes | BadSegment]:
        """Give what is left where the input ends, or goes on behind a gap."""
        ...

    async def kill(self) -> None:
        """Free everything, whatever is in it."""
        ...


class AudioSink:
    """Cuts sound into the job's segments: PCM16 as it is, anything else by ffmpeg."""

    def __init__(self, job: Job, pcm: bool, *, live: bool) -> None:
        self.live = live
        self._job = job
        self._pcm = pcm
        self._framing = AudioFraming(live=live)
        self._decoder = LiveDecoder(f"stream {job.info.job_id}", self._sound)

    async def feed(self, data: bytes, content_type: str) -> None:
        """Take the next bytes.

        Raises `BadSegment` for PCM16 of another rate, or of more channels.
        """
        raw = self._pcm or content_type.partition(";")[0].strip().lower() in PCM_TYPES
        if raw and not self._pcm and (trouble := pcm_trouble(content_type)):
            raise BadSegment(trouble)
        await (self._sound(data) if raw else self._decoder.feed(data))

    async def flush(self) -> None:
        """Have ffmpeg hand over what it has."""
        await self._decoder.finish()

    def take_rest(self) -> list[bytes | BadSegment]:
        """Give the last segment; half a sample is an error, for what comes next has not its other half."""
        framing, self._framing = self._framing, AudioFraming(live=self.live)
        return framing.finish(complete=False)

    async def kill(self) -> None:
        """End ffmpeg."""
        await self._decoder.kill()

    async def _sound(self, pcm: bytes) -> None:
        for segment in self._framing.feed(pcm):
            await self._job.inbox.submit(segment, live=self.live)


class StreamInput:
    """Reads the ingress channel of one stream until it ends or the job wants no more, and hands over the tail."""

    def __init__(
        self, job: Job, url: str | None, sink: Sink, options: ClientOptions, report: Callable[[str], None]
    ) -> None:
        self._job = job
        self._url = url
        self._sink = sink
        self._options = options
        self._report = report
        self._loop = asyncio.get_running_loop()
        self._touched = 0.0
        self._handling = False

    async def run(self) -> None:
        """Read to the end. What goes wrong on the way becomes an error record of the job."""
        with self._job.feeding():
            try:
                await self._read_until_closing()
                await self._sink.flush()
            except (TrickleError, AudioError, BadSegment) as error:
                self._lost(f"the input was lost: {error}")
            except RequestRefused as error:  # the job takes no more: it was stopped
                log.info("stream %s: %s", self._job.info.job_id, error)
            finally:
                await self._sink.kill()
                self._submit_rest()
                self._job.end_input()

    async def _read_until_closing(self) -> None:
        closing = asyncio.ensure_future(self._job.closing.wait())
        reading = asyncio.ensure_future(self._read() if self._url else self._job.closing.wait())
        try:
            await asyncio.wait({closing, reading}, return_when=asyncio.FIRST_COMPLETED)
            deadline = self._touched = self._loop.time()
            while not reading.done() and (self._handling or self._loop.time() - self._touched < QUIET_S):
                await asyncio.wait({reading}, timeout=QUIET_S / 4)
                if self._loop.time() - deadline > LINGER_S and not self._handling:
                    break
            if reading.done():
                reading.result()
        finally:
            for task in (closing, reading):
                task.cancel()
                await asyncio.wait({task})

    async def _read(self) -> None:
        async with TrickleSubscriber(str(self._url), options=self._options) as subscriber:
            try:
                async for segment in subscriber:
                    if segment.missed:
                        self._lost(f"{segment.missed} segments of the input were gone before they could be read")
                        self._submit_rest()
                    await self._take(segment)
            except ChannelNotFound as error:
                log.info("stream %s: the input has ended: %s", self._job.info.job_id, error)

    async def _take(self, segment: SegmentReader) -> None:
        """Feed one segment through as it arrives."""
        try:
            async for chunk in segment:
                self._handling = True
                self._job.touch()
                await self._sink.feed(chunk, segment.content_type)
                self._handling, self._touched = False, self._loop.time()
        except SegmentBroken as error:
            self._lost(f"a segment of the input broke off: {error}")
            await self._sink.flush()  # what was whole comes out, and the next segment finds a fresh ffmpeg
            self._submit_rest()

    def _submit_rest(self) -> None:
        for tail in self._sink.take_rest():
            self._job.inbox.submit_now(tail)

    def _lost(self, message: str) -> None:
        """Tell the reader of the results, and the orchestrator, of input that was lost."""
        self._report(message)
        self._job.inbox.submit_now(BadSegment(message))
