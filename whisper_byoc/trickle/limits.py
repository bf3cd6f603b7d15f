"""The bounds of a trickle server, and the count of the bytes it holds."""

from __future__ import annotations

import weakref
from dataclasses import dataclass

from whisper_byoc.trickle.errors import MemoryFull

__all__ = ["Memory", "Share", "TrickleLimits"]


@dataclass(frozen=True)
class TrickleLimits:
    """What one server takes. go-livepeer bounds neither bytes nor channels; its times are the defaults here."""

    segment_bytes: int = 256 << 20
    """Largest segment; beyond it 413."""
    total_bytes: int = 2 << 30
    """All segments that are in a window or still being read; beyond it 503."""
    channels: int = 10_000
    """Channels open at once; beyond it 503."""
    idle_seconds: float = 300.0
    """A channel without a new segment for so long is closed (go-livepeer: 5 minutes)."""
    sweep_seconds: float = 60.0
    """How often idle channels and stalled readers are looked for (go-livepeer: 1 minute)."""
    interim_seconds: float = 10.0
    """How often a publisher that has sent nothing yet gets `100 Continue` (go-livepeer: 10 s)."""
    probe_seconds: float = 10.0
    """How often a waiting reader is checked for having gone."""
    stall_seconds: float = 60.0
    """A reader that takes nothing for so long while bytes wait for it is cut off at the next sweep.

    So is a writer that sends nothing for so long of a segment that nobody can ask for any more.
    """


class Memory:
    """Bytes held by all segments of a server, also by those that left their window but are still read."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held = 0

    def share(self, owner: object) -> Share:
        """Give the account of one segment; it is settled when the owner is freed."""
        share = Share(self)
        weakref.finalize(owner, share.free).atexit = False
        return share


class Share:
    """What one segment holds."""

    __slots__ = ("_memory", "size")

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self.size = 0

    def take(self, size: int) -> None:
        """Account for `size` more bytes.

        Raises `MemoryFull`.
        """
        if self._memory.held + size > self._memory.limit:
            raise MemoryFull(f"the server holds {self._memory.held} of {self._memory.limit} bytes; try again later")
        self._memory.held += size
        self.size += size

    def give(self, size: int) -> None:
        """Give `size` bytes back."""
        self._memory.held -= size
        self.size -= size

    def free(self) -> None:
        """Give everything back."""
        self._memory.held -= self.size
        self.size = 0
