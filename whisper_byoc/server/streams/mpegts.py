"""MPEG-TS (ISO 13818-1), as far as needed to combine the sound of one stream with the pictures of another.

The sound is copied piece by piece (PES packets) with new time stamps; nothing is decoded. Times are in 90 kHz ticks
modulo 2**33, as in the format.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

PACKET = 188
SYNC = 0x47
EDGE = (bytearray(), bytearray([SYNC]))
"""What follows a packet: nothing yet, or the next one."""
ROOM = PACKET - 4
CLOCK = 90_000
"""Ticks per second."""
WRAP = 1 << 33
JUMP = 10 * CLOCK
"""Pictures this far from the previous ones begin a new timeline, which ffmpeg also joins to the old one."""
BACKWARDS = CLOCK // 10
TOGETHER = CLOCK // 2
"""Tracks that begin within this time of each other begin together."""
SOUND_PID = 0x1F0
"""PID of the sound in the output; ffmpeg numbers from 0x100 on."""
MAX_UNIT = 1 << 20
"""Largest piece of sound, in bytes; anything larger is not sound."""
SOUND_KINDS = frozenset({0x03, 0x04, 0x0F, 0x11, 0x81, 0x87})
"""Stream types: MPEG-1 and -2 sound, AAC in two forms, AC-3, E-AC-3."""
PICTURE_KINDS = frozenset({0x01, 0x02, 0x10, 0x1B, 0x24, 0x33})
PRIVATE = 0x06
REGISTRATION = 0x05
SOUND_DESCRIPTORS = frozenset({0x6A, 0x7A, 0x7B, 0x7C})
"""Descriptors of private data that is AC-3, E-AC-3, DTS or AAC."""
SOUND_FORMATS = frozenset({b"Opus", b"AC-3", b"EAC3", b"BSSD"})


def ticks_between(start: int, end: int) -> int:
    """Return `end - start`, less than half of `WRAP` either way."""
    return (end - start + WRAP // 2) % WRAP - WRAP // 2


@dataclass(frozen=True)
class Track:
    """An elementary stream, as the programme map lists it."""

    pid: int
    kind: int
    descriptors: bytes

    @property
    def is_picture(self) -> bool:
        return self.kind in PICTURE_KINDS

    @property
    def is_sound(self) -> bool:
        if self.kind != PRIVATE:
            return self.kind in SOUND_KINDS
        found = dict(_descriptors(self.descriptors))
        return found.get(REGISTRATION, b"")[:4] in SOUND_FORMATS or bool(SOUND_DESCRIPTORS & found.keys())

    def entry(self, pid: int) -> bytes:
        """Return its entry in a programme map."""
        return b"%c%b%b%b" % (self.kind, _word(0xE000 | pid), _word(0xF000 | len(self.descriptors)), self.descriptors)


@dataclass(frozen=True)
class Unit:
    """A piece of sound: one PES packet."""

    time: int
    pes: bytes
    track: Track


class PacketReader:
    """Cuts bytes into packets; where the pattern of sync bytes is broken, it looks for where it resumes."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        self._buffer += data
        at = 0
        while len(self._buffer) - at >= PACKET:
            if self._buffer[at] == SYNC and self._buffer[at + PACKET : at + PACKET + 1] in EDGE:
                yield bytes(self._buffer[at : at + PACKET])
                at += PACKET
            else:
                found = self._buffer.find(SYNC, at + 1)
                at = found if found >= 0 else len(self._buffer)
        del self._buffer[:at]


