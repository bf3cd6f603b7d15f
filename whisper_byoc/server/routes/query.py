"""Numbers and switches in a URL's query."""

from __future__ import annotations

from aiohttp import web

from whisper_byoc.errors import RequestRefused

__all__ = ["number", "switch", "whole"]


def number(request: web.Request, name: str, default: float, most: float) -> float:
    """Read a number of the query, 0 to `most`.

    Raises `RequestRefused` (400) for anything else.
    """
    text = request.query.get(name)
    if text is None:
        return default
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= most:
        raise RequestRefused(400, f"{name} must be a number from 0 to {most:g}, not {text!r}")
    return value


def switch(request: web.Request, name: str) -> bool:
    """Tell whether the query turns something on, as `?more=1` does."""
    return request.query.get(name, "0").lower() not in ("0", "false", "off", "no")


def whole(request: web.Request, name: str) -> int:
    """Read a sequence number of the query.

    Raises `RequestRefused` (400) for anything else.
    """
    text = request.query[name]
    if not (text.isascii() and text.isdigit() and len(text) < 16):
        raise RequestRefused(400, f"{name} must be a whole number from 0 up, not {text!r}")
    return int(text)
