"""Errors as answers: a line of text on go-livepeer's routes, JSON on ours."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Awaitable, Callable

from aiohttp import web

from whisper_byoc.errors import ReaderGone, RequestRefused
from whisper_byoc.network.reading import json_value
from whisper_byoc.trickle import TrickleError

__all__ = ["Handler", "as_json", "as_text", "says"]

log = logging.getLogger("whisper_byoc.network")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def as_text(handler: Handler) -> Handler:
    """Answer errors as Go's `http.Error` does: the sentence and a newline."""
    return answering(handler, lambda message: web.Response(text=message + "\n"))


def as_json(handler: Handler) -> Handler:
    """Answer errors as `{"error": sentence}`."""
    return answering(handler, lambda message: web.json_response({"error": message}))


def answering(handler: Handler, form: Callable[[str], web.Response]) -> Handler:
    """Turn errors into answers; a bug becomes a 500 and a log entry."""

    @functools.wraps(handler)
    async def answer(request: web.Request) -> web.StreamResponse:
        retry_after = None
        try:
            return await handler(request)
        except RequestRefused as error:
            status, message, retry_after = error.status, str(error), error.retry_after
        except TrickleError as error:
            status, message = 503, str(error)
        except (ConnectionError, ReaderGone):
            return gone(request)
        except Exception:
            log.exception("%s %s failed", request.method, request.path)
            status, message = 500, "the server failed on this request; its log says why"
        response = form(message.encode("utf-8", "replace").decode())  # a peer's words may hold half a character
        response.set_status(status)
        if retry_after is not None:
            response.headers["Retry-After"] = str(retry_after)
        if not request.content.at_eof():
            response.force_close()  # what was not read of the body is not read any more
        return response

    return answer


def gone(request: web.Request) -> web.StreamResponse:
    """End the connection of a client that there is nobody behind any more."""
    if request.transport is not None:
        request.transport.abort()
    return web.StreamResponse()


def says(body: bytes, otherwise: str) -> str:
    """Find the sentence in a peer's error answer: its JSON's `error`, or its text; `otherwise` when it is empty."""
    text = body.decode("utf-8", "replace").strip()
    with contextlib.suppress(ValueError, TypeError, KeyError):
        text = str(json_value(text)["error"])
    return text[:500] or otherwise
