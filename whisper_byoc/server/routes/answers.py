"""The forms of an answer: subtitles and text, and server-sent events that pass through go-livepeer unharmed."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Mapping
from types import MappingProxyType
from typing import Any

from aiohttp import web

from whisper_byoc.errors import RequestRefused
from whisper_byoc.server.routes.errors import Shape, refusal
from whisper_byoc.server.routes.keys import METRICS
from whisper_byoc.speech.formats import FORMATS
from whisper_byoc.speech.transcript import Transcription

__all__ = [
    "CONTENT_TYPES",
    "MAX_LINE_BYTES",
    "EventStream",
    "drop",
    "render",
    "segments_in_seconds",
    "taken_within",
    "to_line",
]

log = logging.getLogger(__name__)

CONTENT_TYPES: Mapping[str, str] = MappingProxyType(
    {
        "json": "application/json; charset=utf-8",
        "text": "text/plain; charset=utf-8",
        "srt": "application/x-subrip; charset=utf-8",
        "vtt": "text/vtt; charset=utf-8",
        "ndjson": "application/x-ndjson",
        "sse": "text/event-stream",
    }
)
"""Name of a form -> Content-Type."""

MAX_LINE_BYTES = 64 * 1024 - 1
"""Longest line of an event stream: an orchestrator copies it with a scanner of 64 KiB (go-livepeer, byoc)."""
MAX_ERROR_CHARACTERS = 2000
"""Longest error in an event; what a processor raises may be of any length."""
DONE = "[DONE]"
"""Ends an event stream, in whichever line it stands: go-livepeer looks for the characters, not for the event."""


def render(heard: Transcription, form: str) -> str:
    """Write a transcription as `text`, `srt` or `vtt`.

    Raises `RequestRefused` (406) for subtitles of text that has no times.
    """
    if form == "text":
        return f"{heard.text}\n"
    if heard.text and not heard.segments:
        raise RequestRefused(406, f"this pipeline gives no times, so it has no {form}; ask for text or json")
    return FORMATS[form](heard)


def segments_in_seconds(heard: Transcription) -> list[dict[str, Any]]:
    """Give `start`, `end` and `text` of each segment, and its `words` if there are any."""
    found: list[dict[str, Any]] = []
    for each in heard.segments:
        words = [
            {"word": word.text, "start": word.start, "end": word.end, "probability": word.probability}
            for word in each.words
        ]
        head = {"start": each.start, "end": each.end, "text": each.text}
        found.append({**head, "words": words} if words else head)
    return found


def to_line(fields: object) -> bytes:
    """JSON in one line, in which `[DONE]` cannot occur."""
    text = json.dumps(fields, ensure_ascii=False, separators=(",", ":"))
    return text.replace(DONE, "\\u005bDONE]").encode("utf-8", "replace")  # only ever within a JSON string


def drop(request: web.Request) -> None:
    """Drop the connection of a client that is gone or does not read: an end in order would wait for it for ever."""
    if request.transport is not None:
        request.transport.abort()


async def taken_within(seconds: float, request: web.Request, writing: Awaitable[None]) -> None:
    """Wait until the client's socket has taken what is written.

    Raises `ConnectionResetError`, and drops the connection, when that takes longer than `seconds`.
    """
    try:
        async with asyncio.timeout(seconds):
            await writing
    except TimeoutError:
        log.warning("%s %s: dropped, its client has read nothing for %g s", request.method, request.path, seconds)
        drop(request)
        raise ConnectionResetError("the reader does not read") from None


class EventStream:
    """Server-sent events of JSON, ended by `data: [DONE]`. An error on the way becomes an event in `shape`."""

    def __init__(self, request: web.Request, headers: Mapping[str, str], timeout: float, shape: Shape) -> None:
        self.response = web.StreamResponse(headers={**headers, "Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        self._request = request
        self._timeout = timeout
        self._shape = shape

    async def __aenter__(self) -> EventStream:
        """Send the headers."""
        await self.response.prepare(self._request)
        return self

    async def send(self, fields: object) -> None:
        """Send one event.

        Raises `RequestRefused` (422) when it does not fit into a line, and `ConnectionError` when the reader does not
        read.
        """
        line = b"data: %b" % to_line(fields)
        if len(line) > MAX_LINE_BYTES:
            raise RequestRefused(422, f"an event of {len(line)} bytes does not fit into a line; ask for another format")
        await self._write(line + b"\n\n")

    async def __aexit__(self, kind: object, error: BaseException | None, _: object) -> bool:
        """Send the error, if there was one, and the end. Nothing when the reader is gone."""
        if isinstance(error, Exception) and not isinstance(error, ConnectionError):
            refused = refusal(self._request, error)
            self._request.app[METRICS].refused(refused.status)
            await self.send(self._shape(RequestRefused(refused.status, str(refused)[:MAX_ERROR_CHARACTERS])))
        elif error is not None:
            return False
        await self._write(b"data: %b\n\n" % DONE.encode())
        await taken_within(self._timeout, self._request, self.response.write_eof())
        return True

    async def _write(self, data: bytes) -> None:
        await taken_within(self._timeout, self._request, self.response.write(data))
