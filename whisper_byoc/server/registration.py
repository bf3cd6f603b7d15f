"""Keeps the container registered with go-livepeer orchestrators, from the end of loading until shutdown begins.

An orchestrator keeps registrations in memory, without expiry: it forgets one when it restarts, and when a request to
the container meets a refused connection or a 401. Registering again resets its count of busy slots to zero, unless the
body says otherwise: go-livepeer also reads `Load` (core/external_capabilities.go, ExternalCapability), so the number of
jobs open here is sent along with the capacity.
"""

import asyncio
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Self

import aiohttp

from whisper_byoc.aio import Tasks, backoff
from whisper_byoc.http import CONNECTION_ERRORS, base_url, json_value, open_session, read_body, reason_of
from whisper_byoc.livepeer import CAPABILITY, CAPABILITY_URL, SENDER, Capability, check_header_value, sender_header

log = logging.getLogger(__name__)

CAPACITY_CHANGE = 0.25
"""A capability with measured capacity is registered again when that has changed by more than this fraction."""
LONGEST_SHOWN = 200


@dataclass(frozen=True)
class RegistrationOptions:
    """Where to register, and what. All times are in seconds."""

    orchestrators: tuple[str, ...]
    """Base URLs; without a scheme, https."""
    secret: str = field(default="", repr=False)
    """The orchestrators' `-orchSecret`."""
    capability: Capability = field(default_factory=Capability)
    verify_tls: bool = False
    """Check certificates; go-livepeer's orchestrators sign their own."""
    interval_seconds: float = 60.0
    """Time between two checks that the registration still stands, and after a refusal."""
    confirm_seconds: float = 5.0
    """Time from the first answer that it does not stand to the second check; a job may just have been on its way."""
    answer_seconds: float = 10.0
    """Longest wait for an answer."""
    first_pause: float = 1.0
    """Pause before the second attempt to reach an orchestrator; later pauses double."""
    longest_pause: float = 30.0
    leave_seconds: float = 3.0
    """Longest time that unregistering may take."""

    def __post_init__(self) -> None:
        """Raise `UsageError` for an impossible address or secret."""
        urls = [base_url(each, scheme="https") for each in self.orchestrators]
        object.__setattr__(self, "orchestrators", tuple(dict.fromkeys(urls)))
        check_header_value("orchestrator secret", self.secret)

    def filled(self, name: str, url: str, token: str) -> Self:
        """Return a copy with the capability's empty fields filled in, except its capacity, which may change."""
        given = self.capability
        capability = replace(
            given,
            name=given.name or name,
            description=given.description or f"{name} by whisper-byoc",
            url=given.url or url,
            token=given.token or token,
        )
        return replace(self, capability=capability)


@dataclass(frozen=True)
class OpenJobs:
    """The jobs open here now."""

    number: int
    fits: int = 1
    """How many there may be at once: the capacity of a capability that does not specify one."""


class Registrar:
    """Keeps a container registered with every orchestrator, in one task for each; failures are only logged.

    `jobs` returns the open jobs: while all places are taken, "no free place" does not mean that the registration is
    gone.
    """

    def __init__(self, options: RegistrationOptions, jobs: Callable[[], OpenJobs]) -> None:
        self._options = options
        self._jobs = jobs
        self._http: aiohttp.ClientSession | None = None
        self._memberships: list[Membership] = []
        self._tasks = Tasks()

    def start(self) -> None:
        self._http = open_session(verify=self._options.verify_tls, total_seconds=self._options.answer_seconds)
        for url in self._options.orchestrators:
            membership = Membership(url, self._options, self._http, self._jobs)
            self._memberships.append(membership)
            self._tasks.start(membership.keep())

    async def stop(self) -> None:
        """Unregister everywhere, within `leave_seconds`. May be called repeatedly."""
        await self._tasks.close()
        memberships, self._memberships = self._memberships, []
        try:
            await asyncio.gather(*(each.leave() for each in memberships))
        finally:
            if self._http is not None:
                await self._http.close()


