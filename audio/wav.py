"""WAV in (any usual rate, width, channels), 16 kHz mono float32 out."""

import numpy as np
import soxr
from numpy.typing import NDArray

from audio import pcm
from audio.errors import WavError
from audio.riff import FLOAT, HeaderParser, WavFormat

MAX_LIVE_HEADER = 64 * 1024
"""Bytes a live stream may spend before its sound begins: far above any tag, small to hold per stream."""

UNTIL_THE_END = 0x7FFF_0000
"""Sizes from here on mean "until the end" in a stream: sox writes 0x7FFFF000 to a pipe, ffmpeg 0xFFFFFFFF."""

_BLOCK = 1 << 20  # bytes of sound decoded at a time, so that wide formats need little memory beside the result


class WavReader:
    """Reads a WAV stream as it arrives: bytes in, 16 kHz mono out.

    A `data` size of 0, or of 2 GiB less 64 KiB and more, means "until the end", as senders into a pipe cannot know the
    size; an incomplete frame at that end is ignored. What follows a `data` chunk of known size is ignored as well,
    except a second WAV, which `finish` reports.
    """

    def __init__(self) -> None:
        self._parser = HeaderParser(MAX_LIVE_HEADER)
        self._frames: _FrameDecoder | None = None
        self._promised = 0  # bytes of sound, by the header; 0: until the end
        self._missing = 0  # bytes of sound promised that have not come
        self._after = b""  # the first bytes behind the sound

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
            self._frames = _FrameDecoder(header.format)
            self._promised = self._missing = header.data_size if header.data_size < UNTIL_THE_END else 0
        if not self._promised:
            return self._frames.feed(sound)
        known, after = sound[: self._missing], sound[self._missing :]
        self._missing -= len(known)
        self._after += bytes(after[: 5 - len(self._after)])
        return self._frames.feed(known)

    def finish(self) -> NDArray[np.float32]:
        """Return the last samples, which the resampler still holds: float32, shape (n,); n may be 0.

        Raises:
            WavError: the header never came to its end, sound that it promised did not arrive, or a second WAV
                follows the first.
        """
        if self._frames is None:
            raise self._parser.incomplete()
        if self._missing:
            raise WavError(
                f"The WAV stream ended early: its header promises {self._promised} bytes of sound and "
                f"{self._promised - self._missing} came; send all of it, or a data size of 0 if it is not known."
            )
        _refuse_second_wav(self._after, self._promised)
        return self._frames.finish()


def read_wav(
    data: bytes | bytearray | memoryview, max_samples: int | None = None, *, open_ended: bool = False
) -> NDArray[np.float32]:
    """Read a whole WAV file.

    Args:
        data: RIFF/WAVE with integer samples of 8, 16, 24, 32 bits or float samples of 32, 64 bits (also as
            WAVE_FORMAT_EXTENSIBLE), 1-8 channels, 8-192 kHz. The `data` chunk's size decides; the RIFF size,
            which many programs get wrong, does not.
        max_samples: refuse, before decoding it, sound that would be longer at 16 kHz; 64 MiB of 8-bit sound at
            8 kHz would become 512 MiB.
        open_ended: take sizes that mean "until the end" for that (see `WavReader`), as of a file that was written to a
            pipe, and leave out a frame that the end cuts off.

    Returns:
        float32, shape (n,), 16 kHz mono: the mean of the channels, resampled by soxr (HQ) if need be. 16-bit mono
        at 16 kHz comes out exactly as from `pcm.decode`. In float files NaN reads as 0 and what is beyond
        [-1, 1] clips, as one broken sample should not cost the rest.

    Raises:
        WavError: not a WAV file, broken, cut off, or a size in the header that is not true; `UnsupportedWav` for a
            format that is not read here.
    """
    view = memoryview(data).cast("B")
    parser, header, at = HeaderParser(limit=None), None, 0
    while header is None:  # in pieces, because the parser copies its input
        if at >= len(view):
            raise parser.incomplete()
        header, at = parser.feed(view[at : at + MAX_LIVE_HEADER]), at + MAX_LIVE_HEADER
    behind_header = view[min(at, len(view)) - len(header.sound) :]
    promised, there = header.data_size, len(behind_header)
    # A recorder that died left 0; an empty recording is 0 too, but then the RIFF size agrees with the file.
    unfinished = promised == 0 and there > 0 and header.riff_size + 8 != len(view)
    if open_ended and (unfinished or (promised > there and promised >= UNTIL_THE_END)):
        promised = there - there % header.format.frame_bytes
    elif promised > there or unfinished:
        raise WavError(
            f"The WAV header promises {promised} bytes of sound and {there} are there: the file is cut off, or was "
            "written to a pipe; send all of it, or correct the header with `ffmpeg -i in.wav out.wav`."
        )
    if promised % header.format.frame_bytes:
        raise WavError(
            f"The WAV data chunk of {promised} bytes does not hold whole frames of {header.format.frame_bytes} "
            "bytes; export the file again."
        )
    samples = promised // header.format.frame_bytes * pcm.SAMPLE_RATE // header.format.rate
    if max_samples is not None and samples > max_samples:
        raise WavError(f"The WAV holds {samples} samples at 16 kHz, over the limit of {max_samples}; send it in parts.")
    _refuse_second_wav(bytes(behind_header[promised : promised + 5]), promised)
    frames = _FrameDecoder(header.format)
    sound = behind_header[:promised]
    pieces = [frames.feed(sound[i : i + _BLOCK]) for i in range(0, promised, _BLOCK)]
    return np.concatenate([*pieces, frames.finish()])


class _FrameDecoder:
    """Frames of one format, in pieces of any length -> 16 kHz mono."""

    def __init__(self, fmt: WavFormat) -> None:
        self._format = fmt
        self._aligner = pcm.FrameAligner(fmt.frame_bytes)
        same_rate = fmt.rate == pcm.SAMPLE_RATE
        self._resampler = None if same_rate else soxr.ResampleStream(fmt.rate, pcm.SAMPLE_RATE, 1, quality="HQ")

    def feed(self, data: memoryview) -> NDArray[np.float32]:
        return self._resample(_to_mono(self._aligner.feed(data), self._format), last=False)

    def finish(self) -> NDArray[np.float32]:
        return self._resample(np.empty(0, dtype=np.float32), last=True)

    def _resample(self, mono: NDArray[np.float32], last: bool) -> NDArray[np.float32]:
        if self._resampler is None:
            return mono
        resampled: NDArray[np.float32] = self._resampler.resample_chunk(mono, last=last)
        return resampled


def _to_mono(frames: memoryview, fmt: WavFormat) -> NDArray[np.float32]:
    """Whole frames -> the mean of their channels, float32 in [-1, 1]."""
    samples = _to_float(frames, fmt.tag, fmt.bits)
    if fmt.channels == 1:
        return samples
    mono = samples[:: fmt.channels].copy()
    for channel in range(1, fmt.channels):  # several times faster than a mean over the short axis
        mono += samples[channel :: fmt.channels]
    mono /= fmt.channels
    return mono


def _to_float(data: memoryview, tag: int, bits: int) -> NDArray[np.float32]:
    if tag == FLOAT:
        numbers = np.frombuffer(data, dtype=f"<f{bits // 8}")
        return np.where(np.isnan(numbers), 0, numbers).clip(-1, 1).astype(np.float32)
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


def _refuse_second_wav(after: bytes, data_size: int) -> None:
    """Refuse concatenated files: the sound of all but the first would be lost without a word."""
    if after[data_size % 2 :][:4] == b"RIFF":
        raise WavError("A second WAV file follows the first in the same input; send one at a time.")
