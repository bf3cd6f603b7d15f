"""The limits of a trickle server, and the count of bytes that it holds."""

from dataclasses import dataclass

from whisper_byoc.trickle.errors import MemoryFull


@dataclass(frozen=True)
class TrickleLimits:
    """What one server accepts. go-livepeer limits neither bytes nor channels; its times are the defaults here."""

    segment_bytes: int = 256 << 20
    """Largest segment; beyond it, 413."""
    total_bytes: int = 2 << 30
    """Total of all segments that are in a window or still being read; beyond it, 503."""
    channels: int = 10_000
    """Channels open at once; beyond it, 503."""
    idle_seconds: float = 300.0
    """A channel without a new segment for this long is closed (go-livepeer: 5 minutes)."""
    sweep_seconds: float = 60.0
    """How often idle channels and stalled connections are looked for (go-livepeer: 1 minute)."""
    interim_seconds: float = 10.0
    """How often a publisher that has sent nothing yet gets `100 Continue` (go-livepeer: 10 s)."""
    resume_seconds: float = 5.0
    """How long readers of an upload that broke off wait for another to continue it, unless a later segment begins first
    (go-livepeer: until somebody ends the segment)."""
    probe_seconds: float = 10.0
    """How often the server checks that a waiting reader is still connected."""
    stall_seconds: float = 60.0
    """A reader that takes nothing for this long while bytes wait for it is cut off at the next sweep; so is a writer
    that sends nothing, once its segment can no longer be requested."""


class ByteBudget:
    """Counts the bytes that a server holds in memory, up to a limit."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held = 0

    def take(self, size: int) -> None:
        """Count `size` more bytes; raises `MemoryFull` if they would be too many."""
        if self.held + size > self.limit:
            raise MemoryFull(f"the server holds {self.held} of {self.limit} bytes; try again later")
        self.held += size

    def give(self, size: int) -> None:
        self.held -= size
