"""One request of a client, brought to one orchestrator after the other until one does it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence

from aiohttp import web

from whisper_byoc.errors import PeerBusy, PeerFailed, RequestRefused
from whisper_byoc.network.answers import says
from whisper_byoc.network.feed import Feed
from whisper_byoc.network.gateway.context import Context
from whisper_byoc.network.out import PEER_ERRORS, Out, peer_failed

__all__ = ["NotOffered", "forward"]

log = logging.getLogger("whisper_byoc.network.gateway")

NOT_PASSED_BACK = frozenset({"connection", "date", "keep-alive", "server", "transfer-encoding"})


class NotOffered(RequestRefused):
    """The orchestrator does not offer the capability."""

    def __init__(self, message: str) -> None:
        super().__init__(404, message)


async def forward(
    context: Context, request: web.Request, path: str, headers: Mapping[str, str], urls: Sequence[str], seconds: float,
    feed: Feed, out: Out,
) -> web.StreamResponse:  # fmt: skip
    """Bring the request to the orchestrators in order. Of those that took it and failed, one more is tried.

    An orchestrator that does not offer the capability, or is busy, is passed over. The answer's head must come within
    `seconds`. Raises `RequestRefused` while nothing has been answered: what the orchestrator says, or `NotOffered` if
    they all say that.
    """
    failure: RequestRefused | None = None
    for url in urls:
        try:
            return await once(context, request, url, path, headers, seconds, feed, out)
        except NotOffered as error:
            failure = failure or error
        except PeerBusy as error:
            failure = error if failure is None or isinstance(failure, NotOffered) else failure
        except PeerFailed as error:
            second = isinstance(failure, PeerFailed) and failure.reached
            failure = error
            if second or error.status == 504 or out.produced or not feed.replayable:
                break
            log.warning("%s: %s", request.path, error)
        except RequestRefused as error:
            failure = error
            break
    return await out.fail(failure or RequestRefused(502, "there is no orchestrator to ask"))


async def once(
    context: Context, request: web.Request, url: str, path: str, headers: Mapping[str, str], seconds: float,
    feed: Feed, out: Out,
) -> web.StreamResponse:  # fmt: skip
    """Bring the request to one orchestrator, and its answer back as it comes."""
    sent = dict(headers)
    if feed.length is not None:
        sent["Content-Length"] = str(feed.length)
    try:
        posting = context.http.post(
            url + path, data=feed.chunks(), params=request.query, headers=sent, allow_redirects=False
        )
        answer = await asyncio.wait_for(posting, seconds)
        async with answer:
            if answer.status >= 400:
                body = await answer.content.read(4096)
                raise refusal(url, answer.status, body, answer.headers.get("Retry-After", ""))
            back = {name: value for name, value in answer.headers.items() if name.lower() not in NOT_PASSED_BACK}
            await out.copy(answer, back | {"X-Orchestrator-Url": url})
            return await out.finish()
    except PEER_ERRORS as error:
        raise feed.error or peer_failed(f"the orchestrator at {url}", error) from None


def refusal(url: str, status: int, body: bytes, retry_after: str) -> RequestRefused:
    """Make an orchestrator's error answer an error of the same status."""
    message = says(body, f"the orchestrator at {url} answered {status}")
    if status == 404:
        return NotOffered(message)
    if status == 503:
        return PeerBusy(message, int(retry_after) if retry_after.isdigit() else 1)
    return PeerFailed(message, status) if status >= 500 else RequestRefused(status, message)
