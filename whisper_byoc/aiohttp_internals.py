"""What this project does to aiohttp behind its public interface, each with its reason.

`tests/test_aiohttp_internals.py` fails when a release of aiohttp changes one of them.
"""

from typing import Any, cast

import aiohttp
from aiohttp import web

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class LateHeadResponse(web.StreamResponse):
    """A streamed answer whose head waits for the first bytes of its body, so that both leave in one packet.

    aiohttp sends the head at once otherwise: two packets for every small segment.
    """

    _send_headers_immediately = False


async def send_continue(request: web.Request) -> None:
    """Send `100 Continue` once more before the answer, as go-livepeer does to keep a waiting publisher alive.

    aiohttp counts these bytes as part of the answer and would then refuse to send the head: the count is set back.
    """
    await request.writer.write(CONTINUE)
    request.writer.output_size = 0


def defer_continue(app: web.Application) -> None:
    """Leave `Expect: 100-continue` to a middleware, `continue_when_asked`, which comes after those that refuse.

    aiohttp asks for the body before any middleware has seen the request.
    """

    async def later(_: web.Request) -> None:
        pass

    for route in app.router.routes():
        route._expect_handler = later


def take_unread(content: aiohttp.StreamReader) -> bytes:
    """Return what a body had received when it broke off.

    A reader with an exception gives out nothing of what it holds, and has no public way to clear it.
    """
    content.set_exception(cast("BaseException", None))
    try:
        return content.read_nowait()
    except RuntimeError:  # somebody else is waiting for more, so there is nothing
        return b""


def handler_options(server: web.Server) -> dict[str, Any]:
    """Return the options with which a server makes the handler of each connection, for a handler of our own.

    aiohttp has no way to be told of another class.
    """
    return {"loop": server._loop, **server._kwargs}


def awaits_head(handler: web.RequestHandler) -> bool:
    """Return whether a connection is at no request: what it sends is the head of the next one.

    aiohttp limits the time between requests, but not that in which a head arrives.
    """
    busy = handler._messages or handler._current_request is not None or handler._payload_parser is not None
    return not busy and not handler._upgraded


def newest_body(handler: web.RequestHandler) -> aiohttp.StreamReader | None:
    """Return the body of the newest request whose head has come and that is not yet worked on, if there is one."""
    return handler._messages[-1][1] if handler._messages else None
