"""The trickle server: channels by name, used over HTTP and within this process."""

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import AsyncIterator, Collection

from aiohttp import web

from whisper_byoc import http
from whisper_byoc.aio import cancel, every, stop_on_signals
from whisper_byoc.origins import OriginPolicy, check_pages
from whisper_byoc.tokens import ask_for_token
from whisper_byoc.trickle.channel import Channel
from whisper_byoc.trickle.errors import ChannelNotFound, TooManyChannels, TrickleError
from whisper_byoc.trickle.limits import ByteBudget, TrickleLimits
from whisper_byoc.trickle.protocol import CHANGES
from whisper_byoc.trickle.routes import TrickleRoutes, answering_refusals

log = logging.getLogger("whisper_byoc.trickle")

TRICKLE_PORT = 2939
"""The port of http-trickle's stand-alone server."""
DEFAULT_MIME = "application/octet-stream"
IDLE_CONNECTION_S = 600.0
"""go-livepeer's idle timeout between two requests."""
UNFINISHED_SEGMENT_S = 1.0
"""Longest wait, at the end, for a publisher that is sending a segment; those only waiting are released at once."""


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
        self.memory = ByteBudget(self.limits.total_bytes)
        self.channels: dict[str, Channel] = {}
        """The open channels by name, added by `create` and removed by `close`."""
        self._routes = TrickleRoutes(self)
        self._changes: Channel | None = None
        if changefeed:
            self._changes = self.create(CHANGES, "application/json")

    def create(self, name: str, mime: str = DEFAULT_MIME) -> Channel:
        """Return the channel of that name, creating it if need be; `mime` is fixed at creation.

        Raises `TooManyChannels`.
        """
        if channel := self.channels.get(name):
            return channel
        if len(self.channels) >= self.limits.channels:
            raise TooManyChannels(f"{len(self.channels)} channels are open, which is all this server takes")
        channel = Channel(name, mime or DEFAULT_MIME, self.limits.segment_bytes, self.memory)
        self.channels[name] = channel
        log.info("channel %r created (%s)", name, channel.mime)
        self._report_change("added", name)
        return channel

    def get(self, name: str) -> Channel:
        """Return the channel of that name.

        Raises `ChannelNotFound`.
        """
        if channel := self.channels.get(name):
            return channel
        raise ChannelNotFound(f"there is no channel {name!r}")

    def close(self, name: str) -> None:
        """End a channel: its readers and writers are told, and the name is free again.

        Raises `ChannelNotFound`.
        """
        channel = self.get(name)
        del self.channels[name]
        channel.close()
        log.info("channel %r closed", name)
        self._report_change("removed", name)

    def close_all(self) -> None:
        """End every channel. The change feed ends with them and reports none of it."""
        channels, self.channels = self.channels, {}
        for channel in channels.values():
            channel.close()

    def is_reserved(self, name: str) -> bool:
        """Whether only the server itself writes to the channel."""
        return self._changes is not None and name == CHANGES

    def sweep(self) -> None:
        """Close the channels that had no new segment for `idle_seconds`, and cut off stalled connections."""
        before = time.monotonic() - self.limits.idle_seconds
        for name, channel in list(self.channels.items()):
            if channel.active_at < before and not name.startswith("_"):
                log.info("channel %r is idle", name)
                self.close(name)
        self._routes.cut_stalled()

    def add_routes(self, app: web.Application) -> None:
        """Serve the channels under `base_path`, sweep while the application runs, and end them when it stops."""
        self._routes.add_to(app, self.base_path)

        async def sweeping(_: web.Application) -> AsyncIterator[None]:
            sweeper = asyncio.create_task(every(self.limits.sweep_seconds, self.sweep, "sweeping the channels"))
            yield
            await cancel(sweeper)
            self.close_all()  # those created during the shutdown

        async def end_channels(_: web.Application) -> None:  # open requests delay a shutdown
            self.close_all()

        app.cleanup_ctx.append(sweeping)
        app.on_shutdown.append(end_channels)

    @contextlib.asynccontextmanager
    async def listening(
        self, host: str, port: int, allowed_origins: Collection[str] = (), token: str = ""
    ) -> AsyncIterator[str]:
        """Serve stand-alone while the context lasts, and yield the URL to which channel names are appended.

        Web pages of `allowed_origins`, as returned by `origins.origin`, may use it; clients must show `token`, if
        given. Port 0 takes a free one. Raises `StartError` when the address is not available.
        """
        app = web.Application(middlewares=[answering_refusals])
        check_pages(app, OriginPolicy(frozenset(allowed_origins), has_token=bool(token)))
        ask_for_token(app, token)
        self.add_routes(app)
        async with http.listening(
            app, host, port, keep_alive_seconds=IDLE_CONNECTION_S, shutdown_seconds=UNFINISHED_SEGMENT_S
        ) as bound:
            yield f"http://{http.bracketed(host)}:{bound}{self.base_path}"

    def _report_change(self, what: str, name: str) -> None:
        feed = self._changes
        if feed is None or feed.closed:
            return
        segment = feed.for_write(feed.next_write)
        try:
            segment.append(json.dumps({what: [name]}).encode())
        except TrickleError as error:
            log.warning("change feed: %s", error)
        feed.finish(segment)


async def serve(
    server: TrickleServer,
    host: str,
    port: int,
    stop: asyncio.Event | None = None,
    allowed_origins: Collection[str] = (),
    token: str = "",
) -> None:
    """Serve until `stop` is set (default: by SIGTERM or SIGINT); then all channels end. See `TrickleServer.listening`.

    Raises `StartError` when the address cannot be had.
    """
    stop = stop or stop_on_signals()
    async with server.listening(host, port, allowed_origins, token) as url:
        log.info("trickle server listening on %s (auto-create %s)", url, "on" if server.autocreate else "off")
        await stop.wait()
        log.info("shutting down: %d channels end", len(server.channels))
