"""Which hosts the channels of a stream may be on.

Whoever starts a stream names its channels, and must not be able to make this server send requests anywhere.
"""

import asyncio
import contextlib
import ipaddress
from collections.abc import Iterable
from urllib.parse import urlsplit

from whisper_byoc.errors import RequestRefused

ANY = "*"
LOOKUP_SECONDS = 2.0


class StreamHosts:
    """Allowed hosts, by name or address; `*` is any. With `starters`, the host that starts a stream is allowed too."""

    def __init__(self, allowed: Iterable[str], *, starters: bool) -> None:
        self._allowed = frozenset(each.strip("[]").lower() for each in allowed)
        self._starters = starters

    async def check(self, urls: Iterable[str | None], starter: str | None) -> None:
        """Raise `RequestRefused` (403) for the URL of a channel on another host; `starter` is the client's address."""
        if ANY in self._allowed:
            return
        allowed = self._allowed | ({starter} if self._starters and starter else set())
        for host in {_host_of(url) for url in urls if url}:
            if host in allowed:
                continue
            # a name must be listed itself: what it resolves to now may differ from what it resolves to later
            if not (_is_address(host) and host in await _addresses(allowed)):
                raise RequestRefused(
                    403,
                    f"channels may not be on {host[:100]!r}, which is not an orchestrator of this server; "
                    f"--stream-host {host[:100]} allows it",
                )


def _host_of(url: str) -> str:
    try:
        return (urlsplit(url).hostname or "").rstrip(".")
    except ValueError:
        return ""


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


async def _addresses(names: Iterable[str]) -> set[str]:
    """Look up the names, as far as that succeeds in time."""
    loop, found = asyncio.get_running_loop(), set[str]()
    for name in names:
        with contextlib.suppress(OSError, UnicodeError, TimeoutError):
            async with asyncio.timeout(LOOKUP_SECONDS):
                found |= {str(each[4][0]) for each in await loop.getaddrinfo(name, None)}
    return found
