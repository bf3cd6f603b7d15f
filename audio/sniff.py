"""What bytes are that come without a type: media of some container, PCM16, or no sound at all."""

import codecs
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from audio import pcm
from audio.ffmpeg import CONTAINERS

MAGIC: Mapping[bytes, str] = MappingProxyType(
    {
        b"ID3": "mp3,aac,flac",
        b"fLaC": "flac",
        b"OggS": "ogg",
        b"\x1aE\xdf\xa3": "matroska",
        b"FORM": "aiff",
        b"caff": "caf",
        b".snd": "au",
        b"#!AMR": "amr",
        b"RF64": "wav",
        b"BW64": "wav",
        b"0&\xb2u": "asf",
        b"riff.\x91\xcf\x11": "w64",
        b"FLV\x01": "flv",
        b"\0\0\x01\xba": "mpeg",
        b"\x0bw": "ac3,eac3",
        b"\x7f\xfe\x80\x01": "dts",
        b"TTA1": "tta",
        b"wvpk": "wv",
        b"MAC ": "ape",
        b"NIST_1A\n": "nistsphere",
        b"Creative Voice File": "voc",
        b".RMF": "rm",
        b"DSD ": "dsf",
        b"MPCK": "mpc8",
        b"tBaK": "tak",
    }
)
"""How files begin that may come without a Content-Type of their own -> the demuxers of ffmpeg that read them."""
FOREIGN: Mapping[bytes, str] = MappingProxyType(
    {
        b"\x89PNG": "a PNG picture",
        b"\xff\xd8\xff": "a JPEG picture",
        b"GIF8": "a GIF picture",
        b"%PDF": "a PDF document",
        b"PK\x03\x04": "a ZIP archive, or a document",
        b"\x1f\x8b\x08": "gzip data",
        b"7z\xbc\xaf": "a 7-Zip archive",
        b"Rar!": "a RAR archive",
        b"\x7fELF": "a program",
        b"MThd": "MIDI, notes without sound",
    }
)
"""How files begin that hold no sound -> what they are."""
GSM_FRAME = 33
"""Bytes of a frame of GSM 06.10, each of which begins with 0xD."""
ENOUGH_BYTES = 1024
"""What has no magic number is judged by so much: 32 ms of PCM16."""
WHOLE_BYTES = 64 * 1024
"""The same where all of it is there."""
RIFF_BYTES = 12
"""A RIFF file says what it is in its bytes 8 to 11."""
LOUD, RELATED = 0.42, 0.2
"""RMS, of full scale, and correlation of neighbours from which samples are noise, and up to which."""
TEXT_BYTES, NOISE_BYTES = 16, 256
"""Fewer are too few to be told from PCM16."""
MP3_KBPS = (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
MP3_KBPS_LOW = (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
"""Layer III bit rates of MPEG 1, and of MPEG 2 and 2.5 (ISO 11172-3 and 13818-3)."""


class Sniffer:
    """Finds out what a stream is made of. ID3 tags in front are left out: ffmpeg may not probe beyond them."""

    def __init__(self) -> None:
        self.head = b""
        """What has arrived, without tags."""
        self._tag = 0  # bytes that are still to come of one
        self._tagged = False

    def feed(self, data: bytes, *, more: bool = True) -> str | None:
        """Take the next bytes; return what `media_format` does. Unless there is `more`, it is known."""
        self.head += data
        while True:
            skipped = min(self._tag, len(self.head))
            self.head, self._tag = self.head[skipped:], self._tag - skipped
            if self._tag and more:
                return None
            self._tag = self._tag or _id3_bytes(self.head)
            if not self._tag or not self.head:
                break
            self._tagged = True
        found = media_format(self.head, more=more)
        return "mp3" if found == "" and self._tagged else found


def is_media(data: bytes) -> bool:
    """Whether a whole body is anything but PCM16."""
    return bool(media_format(data)) or _is_noise(data[:WHOLE_BYTES])


def foreign(data: bytes) -> str:
    """Say what bytes are that hold no sound: text, a picture, an archive; empty if they may hold some."""
    if by_magic(data):
        return ""
    found = next((name for magic, name in FOREIGN.items() if data.startswith(magic)), "")
    return found or ("text" if _is_text(data[:ENOUGH_BYTES]) else "")


def media_format(data: bytes, *, more: bool = False) -> str | None:
    """Name the container that bytes begin like: by its magic number, or by frames or packets in a row.

    Returns ffmpeg's name of it (several, with commas, where that is not certain, and all of `CONTAINERS` for what is
    neither one of them nor like PCM16); empty if it may be PCM16. With `more`, None as long as further bytes may tell.
    """
    known = by_magic(data) if len(data) >= RIFF_BYTES or not more else ""
    if known or (more and len(data) < ENOUGH_BYTES):
        return known or None
    found = _by_packets(data, more)
    if found == "" and (foreign(data) or _is_noise(data[:ENOUGH_BYTES])):
        return CONTAINERS
    return found


def by_magic(data: bytes) -> str:
    """Name the container, as ffmpeg does, that bytes begin like by its magic number; empty if there is none."""
    if data[:1] == b"\0" and data[4:8] in (b"ftyp", b"styp", b"wide", b"mdat", b"moov"):  # behind the size of the box
        return "mov"
    if data[:4] in (b"RIFF", b"RIFX"):
        return "" if len(data) < RIFF_BYTES else "avi" if data[8:12] == b"AVI " else "wav"
    return next((name for magic, name in MAGIC.items() if data.startswith(magic)), "")


def _id3_bytes(data: bytes) -> int:
    """Return the size of the ID3v2 tag that bytes begin with, 0 if there is none (id3.org, "ID3 tag version 2.4")."""
    if data[:3] != b"ID3" or len(data) < 10 or max(data[6:10]) > 0x7F:
        return 0
    size = data[6] << 21 | data[7] << 14 | data[8] << 7 | data[9]
    return size + (20 if data[5] & 0x10 else 10)  # with a footer


def index_is_behind(data: bytes) -> bool:
    """Whether bytes that begin like "mov" or "caf" have, or may have, the sound before what it takes to decode it.

    That is mdat before moov (ISO 14496-12), and for CAF the packet table, which all codecs but PCM need.
    """
    if data.startswith(b"caff"):
        return data[28:32] != b"lpcm"
    at = 0
    while data[at + 4 : at + 8] in (b"ftyp", b"free", b"skip", b"wide") and (size := int.from_bytes(data[at : at + 4])):
        at += size
    return data[at + 4 : at + 8] == b"mdat"


def promised_size(data: bytes) -> int:
    """Return the bytes that the header of RIFF (AVI, WAV), RF64, W64 or AIFF says the file has; 0 where it does not.

    Writers that cannot go back leave 0, all ones, or what comes near to it (0x7F000000 of sox).
    """
    magic = data[:4]
    if magic in (b"RF64", b"BW64", b"riff"):
        riff, w64 = int.from_bytes(data[20:28], "little") + 8, int.from_bytes(data[16:24], "little")
        size, unknown = w64 if magic == b"riff" else riff, 1 << 62
    elif magic in (b"RIFF", b"RIFX", b"FORM"):
        size, unknown = int.from_bytes(data[4:8], "little" if magic == b"RIFF" else "big") + 8, 0x7F00_0000
    else:
        return 0
    return size if size < unknown else 0


def _is_text(data: bytes) -> bool:
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(data)
    except UnicodeDecodeError:
        return False
    return len(data) >= TEXT_BYTES and all(each.isprintable() or each.isspace() for each in text)


def _is_noise(data: bytes) -> bool:
    """Whether bytes, read as PCM16, are louder than speech and without any relation between neighbours.

    So are compressed and encrypted data, and samples of another width or byte order. Of 13465 pieces of 1024 bytes of
    recordings none is: whatever is loud in them is smooth.
    """
    samples = pcm.decode(data[: len(data) // 2 * 2])
    if len(data) < NOISE_BYTES:
        return False
    power = float(np.square(samples).mean())
    return power > LOUD**2 and abs(float((samples[1:] * samples[:-1]).mean())) < RELATED * power


def _by_packets(data: bytes, more: bool) -> str | None:
    if data[:1] == data[188:189] == data[376:377] == b"G":
        return "mpegts"
    gsm = data[: 11 * GSM_FRAME : GSM_FRAME]
    if len(gsm) == 11 and all(each >> 4 == 0xD for each in gsm):
        return "gsm"
    length = _frame_length(data[:6])
    if more and length and len(data) < length + 6:
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
