"""What runs: a container, an orchestrator, a gateway."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import aiohttp

from whisper_byoc.cli.checks.finding import Finding, absent, fail, ok
from whisper_byoc.client.http import reason_of, whole
from whisper_byoc.errors import ServerRefused

__all__ = ["DEFAULTS", "Services"]

DEFAULTS = {
    "container": "http://localhost:8000",
    "orchestrator": "http://localhost:8936",
    "gateway": "http://localhost:8935",
}
STARTS = {
    "container": "whisper-byoc serve --pipeline whisper-tiny",
    "orchestrator": (
        "whisper-byoc orchestrator -orchestrator -network offchain -serviceAddr 127.0.0.1:8936 "
        "-byoc -byocContainerURL http://127.0.0.1:8000 -byocModelID whisper-tiny"
    ),
    "gateway": "whisper-byoc gateway -gateway -orchAddr 127.0.0.1:8936 -httpAddr 127.0.0.1:8935 -httpIngest",
}
ANSWER_BYTES = 1 << 20
ANSWER_SECONDS = 5.0
SILENCE = (aiohttp.ClientError, asyncio.TimeoutError, OSError)
NONSENSE = (ServerRefused, ValueError, TypeError, KeyError, AttributeError, RecursionError)


class Services:
    """Asks the services at their addresses: those in `named`, by role, must be there, others may be."""

    def __init__(self, http: aiohttp.ClientSession, named: dict[str, str | None]) -> None:
        self._http = http
        self._named = named

    async def container(self) -> Finding:
        """See whether it is there and ready, and what it serves."""
        url = self._url("container")
        try:
            status, ready = await self._get(f"{url}/readyz")
            _, version = await self._get(f"{url}/version")
            detail = f"{url}: version {version['version']}, serves {version['model_id']}"
            reasons = [str(each) for each in ready["reasons"]]
        except SILENCE as error:
            return self._silent("container", error)
        except NONSENSE:
            return self._stranger("container")
        if status == 200:
            return ok("container", detail)
        advice = "Wait until its model is loaded, or read its log; `/readyz` turns 200 when work can be taken."
        return fail("container", f"{detail}; not ready: {', '.join(reasons)}", advice)

    async def orchestrator(self) -> Finding:
        """See whether it is there, and which of its containers are ready."""
        advice = "Start a container, and see that -byocContainerURL and -byocModelID name it."
        return await self._broker("orchestrator", "containers", "url", "ready", advice)

    async def gateway(self) -> Finding:
        """See whether it is there, and reaches an orchestrator with something to offer."""
        advice = "Start an orchestrator and a container, and see that -orchAddr names the orchestrator."
        return await self._broker("gateway", "orchestrators", "url", "reachable", advice)

    async def identify(self, url: str) -> str:
        """Tell which role answers at an address; empty for a stranger."""
        for path, key in (("/status", "role"), ("/version", "model_id")):
            try:
                _, known = await self._get(url + path)
                return str(known[key]) if key == "role" else "container"
            except (*SILENCE, *NONSENSE):
                continue
        return ""

    async def _broker(self, role: str, parts: str, name: str, good: str, advice: str) -> Finding:
        """Look at what an orchestrator or gateway offers, and at the trouble it has with those behind it."""
        url = self._url(role)
        try:
            _, known = await self._get(f"{url}/capabilities")
            offers = known["capabilities"]
            named = [f"{each['name']} ({each['available']} free)" for each in offers]
            behind = known[parts] if parts in known else [part for each in offers for part in each[parts]]
            troubles = [f"{each[name]}: {each.get('trouble') or f'not {good}'}" for each in behind if not each[good]]
        except SILENCE as error:
            return self._silent(role, error)
        except NONSENSE:
            return self._stranger(role)
        trouble = f"; in trouble: {', '.join(dict.fromkeys(troubles))}" if troubles else ""
        if behind and len(troubles) < len(behind) and named:
            return ok(role, f"{url}: offers {', '.join(named)}{trouble}")
        return fail(role, f"{url}: has nothing ready to offer{trouble}", advice)

    async def _get(self, url: str) -> tuple[int, Any]:
        limit = aiohttp.ClientTimeout(total=ANSWER_SECONDS)
        async with self._http.get(url, allow_redirects=False, timeout=limit) as answer:
            return answer.status, json.loads(await whole(answer, ANSWER_BYTES))

    def _url(self, role: str) -> str:
        return (self._named[role] or DEFAULTS[role]).rstrip("/")

    def _silent(self, role: str, error: Exception) -> Finding:
        """Nobody is there, or nobody who speaks HTTP."""
        url, named = self._url(role), self._named[role]
        if isinstance(error, aiohttp.ClientConnectorError) and not named:
            return absent(role, f"not running at {url}", f"Start it with `{STARTS[role]}`.")
        reason = "it is too slow" if isinstance(error, asyncio.TimeoutError) else reason_of(error)
        return fail(role, f"{url} does not answer: {reason}", f"Check the address, or start the {role} there.")

    def _stranger(self, role: str) -> Finding:
        """Something else is there."""
        advice = f"Give the right one with --{role} URL, or stop what is there."
        return fail(role, f"{self._url(role)} does not answer as {role}s do", advice)
