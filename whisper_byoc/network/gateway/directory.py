"""Which orchestrators there are, what they offer, and who of them takes a job."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from whisper_byoc.errors import RequestRefused
from whisper_byoc.http import reason_of as describe
from whisper_byoc.network.header import sender_header
from whisper_byoc.network.out import PEER_ERRORS
from whisper_byoc.network.reading import json_value, read_answer

__all__ = ["Directory", "Orchestrator"]

log = logging.getLogger("whisper_byoc.network.gateway")

ASK_EVERY_S = 2.0
ANSWER_S = 2.0
"""go-livepeer's gateway gives all token requests of a job one second; here a busy machine may take longer."""
LARGEST = 1 << 20


@dataclass(eq=False)
class Orchestrator:
    """One orchestrator, and what it last said of itself."""

    url: str
    reachable: bool = False
    trouble: str = "not asked yet"
    offers: dict[str, int] = field(default_factory=dict)
    """Capability -> jobs of it that could be taken; empty for a go-livepeer node, which has no list."""
    offered: frozenset[str] = frozenset()
    """What it offered when it was last reachable."""

    def said(self, offers: dict[str, int]) -> None:
        """Note an answer."""
        if not self.reachable:
            log.info("orchestrator %s is reachable; it offers %s", self.url, ", ".join(offers) or "nothing yet")
        self.reachable, self.trouble, self.offers, self.offered = True, "", offers, frozenset(offers)

    def silent(self, trouble: str) -> None:
        """Note that there was no answer."""
        if trouble != self.trouble:
            log.warning("orchestrator %s cannot be reached: %s", self.url, trouble)
        self.reachable, self.trouble, self.offers = False, trouble, {}


