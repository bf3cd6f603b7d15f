"""Being registered as a capability at go-livepeer orchestrators, from the end of loading until the shutdown begins.

An orchestrator keeps registrations in memory, without an expiry: it forgets them when it restarts, and when a request
to the container meets a refused connection or a 401. Registering again sets its count of busy slots to zero, so that
is done only when it is found to have forgotten.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
from collections.abc import Callable, Iterator

import aiohttp

from whisper_byoc.http import reason_of as describe
from whisper_byoc.server.capability import Registration, Standing, capability_json, standing_of, token_headers

__all__ = ["Registrar"]

log = logging.getLogger(__name__)

NOT_REACHED = (aiohttp.ClientError, asyncio.TimeoutError, OSError)
LONGEST_ANSWER = 64 * 1024
LONGEST_SHOWN = 200


class Registrar:
    """Keeps the container registered at every orchestrator, in a task for each; trouble there never raises here.

    `busy` says whether any job is open: as long as one is, nothing is registered again.
    """

    def __init__(self, registration: Registration, busy: Callable[[], bool]) -> None:
        self._registration = registration
        self._busy = busy
        self._http: aiohttp.ClientSession | None = None
        self._memberships: list[Membership] = []
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin to register."""
        self._http = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=self._registration.verify_tls),
            timeout=aiohttp.ClientTimeout(total=self._registration.answer_seconds),
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        for url in self._registration.orchestrators:
            membership = Membership(url, self._registration, self._http, self._busy)
            self._memberships.append(membership)
            self._tasks.append(asyncio.ensure_future(membership.keep()))

    async def stop(self) -> None:
        """Unregister everywhere, within `leave_seconds`. More calls do nothing."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(each.leave() for each in self._memberships))
        self._tasks, self._memberships = [], []
        if self._http is not None:
            await self._http.close()
            self._http = None


class Membership:
    """The standing of this container at one orchestrator."""

    def __init__(
        self, orchestrator: str, registration: Registration, http: aiohttp.ClientSession, busy: Callable[[], bool]
    ) -> None:
        self._orchestrator = orchestrator
        self._registration = registration
        self._http = http
        self._busy = busy
        self._asked = False
        self._said: dict[str, str] = {}

    async def keep(self) -> None:
        """Register, and again each time the orchestrator has forgotten; ends by being cancelled."""
        while True:
            try:
                await self._register()
                await self._until_forgotten()
            except Exception:  # a bug here must cost neither the jobs nor, for long, the registration
                log.exception("keeping the registration at %s failed; beginning anew", self._orchestrator)
                await asyncio.sleep(self._registration.interval_seconds)

    async def leave(self) -> None:
        """Unregister, if a registration was ever sent."""
        if not self._asked:
            return
        name = self._registration.capability.name
        # of several containers under one name only this one leaves, where the orchestrator can tell them apart
        headers = {**self._secret_header(), "X-Capability-Url": self._registration.capability.url}
        try:
            # the bare name, as go-livepeer reads it; a name it does not know is fine with it
            status, body = await asyncio.wait_for(
                self._ask("POST", "/capability/unregister", headers, name.encode()),
                self._registration.leave_seconds,
            )
        except NOT_REACHED as error:
            log.warning("%s could not be told that %s is gone: %s", self._orchestrator, name, describe(error))
            return
        if status == 200:
            log.info("capability %s unregistered at %s", name, self._orchestrator)
        else:
            log.warning("%s kept capability %s: %d %s", self._orchestrator, name, status, self._shown(body))

    async def _register(self) -> None:
        """Try until the orchestrator says yes."""
        capability = self._registration.capability
        pauses = growing_pauses(self._registration.first_pause, self._registration.longest_pause)
        body = json.dumps(capability_json(capability)).encode()
        headers = {**self._secret_header(), "Content-Type": "application/json"}
        for pause in pauses:
            self._asked = True
            try:
                status, answer = await self._ask("POST", "/capability/register", headers, body)
            except NOT_REACHED as error:
                self._say("register", logging.WARNING, f"cannot be reached, trying again: {describe(error)}")
                await asyncio.sleep(pause)
                continue
            if status == 200:
                text = f"registered capability {capability.name} at {capability.url}, capacity {capability.capacity}"
                self._say("register", logging.INFO, text)
                return
            text = f"refused capability {capability.name}: {status} {self._shown(answer)}"
            if b"invalid authorization" in answer:
                text += "; ORCH_SECRET must be what the orchestrator was given as -orchSecret"
            self._say("register", logging.ERROR, text)
            # a refusal stays one until somebody changes a setting; a failing server or proxy recovers by itself
            await asyncio.sleep(pause if status >= 500 else self._registration.interval_seconds)

    async def _until_forgotten(self) -> None:
        """Ask now and then; return when no job is open and two answers in a row do not know the capability."""
        while True:
            await asyncio.sleep(self._registration.interval_seconds)
            if await self._seems_forgotten():
                await asyncio.sleep(self._registration.confirm_seconds)
                if await self._seems_forgotten():
                    return

    async def _seems_forgotten(self) -> bool:
        name = self._registration.capability.name
        try:
            status, body = await self._ask("GET", "/process/token", token_headers(name))
        except NOT_REACHED as error:
            self._say("probe", logging.WARNING, f"cannot be asked for capability {name}: {describe(error)}")
            return False  # whether it has forgotten will be seen when it is back
        standing = standing_of(status, body)
        if standing is Standing.UNTOLD:
            text = f"does not say whether it knows capability {name}: {status} {self._shown(body)}; "
            self._say("probe", logging.WARNING, text + "registering again whenever no job is open")
        elif standing is Standing.MISSING and not self._busy():
            self._said.clear()
            self._say("probe", logging.WARNING, f"does not know capability {name} any more")
        elif standing is Standing.KNOWN:
            self._say("probe", logging.DEBUG, f"knows capability {name}")
        return standing is not Standing.KNOWN and not self._busy()

    async def _ask(
        self, method: str, path: str, headers: dict[str, str], data: bytes | None = None
    ) -> tuple[int, bytes]:
        # no redirects: the secret is for this orchestrator only
        url = self._orchestrator + path
        async with self._http.request(method, url, headers=headers, data=data, allow_redirects=False) as answer:
            body = bytearray()
            async for chunk in answer.content.iter_any():
                body += chunk
                if len(body) > LONGEST_ANSWER:
                    break
            return answer.status, bytes(body[:LONGEST_ANSWER])

    def _secret_header(self) -> dict[str, str]:
        return {"Authorization": self._registration.secret}

    def _shown(self, body: bytes) -> str:
        """Quote an answer for the log, without the secrets that it may repeat."""
        text = body.decode("utf-8", "replace").strip()
        for secret in (self._registration.secret, self._registration.capability.token):
            text = text.replace(secret, "***") if secret else text
        return repr(text[:LONGEST_SHOWN])

    def _say(self, topic: str, level: int, text: str) -> None:
        """Log what is new on a topic; the same again and again would fill the log."""
        if self._said.get(topic) != text:
            self._said[topic] = text
            log.log(level, "orchestrator %s: %s", self._orchestrator, text)


def growing_pauses(first: float, longest: float) -> Iterator[float]:
    """Pauses in seconds that double up to `longest`, each shortened by up to a half so that containers spread out."""
    chance = random.SystemRandom()
    pause = min(first, longest)
    while True:
        yield chance.uniform(pause / 2, pause)
        pause = min(pause * 2, longest)
