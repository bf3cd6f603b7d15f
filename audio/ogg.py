"""Chained Ogg: files joined end to end, each of which may have another rate, other channels or another codec.

Pages are those of RFC 3533; the identification headers those of the Vorbis I specification, of "Ogg FLAC mapping" 1.0,
RFC 7845 (Opus) and the Speex manual. ffmpeg goes on with the format of the first link, and garbles the others.
"""

import itertools
from typing import IO

from audio.errors import MediaError

PAGE_HEAD = 27
"""Bytes of a page's head, before the sizes of its segments."""
FIRST_OF_STREAM = 0x02
FORMAT_BYTES = {
    b"\x01vorbis": ((7, 16),),  # version, channels, rate
    b"\x7fFLAC": ((5, 6), (27, 30)),  # version; rate, channels and bits, of STREAMINFO
    b"Speex   ": ((36, 40), (48, 52), (56, 60), (64, 68)),  # rate, channels, samples of a frame, frames of a packet
    b"OpusHead": ((8, 10),),  # version, channels; it is always decoded at 48 kHz
}
"""How the first packet of a stream begins -> what of it tells the format, from and to."""
HEAD_BYTES = 68
MAX_PAGES = 1 << 21
"""Pages that are looked at: 11 hours of those of 20 ms."""
MAX_SPANS = 64


def spans(file: IO[bytes]) -> list[tuple[int, int]]:
    """Return the parts of an Ogg file in which the format stays: where each begins and ends, in bytes.

    There is one in most files. What is damaged belongs to the last. Raises `MediaError` for more than `MAX_SPANS`.
    """
    begins: list[int] = []
    before: set[bytes] = set()
    formats: set[bytes] = set()  # of the link that begins
    position = link = 0
    in_heads = False
    for _ in range(MAX_PAGES):
        file.seek(position)
        page = file.read(PAGE_HEAD + 255 + HEAD_BYTES)
        if page[:4] != b"OggS" or len(page) < PAGE_HEAD:
            break
        body = PAGE_HEAD + page[26]
        if page[5] & FIRST_OF_STREAM:
            if not in_heads:
                link, formats, in_heads = position, set(), True
            formats.add(_format(page[body : body + HEAD_BYTES]))
        elif in_heads:
            in_heads = False
            if formats != before:
                begins.append(link)
                before = formats
        position += body + sum(page[PAGE_HEAD:body])
    if len(begins) > MAX_SPANS:
        raise MediaError(f"The rate or channels of this Ogg change more than {MAX_SPANS} times; send it in parts.")
    end = file.seek(0, 2)
    edges = [0, *begins[1:], end]
    return list(itertools.pairwise(edges))


def _format(packet: bytes) -> bytes:
    for name, places in FORMAT_BYTES.items():
        if packet.startswith(name):
            return name + b"".join(packet[begin:end] for begin, end in places)
    return packet[:8]
