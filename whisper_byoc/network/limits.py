"""Every bound of the gateway and the orchestrator in one place."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["NetworkLimits"]

MIB = 1024 * 1024


@dataclass(frozen=True)
class NetworkLimits:
    """Sizes are bytes, times are seconds."""

    frame_bytes: int = 64 * MIB
    """Largest frame, and largest body of a batch job; a container of ours takes as much."""
    hold_bytes: int = 16 * MIB
    """So much of a live feed is kept for another container while nothing has come of it: 8 minutes of PCM16."""
    total_bytes: int = 1024 * MIB
    """All bodies that are held at once; beyond it 503."""
    jobs: int = 256
    """Requests with a body at once; beyond it 503."""
    job_seconds: float = 120.0
    """Longest wait for the result of a frame, and for the answer to a batch job that names no time."""
    stall_seconds: float = 300.0
    """Longest time for which a reader may take nothing, or a container say nothing after the end of a feed."""
    drain_seconds: float = 20.0
    """Longest time between SIGTERM and exit."""
