"""How the body of a live feed becomes segments."""

from __future__ import annotations

from email.message import Message
from typing import Protocol

from audio import pcm
from audio.errors import AudioError
from audio.quiet import QuietCutter
from audio.riff import HEAD_BYTES, begins_like_wav, may_become_wav
from audio.wav import WavReader
from whisper_byoc.errors import BadSegment, RequestRefused

__all__ = [
    "PCM_TYPES",
    "AudioFraming",
    "Framing",
    "SoundFraming",
    "VideoFraming",
    "WavFraming",
    "WholeBody",
    "pcm_trouble",
]


PCM_TYPES = frozenset({"audio/l16", "audio/pcm", "audio/x-pcm", "audio/raw"})
"""Content types taken for PCM16 little endian. (RFC 2586 has audio/L16 big-endian; live senders do not.)"""


PIECE_BYTES = 16_000


def pcm_trouble(content_type: str) -> str:
    """Say what is wrong with a type of PCM16 that names another rate or more channels; empty when nothing is."""
    header = Message()
    header["Content-Type"] = content_type
    for name, wanted in (("rate", str(pcm.SAMPLE_RATE)), ("channels", "1")):
        if (given := header.get_param(name, wanted)) != wanted:
            return (
                f"raw PCM16 is read with {name}={wanted} only, not {str(given)[:40]!r}; send other sound as a WAV file"
            )
    return ""


class Framing(Protocol):
    """Cuts bytes, in whatever chunks they come, into segments."""

    blocking: bool
    """Whether `feed` decodes media, and so belongs in a worker thread."""
    live: bool
    """Whether what it gives are pieces of a live feed, not segments."""

    def feed(self, data: bytes) -> list[bytes]:
        """Segments that are complete now."""
        ...

    def finish(self, *, complete: bool) -> list[bytes | BadSegment]:
        """Give the rest; bytes that cannot make a segment are a `BadSegment` in its place.

        `complete` is False when the body broke off.
        """
        ...


class Cutter(Protocol):
    """Cuts PCM16."""

    @property
    def pending(self) -> int:
        """Bytes that wait for the other half of their sample."""
        ...

    def feed(self, data: bytes) -> list[bytes]:
        """Give what is complete."""
        ...

    def finish(self) -> list[bytes]:
        """Give the rest."""
        ...


class LivePieces:
    """No cutting: who listens to a live feed hears for itself where utterances begin and end."""

    def __init__(self) -> None:
        self._half = b""

    @property
    def pending(self) -> int:
        """Bytes that wait for the other half of their sample."""
        return len(self._half)

    def feed(self, data: bytes) -> list[bytes]:
        """Give what came, in whole samples and in pieces of half a second at most."""
        data = self._half + data
        whole = len(data) - len(data) % pcm.SAMPLE_WIDTH
        self._half = data[whole:]
        return [data[at : min(at + PIECE_BYTES, whole)] for at in range(0, whole, PIECE_BYTES)]

    def finish(self) -> list[bytes]:
        """Give half a sample: the next feed may have the other half."""
        half, self._half = self._half, b""
        return [half] if half else []


class AudioFraming:
    """PCM16 mono 16 kHz, cut at quiet points, or handed on `live`."""

    blocking = False

    def __init__(self, *, live: bool = False) -> None:
        self.live = live
        self._cutter: Cutter = LivePieces() if live else QuietCutter()

    def feed(self, data: bytes) -> list[bytes]:
        """Segments that are complete now."""
        return self._cutter.feed(data)

    def finish(self, *, complete: bool) -> list[bytes | BadSegment]:
        """Give the rest; half a sample at the very end is an error, unless another live feed may go on from there."""
        # behind a feed that broke off nobody does: its half would shift all that follows by a byte
        rest: list[bytes | BadSegment] = list(self._cutter.finish()) if complete or not self.live else []
        if self._cutter.pending:
            rest.append(BadSegment("the feed ended in the middle of a 16-bit sample: one byte was left over"))
        return rest


class WavFraming:
    """A WAV file as it arrives: converted to PCM16 mono 16 kHz, then cut at quiet points, or handed on `live`."""

    blocking = True

    def __init__(self, *, live: bool = False) -> None:
        self.live = live
        self._reader = WavReader()
        self._cutter: Cutter = LivePieces() if live else QuietCutter()

    def feed(self, data: bytes) -> list[bytes]:
        """Segments that are complete now.

        Raises `audio.errors.WavError` when the header is not one we read.
        """
        return self._cutter.feed(pcm.encode(self._reader.feed(data)))

    def finish(self, *, complete: bool) -> list[bytes | BadSegment]:
        """Give the rest, and an error when the file is cut off."""
        try:
            tail = self._cutter.feed(pcm.encode(self._reader.finish()))
        except AudioError as error:
            return [*self._cutter.finish(), BadSegment(str(error))]
        return [*tail, *self._cutter.finish()]


class SoundFraming:
    """WAV if the feed begins like one, else PCM16."""

    blocking = False

    def __init__(self, *, live: bool = False) -> None:
        self.live = live
        self._head = b""
        self._chosen: Framing | None = None

    def feed(self, data: bytes) -> list[bytes]:
        """Segments that are complete now; nothing until the feed has shown how it begins.

        Raises `audio.errors.WavError` when it is a WAV whose header is not one we read.
        """
        if self._chosen is None:
            self._head += data
            undecided = len(self._head) < HEAD_BYTES and may_become_wav(self._head)
            return [] if undecided else self._choose().feed(self._head)
        return self._chosen.feed(data)

    def finish(self, *, complete: bool) -> list[bytes | BadSegment]:
        """Give the rest, as the kind of feed that it is does."""
        if self._chosen is not None:
            return self._chosen.finish(complete=complete)
        chosen = self._choose()
        return [*chosen.feed(self._head), *chosen.finish(complete=complete)]

    def _choose(self) -> Framing:
        self._chosen = WavFraming(live=self.live) if begins_like_wav(self._head) else AudioFraming(live=self.live)
        self.blocking = self._chosen.blocking
        return self._chosen


class VideoFraming:
    """RGB24 frames of one size."""

    blocking = False
    live = False

    def __init__(self, width: int, height: int) -> None:
        self._size = width * height * 3
        self._shape = f"{width}x{height}"
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """Frames that are complete now."""
        self._buffer += data
        whole = len(self._buffer) - len(self._buffer) % self._size
        if whole == 0:
            return []
        frames = [bytes(self._buffer[at : at + self._size]) for at in range(0, whole, self._size)]
        del self._buffer[:whole]
        return frames

    def finish(self, *, complete: bool) -> list[bytes | BadSegment]:
        """Nothing, or an error for the part of a frame that is left."""
        if not self._buffer:
            return []
        left = len(self._buffer)
        return [BadSegment(f"the feed ended in mid-frame: {left} of {self._size} bytes ({self._shape} RGB24)")]


class WholeBody:
    """No cutting: the body is one segment of at most `limit` bytes."""

    blocking = False
    live = False

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """Collect.

        Raises `RequestRefused` (413) over the limit.
        """
        if len(self._buffer) + len(data) > self._limit:
            self._buffer.clear()
            raise RequestRefused(413, f"the segment is larger than the limit of {self._limit} bytes")
        self._buffer += data
        return []

    def finish(self, *, complete: bool) -> list[bytes | BadSegment]:
        """Give the whole body; nothing when it was empty or broke off, for half a segment is none."""
        return [bytes(self._buffer)] if self._buffer and complete else []
