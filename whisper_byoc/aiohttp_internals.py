"""Everything this project does to aiohttp behind its public interface, and why.

`tests/test_aiohttp_internals.py` fails when a release of aiohttp changes one of them.
"""

from typing import Any, cast

import aiohttp
from aiohttp import web

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class LateHeadResponse(web.StreamResponse):
    """A streamed response whose head waits for the first bytes of the body, so that both leave in one packet.

    Otherwise aiohttp sends the head at once: two packets for every small segment.
    """

    _send_headers_immediately = False


async def send_continue(request: web.Request) -> None:
    """Send `100 Continue` once more before the answer, as go-livepeer does to keep a waiting publisher alive.

    aiohttp counts these bytes as part of the response and would then refuse to send the head, so the count is reset.
    """
    await request.writer.write(CONTINUE)
    request.writer.output_size = 0


def defer_continue(app: web.Application) -> None:
    """Leave `Expect: 100-continue` to the middleware `continue_when_asked`, which runs after those that refuse.

    aiohttp itself asks for the body before any middleware has seen the request.
    """

    async def later(_: web.Request) -> None:
        pass

    for route in app.router.routes():
        route._expect_handler = later


def take_unread(content: aiohttp.StreamReader) -> bytes:
    """Return what a body had received when it broke off.

    A reader with an exception set returns none of the bytes it holds, and has no public way to clear the exception.
    """
    content.set_exception(cast("BaseException", None))
    try:
        return content.read_nowait()
    except RuntimeError:  # another task is waiting for more, so nothing is buffered
        return b""


def handler_options(server: web.Server) -> dict[str, Any]:
    """Return the options with which a server creates each connection's handler, for use with our own handler class.

    aiohttp has no way to configure another class.
    """
    return {"loop": server._loop, **server._kwargs}


def awaits_head(handler: web.RequestHandler) -> bool:
    """Return whether a connection is between requests, so that whatever it sends is the head of the next one.

    aiohttp limits the time between requests, but not the time that a head may take to arrive.
    """
    busy = handler._messages or handler._current_request is not None or handler._payload_parser is not None
    return not busy and not handler._upgraded


def newest_body(handler: web.RequestHandler) -> aiohttp.StreamReader | None:
    """Return the body of the newest request whose head has arrived but that is not being handled yet, if any."""
    return handler._messages[-1][1] if handler._messages else None
