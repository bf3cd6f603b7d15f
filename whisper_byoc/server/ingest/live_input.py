"""The body of a live feed as it arrives, and what of it had arrived when the feed came to a sudden end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import cast

from aiohttp import StreamReader

from whisper_byoc.errors import RequestRefused

__all__ = ["Arrivals"]


class Arrivals:
    """Reads a body until it ends, or until `closing` is set."""

    def __init__(self, content: StreamReader, closing: asyncio.Event, timeout: float) -> None:
        self._content = content
        self._closing = closing
        self._timeout = timeout
        self._read: asyncio.Task[bytes] | None = None

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield what arrives.

        Raises what the body raises when it breaks off, and `RequestRefused` (408) after `timeout` seconds of nothing.
        """
        stop = asyncio.ensure_future(self._closing.wait())
        try:
            while not self._closing.is_set():
                self._read = asyncio.ensure_future(self._content.readany())
                await asyncio.wait({self._read, stop}, timeout=self._timeout, return_when=asyncio.FIRST_COMPLETED)
                if not self._read.done():
                    if self._closing.is_set():
                        return
                    raise RequestRefused(408, f"nothing arrived for {self._timeout:g} s")
                read, self._read = self._read, None
                if not (data := read.result()):
                    return
                yield data
        finally:
            stop.cancel()
            if self._read is not None:
                self._read.cancel()

    def rest(self) -> bytes:
        """Give what had arrived before the end and was not yielded: a connection may break with its last bytes."""
        read, self._read = self._read, None
        done = read is not None and read.done() and not read.cancelled() and read.exception() is None
        rest = read.result() if read is not None and done else b""
        self._content.set_exception(cast("BaseException", None))  # with one it gives nothing of what it holds
        try:
            return rest + self._content.read_nowait()
        except RuntimeError:  # somebody waits for more: there is nothing
            return rest
