"""WAV in (any usual rate, width, channels), 16 kHz mono float32 out."""

import io
import logging
from collections.abc import Callable, Generator, Iterator
from typing import IO

import numpy as np
import soxr
from numpy.typing import NDArray

from audio import pcm
from audio.downmix import Downmix
from audio.errors import WavError
from audio.riff import A_LAW, FLOAT, MU_LAW, USUAL_CHUNKS, HeaderParser, WavFormat

log = logging.getLogger(__name__)

MAX_LIVE_HEADER = 1 << 20
"""Bytes a live stream may spend before its sound begins: above any tag but for large pictures, small to hold."""

MAX_HEADER = 16 << 20
"""The same for a file, whose header may hold large pictures."""

BLOCK_SECONDS = 10
"""Of sound that is read in blocks, at most."""

UNTIL_THE_END = 0x7FFF_0000
"""Sizes from here on mean "until the end": sox writes 0x7FFFF000 to a pipe, ffmpeg 0xFFFFFFFF."""

MISCOUNTED_SECONDS = 0.1
"""Sound that a header promises and that is not there counts as a wrong header below this, and as lost above."""

CHUNK_HEAD = 8
"""Bytes of the name and size of a chunk."""
SOUND_AGAIN = (b"RIFF", b"RIFX", b"data")

_BLOCK = 1 << 20  # bytes read and decoded at a time, so that wide formats need little memory


class WavReader:
    """Reads a WAV stream as it arrives: bytes in, 16 kHz mono out.

    A `data` size of 0, or of 2 GiB less 64 KiB and more, means "until the end", as senders into a pipe cannot know the
    size; an incomplete frame at that end is ignored. What follows a `data` chunk of known size is ignored as well,
    except a second WAV, which `finish` reports.
    """

    def __init__(self) -> None:
        self.warnings: list[str] = []
        """Sentences about what was lost; `finish` adds to them."""
        self._parser = HeaderParser(MAX_LIVE_HEADER)
        self._frames: FrameDecoder | None = None
        self._promised = 0  # bytes of sound, by the header; 0: until the end
        self._missing = 0  # bytes of sound promised that have not come
        self._slack = 0  # bytes that may be missing without a word
        self._behind: _Behind | None = None
        self._after = 0  # bytes behind the sound

    @property
    def in_header(self) -> bool:
        """Whether the header is still to come to its end."""
        return self._frames is None

    def feed(self, data: bytes | bytearray | memoryview) -> NDArray[np.float32]:
        """Return the sound that `data` completes: float32, shape (n,), 16 kHz mono; n may be 0.

        Raises:
            WavError: this is no WAV stream, its header is broken or has no sound within `MAX_LIVE_HEADER` bytes;
                `UnsupportedWav` if it is of a format that is not read here.
        """
        sound = memoryview(data).cast("B")
        if self._frames is None:
            header = self._parser.feed(sound)
            if header is None:
                return np.empty(0, dtype=np.float32)
            sound = header.sound
            self._frames = FrameDecoder(header.format)
            self._promised = self._missing = header.data_size if header.data_size < UNTIL_THE_END else 0
            self._slack = _slack(header.format)
            self._behind = _Behind(header.format, self._promised)
        if not self._promised or self._behind is None:
            return self._frames.feed(sound)
        known, after = sound[: self._missing], sound[self._missing :]
        self._missing -= len(known)
        self._after += len(after)
        self._behind.feed(after)
        return self._frames.feed(known)

    def finish(self) -> NDArray[np.float32]:
        """Return the last samples, which mixer and resampler still hold: float32, shape (n,); n may be 0.

        Raises:
            WavError: the header never came to its end, or a second WAV follows the first.
        """
        if self._frames is None or self._behind is None:
            raise self._parser.incomplete()
        if self._missing > self._slack:
            self.warnings.append(_cut_off(self._promised, self._promised - self._missing))
        if said := self._behind.finish(self._after):
            self.warnings.append(said)
        return self._frames.finish()


def read_wav(
    data: bytes | bytearray | memoryview,
    max_samples: int | None = None,
    *,
    strict: bool = False,
    warn: Callable[[str], object] = log.warning,
) -> NDArray[np.float32]:
    """Read a whole WAV file as `wav_blocks` does: float32, shape (n,), 16 kHz mono."""
    blocks = wav_blocks(io.BytesIO(data), max_samples, strict=strict, warn=warn)
    return np.concatenate((np.empty(0, np.float32), *blocks))


