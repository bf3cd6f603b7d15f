"""Whether bytes that come without a type are a media file, by how they begin."""

from collections.abc import Mapping
from types import MappingProxyType

MAGIC: Mapping[bytes, str] = MappingProxyType(
    {
        b"ID3": "mp3,aac",
        b"fLaC": "flac",
        b"OggS": "ogg",
        b"\x1aE\xdf\xa3": "matroska",
        b"FORM": "aiff",
        b"caff": "caf",
        b".snd": "au",
        b"#!AMR": "amr",
        b"RF64": "wav",
        b"RIFX": "wav",
        b"0&\xb2u": "asf",
        b"RIFF": "wav",
    }
)
"""How files begin that may come without a Content-Type of their own -> the demuxers of ffmpeg that read them."""
GSM_FRAME = 33
"""Bytes of a frame of GSM 06.10, each of which begins with 0xD."""
ENOUGH_BYTES = 12
"""Shorter beginnings may still become any of these."""
MP3_KBPS = (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
MP3_KBPS_LOW = (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
"""Layer III bit rates of MPEG 1, and of MPEG 2 and 2.5 (ISO 11172-3 and 13818-3)."""


def is_media(data: bytes) -> bool:
    """Whether bytes begin like a media file."""
    return bool(media_format(data))


def media_format(data: bytes, *, more: bool = False) -> str | None:
    """Name the container that bytes begin like: by its magic number, or by frames or packets in a row.

    Returns ffmpeg's name of it (several, with commas, where that is not certain); empty if it is none. With `more`,
    None as long as further bytes may tell.
    """
    if more and len(data) < ENOUGH_BYTES and any(data.startswith(each[: len(data)]) for each in (*MAGIC, b"\0")):
        return None
    if data[:1] == b"\0" and data[4:8] in (b"ftyp", b"styp"):  # behind the size of the box
        return "mov"
    if data[:4] == b"RIFF" and len(data) < ENOUGH_BYTES:
        return ""
    if data[:4] == b"RIFF" and data[8:12] == b"AVI ":
        return "avi"
    if found := next((name for magic, name in MAGIC.items() if data.startswith(magic)), ""):
        return found
    return _packets(data, more)


def _packets(data: bytes, more: bool) -> str | None:
    if data[:1] == b"G":  # packets of MPEG-TS
        if data[188:189] == data[376:377] == b"G":
            return "mpegts"
        return None if more and len(data) < 377 and data[188:189] in (b"", b"G") else ""
    gsm = data[: 11 * GSM_FRAME : GSM_FRAME]
    if gsm and all(each >> 4 == 0xD for each in gsm):
        return "gsm" if len(gsm) == 11 else None if more else ""
    length = _frame_length(data[:6])
    if more and data[:1] == b"\xff" and len(data) < length + 6:
        return None
    if not length or not _frame_length(data[length : length + 6]):
        return ""
    return "mp3" if data[1] & 6 else "aac"


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
