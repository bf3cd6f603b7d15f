"""Responses: errors, text and subtitles, and server-sent events that pass through go-livepeer unharmed."""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType
from typing import Self, TypedDict, TypeVar

from aiohttp import web
from aiohttp.typedefs import Handler

from audio.errors import AudioError, DecoderFailed
from whisper_byoc.errors import BadParam, ProcessorError, RequestRefused, SegmentError, UsageError
from whisper_byoc.params import whole_param
from whisper_byoc.server.core.admission import RETRY_AFTER_SECONDS
from whisper_byoc.server.core.results import MAX_ERROR_CHARACTERS
from whisper_byoc.server.core.table import TABLE
from whisper_byoc.speech.formats import LINE_WIDTH, LINE_WIDTHS, written
from whisper_byoc.speech.transcript import Transcription

log = logging.getLogger(__name__)

WIDTH = whole_param("max_line_width", "columns of a line of subtitles", *LINE_WIDTHS, LINE_WIDTH)
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
"""Response format -> Content-Type."""

MAX_LINE_BYTES = 64 * 1024 - 1
"""Longest line of an event stream: an orchestrator copies it with a 64 KiB scanner (go-livepeer, byoc)."""
DONE = b"[DONE]"
"""Ends an event stream, wherever in a line it occurs: go-livepeer looks for the characters, not for the event."""

ERROR_TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
ERROR_CODES = {413: "file_too_large", 429: "rate_limit_exceeded"}
"""OpenAI's words for errors."""

Shape = Callable[[web.Request, RequestRefused], object]
"""Makes the JSON body of an error."""
H = TypeVar("H", bound=Handler)


def errors_as(shape: Shape, unreadable: int = 400) -> Callable[[H], H]:
    """Make a decorator that has a route's errors answered in `shape`.

    `unreadable` is the status for sound that cannot be read. The decorator only marks the handler: `error_answer` finds
    the mark, even for errors raised before the handler is called.
    """

    def mark(handler: H) -> H:
        handler.shape, handler.unreadable = shape, unreadable  # type: ignore[attr-defined]
        return handler

    return mark


def error_answer(request: web.Request, error: Exception) -> web.Response:
    """Answer with an error in the shape of the requested route, and count it."""
    refused = _refusal(request, error)
    request.app[TABLE].metrics.refused(refused)
    headers = {} if refused.retry_after is None else {"Retry-After": str(refused.retry_after)}
    shape = shape_of(request.match_info.handler, request.path)
    response = web.json_response(shape(request, refused), status=refused.status, headers=headers)
    if not request.content.at_eof():
        response.force_close()  # the rest of an unread body is never read
    return response


class Error(TypedDict):
    error: str


class OpenAiDetails(TypedDict):
    message: str
    type: str
    param: str | None
    code: str | None


class OpenAiError(TypedDict):
    error: OpenAiDetails


def shape_of(handler: object, path: str) -> Shape:
    """Return the function that makes a route's error bodies; its return type is their schema."""
    usual: Shape = openai_error if path.startswith("/v1/") else _plain
    return getattr(handler, "shape", usual)


def _plain(_: web.Request, error: RequestRefused) -> Error:
    return {"error": str(error)}


def openai_error(_: web.Request, error: RequestRefused) -> OpenAiError:
    kind = ERROR_TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "server_error")
    unknown_model = error.status == 404 and error.param == "model"
    code = "model_not_found" if unknown_model else ERROR_CODES.get(error.status)
    return {"error": {"message": str(error), "type": kind, "param": error.param, "code": code}}


def _refusal(request: web.Request, error: Exception) -> RequestRefused:
    if isinstance(error, RequestRefused):
        return error
    if isinstance(error, ProcessorError):
        log.error("%s %s failed: %s", request.method, request.path, error)
        return RequestRefused(500, str(error))
    if isinstance(error, (UsageError, SegmentError)):  # how processors refuse parameters
        return RequestRefused(400, str(error), param=error.name if isinstance(error, BadParam) else None)
    if isinstance(error, DecoderFailed):
        log.error("%s %s failed: %s", request.method, request.path, error)
        return RequestRefused(503, str(error), RETRY_AFTER_SECONDS)
    if isinstance(error, AudioError):
        return RequestRefused(getattr(request.match_info.handler, "unreadable", 400), str(error))
    log.error("%s %s failed", request.method, request.path, exc_info=error)
    return RequestRefused(500, "the server failed on this request; its log says why")


def render(transcription: Transcription, wanted: str, width: int = LINE_WIDTH) -> str:
    """Write a transcription as `text`, `srt` or `vtt`, in lines of at most `width` columns.

    Raises `RequestRefused` (406) for subtitles of text without times.
    """
    if wanted == "text":
        return f"{transcription.text}\n"
    if transcription.text and not transcription.segments:
        raise RequestRefused(406, f"this pipeline gives no times, so it has no {wanted}; ask for text or json")
    return written(wanted, transcription, width)


async def deliver(request: web.Request, writing: Awaitable[None]) -> None:
    """Wait until the client's socket has taken what was written.

    Raises `ConnectionResetError`, by which the connection is dropped, when that takes longer than the idle limit.
    """
    seconds = request.app[TABLE].limits.idle_seconds
    try:
        async with asyncio.timeout(seconds):
            await writing
    except TimeoutError:
        log.warning("%s %s: dropped, its client has read nothing for %g s", request.method, request.path, seconds)
        raise ConnectionResetError("the client does not read") from None


class EventStream:
    """Server-sent events of JSON, ended by `data: [DONE]`. An error raised in its context is sent in `shape`."""

    def __init__(self, request: web.Request, headers: Mapping[str, str], shape: Shape) -> None:
        self.response = web.StreamResponse(headers={**headers, "Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        self._request = request
        self._shape = shape

    async def __aenter__(self) -> Self:
        await self.response.prepare(self._request)
        return self

    async def send(self, fields: bytes | object) -> None:
        """Send one event: an object, or bytes that are its JSON.

        Raises `RequestRefused` (422) when it does not fit in a line, and `ConnectionError` when the client does not
        read.
        """
        text = (
            fields if isinstance(fields, bytes) else json.dumps(fields, ensure_ascii=False).encode("utf-8", "replace")
        )
        line = b"data: %b" % text.replace(DONE, b"\\u005bDONE]")  # only ever within a JSON string
        if len(line) > MAX_LINE_BYTES:
            raise RequestRefused(422, f"an event of {len(line)} bytes does not fit into a line; ask for another format")
        await deliver(self._request, self.response.write(line + b"\n\n"))

    async def __aexit__(self, kind: object, error: BaseException | None, _: object) -> bool:
        """Send the error, if there was one, and the end; nothing when the client is gone."""
        if isinstance(error, Exception) and not isinstance(error, ConnectionError):
            refused = _refusal(self._request, error)
            self._request.app[TABLE].metrics.refused(refused)
            short = RequestRefused(refused.status, str(refused)[:MAX_ERROR_CHARACTERS], param=refused.param)
            await self.send(self._shape(self._request, short))
        elif error is not None:
            return False
        await deliver(self._request, self.response.write(b"data: %b\n\n" % DONE))
        await deliver(self._request, self.response.write_eof())
        return True