def wav_blocks(
    file: IO[bytes],
    max_samples: int | None = None,
    *,
    strict: bool = False,
    warn: Callable[[str], object] = log.warning,
) -> Generator[NDArray[np.float32], None, None]:
    """Read a whole WAV file in blocks, as they are asked for: of a long file, little is held.

    Args:
        file: RIFF/WAVE with integer samples of 8, 16, 24, 32 bits, float samples of 32, 64 bits, mu-law or A-law (also
            as WAVE_FORMAT_EXTENSIBLE), 1-64 channels, 8-192 kHz. The `data` chunk's size decides, as far as the file
            goes; the RIFF size and the frame size, which many programs get wrong, do not. A size of 0 or from
            `UNTIL_THE_END` on, as of a file that was written to a pipe, means "until the end". An incomplete frame at
            the end is left out.
        max_samples: refuse, before decoding it, sound that would be longer at 16 kHz; 64 MiB of 8-bit sound at
            8 kHz would become 512 MiB.
        strict: refuse a file of less sound than its header promises.
        warn: is called with a sentence when more than `MISCOUNTED_SECONDS` of what is promised are not there.

    Yields:
        float32, shape (n,), n > 0, 16 kHz mono: the channels mixed (see `Downmix`), resampled by soxr (HQ) if need be.
        16-bit mono at 16 kHz comes out exactly as from `pcm.decode`. In float files NaN reads as 0 and what is beyond
        [-1, 1] clips, as one broken sample should not cost the rest.

    Raises:
        WavError: before the first block: not a WAV file, or broken, or without sound within `MAX_HEADER` bytes; cut
            off, if `strict`; `UnsupportedWav` for a format that is not read here.
    """
    parser, header = HeaderParser(MAX_HEADER), None
    file.seek(0)
    while header is None:
        if not (piece := file.read(_BLOCK)):
            raise parser.incomplete()
        header = parser.feed(piece)
    start = file.tell() - len(header.sound)
    promised, there = header.data_size, file.seek(0, io.SEEK_END) - start
    # a recorder that died left 0, and so does an empty recording, behind which there may be other chunks
    unfinished = promised == 0 and there > 0 and _read_at(file, start, 4) not in USUAL_CHUNKS
    open_ended = unfinished or promised >= UNTIL_THE_END
    if promised > there and not open_ended:
        if strict:
            raise WavError(f"{_cut_off(promised, there)}; send all of it, or leave out strict.")
        if promised - there > _slack(header.format):
            warn(_cut_off(promised, there))
    size = there if open_ended else min(promised, there)
    size -= size % header.format.frame_bytes
    samples = size // header.format.frame_bytes * pcm.SAMPLE_RATE // header.format.rate
    if max_samples is not None and samples > max_samples:
        raise WavError(f"The WAV holds {samples} samples at 16 kHz, over the limit of {max_samples}; send it in parts.")
    if promised < there and not open_ended:
        behind = _Behind(header.format, promised)
        file.seek(start + promised)
        while not behind.known and (piece := file.read(_BLOCK)):
            behind.feed(piece)
        if said := behind.finish(there - promised):
            warn(said)
    file.seek(start)
    yield from frame_blocks(file, header.format, size)


def frame_blocks(file: IO[bytes], fmt: WavFormat, size: int) -> Iterator[NDArray[np.float32]]:
    """Decode the next `size` bytes of a file of frames: blocks, shape (n,), n > 0, 16 kHz mono, of 10 s at most."""
    frames = FrameDecoder(fmt)
    block = min(_BLOCK, BLOCK_SECONDS * fmt.rate * fmt.frame_bytes)
    while size and (data := file.read(min(block, size))):
        size -= len(data)
        if len(sound := frames.feed(data)):
            yield sound
    if len(sound := frames.finish()):
        yield sound


def _read_at(file: IO[bytes], position: int, size: int) -> bytes:
    file.seek(position)
    return file.read(size)


class FrameDecoder:
    """Frames of one format, in pieces of any length -> float32 samples, 16 kHz mono."""

    def __init__(self, fmt: WavFormat) -> None:
        self._format = fmt
        self._aligner = pcm.FrameAligner(fmt.frame_bytes)
        self._downmix = Downmix(fmt.channels, fmt.rate) if fmt.channels > 1 else None
        same_rate = fmt.rate == pcm.SAMPLE_RATE
        self._resampler = None if same_rate else soxr.ResampleStream(fmt.rate, pcm.SAMPLE_RATE, 1, quality="HQ")

    def feed(self, data: bytes | memoryview) -> NDArray[np.float32]:
        """Return the samples that `data` completes: shape (n,); n may be 0."""
        whole = self._aligner.feed(data)
        if self._format.big_endian:
            width = self._format.bits // 8
            whole = memoryview(np.frombuffer(whole, np.uint8).reshape(-1, width)[:, ::-1].tobytes())
        samples = _to_float(whole, self._format.tag, self._format.bits)
        if self._downmix is not None:
            samples = self._downmix.feed(samples.reshape(-1, self._format.channels))
        return self._resample(samples, last=False)

    def finish(self) -> NDArray[np.float32]:
        """Return the last samples, shape (n,), without an incomplete frame."""
        rest = np.empty(0, dtype=np.float32) if self._downmix is None else self._downmix.finish()
        return self._resample(rest, last=True)

    def _resample(self, mono: NDArray[np.float32], last: bool) -> NDArray[np.float32]:
        if self._resampler is None:
            return mono
        resampled: NDArray[np.float32] = self._resampler.resample_chunk(mono, last=last)
        return resampled


