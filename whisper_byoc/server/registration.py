"""Keeps the container registered at go-livepeer orchestrators, from the end of loading until the shutdown begins.

An orchestrator keeps registrations in memory and without expiry: it forgets them when it restarts, and when a request
to the container meets a refused connection or a 401. Registering again resets its count of busy slots to zero, so that
is done only when it is found to have forgotten: at once while no job is open, else after minutes.
"""

import asyncio
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Self

import aiohttp

from whisper_byoc.aio import Tasks, backoff
from whisper_byoc.http import CONNECTION_ERRORS, base_url, json_value, open_session, read_body, reason_of
from whisper_byoc.livepeer import CAPABILITY, CAPABILITY_URL, SENDER, Capability, check_header_value, sender_header

log = logging.getLogger(__name__)

CAPACITY_CHANGE = 0.25
"""A capability is registered again when its capacity, if it is measured, has changed by more than this part."""
LONGEST_SHOWN = 200


@dataclass(frozen=True)
class RegistrationOptions:
    """At which orchestrators to register what. All times in seconds."""

    orchestrators: tuple[str, ...]
    """Base URLs; without a scheme, https."""
    secret: str = field(default="", repr=False)
    """What the orchestrators were given as `-orchSecret`."""
    capability: Capability = field(default_factory=Capability)
    verify_tls: bool = False
    """Check certificates; go-livepeer's orchestrators sign their own."""
    interval_seconds: float = 60.0
    """Between two questions whether the registration still stands, and after a refusal."""
    confirm_seconds: float = 5.0
    """From the first answer that it does not to the second; a job may just have been on its way."""
    again_seconds: float = 300.0
    """While jobs are open: for how long it must seem forgotten, and no new job come where it does not say."""
    answer_seconds: float = 10.0
    """Longest wait for an answer."""
    first_pause: float = 1.0
    """Before the second try to reach an orchestrator; the pauses double."""
    longest_pause: float = 30.0
    leave_seconds: float = 3.0
    """Longest time that unregistering may take."""

    def __post_init__(self) -> None:
        """Raise `UsageError` for what cannot be an address or a secret."""
        urls = [base_url(each, scheme="https") for each in self.orchestrators]
        object.__setattr__(self, "orchestrators", tuple(dict.fromkeys(urls)))
        check_header_value("orchestrator secret", self.secret)

    def filled(self, name: str, url: str, token: str) -> Self:
        """Return the same with the capability's empty fields filled in, but for its capacity, which may change."""
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
    """What is at work here now."""

    number: int
    newest_seconds: float
    """How long ago the newest was opened."""
    fits: int = 1
    """How many there may be at once: the capacity of a capability that names none."""


