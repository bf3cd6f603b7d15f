"""What a gateway's and an orchestrator's streams share: a table by id, and one stop for all who ask."""

import abc
import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable
from typing import Any, Generic, TypeVar

from aiohttp import web

from whisper_byoc import livepeer
from whisper_byoc.errors import RequestRefused
from whisper_byoc.http import json_value, read_into
from whisper_byoc.network.peers import Answer
from whisper_byoc.trickle import TrickleError, TrickleServer
from whisper_byoc.trickle.channel import Channel
from whisper_byoc.trickle.limits import ByteBudget
from whisper_byoc.trickle.local import LocalSegment
from whisper_byoc.trickle.subscriber import SegmentReader

LARGEST_BODY = 10 << 20
"""Largest body of a start, stop or update, as in go-livepeer's gateway."""
LARGEST_EVENT = 1 << 20


class RelayedStream(abc.ABC):
    """A stream that a node relays, from `begin` until `over`."""

    over: asyncio.Task[None]
    """Done once everything that the stream held is free again."""

    def __init__(self, stream_id: str) -> None:
        self.id = stream_id
        self._ending = asyncio.Event()
        self._stopping: asyncio.Task[Answer] | None = None

    def begin(self) -> None:
        self.over = asyncio.get_running_loop().create_task(self._run(), name=f"stream {self.id}")

    @property
    def ending(self) -> bool:
        """Whether the stream is over, or will be soon."""
        return self._ending.is_set() or self.over.done()

    async def stop(self, body: bytes, content_type: str = "text/plain") -> Answer:
        """Have the container deliver its last records, and end the stream; all callers get its one response.

        A caller that goes away does not interrupt it. Raises `PeerFailed`.
        """
        if self._stopping is None:
            self._ending.set()
            self._stopping = asyncio.get_running_loop().create_task(self._stop(body, content_type))
            self._stopping.add_done_callback(lambda task: task.cancelled() or task.exception())
        return await asyncio.shield(self._stopping)

    async def end(self, reason: str) -> None:
        """Stop the stream if it is running, and wait until it is over."""
        with contextlib.suppress(RequestRefused):
            await self.stop(reason.encode())
        await asyncio.wait({self.over})

    @abc.abstractmethod
    async def update(self, body: bytes, content_type: str) -> Answer:
        """Have the container change parameters; raises `RequestRefused`."""

    @abc.abstractmethod
    async def _run(self) -> None: ...

    @abc.abstractmethod
    async def _stop(self, body: bytes, content_type: str) -> Answer: ...


S = TypeVar("S", bound=RelayedStream)


class Streams(abc.ABC, Generic[S]):
    """The streams of a node, by id, and the routes for one stream."""

    def __init__(self, memory: ByteBudget) -> None:
        self._memory = memory
        self._streams: dict[str, S] = {}
        self._starting: set[str] = set()

    def __len__(self) -> int:
        return sum(not stream.over.done() for stream in self._streams.values())

    @abc.abstractmethod
    def routes(self) -> list[web.RouteDef]: ...

    @contextlib.asynccontextmanager
    async def starting(self, stream_id: str) -> AsyncIterator[None]:
        """Reserve an id within the context, which begins once any ending stream with the same id is over.

        Raises `RequestRefused` (400) when a stream with that id is running.
        """
        before = self._streams.get(stream_id)
        if stream_id in self._starting or (before is not None and not before.ending):
            raise RequestRefused(400, f"stream {stream_id!r} is already running")
        self._starting.add(stream_id)
        try:
            if before is not None:
                await asyncio.wait({before.over})
            yield
        finally:
            self._starting.discard(stream_id)

    @contextlib.asynccontextmanager
    async def body_of(self, request: web.Request) -> AsyncIterator[bytes]:
        """Hold the body of a start, stop or update within the context; it is counted as it comes.

        Raises `RequestRefused` (413) beyond `LARGEST_BODY` bytes, `MemoryFull`.
        """
        body = bytearray()
        try:
            too_large = RequestRefused(413, f"the body is larger than {LARGEST_BODY} bytes")
            await read_into(body, request.content, LARGEST_BODY, too_large, self._memory.take)
            yield bytes(body)
        finally:
            self._memory.give(len(body))

    def find(self, stream_id: str) -> S:
        """Return the stream with this id; raises `RequestRefused` (404) for an unknown one."""
        if stream := self._streams.get(stream_id):
            return stream
        raise RequestRefused(404, f"no stream {stream_id!r:.140} here: it never began, or has ended")

    @abc.abstractmethod
    def of(self, request: web.Request) -> S:
        """Return the stream that a request is about; raises `RequestRefused`."""

    async def stop(self, request: web.Request) -> web.Response:
        """Stop a stream, and answer once its last records can be read."""
        stream = self.of(request)
        async with self.body_of(request) as body:
            return passed_back(await stream.stop(body, request.headers.get("Content-Type", "text/plain")))

    async def update(self, request: web.Request) -> web.Response:
        livepeer.JobHeader.parse(request.headers.get(livepeer.JOB))
        stream = self.of(request)
        async with self.body_of(request) as body:
            return passed_back(await stream.update(body, request.headers.get("Content-Type", "application/json")))

    async def stop_all(self, reason: str) -> None:
        await asyncio.gather(*(stream.end(reason) for stream in self._streams.values()))


def passed_back(answer: Answer) -> web.Response:
    """Answer with the container's response."""
    content_type = answer.headers.get("Content-Type", "text/plain")
    return web.Response(status=answer.status, body=answer.body, headers={"Content-Type": content_type})


def close_channels(trickle: TrickleServer, channels: Iterable[Channel]) -> None:
    """Close channels, unless they are already closed."""
    for channel in channels:
        if not channel.closed:
            trickle.close(channel.name)


async def read_event(segment: LocalSegment | SegmentReader) -> dict[str, Any]:
    """Read a container's event; anything else is an empty event, as go-livepeer skips such a segment."""
    try:
        message = json_value(await segment.read(LARGEST_EVENT))
        event = message.get("event", message)
    except (ValueError, AttributeError, TrickleError):
        return {}
    return event if isinstance(event, dict) else {}