def _to_float(data: memoryview, tag: int, bits: int) -> NDArray[np.float32]:
    if tag == FLOAT:
        numbers = np.frombuffer(data, dtype=f"<f{bits // 8}")
        return np.where(np.isnan(numbers), 0, numbers).clip(-1, 1).astype(np.float32)
    if tag in (A_LAW, MU_LAW):
        expanded = _expand_mu_law() if tag == MU_LAW else _expand_a_law()
        return expanded[np.frombuffer(data, dtype=np.uint8)]
    if bits == 16:
        return pcm.decode(data)
    if bits == 8:  # the one width that is unsigned
        return np.frombuffer(data, dtype=np.uint8).astype(np.float32) / np.float32(2**7) - np.float32(1)
    if bits == 24:
        wide = np.zeros((len(data) // 3, 4), dtype=np.uint8)
        wide[:, 1:] = np.frombuffer(data, dtype=np.uint8).reshape(-1, 3)
        steps = wide.reshape(-1).view("<i4")  # 32 bits, the lowest 8 of them zero
    else:
        steps = np.frombuffer(data, dtype="<i4")
    return steps.astype(np.float32) / np.float32(2**31)


def _expand_mu_law() -> NDArray[np.float32]:
    """Return the sample of each code, shape (256,): ITU-T G.711, table 2."""
    code = ~np.arange(256, dtype=np.uint8)
    exponent, mantissa = (code >> 4 & 7).astype(np.int32), (code & 15).astype(np.int32)
    size = ((mantissa << 3) + 132 << exponent) - 132
    return (np.where(code & 0x80, -size, size) / 32768).astype(np.float32)


def _expand_a_law() -> NDArray[np.float32]:
    """Return the sample of each code, shape (256,): ITU-T G.711, table 1."""
    code = np.arange(256, dtype=np.uint8) ^ 0x55
    exponent, mantissa = (code >> 4 & 7).astype(np.int32), (code & 15).astype(np.int32)
    size = np.where(exponent == 0, (mantissa << 4) + 8, (mantissa << 4) + 264 << np.maximum(exponent - 1, 0))
    return (np.where(code & 0x80, size, -size) / 32768).astype(np.float32)


def _slack(fmt: WavFormat) -> int:
    """Return the bytes that may be missing before sound counts as lost."""
    return int(MISCOUNTED_SECONDS * fmt.rate) * fmt.frame_bytes


def _cut_off(promised: int, there: int) -> str:
    return f"The WAV is cut off: its header promises {promised} bytes of sound and {there} are there"


class _Behind:
    """What follows the sound of a WAV: chunks, which are passed over; or sound that would be lost without a word."""

    def __init__(self, fmt: WavFormat, promised: int) -> None:
        """`promised` is the size of the `data` chunk in bytes."""
        self.known = False
        """Whether something is there that is no chunk, or may not be there."""
        self._format = fmt
        self._promised = promised
        self._skip = promised % 2
        self._head = b""  # name and size of the next chunk

    def feed(self, data: bytes | memoryview) -> None:
        while len(data) and not self.known:
            passed = min(self._skip, len(data))
            wanted = CHUNK_HEAD - len(self._head)
            self._skip, self._head = self._skip - passed, self._head + bytes(data[passed : passed + wanted])
            data = data[passed + wanted :]
            if len(self._head) == CHUNK_HEAD:
                size = int.from_bytes(self._head[4:], "big" if self._format.big_endian else "little")
                self.known = self._head[:4] in SOUND_AGAIN or not (
                    self._head[:4].isascii() and self._head[:1].isalnum()
                )
                self._skip, self._head = size + size % 2, self._head if self.known else b""

    def finish(self, size: int) -> str:
        """Say that bytes which are no chunks are not read, if they may be sound; there are `size` in all.

        Raises `WavError` for concatenated files and chunks of sound.
        """
        if self._head[:4] in SOUND_AGAIN:
            raise WavError(
                f"A second WAV file or chunk of sound ({str(self._head[:4])[1:]}) follows the first in the same input; "
                "send one at a time."
            )
        if not self.known or size <= _slack(self._format):
            return ""
        return f"The WAV header promises {self._promised} bytes of sound; the {size} bytes behind them were not read"
