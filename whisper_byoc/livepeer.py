"""go-livepeer's names and formats for BYOC: headers, ids, the job header, and capabilities.

Sources: go-livepeer 0.9, byoc/types.go, byoc/job_orchestrator.go, core/external_capabilities.go.
"""

import base64
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final, Self

from whisper_byoc.errors import RequestRefused, UsageError
from whisper_byoc.http import base_url, json_value

JOB: Final = "Livepeer"
"""Header that describes a job: base64 of a JSON object, two of whose strings are JSON themselves."""
MODEL: Final = "X-Model-Id"
"""Header that names the capability of a frame or a live feed."""
CAPABILITY: Final = "Livepeer-Capability"
"""Header of a token request: the name of a capability."""
SENDER: Final = "Livepeer-Eth-Address"
"""Header of a token request: who is asking."""
BALANCE: Final = "Livepeer-Balance"
STREAM_ID: Final = "X-Stream-Id"
CAPABILITY_URL: Final = "X-Capability-Url"
"""Our own header: which of several containers with one name unregisters; go-livepeer's body is only the name."""

NOBODY: Final = "0x" + "0" * 40
"""The zero address; off-chain, it and an empty signature stand for a gateway without a key."""

ID = re.compile(r"[A-Za-z0-9._~-]{1,128}")
"""What a job or stream may be called: characters that a URL needs no escapes for (RFC 3986, unreserved)."""
CAPABILITY_NAME = re.compile(r"[!-~]{1,128}")

LONGEST_JOB_SECONDS = 24 * 3600
LARGEST_INT = 2**63 - 1


def check_id(text: str, what: str = "job id") -> str:
    """Return `text` if it may be an id.

    Raises `RequestRefused` (400).
    """
    if not ID.fullmatch(text):
        shown = text if len(text) <= 40 else f"{text[:40]}… ({len(text)} characters)"
        raise RequestRefused(400, f"bad {what} {shown!r}: use 1-128 characters of A-Z a-z 0-9 . _ ~ -")
    return text


def sender_header() -> str:
    """Return the value of `SENDER` in a token request of a gateway without a key."""
    return _header_value({"addr": NOBODY, "sig": ""})


def parse_sender(text: str) -> dict[str, str]:
    """Read the value of `SENDER`.

    Raises `RequestRefused` (400).
    """
    sender = _header_object(text, SENDER)
    return {"addr": str(sender.get("addr", "")), "sig": str(sender.get("sig", ""))}


@dataclass(frozen=True)
class JobHeader:
    """What a client asks for, as the `JOB` header carries it."""

    capability: str
    timeout_seconds: int
    request: str = "{}"
    """A JSON object as text."""
    parameters: str = "{}"
    """A JSON object as text."""
    id: str = ""

    @classmethod
    def parse(cls, text: str | None) -> Self:
        """Read the header's value.

        Raises `RequestRefused` (400) where go-livepeer refuses too: when a part is missing or is not JSON.
        """
        if not text:
            raise RequestRefused(400, f"the {JOB} header is missing: base64 of a JSON object that describes the job")
        fields = _header_object(text, JOB)
        for name in ("request", "parameters"):
            object_in(fields.get(name), name)
        seconds = fields.get("timeout_seconds")
        if isinstance(seconds, bool) or not isinstance(seconds, int) or not 0 < seconds <= LONGEST_JOB_SECONDS:
            raise RequestRefused(400, f"timeout_seconds must be from 1 to {LONGEST_JOB_SECONDS}, not {seconds!r}")
        capability, job_id = fields.get("capability"), fields.get("id", "")
        if not isinstance(capability, str) or not capability:
            raise RequestRefused(400, "capability is missing: the name under which a container registered")
        if not capability.isprintable():
            raise RequestRefused(400, f"{capability!r:.80} cannot be the name of a capability")
        if not isinstance(job_id, str):
            raise RequestRefused(400, f"id must be a string, not {job_id!r}")
        return cls(capability, seconds, fields["request"], fields["parameters"], job_id)

    def encode(self) -> str:
        """Return the header's value as a gateway without a key writes it, which off-chain orchestrators accept."""
        return _header_value(asdict(self) | {"sender": NOBODY, "sig": ""})

    def asking(self, **details: Any) -> Self:
        """Return the same job with additional keys in `request`."""
        return replace(self, request=json.dumps(object_in(self.request, "request") | details))

    @property
    def stream_id(self) -> str:
        """The stream that `request` names; empty if none."""
        found = object_in(self.request, "request").get("stream_id", "")
        return found if isinstance(found, str) else ""

    @property
    def options(self) -> Mapping[str, Any]:
        """The contents of `parameters`, such as `enable_data_output`."""
        return object_in(self.parameters, "parameters")


def _header_value(fields: Mapping[str, Any]) -> str:
    return base64.b64encode(json.dumps(fields).encode()).decode()


def _header_object(text: str, header: str) -> dict[str, Any]:
    try:
        found = json_value(base64.b64decode(text, validate=True))
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise RequestRefused(400, f"the {header} header must be the base64 of a JSON object")
    return found


def object_in(text: object, name: str) -> dict[str, Any]:
    """Decode a JSON object that is carried as text.

    Raises `RequestRefused` (400).
    """
    try:
        found = json_value(text) if isinstance(text, str) else None
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise RequestRefused(400, f"{name} must be a string that holds a JSON object, such as '{{}}', not {text!r:.80}")
    return found


@dataclass(frozen=True)
class Capability:
    """What an orchestrator is told about a container. Empty `name` and `url` and zero `capacity`: the server's own."""

    name: str = ""
    description: str = ""
    url: str = ""
    capacity: int = 0
    """How many jobs run at once."""
    price_per_unit: int = 0
    """Price of a second of compute, times `price_scaling`, in `currency`; 0 is free."""
    price_scaling: int = 1
    currency: str = ""
    """Empty means wei. Currencies other than wei and eth need an orchestrator with a price feed."""
    token: str = field(default="", repr=False)
    """Bearer token that the orchestrator is to send to the container; empty for none."""

    def __post_init__(self) -> None:
        """Raise `UsageError` for values that an orchestrator would not accept."""
        if self.name and not CAPABILITY_NAME.fullmatch(self.name):
            raise UsageError(f"bad capability name {self.name!r}: use 1-128 visible ASCII characters, no spaces")
        if self.url:
            object.__setattr__(self, "url", base_url(self.url, scheme="http"))
        for name in ("capacity", "price_per_unit", "price_scaling"):
            if not 0 <= getattr(self, name) <= LARGEST_INT:
                raise UsageError(f"capability: {name} {getattr(self, name)} is not between 0 and {LARGEST_INT}")
        check_header_value("bearer token", self.token)

    def to_json(self) -> dict[str, Any]:
        """Return the body of `POST /capability/register`."""
        body = asdict(self)
        if not self.token:
            del body["token"]
        return body


def check_header_value(what: str, value: str) -> None:
    """Raise `UsageError` for text that is not allowed in a header, without showing it: it may be a secret."""
    if value and (value != value.strip() or not value.isprintable()):
        raise UsageError(f"the {what} must be printable text without spaces around it")
