"""Small bodies, read whole, and the JSON in them."""

from __future__ import annotations

import json
from typing import Any

import aiohttp
from aiohttp import web

from whisper_byoc.errors import RequestRefused

__all__ = ["json_object", "json_value", "read_answer", "read_small"]

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


async def read_answer(answer: aiohttp.ClientResponse, most: int = LARGEST) -> bytes:
    """Read a peer's answer to its end, or its first `most` bytes."""
    body = bytearray()
    while len(body) < most and (data := await answer.content.read(most - len(body))):
        body += data
    return bytes(body)


def json_value(text: str | bytes) -> Any:
    """Decode JSON from outside.

    Raises `ValueError`, also for what is nested so deeply that Python gives up.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def json_object(body: bytes) -> dict[str, Any]:
    """Decode a JSON object; an empty body is an empty one.

    Raises `RequestRefused` (400).
    """
    try:
        found = json_value(body or b"{}")
    except ValueError as error:
        raise RequestRefused(400, f"the body is no JSON: {error}") from None
    if not isinstance(found, dict):
        raise RequestRefused(400, "the body must be a JSON object")
    return found
