"""A channel on any trickle server, as its clients see it: options, small requests, and retries."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import aiohttp
from yarl import URL

from whisper_byoc.aio import backoff
from whisper_byoc.errors import UsageError
from whisper_byoc.http import CONNECTION_ERRORS, base_url, open_session, read_body, reason_of, without_secrets
from whisper_byoc.trickle.errors import BadSequence, ChannelNotFound, Refused, TrickleError, Unreachable
from whisper_byoc.trickle.protocol import EXPECT_CONTENT, LATEST, parse_seq

T = TypeVar("T")

log = logging.getLogger("whisper_byoc.trickle")

QUOTED_BYTES = 200
"""Bytes of an error's body that are quoted."""
ERROR_TEXT_S = 2.0
FIRST_PAUSE_S = 0.1


@dataclass(frozen=True)
class ClientOptions:
    """How a publisher or a subscriber treats its server. All times in seconds."""

    token: str = field(default="", repr=False)
    """Bearer token to show, if not empty."""
    verify: bool = True
    """Check certificates; go-livepeer's orchestrators sign their own."""
    connect_seconds: float = 10.0
    """Longest wait for a connection. One that lasted longer before it broke did work, so patience starts afresh."""
    answer_seconds: float = 30.0
    """Longest wait for the response to a whole request, and for a server to take the next bytes."""
    patience_seconds: float = 30.0
    """How long a failing request is retried before `Unreachable` is raised."""
    longest_pause: float = 5.0
    """The longest pause between two attempts."""
    refresh_seconds: float = 25.0
    """A subscriber asks again for a segment that has not begun after this long."""
    early_seconds: float = 0.25
    """A subscriber that asked too early asks again after this long (as the Python gateway client does)."""
    absent_seconds: float = 0.0
    """How long a subscriber waits for a channel that does not exist yet."""
    absent_pause: float = 0.25
    """How often it looks for such a channel."""
    linger_seconds: float = 0.5
    """A publisher waits this long before it deletes its channel, after which the last segment can no longer be read."""
    stall_seconds: float = 300.0
    """A segment that sends nothing for this long is requested again; a server sweeps such a channel."""


class ServerTrouble(Exception):
    """The server answered with a 5xx status: worth a retry."""


RETRIED = (*CONNECTION_ERRORS, ServerTrouble)


class Retry:
    """When to retry: after ever longer pauses, for `patience_seconds` (by default those of the options)."""

    def __init__(self, options: ClientOptions, patience_seconds: float | None = None) -> None:
        self._options = options
        self._patience = options.patience_seconds if patience_seconds is None else patience_seconds
        self.restart()

    def restart(self) -> None:
        """Forget the failures so far: the server responded properly."""
        self._pauses = retry_pauses(self._options)
        self._failing_since: float | None = None

    def pause_after(self, error: BaseException, began_at: float, what: str) -> float:
        """Return how many seconds to wait after an attempt at `what`, begun at `began_at` (`time.monotonic`), failed.

        Raises `Unreachable` when there have been only failures for longer than `patience_seconds`.
        """
        now = time.monotonic()
        broke = isinstance(error, CONNECTION_ERRORS) and not isinstance(error, TimeoutError)
        if broke and now - began_at > self._options.connect_seconds:  # a connection that did work
            self.restart()
        if self._failing_since is None:
            log.info("%s: %s", what, reason_of(error))
            self._failing_since = now
        if now - self._failing_since > self._patience:
            raise Unreachable(f"{what}: {reason_of(error)}") from error
        return next(self._pauses)


def retry_pauses(options: ClientOptions) -> Iterator[float]:
    """Yield the pauses between attempts: none before the second one, then longer and longer ones."""
    yield 0.0
    yield from backoff(FIRST_PAUSE_S, options.longest_pause)


