"""The writing end of a channel on any trickle server."""

from __future__ import annotations

import asyncio
import contextlib
from types import TracebackType

import aiohttp

from whisper_byoc.http import CONNECTION_ERRORS
from whisper_byoc.trickle.errors import ChannelNotFound, TrickleError
from whisper_byoc.trickle.http import (
    ClientOptions,
    channel_url,
    create_channel,
    limited,
    next_write,
    open_session,
    persist,
)
from whisper_byoc.trickle.upload import Upload

__all__ = ["SegmentWriter", "TricklePublisher"]


class TricklePublisher:
    """Writes segments in order; the POST of the next one is always open already.

    It starts at index 0, as go-livepeer's and pytrickle's publishers do. With `join` it goes on where the channel is,
    and closes what another publisher left open there (the Python gateway client's way). With `create` it makes the
    channel first. `keep_bytes` is how much of a segment is kept so that it can be sent again; a larger one that
    breaks raises `SegmentBroken`. A segment that had to be sent again may have another index than the one before + 1.
    `continuous` is for sound and video, where a segment is no more than a piece of one stream of bytes: what arrived of
    it before its connection broke is not sent again, which readers would hear twice.
    """

    def __init__(
        self,
        url: str,
        mime: str = "application/octet-stream",
        *,
        create: bool = False,
        join: bool = False,
        keep_bytes: int = 16 << 20,
        continuous: bool = False,
        options: ClientOptions | None = None,
    ) -> None:
        self.url = channel_url(url)
        self.mime = mime
        self.keep_bytes = keep_bytes
        self.continuous = continuous
        self.options = options or ClientOptions()
        self.left_open = False
        self._create = create
        self._join = join
        self._http: aiohttp.ClientSession | None = None
        self._seq = 0
        self._waiting: Upload | None = None
        self._writing: set[Upload] = set()
        self._numbering = asyncio.Lock()

    @property
    def http(self) -> aiohttp.ClientSession:
        """The session; there is one between `start` and `close`."""
        if self._http is None:
            raise TrickleError("the publisher is not open: use `async with`, or `start` and `close`")
        return self._http

    async def start(self) -> None:
        """Create or join the channel if asked to, and open the first POST.

        Raises `ChannelNotFound`, `Refused` or `Unreachable`, but only where there is something to ask.
        """
        if self._http is not None:
            return
        self._http = open_session(self.options)
        try:
            if self._create:
                await persist(lambda: create_channel(self.http, self.url, self.mime, self.options), self.options)
            if self._join:
                latest = await persist(lambda: next_write(self.http, self.url, self.options), self.options)
                self._seq = latest or 0
        except BaseException:
            await self.close()
            raise
        self._waiting = self._open(reset=self._join)

    async def next(self) -> SegmentWriter:
        """Give the next segment to write, and open the POST of the one after it.

        Raises `ChannelNotFound`, `ChannelClosed` or `Refused` when the open POST has ended so; another call tries
        again.
        """
        async with self._numbering:
            upload, self._waiting = self._waiting or self._open(), None
            if error := upload.error:
                self._seq = upload.seq
                raise error
            self._writing.add(upload)
            self._waiting = self._open()
        return SegmentWriter(self, upload)

    async def publish(self, data: bytes) -> int:
        """Write one whole segment, wait until the server has it, and give its index.

        Raises what `next` and `SegmentWriter` raise.
        """
        async with await self.next() as segment:
            await segment.write(data)
        return segment.seq

    async def close(self, *, delete_channel: bool = False) -> None:
        """Let go of the channel, or end it for everybody; a segment that is still open is broken off."""
        http = self._http
        if http is None:
            return
        uploads = [*self._writing, *([self._waiting] if self._waiting else [])]
        for upload in uploads:
            upload.drop()
        try:
            for upload in uploads:
                await self.forget(upload, abandon=True)
            self._waiting = None
            if delete_channel:
                if self._seq > 1:
                    await asyncio.sleep(self.options.linger_seconds)
                with contextlib.suppress(*CONNECTION_ERRORS):
                    async with http.delete(self.url, timeout=limited(self.options)):
                        pass
        finally:  # also when the caller is cancelled meanwhile
            self._http = None
            await http.close()

    async def __aenter__(self) -> TricklePublisher:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def renumber(self, upload: Upload) -> int:
        """Give a free index in place of the upload's own, and to the waiting POST the one after it."""
        async with self._numbering:
            waiting = self._waiting
            if waiting and waiting is not upload:
                self._waiting, self._seq = None, waiting.seq
                await waiting.abandon()
            with contextlib.suppress(ChannelNotFound):  # a POST creates it where it may, and tells where it may not
                self._seq = max(self._seq, await next_write(self.http, self.url, self.options) or 0)
            seq, self._seq = self._seq, self._seq + 1
            self._waiting = self._waiting or self._open()
            return seq

    async def forget(self, upload: Upload, *, abandon: bool = False) -> None:
        """Note that nobody writes to this upload any more."""
        self._writing.discard(upload)
        if abandon:
            await upload.abandon()

    def _open(self, *, reset: bool = False) -> Upload:
        seq, self._seq = self._seq, self._seq + 1
        return Upload(self, seq, reset=reset)


class SegmentWriter:
    """One segment being written; leaving `async with` finishes it, by an exception breaks it off."""

    def __init__(self, publisher: TricklePublisher, upload: Upload) -> None:
        self._publisher = publisher
        self._upload = upload

    @property
    def seq(self) -> int:
        """The segment's index; it can change until `close` has returned."""
        return self._upload.seq

    async def write(self, data: bytes) -> None:
        """Send bytes now; waits while the server takes less than is written.

        Raises `ChannelNotFound`, `ChannelClosed`, `SegmentBroken`, `Unreachable` or `Refused`.
        """
        await self._upload.write(data)

    async def close(self) -> None:
        """Finish the segment, and wait until the server has it. Raises what `write` raises."""
        try:
            await self._upload.finish()
        except asyncio.CancelledError:
            await self.abort()
            raise
        finally:
            await self._publisher.forget(self._upload)

    async def abort(self) -> None:
        """Break the segment off: readers get what was sent, then its end."""
        await self._publisher.forget(self._upload, abandon=True)

    async def __aenter__(self) -> SegmentWriter:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            await self.close()
        else:
            await self.abort()
