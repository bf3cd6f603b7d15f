"""Raw sound, in which nothing says what it is: names of encodings, and the endings of files that imply one."""

import io
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import IO

import numpy as np
from numpy.typing import NDArray

from audio import pcm
from audio.errors import PcmError
from audio.riff import A_LAW, FLOAT, MU_LAW, PCM, WavFormat
from audio.wav import frame_blocks

RawFormat = WavFormat | str
"""What raw sound is: a format, or the name of one of `CODECS`."""
PLAIN = WavFormat(PCM, 16, 1, pcm.SAMPLE_RATE)
"""16 kHz mono PCM16, which needs no conversion."""
ENCODINGS: Mapping[str, tuple[int, int, bool]] = MappingProxyType(
    {
        "s16le": (PCM, 16, False),
        "s16be": (PCM, 16, True),
        "u8": (PCM, 8, False),
        "s24le": (PCM, 24, False),
        "s24be": (PCM, 24, True),
        "s32le": (PCM, 32, False),
        "s32be": (PCM, 32, True),
        "f32le": (FLOAT, 32, False),
        "f32be": (FLOAT, 32, True),
        "f64le": (FLOAT, 64, False),
        "mulaw": (MU_LAW, 8, False),
        "alaw": (A_LAW, 8, False),
    }
)
"""ffmpeg's name of an encoding -> format tag, bits, big endian."""
CODECS = ("gsm", "g722")
"""Encodings that are left to ffmpeg, by its names. They say their own rate, and are mono."""
ENDINGS: Mapping[str, tuple[str, int]] = MappingProxyType(
    {
        ".pcm": ("s16le", pcm.SAMPLE_RATE),
        ".raw": ("s16le", pcm.SAMPLE_RATE),
        ".s16le": ("s16le", pcm.SAMPLE_RATE),
        ".sln": ("s16le", 8_000),
        ".sln16": ("s16le", pcm.SAMPLE_RATE),
        ".ul": ("mulaw", 8_000),
        ".ulaw": ("mulaw", 8_000),
        ".al": ("alaw", 8_000),
        ".alaw": ("alaw", 8_000),
        ".gsm": ("gsm", 8_000),
        ".g722": ("g722", pcm.SAMPLE_RATE),
    }
)
"""Endings of file names, those of sox and Asterisk, and ffmpeg's -> encoding and rate in Hz."""


def raw_format(encoding: str, rate: int, channels: int = 1) -> RawFormat:
    """Return the format of an encoding of `ENCODINGS`, or the name of one of `CODECS`."""
    if encoding in CODECS:
        return encoding
    tag, bits, big_endian = ENCODINGS[encoding]
    return WavFormat(tag, bits, channels, rate, big_endian)


def decode_raw(data: bytes, fmt: WavFormat) -> NDArray[np.float32]:
    """Decode raw sound whole, as `raw_blocks` does: float32, shape (n,), 16 kHz mono."""
    return np.concatenate((np.empty(0, np.float32), *raw_blocks(io.BytesIO(data), len(data), fmt)))


def raw_blocks(file: IO[bytes], size: int, fmt: WavFormat) -> Iterator[NDArray[np.float32]]:
    """Decode `size` bytes of raw sound, all of the file: blocks, shape (n,), n > 0, 16 kHz mono, as they are asked for.

    Raises:
        PcmError: at once, as the last frame is not whole.
    """
    if size % fmt.frame_bytes:
        raise PcmError(
            f"{size} bytes are not whole frames of {fmt.frame_bytes} bytes ({fmt.bits} bits, {fmt.channels} "
            "channels); send whole ones."
        )
    file.seek(0)
    return frame_blocks(file, fmt, size)
