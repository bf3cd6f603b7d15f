"""Requests to peers: what their failures mean, and which of several peers gets a job."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import aiohttp

from whisper_byoc.errors import PeerBusy, PeerFailed, RequestRefused
from whisper_byoc.http import CONNECTION_ERRORS, json_value, open_session, read_body, reason_of

log = logging.getLogger("whisper_byoc.network")

Peer = TypeVar("Peer")
Taken = TypeVar("Taken")

BUSY = (429, 503)
LONGEST_MESSAGE = 500
LARGEST_ANSWER = 10 << 20
CONNECT_S = 5.0
MARGIN_S = 5.0
"""Added to an orchestrator's own time limits, for one that does not keep them (go-livepeer: 5 s)."""
READ_BYTES = 256 << 10


class AbortScope:
    """Interrupts whatever is done inside `async with scope.guard()` when `abort` is called."""

    def __init__(self) -> None:
        self.reason = ""
        """Why it was aborted; empty until then."""
        self._guards: set[asyncio.Timeout] = set()

    def abort(self, reason: str) -> None:
        if not self.reason:
            self.reason = reason
            for guard in self._guards:
                guard.reschedule(0)  # a time that has passed

    @contextlib.asynccontextmanager
    async def guard(self) -> AsyncIterator[None]:
        """Raise `PeerFailed` with the reason when the scope is aborted, or has been already."""
        if self.reason:
            raise PeerFailed(self.reason)
        guard = asyncio.timeout(None)
        self._guards.add(guard)
        try:
            async with guard:
                yield
        except TimeoutError:
            if guard.expired():
                raise PeerFailed(self.reason) from None
            raise
        finally:
            self._guards.discard(guard)


def peer_session() -> aiohttp.ClientSession:
    """Open a session for requests to peers; go-livepeer's orchestrators sign their own certificates."""
    return open_session(verify=False, connect_seconds=CONNECT_S, buffer_bytes=READ_BYTES)


@contextlib.contextmanager
def talking_to(peer: str) -> Iterator[None]:
    """Raise `PeerFailed` when a request to `peer` fails within the context."""
    try:
        yield
    except CONNECTION_ERRORS as error:
        connecting = isinstance(error, (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError))
        if isinstance(error, TimeoutError) and not connecting:
            raise PeerFailed(f"{peer} did not answer in time", 504) from None
        raise PeerFailed(f"{peer} failed: {reason_of(error)}", reached=not connecting) from None


@dataclass(frozen=True)
class Answer:
    """A peer's response to a small request."""

    status: int
    body: bytes
    headers: Mapping[str, str]


async def post(
    http: aiohttp.ClientSession, peer: str, url: str, body: bytes, headers: Mapping[str, str], seconds: float,
    params: Mapping[str, str] | None = None,
) -> Answer:  # fmt: skip
    """Send a peer a small request.

    Raises `PeerFailed`.
    """
    too_large = PeerFailed(f"{peer} answered with more than {LARGEST_ANSWER} bytes")
    limit = aiohttp.ClientTimeout(total=seconds, sock_connect=CONNECT_S)
    with talking_to(peer):
        async with http.post(
            url, data=body, headers=headers, params=params, timeout=limit, allow_redirects=False
        ) as answer:
            if answer.status == 401:
                raise await refusal(peer, answer)
            return Answer(answer.status, await read_body(answer.content, LARGEST_ANSWER, too_large), answer.headers)


async def ask(
    http: aiohttp.ClientSession, url: str, seconds: float, params: Mapping[str, str] | None = None
) -> tuple[int, dict[str, Any]]:
    """Return the status of a peer's response and the JSON object in it, an empty one if there is none.

    Raises `CONNECTION_ERRORS`.
    """
    limit = aiohttp.ClientTimeout(total=seconds)
    async with http.get(url, params=params, timeout=limit, allow_redirects=False) as answer:
        try:
            found = json_value(await read_body(answer.content, LARGEST_ANSWER))
        except ValueError:
            found = {}
        return answer.status, found if isinstance(found, dict) else {}


async def refusal(peer: str, answer: aiohttp.ClientResponse) -> RequestRefused:
    """Return the error for a peer's error response, with its status and message."""
    return refused(peer, answer.status, await read_body(answer.content), answer.headers.get("Retry-After", ""))


def refused(peer: str, status: int, body: bytes, retry_after: str = "") -> RequestRefused:
    """Return the error for an error response that has been read."""
    if status == 401:
        return PeerFailed(f"{peer} does not take the token that it registered with")
    text = body.decode("utf-8", "replace").strip()
    with contextlib.suppress(ValueError, TypeError, KeyError):
        text = str(json_value(text)["error"])
    message = text[:LONGEST_MESSAGE] or f"{peer} answered {status}"
    if status in BUSY:
        plain = retry_after.isascii() and retry_after.isdigit() and len(retry_after) < 6  # it may also be a date
        return PeerBusy(message, int(retry_after) if plain else 1, status)
    return PeerFailed(message, status) if status >= 500 else RequestRefused(status, message)


async def first_to_take(peers: Iterable[Peer], attempt: Callable[[Peer], Awaitable[Taken]]) -> Taken:
    """Return what `attempt` returns for the first peer that takes the job.

    A peer that is busy or cannot be reached is skipped. Any other failure is final: that peer may have begun.

    Raises `RequestRefused`; when no peer takes the job, a busy peer's refusal if there is one.
    """
    failures: list[RequestRefused] = []
    for peer in peers:
        if failures:
            log.warning("%s; trying another one", failures[-1])
        try:
            return await attempt(peer)
        except RequestRefused as error:
            if not isinstance(error, PeerBusy) and not (isinstance(error, PeerFailed) and not error.reached):
                raise
            failures.append(error)
        await asyncio.sleep(0)  # a run of refusals must not hog the loop
    busy = [error for error in failures if isinstance(error, PeerBusy)]
    raise (busy or failures or [PeerFailed("there is nobody to ask")])[0]
