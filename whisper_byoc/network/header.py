"""The `Livepeer` header of a BYOC job: base64 of JSON with JSON in two of its strings (go-livepeer, byoc/types.go)."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from whisper_byoc.errors import RequestRefused
from whisper_byoc.network.reading import json_value

__all__ = ["HEADER", "MODEL_HEADER", "NOBODY", "JobHeader", "sender_header"]

HEADER = "Livepeer"
MODEL_HEADER = "X-Model-Id"
"""Names the capability of a frame or a live feed."""
NOBODY = "0x" + "0" * 40
"""The zero address; off-chain, it and an empty signature stand for a gateway without a key."""
LONGEST = 64 * 1024
LONGEST_JOB_SECONDS = 24 * 3600


@dataclass(frozen=True)
class JobHeader:
    """What a client asks for. `request` and `parameters` are JSON objects as text."""

    capability: str
    timeout_seconds: int
    request: str = "{}"
    parameters: str = "{}"
    id: str = ""

    @classmethod
    def parse(cls, text: str | None) -> JobHeader:
        """Read the header's value.

        Raises `RequestRefused` (400) for what go-livepeer refuses too: a missing part, or one that is no JSON.
        """
        if not text:
            raise RequestRefused(400, f"the {HEADER} header is missing: base64 of a JSON object that describes the job")
        try:
            fields = json_value(base64.b64decode(text[:LONGEST], validate=True))
        except (binascii.Error, ValueError):
            raise RequestRefused(400, f"the {HEADER} header is not the base64 of JSON") from None
        if not isinstance(fields, dict):
            raise RequestRefused(400, f"the {HEADER} header must hold a JSON object")
        for name in ("request", "parameters"):
            object_in(fields.get(name), name)
        seconds = fields.get("timeout_seconds")
        if isinstance(seconds, bool) or not isinstance(seconds, int) or not 0 < seconds <= LONGEST_JOB_SECONDS:
            raise RequestRefused(400, f"timeout_seconds must be from 1 to {LONGEST_JOB_SECONDS}, not {seconds!r}")
        capability, job_id = fields.get("capability"), fields.get("id", "")
        if not isinstance(capability, str) or not capability:
            raise RequestRefused(400, "capability is missing: the name under which a container registered")
        if not isinstance(job_id, str):
            raise RequestRefused(400, f"id must be a string, not {job_id!r}")
        return cls(capability, seconds, fields["request"], fields["parameters"], job_id)

    def encode(self) -> str:
        """Write the header's value, as a gateway without a key: go-livepeer's orchestrators take that off-chain."""
        fields = {
            "id": self.id,
            "request": self.request,
            "parameters": self.parameters,
            "capability": self.capability,
            "timeout_seconds": self.timeout_seconds,
            "sender": NOBODY,
            "sig": "",
        }
        return base64.b64encode(json.dumps(fields).encode()).decode()

    def asking(self, **details: Any) -> JobHeader:
        """Give the same with more keys in `request`."""
        return replace(self, request=json.dumps(object_in(self.request, "request") | details))

    @property
    def stream_id(self) -> str:
        """The stream that `request` is about; empty if it names none."""
        found = object_in(self.request, "request").get("stream_id", "")
        return found if isinstance(found, str) else ""

    @property
    def options(self) -> Mapping[str, Any]:
        """What `parameters` holds, such as `enable_data_output` and `orchestrators`."""
        return object_in(self.parameters, "parameters")


def object_in(text: object, name: str) -> dict[str, Any]:
    """Decode a part that is a JSON object as text.

    Raises `RequestRefused` (400).
    """
    try:
        found = json_value(text) if isinstance(text, str) else None
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise RequestRefused(400, f"{name} must be a string that holds a JSON object, such as '{{}}', not {text!r:.80}")
    return found


def sender_header() -> str:
    """Give the value of `Livepeer-Eth-Address` in a token request, as a gateway without a key."""
    return base64.b64encode(json.dumps({"addr": NOBODY, "sig": ""}).encode()).decode()