class SoundReader:
    """Finds the first sound track of an input, and when each of its pieces is to be heard.

    The time of a piece is counted from the beginning of the input (where its first track begins), plus `start`.
    """

    def __init__(self, start: int = 0) -> None:
        self.start = start
        self._packets = PacketReader()
        self._map_pid: int | None = None
        self._tracks: dict[int, Track] = {}
        self._sound: Track | None = None
        self._unit = bytearray()
        self._early: list[Unit] = []  # until it is known where the input begins
        self._first: dict[int, int] = {}
        self._origin: int | None = None
        self._picture: int | None = None

    def feed(self, data: bytes) -> list[Unit]:
        """Return the pieces that are complete now."""
        return [unit for packet in self._packets.feed(data) for unit in self._timed(self._take(packet))]

    def finish(self) -> list[Unit]:
        """Return the rest."""
        if self._origin is None and self._first:
            self._origin = self._earliest()
        return list(self._timed(self._complete()))

    def _take(self, packet: bytes) -> Iterable[Unit]:
        pid, begins, payload = _pid(packet), bool(packet[1] & 0x40), _payload(packet)
        if pid == 0 and begins:
            self._map_pid = _map_pid(payload)
        elif pid == self._map_pid and begins:
            self._read_map(payload)
        elif track := self._tracks.get(pid):
            if begins and (stamps := _stamps(payload)):
                self._note(track, *stamps)
            if track == self._sound:
                return self._gather(payload, begins)
        return ()

    def _read_map(self, payload: bytes) -> None:
        tracks = list(_tracks(_section(payload, 2)))
        if not tracks:
            return
        if self._sound not in tracks:
            self._sound = next((track for track in tracks if track.is_sound), None)
            self._unit.clear()
        self._tracks = {track.pid: track for track in tracks if track.is_picture or track == self._sound}

    def _gather(self, payload: bytes, begins: bool) -> list[Unit]:
        units = self._complete() if begins else []
        if (begins or self._unit) and len(self._unit) + len(payload) <= MAX_UNIT:
            self._unit += payload
        length = int.from_bytes(self._unit[4:6])
        return units + (self._complete() if length and len(self._unit) >= 6 + length else [])

    def _complete(self) -> list[Unit]:
        pes, self._unit = bytes(self._unit), bytearray()
        stamps = _stamps(pes)
        return [Unit(stamps[0], pes, self._sound)] if stamps and self._sound else []

    def _note(self, track: Track, shown: int, decoded: int) -> None:
        """Learn from a time stamp where the input begins, and where its time jumps."""
        if self._origin is None:
            self._first.setdefault(track.pid, shown)
            earliest = self._earliest()
            if len(self._first) == len(self._tracks) or ticks_between(earliest, shown) > TOGETHER:
                self._origin = earliest
        if track.is_picture:
            if self._picture is not None and self._origin is not None:
                step = ticks_between(self._picture, decoded)
                if not -BACKWARDS <= step <= JUMP:
                    self._origin = (self._origin + step) % WRAP
            self._picture = decoded

    def _earliest(self) -> int:
        any_of_them = next(iter(self._first.values()))
        return min(self._first.values(), key=lambda stamp: ticks_between(any_of_them, stamp))

    def _timed(self, units: Iterable[Unit]) -> Iterable[Unit]:
        self._early += units
        if self._origin is None or not self._early:
            return ()
        units, self._early = self._early, []
        shift = self.start - self._origin
        # a unit far from the pictures lies on the other side of a jump
        near = (unit for unit in units if self._picture is None or abs(ticks_between(self._picture, unit.time)) <= JUMP)
        return [replace(unit, time=(unit.time + shift) % WRAP) for unit in near]


class SoundMixer:
    """Inserts sound into ffmpeg's MPEG-TS of pictures: each piece before the pictures that come after it."""

    def __init__(self, limit: int) -> None:
        """Hold up to `limit` bytes of sound that is ahead of the pictures."""
        self.pictures = 0
        """Pictures that have begun to come out."""
        self.sounds = 0
        """Units of sound that have come out with them."""
        self.dropped = 0
        """Bytes of sound beyond the limit."""
        self._limit = limit
        self._waiting: deque[Unit] = deque()
        self._bytes = 0
        self._packets = PacketReader()
        self._map_pid: int | None = None
        self._map = b""  # its last packet, as made by the encoder
        self._announced: Track | None = None  # what the last map said
        self._version = 0
        self._counter = 0
        self._origin: int | None = None  # the time stamp of what is at 0
        self._start = 0

    def add(self, units: Iterable[Unit]) -> None:
        for unit in units:
            if self._bytes + len(unit.pes) > self._limit:
                self.dropped += len(unit.pes)
            else:
                self._bytes += len(unit.pes)
                self._waiting.append(unit)

    def begin(self, start: int) -> None:
        """Expect the output of another encoder, whose first picture is at `start` ticks."""
        self._packets, self._map_pid, self._map = PacketReader(), None, b""
        self._start = start

    def feed(self, encoded: bytes) -> bytes:
        """Return the packets of the pictures now complete, with the sound that belongs before them."""
        return b"".join(part for packet in self._packets.feed(encoded) for part in self._take(packet))

    def rest(self) -> bytes:
        """Return the sound after the last picture."""
        if not self._map:
            return b""
        return b"".join(self._next_sound() for _ in range(len(self._waiting)))

    def _take(self, packet: bytes) -> Iterator[bytes]:
        pid, begins, payload = _pid(packet), bool(packet[1] & 0x40), _payload(packet)
        if pid == 0 and begins:
            self._map_pid = _map_pid(payload)
        elif pid == self._map_pid and begins and (section := _section(payload, 2)):
            self._map = packet
            if self._announced is None and self._waiting and self.pictures == 0:
                self._announced = self._waiting[0].track
            packet = self._with_sound(section)
        elif begins and (stamps := _stamps(payload)):
            self.pictures += 1
            if self._origin is None:
                self._origin = (stamps[0] - self._start) % WRAP
            # without a map, no reader could know that it is sound
            while self._map and self._waiting and ticks_between(self._waiting[0].time + self._origin, stamps[0]) >= 0:
                yield self._next_sound()
        yield packet

    def _next_sound(self) -> bytes:
        unit = self._waiting.popleft()
        self.sounds += 1
        self._bytes -= len(unit.pes)
        parts = []
        if unit.track != self._announced:
            self._announced, self._version = unit.track, (self._version + 1) % 32
            parts.append(self._with_sound(_section(_payload(self._map), 2)))
        pes = _restamped(unit.pes, (unit.time + (self._origin or 0)) % WRAP)
        for at in range(0, len(pes), ROOM):
            flags = 0x4000 if at == 0 else 0
            parts.append(_packet(flags | SOUND_PID, self._counter, pes[at : at + ROOM]))
            self._counter = (self._counter + 1) % 16
        return b"".join(parts)

    def _with_sound(self, section: bytes) -> bytes:
        """Return the programme map with the sound track added."""
        if self._announced is None or not section:
            return self._map
        version = bytes([0xC1 | self._version << 1])
        body = section[3:5] + version + section[6:] + self._announced.entry(SOUND_PID)
        head = b"\x02" + _word(0xB000 | len(body) + 4)
        table = b"\0" + head + body + crc32(head + body).to_bytes(4)
        if len(table) > ROOM:
            return self._map
        return self._map[:3] + bytes([0x10 | self._map[3] & 15]) + table.ljust(ROOM, b"\xff")


