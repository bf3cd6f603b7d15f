"""Errors as the clients of a route read them."""

from __future__ import annotations

import functools
import logging
from collections.abc import Awaitable, Callable

from aiohttp import web
from aiohttp.typedefs import Handler

from audio.errors import AudioError
from whisper_byoc.errors import RequestRefused
from whisper_byoc.server.keys import METRICS

__all__ = ["Shape", "refusal", "refuse", "refusing", "shape_for"]

log = logging.getLogger(__name__)

Shape = Callable[[RequestRefused], object]
"""Makes the JSON body of an error."""


def shape_for(request: web.Request) -> Shape:
    """Give the shape of errors on the route that was asked, for those that are found before its handler is called."""
    shape: Shape = getattr(request.match_info.handler, "shape", plain)
    return shape


def plain(error: RequestRefused) -> object:
    """Build an error body where there is no other convention."""
    return {"error": str(error)}


def refusing(
    shape: Shape, unreadable: int = 400
) -> Callable[[Handler], Callable[[web.Request], Awaitable[web.StreamResponse]]]:
    """Make a decorator that has a route answer errors in `shape`; sound that cannot be read has status `unreadable`."""

    def decorate(handler: Handler) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        @functools.wraps(handler)
        async def answer(request: web.Request) -> web.StreamResponse:
            try:
                return await handler(request)
            except ConnectionError:
                raise  # the client is gone: there is nobody to answer
            except Exception as error:
                refused = refusal(request, error, unreadable)
                return refuse(request, refused.status, shape(refused), refused.retry_after)

        answer.shape = shape  # type: ignore[attr-defined]  # for `shape_for`
        return answer

    return decorate


def refusal(request: web.Request, error: Exception, unreadable: int = 400) -> RequestRefused:
    """Give what the client is told of an error on its request; one that nobody foresaw is for the log."""
    if isinstance(error, RequestRefused):
        return error
    if isinstance(error, AudioError):
        return RequestRefused(unreadable, str(error))
    log.error("%s %s failed", request.method, request.path, exc_info=error)
    return RequestRefused(500, "the server failed on this request; its log says why")


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
