"""The JSON that starts a BYOC stream, checked as pytrickle checks it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from whisper_byoc.errors import RequestRefused

__all__ = ["StartRequest", "check_params"]

URLS = ("subscribe_url", "publish_url", "control_url", "events_url", "data_url")


@dataclass(frozen=True)
class StartRequest:
    """Who wants a stream, and the channels that the orchestrator made for it; any may be missing."""

    request_id: str
    subscribe_url: str | None = None
    publish_url: str | None = None
    control_url: str | None = None
    events_url: str | None = None
    data_url: str | None = None
    params: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, body: object, stream_id: str | None = None) -> StartRequest:
        """Check a decoded body; `stream_id` is the `X-Stream-Id` header.

        Raises `RequestRefused` (400).
        """
        if not isinstance(body, dict):
            raise RequestRefused(400, "the body must be a JSON object")
        request_id = body.get("gateway_request_id")
        if not isinstance(request_id, str) or not request_id:
            raise RequestRefused(400, "gateway_request_id must be a string that is not empty")
        urls = {name: body.get(name) for name in URLS}
        for name, url in urls.items():
            if url is not None and not isinstance(url, str):
                raise RequestRefused(400, f"{name} must be a string, not {url!r}")
        return cls(
            stream_id or request_id, params=check_params(body.get("params")), **{k: v or None for k, v in urls.items()}
        )


def check_params(params: object) -> dict[str, Any]:
    """Check the parameters of a stream; `null` is as good as none.

    Raises `RequestRefused` (400).
    """
    if params is None:
        return {}
    if not isinstance(params, dict):
        raise RequestRefused(400, f"params must be a JSON object, not {type(params).__name__}")
    if not isinstance(params.get("pipeline") or "", str):
        raise RequestRefused(400, f"pipeline must be a string, not {type(params['pipeline']).__name__}")
    checked = dict(params)
    if ("width" in params) != ("height" in params):
        raise RequestRefused(400, "width and height go together: give both, or neither")
    for name in ("width", "height"):
        if name in params:
            checked[name] = whole_number(params[name], name, 1, 16384)
    if "max_framerate" in params:
        checked["max_framerate"] = whole_number(params["max_framerate"], "max_framerate", 1, 60)
    return checked


def whole_number(value: object, name: str, least: int, most: int) -> int:
    """Read a number that may have come as a string."""
    text = str(value)
    digits = text.isascii() and text.isdigit()  # isdigit alone takes ² for one
    if isinstance(value, bool) or not isinstance(value, (int, str)) or not digits or len(text) > 9:
        raise RequestRefused(400, f"{name} must be a whole number, not {value!r:.40}")
    if not least <= int(text) <= most:
        raise RequestRefused(400, f"{name} must be from {least} to {most}, not {text}")
    return int(text)
