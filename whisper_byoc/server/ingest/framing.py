"""A live feed: received as it arrives, and cut into segments."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, Protocol, Self, TypeVar

from audio import pcm
from audio.errors import AudioError
from audio.quiet import QuietCutter
from audio.raw import PLAIN
from audio.riff import WavFormat
from audio.wav import FrameDecoder, WavReader
from whisper_byoc.aio import Alarm, cancel
from whisper_byoc.errors import BadSegment, RequestRefused

T = TypeVar("T")


class LiveInput(Generic[T]):
    """Receives until `closing` is set, without a task per item: a live stream brings ten items a second."""

    def __init__(
        self, receive: Callable[[], Awaitable[T]], closing: asyncio.Event, timeout: float, idle: Exception
    ) -> None:
        """`receive` must lose nothing when cancelled; `idle` is raised after `timeout` seconds without an item."""
        self._receive = receive
        self._closing = closing
        self._timeout = timeout
        self._idle = idle
        self._alarm = Alarm(self._interrupt)
        self._waiting: asyncio.Timeout | None = None  # for the next item
        self._watching: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._watching = asyncio.create_task(self._watch())
        return self

    async def __aexit__(self, *error: object) -> None:
        if self._watching is not None:
            await cancel(self._watching)

    async def next(self) -> T | None:
        """Return the next item; None once `closing` is set. Raise whatever `receive` raises, or `idle`."""
        if self._closing.is_set():
            return None
        self._alarm.set(self._timeout)
        try:
            async with asyncio.timeout(None) as self._waiting:
                return await self._receive()
        except TimeoutError:
            if self._closing.is_set():
                return None
            raise self._idle from None
        finally:
            self._waiting = None
            self._alarm.clear()

    async def _watch(self) -> None:
        await self._closing.wait()
        self._interrupt()

    def _interrupt(self) -> None:
        if self._waiting is not None:
            self._waiting.reschedule(asyncio.get_running_loop().time())


class Framing(Protocol):
    """Cuts bytes, arriving in chunks of any size, into segments.

    `feed` returns the complete ones; `finish` returns the rest, with a `BadSegment` in place of bytes that cannot make
    a segment. `complete` is False when the body broke off.
    """

    live: bool
    """Whether it returns pieces of a live feed rather than segments."""

    @property
    def blocking(self) -> bool:
        """Whether `feed` decodes media, and so must be called in a worker thread."""

    def feed(self, data: bytes) -> list[bytes]: ...

    def finish(self, *, complete: bool) -> list[bytes | BadSegment]: ...


class AudioFraming:
    """PCM16 mono 16 kHz: cut at quiet points or, for a `live` session, passed on in whole samples."""

    blocking = False

    def __init__(self, *, live: bool = False) -> None:
        self.live = live
        self._aligner = pcm.FrameAligner()
        self._cutter = QuietCutter()

    def feed(self, data: bytes) -> list[bytes]:
        if not self.live:
            return self._cutter.feed(data)
        whole = bytes(self._aligner.feed(data))
        return [whole] if whole else []

    def finish(self, *, complete: bool) -> list[bytes | BadSegment]:
        """Return the rest. Half a sample at the end is an error, unless another live feed can supply the other half."""
        half = self._aligner.rest
        if self.live and complete:
            return [half] if half else []
        rest: list[bytes | BadSegment] = [*self._cutter.finish()]
        if half or self._cutter.pending:  # kept after a feed breaks off, it would shift all later samples
            rest.append(BadSegment("the feed ended in the middle of a 16-bit sample: one byte was left over"))
        return rest


def raw_framing(fmt: WavFormat, *, live: bool) -> Framing:
    """Return the framing for raw sound of a format."""
    return AudioFraming(live=live) if fmt == PLAIN else RawFraming(fmt, live=live)


class WavFraming:
    """A WAV file as it arrives, converted to PCM16 mono 16 kHz, then cut as by `AudioFraming`."""

    blocking = True

    def __init__(self, *, live: bool = False, required: bool = True) -> None:
        """Unless `required`, there may be no WAV at all."""
        self.live = live
        self._pcm = AudioFraming(live=live)
        self._reader = WavReader()
        self._required = required

    @property
    def in_header(self) -> bool:
        return self._reader.in_header

    def feed(self, data: bytes) -> list[bytes]:
        """Raise `audio.errors.WavError` for a WAV whose header cannot be read."""
        self._required = True  # from its first byte on
        return self._pcm.feed(pcm.encode(self._reader.feed(data)))

    def finish(self, *, complete: bool) -> list[bytes | BadSegment]:
        if not self._required:
            return []
        rest: list[bytes | BadSegment] = []
        trouble: list[str] = self._reader.warnings
        try:
            rest += self._pcm.feed(pcm.encode(self._reader.finish()))
        except AudioError as error:
            trouble = [*trouble, str(error)]
        return [*rest, *self._pcm.finish(complete=complete), *map(BadSegment, trouble)]


class RawFraming:
    """Raw sound of one format, converted to PCM16 mono 16 kHz, then cut as by `AudioFraming`."""

    blocking = True

    def __init__(self, fmt: WavFormat, *, live: bool = False) -> None:
        self.live = live
        self._pcm = AudioFraming(live=live)
        self._frames = FrameDecoder(fmt)

    def feed(self, data: bytes) -> list[bytes]:
        return self._pcm.feed(pcm.encode(self._frames.feed(data)))

    def finish(self, *, complete: bool) -> list[bytes | BadSegment]:
        return [*self._pcm.feed(pcm.encode(self._frames.finish())), *self._pcm.finish(complete=complete)]


class VideoFraming:
    """RGB24 frames of one size."""

    blocking = False
    live = False

    def __init__(self, width: int, height: int) -> None:
        self._size = width * height * 3
        self._shape = f"{width}x{height}"
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        self._buffer += data
        whole = len(self._buffer) - len(self._buffer) % self._size
        frames = [bytes(self._buffer[at : at + self._size]) for at in range(0, whole, self._size)]
        del self._buffer[:whole]
        return frames

    def finish(self, *, complete: bool) -> list[bytes | BadSegment]:
        left = len(self._buffer)
        if not left:
            return []
        return [BadSegment(f"the feed ended within a frame: {left} of {self._size} bytes ({self._shape} RGB24)")]


class WholeBody:
    """No cutting: the body is one segment of at most `limit` bytes."""

    blocking = False
    live = False

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """Raise `RequestRefused` (413) over the limit."""
        if len(self._buffer) + len(data) > self._limit:
            self._buffer.clear()
            raise RequestRefused(413, f"the segment is larger than the limit of {self._limit} bytes")
        self._buffer += data
        return []

    def finish(self, *, complete: bool) -> list[bytes | BadSegment]:
        return [bytes(self._buffer)] if self._buffer and complete else []  # half a segment is not one
