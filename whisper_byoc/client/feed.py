"""A live feed from the client's side: bytes go out, records come in, and the server must respond in time."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator
from contextlib import suppress
from typing import Any

from whisper_byoc.aio import cancel, first_of
from whisper_byoc.client.connection import MAX_RECORD_BYTES
from whisper_byoc.errors import ClientError, ServerRefused, ServerUnreachable
from whisper_byoc.http import json_value, lines

BODY_CHUNK_BYTES = 64 * 1024
SETTLE_SECONDS = 1.0

JsonRecord = dict[str, Any]


class Outgoing:
    """The body of a feed: passes on the bytes of a source.

    When the source raises, the body ends normally, so that the server processes what did arrive; the exception is kept
    in `error`.
    """

    def __init__(self, source: AsyncIterable[bytes] | bytes) -> None:
        self.error: Exception | None = None
        self.answered = False
        """Whether the server has begun to respond; set by the reader of the response."""
        self.ended = False
        self._source = aiter(_pieces(source) if isinstance(source, bytes) else source)
        self._began_at: float | None = None
        self._passed_at: float | None = None
        self._reading = asyncio.Lock()

    @property
    def waiting_since(self) -> float | None:
        """Loop time since which it has been the server's turn; None while the source produces its next bytes."""
        return self._passed_at if self.answered or self.ended else self._began_at

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        self._passed_at = None
        async with self._reading:
            chunk = b"" if self.ended else await self._next()
        if not chunk:
            self.end()
            raise StopAsyncIteration
        self._passed_at = asyncio.get_running_loop().time()
        self._began_at = self._began_at or self._passed_at
        return chunk

    def end(self) -> None:
        self.ended = True
        self._passed_at = asyncio.get_running_loop().time()

    async def close(self) -> None:
        """End the body, and close the source if it is a generator, so that its `finally` runs now."""
        self.end()
        async with self._reading:  # a reader that was cancelled takes a moment to leave
            if isinstance(self._source, AsyncGenerator):
                await self._source.aclose()

    async def _next(self) -> bytes:
        """Return the next bytes, b"" at the end; skip empty chunks of the source, which would end an HTTP body."""
        try:
            async for chunk in self._source:
                if chunk:
                    return chunk
        except Exception as error:
            self.error = error
        return b""


async def _pieces(data: bytes) -> AsyncGenerator[bytes, None]:
    for at in range(0, len(data), BODY_CHUNK_BYTES):
        yield data[at : at + BODY_CHUNK_BYTES]


async def records_of(chunks: AsyncIterator[bytes]) -> AsyncIterator[JsonRecord]:
    """Read newline-delimited JSON; blank lines are keep-alives.

    Raises `ServerRefused` when a line is no record.
    """
    too_long = ServerRefused(200, f"the server sent a record of more than {MAX_RECORD_BYTES} bytes")
    async for line in lines(chunks, MAX_RECORD_BYTES, too_long):
        if not line.strip():
            continue
        try:
            record = json_value(line)
        except ValueError:
            record = None
        if not isinstance(record, dict) or not isinstance(record.get("type"), str):
            raise ServerRefused(200, f"the server sent a line that is no record: {line[:80].decode(errors='replace')}")
        yield record


async def exchange(
    outgoing: Outgoing,
    records: AsyncGenerator[JsonRecord, None],
    timeout: float,
    server: str,
    *,
    feed: asyncio.Future[None] | None = None,
) -> AsyncGenerator[JsonRecord, None]:
    """Yield each record as it comes, up to and including the `end` record; whatever happens, nothing is left open.

    `feed` is the request that sends `outgoing`, if `records` come from another one. Raises `ServerUnreachable` when
    `records` end too early or the server is too slow, and at the end whatever the feed or its source raised.
    """
    ended = False
    try:
        while not ended:
            record = await _next_record(records, outgoing, timeout, server)
            if record is None:
                raise ServerUnreachable(f"{server} ended its answer before the end of the job")
            ended = record["type"] == "end"
            yield record
        with suppress(ClientError, TimeoutError):  # a response that ends normally leaves the connection usable
            async with asyncio.timeout(SETTLE_SECONDS):
                await anext(records, None)
        if feed is not None:
            await feed
        if outgoing.error is not None:
            raise outgoing.error
    finally:
        if feed is not None:
            await cancel(feed)
        await records.aclose()
        await outgoing.close()


async def _next_record(
    records: AsyncGenerator[JsonRecord, None], outgoing: Outgoing, timeout: float, server: str
) -> JsonRecord | None:
    """Return the next record, or None at their end.

    The server has `timeout` seconds when it is its turn; a source may take any time. Raises `ServerUnreachable`, and
    whatever `records` raises.
    """
    loop = asyncio.get_running_loop()
    coming = asyncio.ensure_future(anext(records, None))
    began_at = loop.time()
    try:
        while not coming.done():
            since = outgoing.waiting_since
            left = timeout if since is None else max(since, began_at) + timeout - loop.time()
            if left <= 0:
                raise ServerUnreachable(_silence(outgoing, timeout, server))
            await first_of(coming, timeout=left)
        return coming.result()
    finally:
        await cancel(coming)


def _silence(outgoing: Outgoing, timeout: float, server: str) -> str:
    if outgoing.ended:
        return f"{server} sent no record for {timeout:g} s after the end of the feed"
    if not outgoing.answered:
        return f"{server} did not begin to answer within {timeout:g} s of the first bytes"
    return f"{server} took no more of the feed for {timeout:g} s"
