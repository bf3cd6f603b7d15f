"""What all routes of the orchestrator share, and the rule by which a job finds its container."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import aiohttp
from aiohttp import web

from whisper_byoc.errors import PeerBusy, PeerFailed, RequestRefused
from whisper_byoc.network.feed import Feed
from whisper_byoc.network.limits import NetworkLimits
from whisper_byoc.network.orchestrator.health import Follower
from whisper_byoc.network.orchestrator.pool import Container, Pool, Slot
from whisper_byoc.network.out import Out
from whisper_byoc.network.tasks import Tasks
from whisper_byoc.trickle.limits import Memory

__all__ = ["Context"]

log = logging.getLogger("whisper_byoc.network.orchestrator")


@dataclass
class Context:
    """The parts of one orchestrator."""

    pool: Pool
    follower: Follower
    http: aiohttp.ClientSession
    memory: Memory
    limits: NetworkLimits
    tasks: Tasks = field(default_factory=Tasks)
    draining: bool = False

    def check_draining(self) -> None:
        """Raise `RequestRefused` (503) once no new work is taken."""
        if self.draining:
            raise RequestRefused(503, "the orchestrator is shutting down", retry_after=5)

    async def on_some_container(
        self, name: str, run: Callable[[Slot], Awaitable[web.StreamResponse]], feed: Feed, out: Out
    ) -> web.StreamResponse:
        """Run a job, and once more elsewhere if its container fails before anything came of it.

        A container that turns out to be busy does not count: the next one with a free place is asked. `run` frees the
        slot that it is given. Raises `RequestRefused` when nothing has been answered yet.
        """
        passed_over: list[Container] = []
        failure: RequestRefused | None = None
        while True:
            try:
                slot = self.pool.take(name, passed_over)
            except RequestRefused as error:
                return await out.fail(failure or error)
            passed_over.append(slot.container)
            try:
                return await run(slot)
            except PeerBusy as error:
                failure = failure or error
                if out.produced or not feed.replayable:  # it began, and cannot go on
                    return await out.fail(error)
            except PeerFailed as error:
                self.follower.doubt(slot.container)
                second = isinstance(failure, PeerFailed) and failure.reached
                failure = error
                if second or error.status == 504 or out.produced or not feed.replayable or self.draining:
                    return await out.fail(error)
                log.warning("%s: %s; trying another container", name, error)
            except RequestRefused as error:
                return await out.fail(error)
            await asyncio.sleep(0)  # a row of refusals leaves the loop to others
