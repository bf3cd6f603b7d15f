"""One request of a client, brought to one orchestrator after the other until one does it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from aiohttp import web
from yarl import URL

from whisper_byoc.errors import PeerBusy, PeerFailed, RequestRefused
from whisper_byoc.network.answers import says
from whisper_byoc.network.feed import Feed
from whisper_byoc.network.gateway.context import Context
from whisper_byoc.network.out import PEER_ERRORS, Out, peer_failed
from whisper_byoc.network.reading import read_answer
from whisper_byoc.network.tasks import within

__all__ = ["NotOffered", "forward"]

log = logging.getLogger("whisper_byoc.network.gateway")

NOT_PASSED_BACK = frozenset(
    {"connection", "date", "keep-alive", "server", "te", "trailer", "transfer-encoding", "upgrade"}
)


class NotOffered(RequestRefused):
    """The orchestrator does not offer the capability."""

    def __init__(self, message: str) -> None:
        super().__init__(404, message)


async def forward(
    context: Context, request: web.Request, headers: Mapping[str, str], urls: Sequence[str], seconds: float,
    feed: Feed, out: Out,
) -> web.StreamResponse:  # fmt: skip
    """Bring the request to the orchestrators in order. Of those that took it and failed, one more is tried.

    An orchestrator that does not offer the capability, is busy or cannot be reached is passed over. The answer's head
    must come within `seconds`. Raises `RequestRefused` while nothing has been answered: the gravest of what was met,
    which is `NotOffered` only if no orchestrator that could be reached offers it.
    """
    failure: RequestRefused | None = None
    for url in urls:
        try:
            with context.tether.alive():
                return await once(context, request, url, headers, seconds, feed, out)
        except RequestRefused as met:
            error = feed.error or met
            log.log(logging.WARNING if isinstance(error, PeerFailed) else logging.INFO, "%s: %s", request.path, error)
            second = weight(failure) == weight(error) == TOOK_AND_FAILED
            if second or not weight(error) or error.status == 504 or out.produced or not feed.replayable:
                return await out.fail(error)
            failure = error if weight(error) > weight(failure) else failure
    return await out.fail(failure or RequestRefused(502, "there is no orchestrator to ask"))


TOOK_AND_FAILED = 4


def weight(error: RequestRefused | None) -> int:
    """Tell how much an error says of the request; 0 for one that says that no other orchestrator is to be asked."""
    if error is None:
        return 0
    if isinstance(error, PeerFailed):
        return TOOK_AND_FAILED if error.reached else 1
    return 2 if isinstance(error, NotOffered) else 3 if isinstance(error, PeerBusy) else 0


async def once(
    context: Context, request: web.Request, url: str, headers: Mapping[str, str], seconds: float, feed: Feed, out: Out
) -> web.StreamResponse:
    """Bring the request to one orchestrator, and its answer back as it comes."""
    sent = dict(headers)
    if feed.length is not None:
        sent["Content-Length"] = str(feed.length)
    target = URL(url + request.rel_url.raw_path, encoded=True)  # as the client wrote it: %2F and %3F stay what they are
    try:
        posting = context.http.post(
            target, data=feed.chunks(lambda: out.produced), params=request.query, headers=sent, allow_redirects=False
        )
        answer = await within(seconds, posting)
        async with answer:
            if answer.status >= 400:
                raise refusal(url, answer.status, await read_answer(answer), answer.headers.get("Retry-After", ""))
            back = {name: value for name, value in answer.headers.items() if name.lower() not in NOT_PASSED_BACK}
            await out.copy(answer, back | {"X-Orchestrator-Url": url}, lambda: feed.hungry)
            return await out.finish()
    except PEER_ERRORS as error:
        raise feed.error or peer_failed(f"the orchestrator at {url}", error) from None


def refusal(url: str, status: int, body: bytes, retry_after: str) -> RequestRefused:
    """Make an orchestrator's error answer an error of the same status."""
    message = says(body, f"the orchestrator at {url} answered {status}")
    if status == 404:
        return NotOffered(message)
    if status >= 500 and status != 503:
        return PeerFailed(message, status)
    seconds = int(retry_after) if retry_after.isascii() and retry_after.isdigit() and len(retry_after) < 6 else None
    return PeerBusy(message, seconds or 1) if status == 503 else RequestRefused(status, message, seconds)
