"""What this container tells an orchestrator of itself, where it does so, and what the orchestrator's answers mean."""

from __future__ import annotations

import base64
import json
import re
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any
from urllib.parse import urlsplit

from whisper_byoc.errors import UsageError

__all__ = ["Capability", "Registration", "Standing", "capability_json", "standing_of", "token_headers"]

NOBODY = "0x" + "0" * 40
"""The zero address; with an empty signature an off-chain orchestrator takes it for a gateway."""
NAME = re.compile(r"[!-~]{1,128}")
LARGEST_INT = 2**63 - 1


@dataclass(frozen=True)
class Capability:
    """What an orchestrator is told of this container. Empty `name` and `url` and zero `capacity`: the server's own."""

    name: str = ""
    description: str = ""
    url: str = ""
    capacity: int = 0
    """Jobs at once."""
    price_per_unit: int = 0
    """Price of a second of compute, times `price_scaling`, in `currency`; 0 is free."""
    price_scaling: int = 1
    currency: str = ""
    """Empty is wei. Other currencies than wei and eth need an orchestrator with a price feed."""
    token: str = field(default="", repr=False)
    """Bearer token that the orchestrator shall send to this container; empty is none."""

    def __post_init__(self) -> None:
        """Raise `UsageError` for what an orchestrator would not take."""
        if self.name and not NAME.fullmatch(self.name):
            raise UsageError(f"bad capability name {self.name!r}: use 1-128 visible ASCII characters, no spaces")
        if self.url:
            object.__setattr__(self, "url", base_url(self.url, "http"))
        for name in ("capacity", "price_per_unit", "price_scaling"):
            if not 0 <= getattr(self, name) <= LARGEST_INT:
                raise UsageError(f"capability: {name} {getattr(self, name)} is not between 0 and {LARGEST_INT}")
        check_header("bearer token", self.token)


@dataclass(frozen=True)
class Registration:
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
    answer_seconds: float = 10.0
    """Longest wait for an answer."""
    first_pause: float = 1.0
    """Before the second try to reach an orchestrator; the pauses double."""
    longest_pause: float = 30.0
    leave_seconds: float = 3.0
    """Longest time that unregistering may take."""

    def __post_init__(self) -> None:
        """Raise `UsageError` for what cannot be an address or a secret."""
        urls = [base_url(each, "https") for each in self.orchestrators]
        object.__setattr__(self, "orchestrators", tuple(dict.fromkeys(urls)))
        check_header("orchestrator secret", self.secret)

    def filled(self, name: str, url: str, capacity: int, token: str) -> Registration:
        """Fill in what was left open of the capability."""
        mine = self.capability
        full = replace(
            mine,
            name=mine.name or name,
            description=mine.description or f"{name} by whisper-byoc",
            url=mine.url or url,
            capacity=mine.capacity or capacity,
            token=mine.token or token,
        )
        return replace(self, capability=full)


class Standing(Enum):
    """What an orchestrator's answer to a token request says of a registration."""

    KNOWN = "known"
    MISSING = "missing"
    """Not registered, or without a free slot: the two look the same."""
    UNTOLD = "untold"
    """It will not say. On-chain orchestrators want a signed request, and this container has no key."""


def capability_json(capability: Capability) -> dict[str, Any]:
    """Build the body of `POST /capability/register` (go-livepeer, core/external_capabilities.go)."""
    body = {
        "name": capability.name,
        "description": capability.description,
        "url": capability.url,
        "capacity": capability.capacity,
        "price_per_unit": capability.price_per_unit,
        "price_scaling": capability.price_scaling,
        "currency": capability.currency,
    }
    return {**body, "token": capability.token} if capability.token else body


def token_headers(capability_name: str) -> dict[str, str]:
    """Build the headers of `GET /process/token`, as a gateway without a key (go-livepeer, byoc/job_orchestrator.go)."""
    sender = json.dumps({"addr": NOBODY, "sig": ""}).encode()
    return {
        "Livepeer-Eth-Address": base64.b64encode(sender).decode(),
        "Livepeer-Capability": capability_name,
    }


def standing_of(status: int, body: bytes) -> Standing:
    """Read the answer to a token request: `available_capacity` is absent when it is zero."""
    try:
        token = json.loads(body) if status == 200 else None
    except (ValueError, RecursionError):
        token = None
    if not isinstance(token, dict):
        return Standing.UNTOLD
    capacity = token.get("available_capacity", 0)
    if not isinstance(capacity, int):
        return Standing.UNTOLD
    return Standing.KNOWN if capacity > 0 else Standing.MISSING


def base_url(text: str, scheme: str) -> str:
    """Complete and check a base URL.

    Raises `UsageError` when it is none.
    """
    url = text.strip() if "://" in text else f"{scheme}://{text.strip()}"
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and parts.hostname and (parts.port is None or parts.port > 0)
    except ValueError:
        good = False
    if "@" in url:  # first, for other messages show the address
        raise UsageError("the address of an orchestrator or of this server must not have a name or password in it")
    if not good or not url.isprintable() or " " in url or parts.query or parts.fragment:
        raise UsageError(f"{text!r} is not a base URL such as {scheme}://host:8935")
    return url.rstrip("/")


def check_header(what: str, value: str) -> None:
    """Refuse what cannot stand in a header, without showing it.

    Raises `UsageError`.
    """
    if value and (value != value.strip() or not value.isprintable()):
        raise UsageError(f"the {what} must be printable text without spaces around it")
