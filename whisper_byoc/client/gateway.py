"""The client of a gateway: one request per frame, or one request that sends while it receives."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Mapping
from types import TracebackType
from typing import Any

from whisper_byoc.client.feed import Outgoing, Record, exchange, records_of
from whisper_byoc.client.http import SHORT, Connection, whole
from whisper_byoc.errors import ServerRefused, ServerUnreachable

__all__ = ["GatewayClient"]

ROUTE = "/live/video-to-video"  # the network's one route for live jobs, whatever goes through it
RAW = "application/octet-stream"


class GatewayClient:
    """Speaks to one model behind a gateway, as `async with GatewayClient("http://localhost:8935", "whisper-tiny")`.

    `model` is the exact name of the capability (`capabilities` needs none); `params` go along with every job
    (`language`, …); `timeout` bounds, in seconds, every wait for the gateway; `token` is for one that asks for it.
    Methods raise `ServerUnreachable`, `ServerRefused` or `SegmentFailed`.
    """

    def __init__(
        self,
        base_url: str = "http://localhost:8935",
        model: str = "",
        *,
        params: Mapping[str, str] | None = None,
        timeout: float = 120.0,
        token: str | None = None,
    ) -> None:
        self._headers = {"X-Model-Id": model}
        self._query = dict(params or {})
        self._timeout = timeout
        self._http = Connection(base_url, "GatewayClient", token)

    async def __aenter__(self) -> GatewayClient:
        self._http.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.close()

    async def capabilities(self) -> dict[str, Any]:
        """Ask which models there are, as `{"capabilities": [{"name": …, "available": …}, …], "orchestrators": […]}`."""
        async with self._http.request("GET", "/capabilities", timeout=SHORT) as answer:
            text = await whole(answer)
        try:
            known: dict[str, Any] = json.loads(text)
            named = all(isinstance(each["name"], str) for each in known["capabilities"])
        except (ValueError, TypeError, KeyError, RecursionError):
            named = False
        if not named:
            raise ServerRefused(200, f"{self._http.base_url}/capabilities does not answer as a gateway does")
        return known

    async def process_frame(self, frame: bytes) -> bytes:
        """Send one frame or segment and give its result; an empty frame is a keep-alive and gives b"".

        Calls at the same time go side by side.
        """
        try:
            return await asyncio.wait_for(self._process(frame), self._timeout)
        except TimeoutError:
            raise ServerUnreachable(f"{self._http.base_url} had no result within {self._timeout:g} s") from None

    def stream(
        self, source: AsyncIterable[bytes] | bytes, *, content_type: str = RAW, **query: str
    ) -> AsyncIterator[Record]:
        """Send `source` as a live feed, and yield each record as it comes, up to and with the `end` record.

        `query` goes into the URL of the feed, such as `width="640", height="360"` for video. An exception of the
        source comes after the records of what did arrive.
        """
        outgoing = Outgoing(source)
        records = self._records(outgoing, content_type, self._query | query)
        return exchange(outgoing, records, self._timeout, self._http.base_url)

    async def _process(self, frame: bytes) -> bytes:
        async with self._http.request(
            "POST", ROUTE, headers=self._headers, params=self._query, data=io.BytesIO(frame)
        ) as answer:
            return await whole(answer)

    async def _records(
        self, outgoing: Outgoing, content_type: str, query: Mapping[str, str]
    ) -> AsyncGenerator[Record, None]:
        headers = self._headers | {"Content-Type": content_type, "Accept": "application/x-ndjson"}
        async with self._http.request("POST", ROUTE, headers=headers, params=query, data=outgoing) as answer:
            outgoing.answered = True
            async for record in records_of(answer.content.iter_any()):
                yield record
