"""The header of a WAV file or stream: from hostile bytes to a format, and to where the sound begins.

The layout is that of the "Multimedia Programming Interface and Data Specifications 1.0" (RIFF, 1991) and of
Microsoft's WAVEFORMATEXTENSIBLE. Whatever a header says is checked before it is used.
"""

import struct
from dataclasses import dataclass
from typing import NamedTuple

from audio.errors import UnsupportedWav, WavError

HEAD_BYTES = 12
"""RIFF, the size of the file, WAVE: what tells a WAV file from anything else."""

RATES = range(8_000, 192_001)  # Hz; what soxr is tried with, and what recorders write
CHANNELS = range(1, 65)  # field recorders write one for each microphone
LOWEST_RATE = 2_000
"""Hz; with less nothing can be understood, and a few bytes would be hours of sound."""

PCM = 0x0001
FLOAT = 0x0003
A_LAW = 0x0006
MU_LAW = 0x0007
EXTENSIBLE = 0xFFFE

TAG_NAMES = {
    PCM: "PCM",
    0x0002: "Microsoft ADPCM",
    FLOAT: "IEEE float",
    A_LAW: "A-law",
    MU_LAW: "mu-law",
    0x0011: "IMA ADPCM",
    0x0031: "GSM 6.10",
    0x0055: "MP3",
}
READABLE = {(PCM, 8), (PCM, 16), (PCM, 24), (PCM, 32), (FLOAT, 32), (FLOAT, 64), (A_LAW, 8), (MU_LAW, 8)}


USUAL_CHUNKS = (b"fmt ", b"data", b"LIST", b"fact", b"PEAK", b"bext", b"JUNK")


def begins_like_wav(data: bytes) -> bool:
    return len(data) >= HEAD_BYTES and may_become_wav(data)


def may_become_wav(data: bytes) -> bool:
    """Whether bytes can be, as far as they go, the beginning of a WAV file, little or big endian."""
    return any(each.startswith(data[:4]) for each in (b"RIFF", b"RIFX")) and b"WAVE".startswith(data[8:HEAD_BYTES])


@dataclass(frozen=True, slots=True)
class WavFormat:
    """What the `fmt ` chunk says about the frames in the `data` chunk."""

    tag: int
    """`PCM`, `FLOAT`, `A_LAW` or `MU_LAW`."""
    bits: int
    """Bits per sample: 8 (unsigned), 16, 24, 32 for `PCM`; 32, 64 for `FLOAT`; 8 for the others."""
    channels: int
    """1 to 64, interleaved."""
    rate: int
    """Frames per second, 8 000 to 192 000."""
    big_endian: bool = False
    """As in RIFX, and in raw sound."""

    @property
    def frame_bytes(self) -> int:
        """Bytes of one sample of every channel."""
        return self.channels * self.bits // 8


class WavHeader(NamedTuple):
    """A complete header, and what has arrived behind it."""

    format: WavFormat
    data_size: int
    """What the `data` chunk claims: bytes of sound."""
    sound: memoryview
    """The bytes behind the header that came with it."""


