"""Raw sound that is not 16 kHz mono PCM16: what its Content-Type or its parameters say it is."""

from collections.abc import Mapping
from email.message import Message
from types import MappingProxyType

import numpy as np

from audio import pcm
from audio.riff import A_LAW, CHANNELS, FLOAT, MU_LAW, PCM, RATES, WavFormat
from audio.wav import FrameDecoder
from whisper_byoc.errors import RequestRefused
from whisper_byoc.params import choice, whole

NAMES = ("encoding", "rate", "channels")
"""The parameters, of a query or of a Content-Type."""
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
TYPES: Mapping[str, tuple[str, int]] = MappingProxyType(
    {
        "audio/l16": ("s16le", pcm.SAMPLE_RATE),
        "audio/pcm": ("s16le", pcm.SAMPLE_RATE),
        "audio/x-pcm": ("s16le", pcm.SAMPLE_RATE),
        "audio/raw": ("s16le", pcm.SAMPLE_RATE),
        "audio/basic": ("mulaw", 8_000),
        "audio/pcmu": ("mulaw", 8_000),
        "audio/pcma": ("alaw", 8_000),
    }
)
"""Content types of raw sound -> encoding and rate, where no parameter says otherwise.

RFC 2586 has audio/L16 big-endian; live senders do not, and `encoding=s16be` says so.
"""
PLAIN = WavFormat(PCM, 16, 1, pcm.SAMPLE_RATE)
"""16 kHz mono PCM16, which needs no conversion."""


def declared_format(content_type: str, query: Mapping[str, str]) -> WavFormat | None:
    """Return the format of raw sound that a query, or else a Content-Type, declares; None if neither does.

    Raises `BadParam` for a value that cannot be.
    """
    header = Message()
    header["Content-Type"] = content_type or "application/octet-stream"
    kind = header.get_content_type()
    given = {name: str(value) for name in NAMES if (value := query.get(name) or header.get_param(name))}
    if kind not in TYPES and not any(name in query for name in NAMES):
        return None
    encoding, rate = TYPES.get(kind, ("s16le", pcm.SAMPLE_RATE))
    encoding = choice("encoding", given.get("encoding", encoding).lower().removeprefix("pcm_"), ENCODINGS)
    tag, bits, big_endian = ENCODINGS[encoding]
    channels = whole("channels", given.get("channels", "1"), CHANNELS[0], CHANNELS[-1])
    return WavFormat(tag, bits, channels, whole("rate", given.get("rate", str(rate)), RATES[0], RATES[-1]), big_endian)


def to_pcm16(data: bytes, fmt: WavFormat, limit: int) -> bytes:
    """Convert raw sound to `PLAIN`; raise `RequestRefused` (413) where that would be larger than `limit` bytes."""
    size = len(data) // fmt.frame_bytes * PLAIN.rate // fmt.rate * PLAIN.frame_bytes
    if size > limit:
        raise RequestRefused(413, f"the sound has {size} bytes as PCM16, over the limit of {limit}; send it in parts")
    frames = FrameDecoder(fmt)
    return pcm.encode(np.concatenate((frames.feed(data), frames.finish())))
