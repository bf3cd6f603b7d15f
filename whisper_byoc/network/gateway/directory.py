"""Which orchestrators there are, what they offer, and who of them takes a job."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from whisper_byoc.errors import RequestRefused
from whisper_byoc.network.header import sender_header
from whisper_byoc.network.out import PEER_ERRORS
from whisper_byoc.trickle.http import describe

__all__ = ["Directory", "Orchestrator"]

log = logging.getLogger("whisper_byoc.network.gateway")

ASK_EVERY_S = 2.0
ANSWER_S = 1.0
"""go-livepeer's gateway gives all token requests of a job one second."""
LARGEST = 1 << 20


@dataclass(eq=False)
class Orchestrator:
    """One orchestrator, and what it last said of itself."""

    url: str
    reachable: bool = False
    trouble: str = "not asked yet"
    offers: dict[str, int] = field(default_factory=dict)
    """Capability -> jobs of it that could be taken; empty for a go-livepeer node, which has no list."""

    def said(self, offers: dict[str, int]) -> None:
        """Note an answer."""
        if not self.reachable:
            log.info("orchestrator %s is reachable; it offers %s", self.url, ", ".join(offers) or "nothing yet")
        self.reachable, self.trouble, self.offers = True, "", offers

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

    async def not_found(self, name: str) -> RequestRefused:
        """Give the error for a model that no orchestrator has, with the names there are now."""
        await self.ask()
        if not any(each.reachable for each in self._orchestrators):
            troubles = "; ".join(f"{each.url}: {each.trouble}" for each in self._orchestrators)
            return RequestRefused(502, f"no orchestrator can be reached: {troubles}")
        names = ", ".join(self.available) or "none"
        return RequestRefused(404, f"model not found: {name!r}; there are: {names}")

    async def ask(self) -> None:
        """Ask all orchestrators what they offer."""
        await asyncio.gather(*map(self._ask, self._orchestrators))

    async def with_places(self, capability: str, filters: object) -> list[str]:
        """Ask for tokens as go-livepeer's gateway does, and give the service addresses of those with a place, in order.

        `filters` is `orchestrators` of a job's parameters: URLs to `include` or to `exclude`.
        Raises `RequestRefused` (400) when there are none.
        """
        asked = [each for each in self.ranked(capability) if wanted(each.url, filters)]
        found = [each for each in await asyncio.gather(*(self._token(each, capability) for each in asked)) if each]
        if not found:
            raise RequestRefused(400, f"no orchestrator has a place for {capability!r}: {self._troubles(asked)}")
        return list(dict.fromkeys(found))

    def _troubles(self, asked: Sequence[Orchestrator]) -> str:
        if not asked:
            return "the job's filters leave none"
        offers = ", ".join(self.available) or "nothing"
        return "; ".join(f"{each.url}: {each.trouble or 'all places taken, or not offered'}" for each in asked) + (
            f"; offered is {offers}"
        )

    async def _token(self, orchestrator: Orchestrator, capability: str) -> str:
        """Give an orchestrator's service address; empty when it has no place, or no answer."""
        headers = {"Livepeer-Eth-Address": sender_header(), "Livepeer-Capability": capability}
        try:
            status, body = await self._get(f"{orchestrator.url}/process/token", headers)
        except PEER_ERRORS as error:
            orchestrator.silent(describe(error))
            return ""
        free, address = body.get("available_capacity"), body.get("service_addr")
        if status != 200 or not isinstance(free, int) or free < 1:
            return ""
        known = isinstance(address, str) and address.startswith(("http://", "https://"))
        return str(address).rstrip("/") if known else orchestrator.url

    async def _ask_for_ever(self) -> None:
        while True:
            await self.ask()
            await asyncio.sleep(ASK_EVERY_S)

    async def _ask(self, orchestrator: Orchestrator) -> None:
        try:
            _, body = await self._get(f"{orchestrator.url}/capabilities", {})
        except PEER_ERRORS as error:
            orchestrator.silent(describe(error))
            return
        listed = body.get("capabilities")
        offers: dict[str, int] = {}
        for each in listed if isinstance(listed, list) else ():
            if isinstance(each, dict) and isinstance(each.get("available"), int):
                offers[str(each.get("name"))] = each["available"]
        orchestrator.said(offers)

    async def _get(self, url: str, headers: Mapping[str, str]) -> tuple[int, dict[str, Any]]:
        limit = aiohttp.ClientTimeout(total=ANSWER_S)
        async with self._http.get(url, headers=headers, timeout=limit, allow_redirects=False) as answer:
            body = bytearray()
            async for data in answer.content.iter_any():
                body += data
                if len(body) > LARGEST:
                    break
            try:
                found = json.loads(body)
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
