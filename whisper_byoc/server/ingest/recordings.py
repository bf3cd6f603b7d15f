"""An upload of any kind, made into segments of sound. Everything here blocks: call it from a worker thread."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from audio import pcm
from audio.errors import MediaError, UnsupportedWav
from audio.media import decode_media
from audio.quiet import QuietCutter
from audio.riff import begins_like_wav
from audio.wav import read_wav
from whisper_byoc.errors import RequestRefused
from whisper_byoc.server.ingest.framing import PCM_TYPES, pcm_trouble
from whisper_byoc.server.ingest.sniff import is_media

WINDOW_SECONDS = 30.0
"""Longest segment: Whisper's window. Nobody waits for the first words of a whole recording as for live ones."""
NOT_SOUND = ("text/", "image/", "application/json", "application/xml")
BLOCK_SAMPLES = 1 << 20


@dataclass(frozen=True)
class Recording:
    """Sound in order, as 16 kHz mono PCM16."""

    segments: tuple[bytes, ...]
    samples: int

    @property
    def seconds(self) -> float:
        """Its length, to the millisecond."""
        return round(self.samples / pcm.SAMPLE_RATE, 3)

    @property
    def work_units(self) -> int:
        """Whole seconds, rounded up: what Livepeer's audio runners are paid by."""
        return -(-self.samples // pcm.SAMPLE_RATE)


def read_recording(data: bytes, content_type: str, limit: int, *, raw_by_default: bool) -> Recording:
    """Decode an upload, and cut it at quiet points.

    `limit` is for the bytes of the sound as PCM16. `audio/pcm` is PCM16; with `raw_by_default` so is
    `application/octet-stream` that does not begin like any file we know. Raises `AudioError`, and `RequestRefused`:
    for PCM16 400 when a sample is cut in half and 413 over the limit, 415 for a type that cannot be sound.
    """
    kind = content_type.partition(";")[0].strip().lower() or "application/octet-stream"
    if kind.startswith(NOT_SOUND):
        raise RequestRefused(415, f"{kind} is not sound; send a media file, or 16 kHz mono PCM16 as audio/pcm")
    pieces: Iterable[bytes]
    if kind in PCM_TYPES or (raw_by_default and kind == "application/octet-stream" and not is_media(data)):
        _check_raw(data, content_type, limit)
        pieces = (data,)
    else:
        sound = _decode(data, limit // pcm.SAMPLE_WIDTH)
        # encoded in blocks, which needs little memory beside the samples
        pieces = (pcm.encode(sound[at : at + BLOCK_SAMPLES]) for at in range(0, len(sound), BLOCK_SAMPLES))
    cutter, segments, samples = QuietCutter(WINDOW_SECONDS), [], 0
    for piece in pieces:
        segments += cutter.feed(piece)
        samples += len(piece) // pcm.SAMPLE_WIDTH
    if not samples:
        raise MediaError("There is no sound in the recording; check how it was made.")
    return Recording((*segments, *cutter.finish()), samples)


def _check_raw(data: bytes, content_type: str, limit: int) -> None:
    if trouble := pcm_trouble(content_type):
        raise RequestRefused(415, trouble)
    if len(data) % pcm.SAMPLE_WIDTH:
        raise RequestRefused(400, f"{len(data)} bytes are not whole 16-bit samples; send an even number of bytes")
    if len(data) > limit:
        raise RequestRefused(413, f"the recording is larger than the limit of {limit} bytes; send it in parts")


def _decode(data: bytes, max_samples: int) -> NDArray[np.float32]:
    if begins_like_wav(data):
        with suppress(UnsupportedWav):  # ADPCM and so on are left to ffmpeg
            return read_wav(data, max_samples, open_ended=True)
    return decode_media(data, max_seconds=max_samples / pcm.SAMPLE_RATE)
