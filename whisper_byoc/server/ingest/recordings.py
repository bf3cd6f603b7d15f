"""An upload of any kind, made into segments of sound. Everything here blocks: call it from a worker thread."""

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

WINDOW_SECONDS = 30.0
"""Longest segment: Whisper's window. Nobody waits for the first words of a whole recording as for live ones."""
NOT_SOUND = ("text/", "image/", "application/json", "application/xml")
BLOCK_SAMPLES = 1 << 20
MAGIC = (b"ID3", b"fLaC", b"OggS", b"\x1aE\xdf\xa3", b"FORM", b"caff", b".snd", b"#!AMR", b"RF64", b"0&\xb2u", b"RIFF")
"""How files begin that may come without a Content-Type of their own; 1A45DFA3 is Matroska and WebM, 3026B275 ASF."""
MP3_KBPS = (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
MP3_KBPS_LOW = (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
"""Layer III bit rates of MPEG 1, and of MPEG 2 and 2.5 (ISO 11172-3 and 13818-3)."""


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


def is_media(data: bytes) -> bool:
    """Whether bytes begin like a media file: by its magic number, or by two frames of MP3 or AAC in a row."""
    if data.startswith(MAGIC) or data[4:8] == b"ftyp":
        return True
    if data[:1] == data[188:189] == data[376:377] == b"G":  # packets of MPEG-TS
        return True
    length = _frame_length(data[:6])
    return length > 0 and _frame_length(data[length : length + 6]) > 0


def _frame_length(head: bytes) -> int:
    """Return the length of the MP3 (layer III) or AAC (ADTS) frame that begins so, or 0 if none does."""
    if len(head) < 6 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return 0
    version, layer = head[1] >> 3 & 3, head[1] >> 1 & 3  # 3: MPEG 1, 2: MPEG 2, 0: MPEG 2.5
    if layer == 0:
        return (head[3] & 3) << 11 | head[4] << 3 | head[5] >> 5 if head[1] & 0xF0 == 0xF0 else 0
    rate, speed = head[2] >> 4, head[2] >> 2 & 3
    if layer != 1 or version == 1 or not 0 < rate < 15 or speed == 3:
        return 0
    hertz = (44100, 48000, 32000)[speed] >> {3: 0, 2: 1, 0: 2}[version]
    kbps = (MP3_KBPS if version == 3 else MP3_KBPS_LOW)[rate - 1]
    return (144 if version == 3 else 72) * kbps * 1000 // hertz + (head[2] >> 1 & 1)
