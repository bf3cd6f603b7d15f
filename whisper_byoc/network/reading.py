"""Small request bodies, read whole."""

from __future__ import annotations

import json
from typing import Any

from aiohttp import web

from whisper_byoc.errors import RequestRefused

__all__ = ["json_object", "read_small"]

LARGEST = 64 * 1024


async def read_small(request: web.Request, largest: int = LARGEST) -> bytes:
    """Read a small body.

    Raises `RequestRefused` (413).
    """
    body = bytearray()
    while data := await request.content.readany():
        body += data
        if len(body) > largest:
            raise RequestRefused(413, f"the body is larger than {largest} bytes")
    return bytes(body)


def json_object(body: bytes) -> dict[str, Any]:
    """Decode a JSON object; an empty body is an empty one.

    Raises `RequestRefused` (400).
    """
    try:
        found = json.loads(body or b"{}")
    except ValueError as error:
        raise RequestRefused(400, f"the body is no JSON: {error}") from None
    if not isinstance(found, dict):
        raise RequestRefused(400, "the body must be a JSON object")
    return found