class HeaderParser:
    """Parses the chunks up to the sound, however the bytes arrive."""

    def __init__(self, limit: int) -> None:
        """The sound must begin within `limit` bytes, which are held."""
        self._limit = limit
        self._format: WavFormat | None = None
        self._order = "<"
        self._buffer = bytearray()
        self._position = 0  # of the next chunk

    def feed(self, data: bytes | bytearray | memoryview) -> WavHeader | None:
        """Return the header when it is complete, and None until then; then do not feed again.

        Raises:
            WavError: this is no WAV, it is broken, or longer than the limit; `UnsupportedWav` if only its format
                is one that is not read here.
        """
        self._buffer += data
        if self._position == 0 and not self._begin():
            return None
        while len(self._buffer) >= self._position + 8:
            name, size = struct.unpack_from(f"{self._order}4sI", self._buffer, self._position)
            body = self._position + 8
            if name == b"data":
                return self._end(body, size)
            end = body + size + size % 2  # chunks are padded to even length, unless a program forgets it
            if end + 8 > self._limit:
                raise WavError(
                    f"The WAV has no sound within its first {self._limit} bytes (its chunk {_quoted(name)} "
                    f"has {size}); send it without such metadata."
                )
            if len(self._buffer) < body + size:
                return None
            if name == b"fmt ":
                self._format = _parse_format(bytes(self._buffer[body : body + min(size, 40)]), self._order)
            if size % 2 and len(self._buffer) < end + 4:
                return None
            self._position = end - 1 if size % 2 and self._buffer[end - 1 : end + 3] in USUAL_CHUNKS else end
        return None

    def incomplete(self) -> WavError:
        """Return the error for input that ended before the header did."""
        return WavError(
            f"The WAV header is not complete: no data chunk in the {len(self._buffer)} bytes that came; send all "
            "of the file."
        )

    def _begin(self) -> bool:
        start = bytes(self._buffer[:HEAD_BYTES])
        if start[:4] in (b"RF64", b"BW64"):
            raise UnsupportedWav(f"{_quoted(start[:4])} files are not read here, only RIFF; convert it with ffmpeg.")
        if not may_become_wav(start):
            raise WavError(f"This is not a WAV file: it begins with {_quoted(start)}, not with RIFF and WAVE.")
        if len(start) < HEAD_BYTES:
            return False
        self._order = ">" if start[:4] == b"RIFX" else "<"
        self._position = HEAD_BYTES
        return True

    def _end(self, body: int, size: int) -> WavHeader:
        if self._format is None:
            raise WavError("The WAV data chunk comes before any format chunk, so its samples cannot be read.")
        sound = memoryview(self._buffer)[body:]
        self._buffer = bytearray()  # only the view keeps the bytes now
        return WavHeader(self._format, size, sound)


def _parse_format(body: bytes, order: str) -> WavFormat:
    """Read the body of a `fmt ` chunk: WAVEFORMATEX, or WAVEFORMATEXTENSIBLE."""
    if len(body) < 16:
        raise WavError(f"The WAV format chunk has {len(body)} bytes and needs at least 16; the header is broken.")
    tag, channels, rate, _, frame_bytes, bits = struct.unpack_from(f"{order}HHIIHH", body)
    if tag == EXTENSIBLE:  # the GUID of the subformat begins with its tag; where there is none, it is PCM most likely
        tag = struct.unpack_from(f"{order}H", body, 24)[0] if len(body) >= 26 else PCM
    if tag in (A_LAW, MU_LAW):
        bits = 8  # whatever the header says
    if (tag, bits) not in READABLE:
        raise UnsupportedWav(
            f"WAV format 0x{tag:04X} ({TAG_NAMES.get(tag, 'unknown')}) with {bits} bits is not read here; convert it "
            "to PCM of 8, 16, 24 or 32 bits."
        )
    if channels not in CHANNELS:
        raise UnsupportedWav(f"A WAV with {channels} channels is not read here; send 1 to {CHANNELS[-1]}.")
    if rate < LOWEST_RATE:
        raise WavError(f"The WAV header says {rate} Hz, at which no speech can be heard; send {RATES[0]} Hz or more.")
    if rate not in RATES:
        raise UnsupportedWav(f"A WAV at {rate} Hz is not read here; send {RATES[0]} to {RATES[-1]} Hz.")
    read = WavFormat(tag=tag, bits=bits, channels=channels, rate=rate, big_endian=order == ">" and bits > 8)
    if bits == 24 and frame_bytes == 4 * channels:  # which of the four bytes are meant is not known
        raise WavError(
            f"The WAV header contradicts itself: {channels} channels of {bits} bits are {read.frame_bytes} bytes a "
            f"frame, not {frame_bytes}; convert it to 16 bits."
        )
    return read  # recorders write 0 or 1 for the bytes of a frame, which follow from the rest


def _quoted(name: bytes) -> str:
    return repr(name)[1:]
