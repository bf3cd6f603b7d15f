"""What waits in a job's queue: segments, pieces of a live feed that wait together, and marks between them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from whisper_byoc.errors import SegmentError

__all__ = ["JOINED_BYTES", "PIECE_BYTES", "Mark", "Pieces", "Segment"]

JOINED_BYTES = 480_000
"""Pieces of a live feed that wait share one place in the queue, up to 15 s of sound."""
PIECE_BYTES = 3_200
"""Pieces that wait and are smaller than this become one: 0.1 s, so that it matters little when which byte came."""


@dataclass(frozen=True)
class Segment:
    """One accepted segment, or the reason why its bytes cannot be one."""

    data: bytes | SegmentError
    reserved: int
    """Bytes taken in the queue's room."""
    arrived: float
    """Event loop time, in seconds."""

    def __len__(self) -> int:
        return 0 if isinstance(self.data, SegmentError) else len(self.data)


@dataclass
class Pieces:
    """Consecutive pieces of a live feed, with their times of arrival; more may join while they wait."""

    pieces: list[tuple[bytes, float]]
    reserved: int

    def __len__(self) -> int:
        return self.reserved

    def add(self, data: bytes, arrived: float) -> None:
        """Join a piece."""
        self.reserved += len(data)
        if len(self.pieces[-1][0]) + len(data) <= PIECE_BYTES:
            data = self.pieces.pop()[0] + data
        self.pieces.append((data, arrived))


class Mark(Enum):
    """What stands in the inbox beside sound."""

    READY = "ready"
    """The session of a live feed has results between two pieces."""
    LULL = "lull"
    """Nothing has come for a while."""
    END = "end"
    """Nothing will come any more."""
