"""Errors as the clients of a route read them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

from aiohttp import web
from aiohttp.typedefs import Handler

from audio.errors import AudioError
from whisper_byoc.errors import RequestRefused
from whisper_byoc.server.routes.keys import METRICS

__all__ = ["Shape", "answer_to", "refusal", "refuse", "refusing"]

log = logging.getLogger(__name__)

Shape = Callable[[RequestRefused], object]
"""Makes the JSON body of an error."""
H = TypeVar("H", bound=Handler)


def plain(error: RequestRefused) -> object:
    """Build an error body where there is no other convention."""
    return {"error": str(error)}


def refusing(shape: Shape, unreadable: int = 400) -> Callable[[H], H]:
    """Make a decorator by which a route's errors are answered in `shape`; sound that cannot be read has a status.

    It marks the handler only: whoever answers errors finds the mark, also of those before the handler is called.
    """

    def mark(handler: H) -> H:
        handler.shape, handler.unreadable = shape, unreadable  # type: ignore[attr-defined]
        return handler

    return mark


def refusal(request: web.Request, error: Exception) -> RequestRefused:
    """Give what the client is told of an error on its request; one that nobody foresaw is for the log."""
    if isinstance(error, RequestRefused):
        return error
    if isinstance(error, AudioError):
        return RequestRefused(getattr(request.match_info.handler, "unreadable", 400), str(error))
    log.error("%s %s failed", request.method, request.path, exc_info=error)
    return RequestRefused(500, "the server failed on this request; its log says why")


def answer_to(request: web.Request, error: Exception) -> web.Response:
    """Answer with an error in the shape of the route that was asked."""
    shape: Shape = getattr(request.match_info.handler, "shape", plain)
    refused = refusal(request, error)
    return refuse(request, refused.status, shape(refused), refused.retry_after)


def refuse(request: web.Request, status: int, body: object, retry_after: int | None = None) -> web.Response:
    """Answer with an error, and count it.

    A body that was not read to its end is not read any more: the connection is closed instead.
    """
    request.app[METRICS].refused(status)
    headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
    response = web.json_response(body, status=status, headers=headers)
    if not request.content.at_eof():
        response.force_close()
    return response
