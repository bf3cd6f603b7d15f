"""Every bound of the gateway and the orchestrator."""

from dataclasses import dataclass

MIB = 1024 * 1024


@dataclass(frozen=True)
class NetworkLimits:
    """Sizes are bytes, times are seconds."""

    frame_bytes: int = 64 * MIB
    """Largest frame, and largest body of a batch job; a container of ours takes as much."""
    feed_bytes: int = MIB
    """How much of a live feed is kept for another peer until one has answered: 30 s of PCM16."""
    total_bytes: int = 1024 * MIB
    """All bodies that are held at once; beyond it 503."""
    jobs: int = 256
    """Requests with a body at once; beyond it 503."""
    job_seconds: float = 120.0
    """Longest wait for the result of a frame, and for the answer to a batch job that names no time."""
    stall_seconds: float = 300.0
    """Longest time for which a reader may take nothing, or a container say nothing after the end of a feed."""
    open_seconds: float = 35.0
    """Longest wait for a container to open a job; ours lets a request wait 30 s for room."""
    ask_seconds: float = 1.0
    """How often a container is asked how it is."""
    answer_seconds: float = 5.0
    """Longest wait for a container's word on its health, or on the end of a job."""
    forget_seconds: float = 600.0
    """A container that registered itself and has been gone for so long is forgotten."""
    stop_seconds: float = 10.0
    """Longest wait for a container's answer to the stop of a stream (go-livepeer)."""
    linger_seconds: float = 0.5
    """Channels stay open for so long after a stop: readers ask for what was written last."""
    events_seconds: float = 40.0
    """A stream without an event for so long has lost its container: go-livepeer's 30 s, seen at its 10 s ticks."""
    control_seconds: float = 40.0
    """A gateway writes to the control channel every 10 s; one that has stopped doing so for so long is gone."""
    drain_seconds: float = 20.0
    """Longest time between SIGTERM and exit."""
