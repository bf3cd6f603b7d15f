"""The containers of an orchestrator: what each offers, how much of it is in use, and whether it is healthy."""

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from whisper_byoc.aio import Tasks
from whisper_byoc.errors import PeerBusy, PeerFailed, RequestRefused
from whisper_byoc.http import CONNECTION_ERRORS, reason_of
from whisper_byoc.network.peers import AbortScope, ask
from whisper_byoc.network.serving import NetworkLimits

log = logging.getLogger("whisper_byoc.network.orchestrator")

SILENCES = 3
"""A container that does not answer this many times in a row is gone.

One that refuses connections is gone at once, unless it has unregistered: then what it sent before it ended is still
read."""
FORGOTTEN = 600
"""A container that registered itself is forgotten after not answering this many times in a row."""
NOT_READY = ("LOADING", "ERROR")
STALE_S = 3.0
"""What a container last said about its places is not trusted after this long; it is asked every second."""


@dataclass(eq=False)
class Container:
    """One container, as the provider of one capability."""

    name: str
    url: str
    """Base URL, without a trailing slash."""
    capacity: int
    """How many jobs it takes at once."""
    token: str = field(default="", repr=False)
    """Bearer token that it requires; empty for none."""
    registered: bool = False
    """Whether it registered itself, and so may unregister."""
    ready: bool = False
    trouble: str = "not asked yet"
    """Why it is not ready."""
    pipelines: tuple[str, ...] | None = None
    """What it says it serves; None until it is asked, empty if it does not say."""
    leaving: bool = False
    """Whether it has unregistered, and is kept only until its last job is over."""
    fits: int | None = None
    """Live jobs that it can do in time, by its own measurement; None if it does not say."""
    room: int | None = None
    """Our share of these when it was last asked: the jobs it had from us, plus those it would have accepted."""
    heard: float = field(default_factory=time.monotonic)
    """When it last answered."""
    slots: set["Slot"] = field(default_factory=set)

    @property
    def peer(self) -> str:
        return f"the container at {self.url}"

    @property
    def places(self) -> int:
        """How many more jobs it may be sent; it may still refuse them."""
        return max(0, self.capacity - len(self.slots)) if self.ready and not self.leaving else 0

    @property
    def free(self) -> int:
        """How many more live jobs it would accept."""
        return self.places if self.room is None else max(0, min(self.places, self.room - len(self.slots)))

    @property
    def size(self) -> int:
        return self.capacity if self.fits is None else min(self.capacity, self.fits)

    @property
    def rank(self) -> tuple[bool, float, int, float]:
        """Sort key for the next job, highest first: by the share of it that is free."""
        fresh = time.monotonic() - self.heard < STALE_S
        return fresh, self.free / max(self.size, 1), self.free, random.random()  # noqa: S311 (it spreads ties)

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"} if self.token else {}

    @property
    def query(self) -> dict[str, str]:
        """The query that tells it which pipeline is meant; empty if it has only one."""
        return {} if self.pipelines and len(self.pipelines) == 1 else {"pipeline": self.name}

    def describe(self) -> dict[str, Any]:
        """Describe it for the public, without its token."""
        told = {name: getattr(self, name) for name in ("url", "ready", "capacity", "registered", "trouble")}
        return {**told, "fits": self.fits, "free": self.free, "load": len(self.slots)}

    def is_ready(self) -> None:
        if not self.ready and not self.leaving:
            self.ready, self.trouble = True, ""
            log.info("BYOC capability registered: %s", self.name)
            log.info("%s is at %s, capacity %d", self.name, self.url, self.capacity)
            if self.pipelines and self.name not in self.pipelines:
                log.warning("%s says that it serves %s, not %s", self.url, ", ".join(self.pipelines), self.name)

    def not_ready(self, trouble: str) -> None:
        """Note that it accepts no new jobs; those it has go on."""
        if self.ready:
            log.warning("BYOC capability lost: %s (%s): %s", self.name, self.url, trouble)
        elif trouble != self.trouble and not self.leaving:
            log.info("waiting for %s (%s): %s", self.name, self.url, trouble)
        self.ready, self.trouble, self.pipelines = False, trouble, None

    def gone(self, trouble: str) -> None:
        self.not_ready(trouble)
        self.abort_jobs(f"{self.peer} is gone: {trouble}")

    def abort_jobs(self, reason: str) -> None:
        for slot in tuple(self.slots):
            slot.abort(reason)


class Slot(AbortScope):
    """One job's place at a container, until `free`; aborted when the container is gone."""

    def __init__(self, container: Container) -> None:
        super().__init__()
        self.container = container
        container.slots.add(self)

    @asynccontextmanager
    async def guard(self) -> AsyncIterator[None]:
        """Guard work as the scope does, and record it when the container cannot be reached."""
        try:
            async with super().guard():
                yield
        except PeerFailed as error:
            if not error.reached:
                self.container.not_ready(str(error))
            raise

    def free(self) -> None:
        """Free the place. Further calls do nothing."""
        self.container.slots.discard(self)


