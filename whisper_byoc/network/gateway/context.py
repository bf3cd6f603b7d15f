"""What all routes of the gateway share."""

from __future__ import annotations

from dataclasses import dataclass, field

import aiohttp

from whisper_byoc.errors import RequestRefused
from whisper_byoc.network.gateway.directory import Directory
from whisper_byoc.network.limits import NetworkLimits
from whisper_byoc.network.tasks import Tasks
from whisper_byoc.network.tether import Tether
from whisper_byoc.trickle.limits import Memory

__all__ = ["Context"]


@dataclass
class Context:
    """The parts of one gateway."""

    directory: Directory
    http: aiohttp.ClientSession
    memory: Memory
    limits: NetworkLimits
    tasks: Tasks = field(default_factory=Tasks)
    jobs: int = 0
    draining: bool = False
    tether: Tether = field(default_factory=Tether)
    """What all jobs hang on; cut when the time for draining is over."""

    def __enter__(self) -> None:
        """Count a job.

        Raises `RequestRefused` (503) once no new work is taken, or too much is going on.
        """
        if self.draining:
            raise RequestRefused(503, "the gateway is shutting down", retry_after=5)
        if self.jobs >= self.limits.jobs:
            raise RequestRefused(503, f"{self.jobs} jobs are going on, which is all this gateway takes", retry_after=1)
        self.jobs += 1

    def __exit__(self, *_: object) -> None:
        """Count it no more."""
        self.jobs -= 1