class Directory:
    """All orchestrators of one gateway, asked every few seconds."""

    def __init__(self, urls: Sequence[str], http: aiohttp.ClientSession) -> None:
        self._orchestrators = [Orchestrator(url) for url in dict.fromkeys(urls)]
        self._http = http
        self._asking: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Directory:
        self._asking = asyncio.get_running_loop().create_task(self._ask_for_ever())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._asking:
            self._asking.cancel()
            await asyncio.wait({self._asking})

    @property
    def available(self) -> dict[str, int]:
        """Capability -> jobs of it that could be taken by all orchestrators together."""
        total: dict[str, int] = {}
        for each in self._orchestrators:
            for name, free in each.offers.items():
                total[name] = total.get(name, 0) + free
        return total

    def capabilities(self) -> dict[str, Any]:
        """Describe what there is."""
        return {
            "capabilities": [{"name": name, "available": free} for name, free in self.available.items()],
            "orchestrators": [
                {
                    "url": each.url,
                    "reachable": each.reachable,
                    "trouble": each.trouble,
                    "capabilities": list(each.offers),
                }
                for each in self._orchestrators
            ],
        }

    def ranked(self, name: str) -> list[Orchestrator]:
        """Give all orchestrators, the most promising first: the list may be some seconds old."""
        return sorted(self._orchestrators, key=lambda each: (-each.offers.get(name, 0), not each.reachable))

    async def not_found(self, name: str, said: RequestRefused) -> RequestRefused:
        """Give the error for a model that no orchestrator has, with the names there are; `said` is what one said."""
        await self.ask()
        if name in self.available:
            return said  # it is offered: something else was not found
        away = [each for each in self._orchestrators if not each.reachable]
        troubles = "; ".join(f"{each.url}: {each.trouble}" for each in away)
        if len(away) == len(self._orchestrators):
            return RequestRefused(502, f"no orchestrator can be reached: {troubles}")
        if any(name in each.offered for each in away):
            return RequestRefused(502, f"the orchestrator that offers {name!r} cannot be reached: {troubles}")
        names = ", ".join(self.available) or "none"
        hint = f" (cannot be reached: {troubles})" if away else ""
        return RequestRefused(404, f"model not found: {name!r}; there are: {names}{hint}")

    async def ask(self) -> None:
        """Ask all orchestrators what they offer."""
        await asyncio.gather(*map(self._ask, self._orchestrators))

    async def with_places(self, capability: str, filters: object) -> list[str]:
        """Ask for tokens as go-livepeer's gateway does, and give the service addresses of those with a place, in order.

        `filters` is `orchestrators` of a job's parameters: URLs to `include` or to `exclude`. Those that gave no answer
        last time are asked only when no other has a place: each job would wait for them.
        Raises `RequestRefused` (400) when there are none.
        """
        if not capability.isprintable():
            raise RequestRefused(400, f"{capability!r:.80} cannot be the name of a capability")
        asked = [each for each in self.ranked(capability) if wanted(each.url, filters)]
        here, away = ([each for each in asked if each.reachable is is_here] for is_here in (True, False))
        for some in (here, away):
            found = await asyncio.gather(*(self._token(each, capability) for each in some))
            places = sorted((place for place in found if place[0] > 0), key=lambda place: -place[0])
            if places:
                return list(dict.fromkeys(address for _, address in places))
        raise RequestRefused(400, f"no orchestrator has a place for {capability!r}: {self._troubles(asked)}")

    def _troubles(self, asked: Sequence[Orchestrator]) -> str:
        if not asked:
            return "the job's filters leave none"
        offers = ", ".join(self.available) or "nothing"
        return "; ".join(f"{each.url}: {each.trouble or 'all places taken, or not offered'}" for each in asked) + (
            f"; offered is {offers}"
        )

    async def _token(self, orchestrator: Orchestrator, capability: str) -> tuple[int, str]:
        """Give how many jobs an orchestrator could take, and its service address; 0 when there is no answer."""
        headers = {"Livepeer-Eth-Address": sender_header(), "Livepeer-Capability": capability}
        try:
            status, body = await self._get(f"{orchestrator.url}/process/token", headers)
        except PEER_ERRORS as error:
            orchestrator.silent(describe(error))
            return 0, ""
        free, address = body.get("available_capacity"), body.get("service_addr")
        if status != 200 or type(free) is not int:
            return 0, ""
        known = isinstance(address, str) and address.startswith(("http://", "https://"))
        return free, str(address).rstrip("/") if known else orchestrator.url

    async def _ask_for_ever(self) -> None:
        while True:
            try:
                await self.ask()
            except Exception:  # a bug must not end the asking
                log.exception("asking the orchestrators failed")
            await asyncio.sleep(ASK_EVERY_S)

    async def _ask(self, orchestrator: Orchestrator) -> None:
        try:
            status, body = await self._get(f"{orchestrator.url}/capabilities", {})
        except PEER_ERRORS as error:
            orchestrator.silent(describe(error))
            return
        if status >= 500:
            orchestrator.silent(f"it answered {status}")
            return
        listed = body.get("capabilities")
        offers: dict[str, int] = {}
        for each in listed if isinstance(listed, list) else ():
            if isinstance(each, dict) and isinstance(each.get("name"), str) and type(each.get("available")) is int:
                offers[each["name"]] = max(0, each["available"])
        orchestrator.said(offers)

    async def _get(self, url: str, headers: Mapping[str, str]) -> tuple[int, dict[str, Any]]:
        limit = aiohttp.ClientTimeout(total=ANSWER_S)
        async with self._http.get(url, headers=headers, timeout=limit, allow_redirects=False) as answer:
            try:
                found = json_value(await read_answer(answer, LARGEST))
            except ValueError:
                found = {}
            return answer.status, found if isinstance(found, dict) else {}


def wanted(url: str, filters: object) -> bool:
    """Whether a job's filters let an orchestrator through."""
    if not isinstance(filters, dict):
        return True
    include, exclude = (
        [str(each).rstrip("/") for each in found] if isinstance(found := filters.get(name), list) else []
        for name in ("include", "exclude")
    )
    return url not in exclude and (not include or url in include)
