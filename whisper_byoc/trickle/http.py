"""What publisher and subscriber share: a session without time limits, and the small requests."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import aiohttp
from yarl import URL

from whisper_byoc import http
from whisper_byoc.errors import UsageError
from whisper_byoc.http import CONNECTION_ERRORS, reason_of
from whisper_byoc.trickle.errors import BadSequence, ChannelNotFound, Refused, TrickleError, Unreachable
from whisper_byoc.trickle.protocol import EXPECT_CONTENT, LATEST, parse_seq

__all__ = [
    "ClientOptions",
    "ServerTrouble",
    "backoff",
    "channel_url",
    "create_channel",
    "error_of",
    "header_seq",
    "limited",
    "next_write",
    "open_session",
    "persist",
]

T = TypeVar("T")

LONGEST_TEXT = 200
SHORT_SECONDS = 2.0


class ServerTrouble(Exception):
    """The server answered with a 5xx status: worth another try."""


@dataclass(frozen=True)
class ClientOptions:
    """How a publisher or a subscriber treats its server. All times in seconds."""

    verify: bool = True
    """Check certificates; go-livepeer's orchestrators sign their own."""
    connect_seconds: float = 10.0
    """Longest wait for a connection."""
    answer_seconds: float = 30.0
    """Longest wait for the answer to a whole request, and for a server to take the next bytes."""
    patience_seconds: float = 30.0
    """How long to try again in a row before `Unreachable` is raised."""
    longest_pause: float = 5.0
    """The longest pause between two tries."""
    refresh_seconds: float = 25.0
    """A subscriber asks again for a segment that has not begun after so long."""
    early_seconds: float = 0.25
    """A subscriber that asked too early asks again after so long (as the Python gateway client does)."""
    absent_seconds: float = 0.0
    """How long a subscriber waits for a channel that does not exist yet."""
    absent_pause: float = 0.25
    """How often it looks for it meanwhile."""
    linger_seconds: float = 0.5
    """A publisher waits so long before it deletes its channel: afterwards nobody can ask for the last segment."""
    stall_seconds: float = 300.0
    """A segment that sends nothing for so long is asked for again; a server sweeps such a channel."""


def open_session(options: ClientOptions) -> aiohttp.ClientSession:
    """Open a session that waits for as long as it must."""
    return http.open_session(verify=options.verify, connect_seconds=options.connect_seconds)


def channel_url(url: str) -> str:
    """Check the URL of a channel.

    Raises `TrickleError`.
    """
    try:
        checked = http.base_url(url, credentials=True)
    except UsageError:
        checked = ""
    if len(URL(checked).path) < 2:
        raise TrickleError(f"{url!r} is not the URL of a channel, such as http://localhost:2939/ai/trickle/NAME")
    return checked


def limited(options: ClientOptions) -> aiohttp.ClientTimeout:
    """Limit a small request."""
    return aiohttp.ClientTimeout(total=options.answer_seconds, sock_connect=options.connect_seconds)


async def create_channel(session: aiohttp.ClientSession, url: str, mime: str, options: ClientOptions) -> None:
    """Create a channel, or find that it exists.

    Raises `ChannelNotFound` when the server does not let peers create channels, `Refused`, or `ServerTrouble`.
    """
    headers = {EXPECT_CONTENT: mime}
    async with session.post(url, headers=headers, timeout=limited(options), allow_redirects=False) as answer:
        if answer.status != 200:
            raise await error_of(answer, url)


async def next_write(session: aiohttp.ClientSession, url: str, options: ClientOptions) -> int | None:
    """Ask which index is written next; None from a server that does not tell.

    Raises `ChannelNotFound`, `Refused` or `ServerTrouble`.
    """
    async with session.get(f"{url}/next", timeout=limited(options), allow_redirects=False) as answer:
        if answer.status == 400:  # a server older than go-livepeer 0.8.11 takes `next` for a bad index
            return None
        if answer.status != 200:
            raise await error_of(answer, url)
        return header_seq(answer, LATEST)


async def persist(request: Callable[[], Awaitable[T]], options: ClientOptions) -> T:
    """Make a small request until it is answered.

    Raises `Unreachable`, and what `request` raises when it is answered.
    """
    pauses, began_at = backoff(options), time.monotonic()
    while True:
        await asyncio.sleep(next(pauses))
        try:
            return await request()
        except (*CONNECTION_ERRORS, ServerTrouble) as error:
            if time.monotonic() - began_at > options.patience_seconds:
                raise Unreachable(reason_of(error)) from error


def header_seq(answer: aiohttp.ClientResponse, name: str) -> int | None:
    """Read an index from a header; None when it is not there or none."""
    try:
        seq = parse_seq(answer.headers.get(name, ""))
    except BadSequence:
        return None
    return seq if seq >= 0 else None


async def error_of(answer: aiohttp.ClientResponse, url: str) -> ChannelNotFound | Refused | ServerTrouble:
    """Describe an answer that is not 200."""
    if answer.status == 404:
        return ChannelNotFound(f"there is no channel at {url}")
    try:
        text = await asyncio.wait_for(answer.content.read(LONGEST_TEXT), SHORT_SECONDS)
    except CONNECTION_ERRORS:
        text = b""
    told = f"{answer.method} {answer.url} was answered {answer.status} {text.decode('utf-8', 'replace').strip()!r}"
    return ServerTrouble(told) if answer.status >= 500 else Refused(answer.status, told)


def backoff(options: ClientOptions) -> Iterator[float]:
    """Pauses between tries: none, then longer and longer."""
    pause = 0.0
    while True:
        yield min(pause, options.longest_pause)
        pause = pause * 2 or 0.1


describe = reason_of  # until those who import it from here have moved
