"""The orchestrators of a gateway: what each offers, and which of them has a place for a job."""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from whisper_byoc import livepeer
from whisper_byoc.aio import every
from whisper_byoc.errors import RequestRefused
from whisper_byoc.http import CONNECTION_ERRORS, reason_of
from whisper_byoc.network.peers import ask

log = logging.getLogger("whisper_byoc.network.gateway")

ASK_EVERY_S = 2.0
ANSWER_S = 2.0
"""go-livepeer's gateway gives all token requests of a job one second; here a busy machine may take longer."""


@dataclass(eq=False)
class KnownOrchestrator:
    """One orchestrator, and what it last said of itself."""

    url: str
    reachable: bool = False
    trouble: str = "not asked yet"
    offers: dict[str, int] = field(default_factory=dict)
    """Capability -> jobs of it that could be taken; empty for a go-livepeer node, which has no list."""

    def describe(self) -> dict[str, Any]:
        told = {"url": self.url, "reachable": self.reachable, "trouble": self.trouble}
        return {**told, "capabilities": list(self.offers)}

    def answered(self, offers: dict[str, int]) -> None:
        if not self.reachable:
            log.info("orchestrator %s is reachable; it offers %s", self.url, ", ".join(offers) or "nothing yet")
        self.reachable, self.trouble, self.offers = True, "", offers

    def failed(self, trouble: str) -> None:
        if trouble != self.trouble:
            log.warning("orchestrator %s cannot be reached: %s", self.url, trouble)
        self.reachable, self.trouble, self.offers = False, trouble, {}


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
        """Capability -> jobs of it that could be taken by all orchestrators together."""
        total: dict[str, int] = {}
        for each in self._orchestrators:
            for name, free in each.offers.items():
                total[name] = total.get(name, 0) + free
        return total

    def capabilities(self) -> dict[str, Any]:
        return {
            "capabilities": [{"name": name, "available": free} for name, free in self.available.items()],
            "orchestrators": [each.describe() for each in self._orchestrators],
        }

    def ranked(self, name: str) -> list[str]:
        """Return the URLs of all orchestrators, the most promising first: the list may be some seconds old."""
        ranked = sorted(self._orchestrators, key=lambda each: (-each.offers.get(name, -1), not each.reachable))
        return [each.url for each in ranked]

    async def with_places(self, capability: str) -> list[str]:
        """Ask for tokens as go-livepeer's gateway does, and return the service addresses of those with a place.

        Only those that can be reached are asked, if there are any. Most free places come first.
        Raises `RequestRefused` (400) when nobody has a place.
        """
        if not capability.isprintable():
            raise RequestRefused(400, f"{capability!r:.80} cannot be the name of a capability")
        asked = [each for each in self._orchestrators if each.reachable] or self._orchestrators
        found = await asyncio.gather(*(self._token(each, capability) for each in asked))
        places = sorted((place for place in found if place[0] > 0), key=lambda place: -place[0])
        if not places:
            offers = ", ".join(self.available) or "nothing"
            full = "all places taken, or not offered"
            troubles = "; ".join(f"{each.url}: {each.trouble or full}" for each in self._orchestrators)
            message = f"no orchestrator has a place for {capability!r}: {troubles}; offered is {offers}"
            raise RequestRefused(400, message)
        return list(dict.fromkeys(address for _, address in places))

    async def _token(self, orchestrator: KnownOrchestrator, capability: str) -> tuple[int, str]:
        """Return how many jobs an orchestrator could take, and its service address; 0 when there is no answer."""
        headers = {livepeer.SENDER: livepeer.sender_header(), livepeer.CAPABILITY: capability}
        try:
            status, body = await ask(self._http, f"{orchestrator.url}/process/token", ANSWER_S, headers)
        except CONNECTION_ERRORS as error:
            orchestrator.failed(reason_of(error))
            return 0, ""
        free, address = body.get("available_capacity"), body.get("service_addr")
        if status != 200 or type(free) is not int:
            return 0, ""
        known = isinstance(address, str) and address.startswith(("http://", "https://"))
        return free, str(address).rstrip("/") if known else orchestrator.url

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
        offers: dict[str, int] = {}
        for each in listed if isinstance(listed, list) else ():
            if isinstance(each, dict) and isinstance(each.get("name"), str) and type(each.get("available")) is int:
                offers[each["name"]] = max(0, each["available"])
        orchestrator.answered(offers)