def _packet(pid_and_flags: int, counter: int, payload: bytes) -> bytes:
    """Return one packet, with stuffing where the payload is short."""
    head = bytes([SYNC]) + _word(pid_and_flags)
    stuffing = ROOM - len(payload)
    if stuffing == 0:
        return head + bytes([0x10 | counter]) + payload
    field = bytes([stuffing - 1]) + b"\0".ljust(stuffing - 1, b"\xff")[: stuffing - 1]
    return head + bytes([0x30 | counter]) + field + payload


def crc32(data: bytes) -> int:
    """Return the checksum of a table."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte << 24
        for _ in range(8):
            crc = crc << 1 ^ (0x04C11DB7 if crc & 0x80000000 else 0)
        crc &= 0xFFFFFFFF
    return crc


def _word(value: int) -> bytes:
    return value.to_bytes(2)


def _pid(packet: bytes) -> int:
    return int.from_bytes(packet[1:3]) & 0x1FFF


def _payload(packet: bytes) -> bytes:
    if not packet[3] & 0x10:
        return b""
    return packet[5 + packet[4] :] if packet[3] & 0x20 else packet[4:]


def _section(payload: bytes, table: int) -> bytes:
    """Return a table without its checksum; b"" if it is another table, broken, or longer than one packet."""
    section = payload[1 + payload[0] :] if payload else b""
    end = 3 + (int.from_bytes(section[1:3]) & 0xFFF)
    if section[:1] != bytes([table]) or not 12 <= end <= len(section) or crc32(section[:end]):
        return b""
    return section[: end - 4]


def _map_pid(payload: bytes) -> int | None:
    """Return the PID of the first programme's map."""
    section = _section(payload, 0)
    entries = (section[at : at + 4] for at in range(8, len(section), 4))
    return next((int.from_bytes(entry[2:]) & 0x1FFF for entry in entries if entry[:2] != b"\0\0"), None)


def _tracks(section: bytes) -> Iterator[Track]:
    at = 12 + (int.from_bytes(section[10:12]) & 0xFFF)
    while at + 5 <= len(section):
        size = int.from_bytes(section[at + 3 : at + 5]) & 0xFFF
        yield Track(int.from_bytes(section[at + 1 : at + 3]) & 0x1FFF, section[at], section[at + 5 : at + 5 + size])
        at += 5 + size


def _descriptors(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= 2:
        yield data[0], data[2 : 2 + data[1]]
        data = data[2 + data[1] :]


def _stamps(pes: bytes) -> tuple[int, int] | None:
    """Return when a PES packet is to be presented and decoded; None without a time stamp."""
    if len(pes) < 14 or pes[:3] != b"\0\0\1" or not pes[7] & 0x80:
        return None
    shown = _stamp(pes[9:14])
    return shown, _stamp(pes[14:19]) if pes[7] & 0x40 and len(pes) >= 19 else shown


def _stamp(data: bytes) -> int:
    value = int.from_bytes(data)
    return (value >> 33 & 7) << 30 | (value >> 17 & 0x7FFF) << 15 | value >> 1 & 0x7FFF


def _restamped(pes: bytes, shown: int) -> bytes:
    """Return a PES packet with another presentation time, which for sound is also the decoding time."""
    fields = shown >> 30 << 33 | (shown >> 15 & 0x7FFF) << 17 | (shown & 0x7FFF) << 1 | 1 << 32 | 1 << 16 | 1
    stamp = bytearray(fields.to_bytes(5))
    stamp[0] |= pes[9] & 0xF0
    rest = bytearray(pes[14:])
    if pes[7] & 0x40 and len(rest) >= 5:
        rest[:5] = bytes([stamp[0] & 0x0F | 0x10]) + stamp[1:]
    return pes[:9] + bytes(stamp) + bytes(rest)