class RemoteChannel:
    """The small requests for a channel. Each raises `ChannelNotFound`, `Refused`, or one of `RETRIED`."""

    def __init__(self, url: str, options: ClientOptions) -> None:
        """Raise `TrickleError` for a URL that cannot be that of a channel."""
        try:
            self.url = base_url(url, credentials=True)
        except UsageError:
            self.url = ""
        if len(URL(self.url).path) < 2:
            raise TrickleError(
                f"{without_secrets(url)!r} is not the URL of a channel, such as http://localhost:2939/ai/trickle/NAME"
            )
        self.shown = without_secrets(self.url)
        """For messages."""
        self.options = options
        self._session: aiohttp.ClientSession | None = None
        self._limited = aiohttp.ClientTimeout(total=options.answer_seconds, sock_connect=options.connect_seconds)

    @property
    def opened(self) -> bool:
        return self._session is not None

    @property
    def session(self) -> aiohttp.ClientSession:
        """The session, for requests without a time limit."""
        if self._session is None:
            raise TrickleError("the publisher or subscriber is not open: use `async with`, or `start` and `close`")
        return self._session

    def open(self) -> None:
        if self._session is None:
            self._session = open_session(
                verify=self.options.verify,
                connect_seconds=self.options.connect_seconds,
                headers={"Authorization": f"Bearer {self.options.token}"} if self.options.token else None,
            )

    async def close(self) -> None:
        session, self._session = self._session, None
        if session:
            await session.close()

    async def create(self, mime: str) -> None:
        """Create the channel, or find that it exists."""
        async with self._request("POST", headers={EXPECT_CONTENT: mime}) as answer:
            if answer.status != 200:
                raise await self.error_of(answer)

    async def next_write(self) -> int | None:
        """Ask which index is written next; None if the server does not say."""
        async with self._request("GET", "/next") as answer:
            if answer.status == 400:  # servers older than go-livepeer 0.8.11 treat `next` as a bad index
                return None
            if answer.status != 200:
                raise await self.error_of(answer)
            return header_seq(answer, LATEST)

    async def delete(self) -> None:
        """End the channel for everybody, if it exists."""
        async with self._request("DELETE"):
            pass

    async def finish(self, seq: int) -> bool:
        """Close a segment; return False when the server does not have it."""
        async with self._request("DELETE", f"/{seq}") as answer:
            return answer.status == 200

    async def stored(self, seq: int, limit: int) -> bytes | None:
        """Read up to `limit` bytes of a closed segment; None when the server does not have it."""
        async with self._request("GET", f"/{seq}") as answer:
            return await read_body(answer.content, limit) if answer.status == 200 else None

    async def error_of(self, answer: aiohttp.ClientResponse) -> ChannelNotFound | Refused | ServerTrouble:
        """Return the error that a response other than 200 stands for, and close the response."""
        text = b""
        with contextlib.suppress(*CONNECTION_ERRORS):
            async with asyncio.timeout(ERROR_TEXT_S):
                text = await answer.content.read(QUOTED_BYTES)
        answer.close()
        if answer.status == 404:
            return ChannelNotFound(f"there is no channel at {self.shown}")
        words = text.decode("utf-8", "replace").strip()
        message = f"{answer.method} {answer.url} was answered {answer.status}"
        log.info("%s: %r", message, words)
        return ServerTrouble(message) if answer.status >= 500 else Refused(answer.status, message, words)

    def _request(
        self, method: str, path: str = "", **options: Any
    ) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        url = self.url + path
        return self.session.request(method, url, timeout=self._limited, allow_redirects=False, **options)

    async def persist(self, request: Callable[[], Awaitable[T]]) -> T:
        """Make a request until it is answered; raise `Unreachable` when it fails for too long."""
        retry = Retry(self.options)
        while True:
            began_at = time.monotonic()
            try:
                return await request()
            except RETRIED as error:
                await asyncio.sleep(retry.pause_after(error, began_at, self.shown))


def header_seq(answer: aiohttp.ClientResponse, name: str) -> int | None:
    """Read an index from a header; None when there is none."""
    try:
        seq = parse_seq(answer.headers.get(name, ""))
    except BadSequence:
        return None
    return seq if seq >= 0 else None
