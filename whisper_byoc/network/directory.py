"""The orchestrators of a gateway: what each offers, and which of them has a place for a job."""

import asyncio
import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from whisper_byoc.aio import every
from whisper_byoc.http import CONNECTION_ERRORS, reason_of
from whisper_byoc.network.peers import ask

log = logging.getLogger("whisper_byoc.network.gateway")

ASK_EVERY_S = 2.0
ANSWER_S = 2.0


@dataclass
class Places:
    """How many more jobs of a capability an orchestrator would accept, and out of how many."""

    free: int
    capacity: int


@dataclass(eq=False)
class KnownOrchestrator:
    """One orchestrator, and what it last reported about itself."""

    url: str
    reachable: bool = False
    trouble: str = "not asked yet"
    offers: dict[str, Places] = field(default_factory=dict)
    """By capability; empty for a go-livepeer node, which has no list."""

    def describe(self) -> dict[str, Any]:
        told = {"url": self.url, "reachable": self.reachable, "trouble": self.trouble}
        return {**told, "capabilities": list(self.offers)}

    def answered(self, offers: dict[str, Places]) -> None:
        if not self.reachable:
            log.info("orchestrator %s is reachable; it offers %s", self.url, ", ".join(offers) or "nothing yet")
        self.reachable, self.trouble, self.offers = True, "", offers

    def failed(self, trouble: str) -> None:
        if trouble != self.trouble:
            log.warning("orchestrator %s cannot be reached: %s", self.url, trouble)
        self.reachable, self.trouble, self.offers = False, trouble, {}

    def rank(self, name: str) -> tuple[float, int, bool, float]:
        """Sort key for the next job, highest first: by the share of its places that is free."""
        places = self.offers.get(name, Places(-1, 1))
        share = places.free / max(places.capacity, 1)
        return share, places.free, self.reachable, random.random()  # noqa: S311 (it spreads ties)


class Directory:
    """All orchestrators of one gateway."""

    def __init__(self, urls: Sequence[str], http: aiohttp.ClientSession) -> None:
        self._orchestrators = [KnownOrchestrator(url) for url in dict.fromkeys(urls)]
        self._http = http

    async def keep_asking(self) -> None:
        await self.ask()
        await every(ASK_EVERY_S, self.ask, "asking the orchestrators")

    async def ask(self) -> None:
        await asyncio.gather(*map(self._ask, self._orchestrators))

    @property
    def available(self) -> dict[str, int]:
        """Capability -> how many of its jobs all orchestrators together could accept."""
        total: dict[str, int] = {}
        for each in self._orchestrators:
            for name, places in each.offers.items():
                total[name] = total.get(name, 0) + places.free
        return total

    def capabilities(self) -> dict[str, Any]:
        return {
            "capabilities": [{"name": name, "available": free} for name, free in self.available.items()],
            "orchestrators": [each.describe() for each in self._orchestrators],
        }

    def ranked(self, name: str) -> list[str]:
        """Return the URLs of orchestrators that may have a place for a job, the one with the largest free share first.

        What is known is up to two seconds old; the job is assumed to go to the first. An orchestrator without a list is
        asked after those that list `name`; one that lists only other capabilities is asked only if none lists it.
        """
        found = [each for each in self._orchestrators if name in each.offers or not each.offers]
        ranked = sorted(found or self._orchestrators, key=lambda each: each.rank(name), reverse=True)
        if ranked and (first := ranked[0].offers.get(name)):
            first.free = max(first.free - 1, 0)
        return [each.url for each in ranked]

    async def _ask(self, orchestrator: KnownOrchestrator) -> None:
        try:
            status, body = await ask(self._http, f"{orchestrator.url}/capabilities", ANSWER_S)
        except CONNECTION_ERRORS as error:
            orchestrator.failed(reason_of(error))
            return
        if status >= 500:
            orchestrator.failed(f"it answered {status}")
            return
        listed = body.get("capabilities")
        offers: dict[str, Places] = {}
        for each in listed if isinstance(listed, list) else ():
            if isinstance(each, dict) and isinstance(each.get("name"), str) and type(each.get("available")) is int:
                free, capacity = max(0, each["available"]), each.get("capacity")
                offers[each["name"]] = Places(free, capacity if type(capacity) is int else free)
        orchestrator.answered(offers)
