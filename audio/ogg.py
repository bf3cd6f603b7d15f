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
MAX_HEADS = 1 << 20
"""Bytes of the first pages of a link."""
MAX_SPANS = 64
BLOCK_BYTES = 1 << 18


class Links:
    """Finds where another format begins in an Ogg that arrives in pieces. What is damaged is passed on as it is."""

    def __init__(self) -> None:
        self._rest = b""  # of a page that is not complete
        self._heads = b""  # pages of a link that begins
        self._formats: set[bytes] = set()  # of that link
        self._before: set[bytes] = set()
        self._pages = 0

    def feed(self, data: bytes) -> list[tuple[bool, bytes]]:
        """Return all that is complete, in pieces, and with each whether another format begins with it."""
        data, found, at = self._rest + data, [], 0
        while (size := _page_bytes(data, at)) and self._pages < MAX_PAGES:
            page, at = data[at : at + size], at + size
            self._pages += 1
            is_head = page[:4] == b"OggS" and bool(page[5] & FIRST_OF_STREAM)
            if is_head and len(self._heads) < MAX_HEADS:
                body = PAGE_HEAD + page[26]
                self._formats.add(_format(page[body : body + HEAD_BYTES]))
                self._heads += page
                continue
            changed = bool(self._heads and self._before) and self._formats != self._before
            if self._heads:
                self._before, self._formats = self._formats, set()
            found.append((changed, self._heads + page))
            self._heads = b""
        self._rest = data[at:]
        return found if self._pages < MAX_PAGES else [*found, (False, self.finish())]

    def finish(self) -> bytes:
        """Return what is left."""
        rest, self._heads, self._rest = self._heads + self._rest, b"", b""
        return rest


def spans(file: IO[bytes]) -> list[tuple[int, int]]:
    """Return the parts of an Ogg file in which the format stays: where each begins and ends, in bytes.

    There is one in most files. Raises `MediaError` for more than `MAX_SPANS`.
    """
    links, edges, position = Links(), [0], 0
    file.seek(0)
    while data := file.read(BLOCK_BYTES):
        for changed, piece in links.feed(data):
            edges += [position] if changed else []
            position += len(piece)
    if len(edges) > MAX_SPANS:
        raise MediaError(f"The rate or channels of this Ogg change more than {MAX_SPANS} times; send it in parts.")
    return list(itertools.pairwise([*edges, position + len(links.finish())]))


def _page_bytes(data: bytes, at: int) -> int:
    """Return the length of the page that begins there, or of what is none; 0 if it is not complete."""
    if data[at : at + 4] != b"OggS":
        following = data.find(b"OggS", at)
        return (len(data) - 3 if following < 0 else following) - at if len(data) - at > 3 else 0
    body = at + PAGE_HEAD + data[at + 26] if len(data) >= at + PAGE_HEAD else len(data) + 1
    size = body - at + sum(data[at + PAGE_HEAD : body])
    return size if body <= len(data) and size <= len(data) - at else 0


def _format(packet: bytes) -> bytes:
    for name, places in FORMAT_BYTES.items():
        if packet.startswith(name):
            return name + b"".join(packet[begin:end] for begin, end in places)
    return packet[:8]