class Membership:
    """The registration with one orchestrator."""

    def __init__(
        self,
        orchestrator: str,
        options: RegistrationOptions,
        http: aiohttp.ClientSession,
        jobs: Callable[[], OpenJobs],
    ) -> None:
        self._orchestrator = orchestrator
        self._options = options
        self._capability = options.capability  # as last registered
        self._http = http
        self._jobs = jobs
        self._may_be_known = False
        self._logged: dict[str, str] = {}

    async def keep(self) -> None:
        """Register, and again each time the orchestrator has forgotten; runs until cancelled."""
        while True:
            try:
                await self._register()
                await self._until_to_be_told()
            except Exception:  # a bug here must cost neither the jobs nor, for long, the registration
                log.exception("keeping the registration at %s failed; beginning again", self._orchestrator)
                await asyncio.sleep(self._options.interval_seconds)

    async def leave(self) -> None:
        """Unregister, if a registration was ever sent."""
        if not self._may_be_known:
            return
        name = self._capability.name
        # of several containers with one name, only this one leaves, if the orchestrator can tell them apart
        headers = {**self._secret_header(), CAPABILITY_URL: self._capability.url}
        try:
            async with asyncio.timeout(self._options.leave_seconds):
                status, body = await self._ask("POST", "/capability/unregister", headers, name.encode())
        except CONNECTION_ERRORS as error:
            log.warning("%s could not be told that %s is gone: %s", self._orchestrator, name, reason_of(error))
            return
        if status == 200:
            log.info("capability %s unregistered at %s", name, self._orchestrator)
        else:
            log.warning("%s kept capability %s: %d %s", self._orchestrator, name, status, self._shown(body))

    async def _register(self) -> None:
        mine = self._capability = replace(self._capability, capacity=self._capacity)
        body = json.dumps({**mine.to_json(), "load": self._jobs().number}).encode()
        headers = {**self._secret_header(), "Content-Type": "application/json"}
        for pause in backoff(self._options.first_pause, self._options.longest_pause):
            self._may_be_known = True
            try:
                status, answer = await self._ask("POST", "/capability/register", headers, body)
            except CONNECTION_ERRORS as error:
                self._log_once("register", logging.WARNING, f"cannot be reached, trying again: {reason_of(error)}")
                await asyncio.sleep(pause)
                continue
            if status == 200:
                text = f"registered capability {mine.name} at {mine.url}, capacity {mine.capacity}"
                self._log_once("register", logging.INFO, text)
                return
            text = f"refused capability {mine.name}: {status} {self._shown(answer)}"
            if b"invalid authorization" in answer:
                text += "; ORCH_SECRET must be what the orchestrator was given as -orchSecret"
            self._log_once("register", logging.ERROR, text)
            # a refusal lasts until somebody changes a setting; a failing server or proxy recovers by itself
            await asyncio.sleep(pause if status >= 500 else self._options.interval_seconds)

    async def _until_to_be_told(self) -> None:
        """Ask now and then; return when two answers in a row call for registering, or the capacity has changed."""
        while True:
            await asyncio.sleep(self._options.interval_seconds)
            if abs(self._capacity - self._capability.capacity) > CAPACITY_CHANGE * self._capability.capacity:
                return
            if await self._is_to_be_told():
                await asyncio.sleep(self._options.confirm_seconds)
                if await self._is_to_be_told():
                    return

    @property
    def _capacity(self) -> int:
        return self._options.capability.capacity or self._jobs().fits

    async def _is_to_be_told(self) -> bool:
        """Return whether the orchestrator sees no free place although there is one, or does not say.

        An unreachable orchestrator need not be told now: what it knows is seen once it is back.
        """
        name = self._capability.name
        try:
            # as a gateway without a key asks (go-livepeer, byoc/job_orchestrator.go)
            headers = {SENDER: sender_header(), CAPABILITY: name}
            status, body = await self._ask("GET", "/process/token", headers)
        except CONNECTION_ERRORS as error:
            self._log_once("probe", logging.WARNING, f"cannot be asked for capability {name}: {reason_of(error)}")
            return False
        available = available_in(status, body)
        if available is None:
            text = f"does not say whether it knows capability {name}: {status} {self._shown(body)}; registering again"
            self._log_once("probe", logging.WARNING, text)
            return True
        if available == 0 and self._jobs().number < self._capacity:
            self._logged.pop("register", None)
            self._log_once("probe", logging.WARNING, f"sees no free place for capability {name}, or does not know it")
            return True
        self._log_once("probe", logging.DEBUG, f"knows capability {name}")
        return False

    async def _ask(
        self, method: str, path: str, headers: dict[str, str], data: bytes | None = None
    ) -> tuple[int, bytes]:
        # no redirects: the secret is for this orchestrator only
        url = self._orchestrator + path
        async with self._http.request(method, url, headers=headers, data=data, allow_redirects=False) as answer:
            return answer.status, await read_body(answer.content)

    def _secret_header(self) -> dict[str, str]:
        return {"Authorization": self._options.secret}

    def _shown(self, body: bytes) -> str:
        """Quote a response for the log, without any secrets that it may repeat."""
        text = body.decode("utf-8", "replace").strip()
        for secret in (self._options.secret, self._capability.token):
            text = text.replace(secret, "***") if secret else text
        return repr(text[:LONGEST_SHOWN])

    def _log_once(self, topic: str, level: int, text: str) -> None:
        """Log a message only if it is new for its topic; repeats would fill the log."""
        if self._logged.get(topic) != text:
            self._logged[topic] = text
            log.log(level, "orchestrator %s: %s", self._orchestrator, text)


def available_in(status: int, body: bytes) -> int | None:
    """Read the response to a token request: how many jobs could be accepted; None when it does not say.

    `available_capacity` is absent when it is zero: a registration without a free place looks like none at all. On-chain
    orchestrators want a signed request, and this container has no key.
    """
    try:
        token = json_value(body) if status == 200 else None
    except ValueError:
        token = None
    available = token.get("available_capacity", 0) if isinstance(token, dict) else None
    return max(available, 0) if isinstance(available, int) else None