class Pool:
    """All containers. A capability's jobs go to the container with the largest free share."""

    def __init__(self) -> None:
        self._containers: list[Container] = []

    def __iter__(self) -> Iterator[Container]:
        """Yield every container that offers something or still has a job."""
        self._containers = [each for each in self._containers if each.slots or not each.leaving]
        return iter(tuple(self._containers))

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(each.name for each in self if not each.leaving))

    def of(self, name: str) -> list[Container]:
        return [each for each in self if each.name == name and not each.leaving]

    def free(self, name: str) -> int:
        return sum(each.free for each in self.of(name))

    def size(self, name: str) -> int:
        return sum(each.size for each in self.of(name) if each.ready)

    def find(self, name: str, url: str) -> Container | None:
        """Return the container with this name and URL, even one that is leaving."""
        return next((each for each in self if (each.name, each.url) == (name, url)), None)

    def add(self, container: Container) -> Container:
        """Add a container, or update the one with this name and URL; its jobs go on."""
        known = self.find(container.name, container.url)
        if known is None:
            self._containers.append(container)
            return container
        known.capacity = container.capacity
        known.token = container.token or ("" if known.registered else known.token)
        known.leaving = False
        return known

    def slots(self, name: str, *, live: bool = True) -> Iterator[Slot]:
        """Yield a place at one container after another, for a job that has to try several, and free each.

        A container that refused gets no live job until it has been asked again. One that has no time for live jobs may
        still have time for others. Raises `RequestRefused` (404) for a capability that nobody offers, `PeerFailed`
        (502) when no container is ready, `PeerBusy` (503) when all places are taken.
        """
        tried: list[Container] = []
        while found := [each for each in self.of(name) if (each.free if live else each.places) and each not in tried]:
            best = max(found, key=lambda each: each.rank)
            tried.append(best)
            yield Slot(best)
            if live:
                best.room = 0
        if not tried or any(each.ready and each not in tried for each in self.of(name)):
            raise self._no_place(name)

    def _no_place(self, name: str) -> RequestRefused:
        known = self.of(name)
        if not known:
            return RequestRefused(404, f"model not found: {name!r}; there are: {', '.join(self.names) or 'none'}")
        ready = [each for each in known if each.ready]
        if not ready:
            troubles = "; ".join(f"{each.url}: {each.trouble}" for each in known)
            return PeerFailed(f"no container for {name!r} can take jobs now: {troubles}")
        return PeerBusy(f"no capacity for {name!r}: all {self.size(name)} places are taken")


class HealthCheck:
    """Asks for the health of each container in a pool, in one task each."""

    def __init__(self, pool: Pool, http: aiohttp.ClientSession, limits: NetworkLimits) -> None:
        self._pool = pool
        self._http = http
        self._limits = limits
        self._tasks = Tasks()

    def add(self, container: Container) -> Container:
        """Add a container to the pool, or update it there; a new one is asked from now on."""
        known = self._pool.add(container)
        if known is container:
            self._tasks.start(self._follow(container))
        return known

    async def close(self) -> None:
        await self._tasks.close()

    async def _follow(self, container: Container) -> None:
        silences = 0
        while container in tuple(self._pool):
            try:
                trouble = await self._ask(container)
                silences, container.heard = 0, time.monotonic()
                container.not_ready(trouble) if trouble else container.is_ready()
            except CONNECTION_ERRORS as error:
                silences += 1
                if _connection_refused(error) and not container.leaving:
                    container.gone(reason_of(error))
                elif silences >= SILENCES:
                    container.gone(f"{SILENCES} times in a row it gave no answer: {reason_of(error)}")
                else:
                    container.not_ready(reason_of(error))
                container.leaving = container.leaving or (container.registered and silences > FORGOTTEN)
            except Exception:  # a bug here must not end the health checks
                log.exception("asking %s how it is failed", container.url)
            await asyncio.sleep(self._limits.ask_seconds)

    async def _ask(self, container: Container) -> str:
        """Return why a container accepts no jobs; empty if it does.

        `/readyz` is asked first; a container without it is ready unless `/health` says otherwise.
        """
        url, seconds = container.url, self._limits.answer_seconds
        status, body = await ask(self._http, f"{url}/readyz", seconds, container.query)
        free, fits = body.get("free"), body.get("fits")
        container.room = container.fits = None
        if isinstance(free, int) and isinstance(fits, int):
            container.room, container.fits = len(container.slots) + free, fits
        if status == 503:
            reasons = body.get("reasons")
            return "; ".join(map(str, reasons)) if isinstance(reasons, list) and reasons else "it is not ready"
        if status != 200:
            status, body = await ask(self._http, f"{url}/health", seconds)
            health = body.get("status")
            if status >= 500 or health in NOT_READY:
                return f"its health is {health or status}"
        if container.pipelines is None:
            _, body = await ask(self._http, f"{url}/version", seconds)
            names = body.get("model_id")
            container.pipelines = tuple(names.split(",")) if isinstance(names, str) and names else ()
        return ""


def _connection_refused(error: BaseException) -> bool:
    """Return whether nobody is listening there; a failed name lookup says nothing about the container."""
    return isinstance(error, aiohttp.ClientConnectorError) and not isinstance(error, aiohttp.ClientConnectorDNSError)
