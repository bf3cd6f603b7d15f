"""The trickle server: a table of channels, used over HTTP and in process."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Mapping
from types import MappingProxyType

from aiohttp import web

from whisper_byoc.aio import cancel, every
from whisper_byoc.trickle.channel import Channel
from whisper_byoc.trickle.errors import ChannelNotFound, TooManyChannels, TrickleError
from whisper_byoc.trickle.limits import Memory, TrickleLimits
from whisper_byoc.trickle.protocol import CHANGES
from whisper_byoc.trickle.routes import TrickleRoutes

__all__ = ["TrickleServer"]

log = logging.getLogger("whisper_byoc.trickle")

DEFAULT_MIME = "application/octet-stream"


class TrickleServer:
    """Channels in memory.

    `autocreate` lets remote peers create channels, by a POST to the channel or to a segment; otherwise only `create`
    does. `changefeed` keeps the channel `_changes`, with one JSON segment for every channel that comes or goes.
    """

    def __init__(
        self,
        base_path: str = "/ai/trickle/",
        *,
        autocreate: bool = False,
        changefeed: bool = False,
        limits: TrickleLimits | None = None,
    ) -> None:
        self.base_path = "/" + base_path.strip("/") + "/" if base_path.strip("/") else "/"
        self.autocreate = autocreate
        self.limits = limits or TrickleLimits()
        self.memory = Memory(self.limits.total_bytes)
        self._channels: dict[str, Channel] = {}
        self._routes = TrickleRoutes(self)
        self._sweeper: asyncio.Task[None] | None = None
        self._changes: Channel | None = None
        if changefeed:
            self._changes = self.create(CHANGES, "application/json")

    @property
    def channels(self) -> Mapping[str, Channel]:
        """The channels there are, by name."""
        return MappingProxyType(self._channels)

    def create(self, name: str, mime: str = DEFAULT_MIME) -> Channel:
        """Give the channel of that name, new if need be; `mime` is fixed at creation.

        Raises `TooManyChannels`.
        """
        if channel := self._channels.get(name):
            return channel
        if len(self._channels) >= self.limits.channels:
            raise TooManyChannels(f"{len(self._channels)} channels are open, which is all this server takes")
        channel = self._channels[name] = Channel(name, mime or DEFAULT_MIME, self.limits, self.memory)
        log.info("channel %r created (%s)", name, channel.mime)
        self._tell("added", name)
        return channel

    def get(self, name: str) -> Channel:
        """Give the channel of that name.

        Raises `ChannelNotFound`.
        """
        if channel := self._channels.get(name):
            return channel
        raise ChannelNotFound(f"there is no channel {name!r}")

    def close(self, name: str) -> None:
        """End a channel: whoever reads or writes it is told so, and the name is free again.

        Raises `ChannelNotFound`.
        """
        channel = self.get(name)
        del self._channels[name]
        channel.close()
        log.info("channel %r closed", name)
        self._tell("removed", name)

    def is_reserved(self, name: str) -> bool:
        """Whether only the server itself writes to the channel."""
        return self._changes is not None and name == CHANGES

    def sweep(self) -> None:
        """Close the channels that had no new segment for `idle_seconds`, and cut off stalled readers."""
        before = time.monotonic() - self.limits.idle_seconds
        for name, channel in list(self._channels.items()):
            if channel.active_at < before and not name.startswith("_"):
                log.info("channel %r is idle", name)
                self.close(name)
        self._routes.cut_stalled()

    def add_routes(self, app: web.Application) -> None:
        """Serve the channels under `base_path`, sweep while the application runs, and end them when it stops."""
        self._routes.add_to(app)

        async def until_stopped(_: web.Application) -> AsyncIterator[None]:
            await self.start()
            yield
            await self.stop()

        async def on_shutdown(_: web.Application) -> None:  # comes first: open requests keep a shutdown waiting
            self.close_all()

        app.cleanup_ctx.append(until_stopped)
        app.on_shutdown.append(on_shutdown)

    async def start(self) -> None:
        """Begin to sweep; an application that has our routes does this itself."""
        if self._sweeper is None:
            self._sweeper = asyncio.create_task(every(self.limits.sweep_seconds, self.sweep, "sweeping the channels"))

    async def stop(self) -> None:
        """End every channel, and stop sweeping."""
        self.close_all()
        sweeper, self._sweeper = self._sweeper, None
        if sweeper:
            await cancel(sweeper)

    async def __aenter__(self) -> TrickleServer:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    def close_all(self) -> None:
        """End every channel; the change feed ends with them and does not tell."""
        channels, self._channels = self._channels, {}
        for channel in channels.values():
            channel.close()

    def _tell(self, what: str, name: str) -> None:
        feed = self._changes
        if feed is None or feed.closed:
            return
        segment = feed.for_write(feed.next_write)
        try:
            segment.append(json.dumps({what: [name]}).encode())
        except TrickleError as error:
            log.warning("change feed: %s", error)
        feed.finish(segment)