class Registrar:
    """Keeps a container registered at every orchestrator, in a task for each; their failures are only logged.

    `jobs` tells what is at work: while something is, a slot that is not free need not be a registration that is gone.
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
        """Unregister everywhere, within `leave_seconds`. May be repeated."""
        await self._tasks.close()
        memberships, self._memberships = self._memberships, []
        try:
            await asyncio.gather(*(each.leave() for each in memberships))
        finally:
            if self._http is not None:
                await self._http.close()


class Membership:
    """The registration at one orchestrator."""

    def __init__(
        self,
        orchestrator: str,
        options: RegistrationOptions,
        http: aiohttp.ClientSession,
        jobs: Callable[[], OpenJobs],
    ) -> None:
        self._orchestrator = orchestrator
        self._options = options
        self._capability = options.capability  # as it was registered last
        self._http = http
        self._jobs = jobs
        self._may_be_known = False
        self._logged: dict[str, str] = {}

    async def keep(self) -> None:
        """Register, and again each time the orchestrator has forgotten; ends by being cancelled."""
        while True:
            try:
                await self._register()
                await self._until_forgotten()
            except Exception:  # a bug here must cost neither the jobs nor, for long, the registration
                log.exception("keeping the registration at %s failed; beginning again", self._orchestrator)
                await asyncio.sleep(self._options.interval_seconds)

    async def leave(self) -> None:
        """Unregister, if a registration was ever sent."""
        if not self._may_be_known:
            return
        name = self._capability.name
        # of several containers with one name only this one leaves, where the orchestrator can tell them apart
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
        body = json.dumps(mine.to_json()).encode()
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
            # a refusal stays one until somebody changes a setting; a failing server or proxy recovers by itself
            await asyncio.sleep(pause if status >= 500 else self._options.interval_seconds)

    async def _until_forgotten(self) -> None:
        """Ask now and then; return when two answers in a row say so, or when another capacity is to be registered."""
        loop = asyncio.get_running_loop()
        known = loop.time()
        while True:
            await asyncio.sleep(self._options.interval_seconds)
            if abs(self._capacity - self._capability.capacity) > CAPACITY_CHANGE * self._capability.capacity:
                return
            standing = await self._ask_standing()
            if standing is Standing.REGISTERED:
                known = loop.time()
            elif self._seems_forgotten(standing, loop.time() - known):
                await asyncio.sleep(self._options.confirm_seconds)
                if self._seems_forgotten(await self._ask_standing(), loop.time() - known):
                    return

    @property
    def _capacity(self) -> int:
        return self._options.capability.capacity or self._jobs().fits

    def _seems_forgotten(self, standing: "Standing | None", seconds: float) -> bool:
        """Whether an answer says so which is the latest of `seconds` in which none said otherwise."""
        if standing is None or standing is Standing.REGISTERED:
            return False
        jobs, again = self._jobs(), self._options.again_seconds
        if jobs.number == 0:
            return True
        taken = jobs.number >= self._capability.capacity
        return seconds > again and not taken and (standing is Standing.MISSING or jobs.newest_seconds > again)

    async def _ask_standing(self) -> "Standing | None":
        """Return what the orchestrator says; None when it cannot be reached: that will show when it is back."""
        name = self._capability.name
        try:
            # as a gateway without a key asks (go-livepeer, byoc/job_orchestrator.go)
            headers = {SENDER: sender_header(), CAPABILITY: name}
            status, body = await self._ask("GET", "/process/token", headers)
        except CONNECTION_ERRORS as error:
            self._log_once("probe", logging.WARNING, f"cannot be asked for capability {name}: {reason_of(error)}")
            return None
        standing = standing_of(status, body)
        if standing is Standing.UNKNOWN:
            text = f"does not say whether it knows capability {name}: {status} {self._shown(body)}; "
            text += "registering again while no job is open, or comes for long"
            self._log_once("probe", logging.WARNING, text)
        elif standing is Standing.MISSING:
            self._logged.pop("register", None)
            self._log_once("probe", logging.WARNING, f"has no free place for capability {name}, or does not know it")
        else:
            self._log_once("probe", logging.DEBUG, f"knows capability {name}")
        return standing

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
        """Quote an answer for the log, without the secrets that it may repeat."""
        text = body.decode("utf-8", "replace").strip()
        for secret in (self._options.secret, self._capability.token):
            text = text.replace(secret, "***") if secret else text
        return repr(text[:LONGEST_SHOWN])

    def _log_once(self, topic: str, level: int, text: str) -> None:
        """Log what is new on a topic; the same again and again would fill the log."""
        if self._logged.get(topic) != text:
            self._logged[topic] = text
            log.log(level, "orchestrator %s: %s", self._orchestrator, text)


class Standing(Enum):
    """What an orchestrator's answer to a token request says of a registration."""

    REGISTERED = "registered"
    MISSING = "missing"
    """Not registered, or without a free slot: the two look the same."""
    UNKNOWN = "unknown"
    """It does not say. On-chain orchestrators want a signed request, and this container has no key."""


def standing_of(status: int, body: bytes) -> Standing:
    """Read the answer to a token request: `available_capacity` is absent when it is zero."""
    try:
        token = json_value(body) if status == 200 else None
    except ValueError:
        token = None
    capacity = token.get("available_capacity", 0) if isinstance(token, dict) else None
    if not isinstance(capacity, int):
        return Standing.UNKNOWN
    return Standing.REGISTERED if capacity > 0 else Standing.MISSING
