"""What this project does to aiohttp behind its public interface, each with its reason.

`tests/test_aiohttp_internals.py` fails when a release of aiohttp changes one of them.
"""

from typing import cast

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


def take_unread(content: aiohttp.StreamReader) -> bytes:
    """Return what a body had received when it broke off.

    A reader with an exception gives out nothing of what it holds, and has no public way to clear it.
    """
    content.set_exception(cast("BaseException", None))
    try:
        return content.read_nowait()
    except RuntimeError:  # somebody else is waiting for more, so there is nothing
        return b""
