"""Which containers there are, for which capability, and how much of each is taken."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

from whisper_byoc.errors import PeerBusy, PeerFailed, RequestRefused
from whisper_byoc.network.tether import Tether

__all__ = ["Container", "Pool", "Slot"]

log = logging.getLogger("whisper_byoc.network.orchestrator")


@dataclass(eq=False)
class Container:
    """One container under the name of one capability that it offers."""

    name: str
    url: str
    """Base URL, without a slash at its end."""
    capacity: int
    """Jobs at once."""
    token: str = field(default="", repr=False)
    """Bearer token that it wants to be shown; empty is none."""
    registered: bool = False
    """Whether it registered itself, and may take that back."""
    price: dict[str, int] = field(default_factory=dict)
    ready: bool = False
    trouble: str = "not asked yet"
    """Why it is not ready."""
    serves: tuple[str, ...] = ()
    """Names of its pipelines, where it tells them."""
    asked_names: bool = False
    """Whether it was asked for them since it came."""
    leaving: bool = False
    """Whether it has unregistered, and is only known until its last job is over."""
    gone_at: float = field(default_factory=time.monotonic)
    """Since when it has not been ready."""
    slots: set[Slot] = field(default_factory=set)
    together: Collection[Container] = field(default=(), repr=False)
    """The names of one container, this one among them, that share its capacity; empty: this one has its own."""

    @property
    def load(self) -> int:
        """Jobs that take up its capacity."""
        return sum(len(each.slots) for each in self.together or (self,))

    @property
    def free(self) -> int:
        """Jobs that it could take now."""
        return max(0, self.capacity - self.load) if self.ready and not self.leaving else 0

    @property
    def headers(self) -> dict[str, str]:
        """What every request to it carries."""
        return {"Authorization": f"Bearer {self.token}"} if self.token else {}

    @property
    def query(self) -> dict[str, str]:
        """What tells it which pipeline is meant, unless it has only one."""
        return {} if len(self.serves) == 1 else {"pipeline": self.name}

    def answers(self) -> None:
        """Note that it can take jobs."""
        if not self.ready and not self.leaving:
            self.ready, self.trouble = True, ""
            log.info("BYOC capability registered: %s", self.name)
            log.info("%s is at %s, capacity %d", self.name, self.url, self.capacity)
            if self.serves and len(self.serves) == 1 and self.serves[0] != self.name:
                log.warning("%s says that it serves %s; it gets the jobs for %s", self.url, self.serves[0], self.name)

    def refuses(self, trouble: str) -> None:
        """Note that it takes no new jobs; those it has go on."""
        if self.ready:
            self.gone_at = time.monotonic()
            log.warning("BYOC capability lost: %s (%s): %s", self.name, self.url, trouble)
        elif trouble != self.trouble and not self.leaving:
            log.info("waiting for %s (%s): %s", self.name, self.url, trouble)
        self.ready, self.trouble, self.asked_names = False, trouble, False

    def died(self, trouble: str) -> None:
        """Note that it is gone, and end the jobs it had."""
        self.refuses(trouble)
        for slot in tuple(self.slots):
            slot.lose(f"the container at {self.url} is gone: {trouble}")


class Slot(Tether):
    """One job's place at a container, until `free`. The job hangs on it, as it does on the container."""

    def __init__(self, container: Container) -> None:
        super().__init__()
        self.container = container
        container.slots.add(self)

    def free(self) -> None:
        """Give the place back. More calls do nothing."""
        self.container.slots.discard(self)


class Pool:
    """All containers. A capability's jobs go to the container with the most free places."""

    def __init__(self) -> None:
        self._containers: list[Container] = []

    def __iter__(self) -> Iterator[Container]:
        """Give every container that offers something, or still has a job."""
        self._containers = [each for each in self._containers if each.slots or not each.leaving]
        return iter(tuple(self._containers))

    @property
    def names(self) -> tuple[str, ...]:
        """Capabilities that some container offers, ready or not."""
        return tuple(dict.fromkeys(each.name for each in self if not each.leaving))

    @property
    def jobs(self) -> int:
        """Places that are taken."""
        return sum(len(each.slots) for each in self._containers)

    def of(self, name: str) -> list[Container]:
        """Containers that offer a capability."""
        return [each for each in self if each.name == name and not each.leaving]

    def free(self, name: str) -> int:
        """Jobs of a capability that could be taken now."""
        return sum(each.free for each in self.of(name))

    def free_elsewhere(self, name: str, without: Collection[Container]) -> bool:
        """Whether another container could take a job now."""
        return any(each.free for each in self.of(name) if each not in without)

    def find(self, name: str, url: str) -> Container | None:
        """Find a container, also one that is leaving."""
        return next((each for each in self if (each.name, each.url) == (name, url)), None)

    def add(self, container: Container) -> Container:
        """Add a container, or change what is known of the one with this name and URL; its jobs go on."""
        known = self.find(container.name, container.url)
        if known is None:
            self._containers.append(container)
            return container
        known.capacity, known.price = container.capacity, container.price
        known.token = container.token or ("" if known.registered else known.token)
        known.leaving = False
        return known

    def remove(self, container: Container) -> None:
        """Give a container no more jobs, and forget it when those that it has are over."""
        container.leaving = True

    def take(self, name: str, without: Collection[Container] = ()) -> Slot:
        """Take a place for a job.

        Raises `RequestRefused` (404) for a capability that nobody offers, `PeerFailed` (502) when no container answers,
        `PeerBusy` (503) when all places are taken.
        """
        known = self.of(name)
        if not known:
            names = ", ".join(self.names) or "none"
            raise RequestRefused(404, f"model not found: {name!r}; there are: {names}")
        ready = [each for each in known if each.ready and each not in without]
        if not ready:
            troubles = "; ".join(f"{each.url}: {each.trouble or 'just failed'}" for each in known)
            raise PeerFailed(f"no container for {name!r} can take jobs now: {troubles}")
        free = [each for each in ready if each.free]
        if not free:
            raise PeerBusy(f"no capacity for {name!r}: all {sum(each.capacity for each in ready)} places are taken")
        return Slot(max(free, key=lambda each: each.free))
