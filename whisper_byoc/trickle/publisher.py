"""The writing end of a channel on any trickle server."""

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import AsyncIterator, Iterator
from typing import Self

import aiohttp

from whisper_byoc.aio import Changed, backoff, cancel
from whisper_byoc.http import CONNECTION_ERRORS, reason_of
from whisper_byoc.trickle.errors import ChannelClosed, ChannelNotFound, SegmentBroken, TrickleError, Unreachable
from whisper_byoc.trickle.protocol import CLOSED, RESET
from whisper_byoc.trickle.remote import FIRST_PAUSE_S, RETRIED, ClientOptions, RemoteChannel, Retry

log = logging.getLogger("whisper_byoc.trickle")

UNSENT_BYTES = 1 << 20
"""A writer waits while more bytes than this have yet to be sent."""


class TricklePublisher:
    """Writes segments in order; the POST of the next one is always already open.

    It starts at index 0, as go-livepeer's and pytrickle's publishers do. With `join` it continues where the channel is,
    and closes what another publisher left open there (as the Python gateway client does). With `create` it first makes
    the channel. `keep_bytes` is how much of a segment is kept for sending it again; a larger segment that breaks raises
    `SegmentBroken`. A segment that had to be sent again may not have the index after the previous one. `continuous` is
    for sound and video, where a segment is only a piece of one stream of bytes: what arrived before its connection
    broke is not sent again, or readers would hear it twice.
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
        self.mime = mime
        self.keep_bytes = keep_bytes
        self.continuous = continuous
        self.channel = RemoteChannel(url, options or ClientOptions())
        self.left_open = False
        """A segment was abandoned while the server could not be told; the next POST closes it."""
        self._create = create
        self._join = join
        self._seq = 0
        self._waiting: SegmentWriter | None = None
        self._writing: list[SegmentWriter] = []
        self._numbering = asyncio.Lock()
        self._pause = 0.0
        self._pauses = self._new_pauses()

    async def start(self) -> None:
        """Create or join the channel if asked to, and open the first POST.

        Raises `ChannelNotFound`, `Refused` or `Unreachable`, but only if there is something to ask.
        """
        if self.channel.opened:
            return
        self.channel.open()
        try:
            if self._create:
                await self.channel.persist(lambda: self.channel.create(self.mime))
            if self._join:
                latest = await self.channel.persist(self.channel.next_write)
                self._seq = latest or 0
        except BaseException:
            await self.close()
            raise
        self._waiting = self._open(reset=self._join)

    async def next(self) -> "SegmentWriter":
        """Return the next segment to write, and open the POST of the one after it.

        Raises `ChannelNotFound`, `ChannelClosed` or `Refused` when the open POST ended that way; another call tries
        again, after a pause that grows with each failure.
        """
        async with self._numbering:
            pause, self._pause = self._pause, 0.0
            await asyncio.sleep(pause)
            writer, self._waiting = self._waiting or self._open(), None
            if error := writer.error:
                self._seq = writer.seq
                raise error
            self._writing = [each for each in self._writing if not each.done] + [writer]
            self._waiting = self._open()
        return writer

    async def publish(self, data: bytes) -> int:
        """Write one whole segment, wait until the server has it, and return its index.

        Raises what `next` and `SegmentWriter` raise.
        """
        async with await self.next() as segment:
            await segment.write(data)
        return segment.seq

    async def close(self, *, delete_channel: bool = False) -> None:
        """Leave the channel, or end it for everybody; a segment still open is broken off."""
        if not self.channel.opened:
            return
        waiting = [self._waiting.drop()] if self._waiting else []
        try:
            await asyncio.gather(*waiting, *(each.abort() for each in self._writing if not each.done))
            self._waiting = None
            if delete_channel:
                if self._seq > 1:
                    await asyncio.sleep(self.channel.options.linger_seconds)
                with contextlib.suppress(*CONNECTION_ERRORS):
                    await self.channel.delete()
        finally:  # even if the caller is cancelled meanwhile
            await self.channel.close()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def renumber(self, writer: "SegmentWriter") -> int:
        """Return a free index in place of the writer's own; the waiting POST gets the one after it."""
        async with self._numbering:
            waiting = self._waiting
            if waiting and waiting is not writer:
                self._waiting, self._seq = None, waiting.seq
                await waiting.drop()
            with contextlib.suppress(ChannelNotFound):  # a POST creates it if allowed, and fails if not
                self._seq = max(self._seq, await self.channel.next_write() or 0)
            seq, self._seq = self._seq, self._seq + 1
            self._waiting = self._waiting or self._open()
            return seq

    def ended(self, error: BaseException | None) -> None:
        """Learn how a segment ended: a caller that keeps retrying what is refused has to wait."""
        if error is None:
            self._pause, self._pauses = 0.0, self._new_pauses()
        elif isinstance(error, TrickleError):
            self._pause = next(self._pauses)

    def _new_pauses(self) -> Iterator[float]:
        return backoff(FIRST_PAUSE_S, self.channel.options.longest_pause)

    def _open(self, *, reset: bool = False) -> "SegmentWriter":
        seq, self._seq = self._seq, self._seq + 1
        return SegmentWriter(self, seq, reset=reset)


class _IndexTaken(Exception):
    """The server accepts nothing more for this index."""


class SegmentWriter:
    """One segment being written. Leaving `async with` finishes it; by an exception, breaks it off.

    Its POST is opened before there are bytes to send, and reopened if it breaks. A connection that breaks before it
    took a byte costs nothing: the same index is opened again. One that took some leaves the index in doubt. Then the
    index is closed, and read back if everything had been sent; unless the server turns out to have it all, the whole
    segment goes to the next free index. For a continuous stream, only the part that the server lacks goes there.
    """

    def __init__(self, publisher: TricklePublisher, seq: int, *, reset: bool) -> None:
        self.seq = seq
        """The segment's index; it can change until `close` has returned."""
        self._publisher = publisher
        self._channel = publisher.channel
        self._reset = reset
        self._chunks: list[bytes] = []  # what was written, while it is kept
        self._next = 0  # the first chunk that the current connection has not taken
        self._size = 0
        self._unsent = 0
        self._whole = False
        self._replayable = True  # all that was written is kept
        self._opened = False  # the server may know the index
        self._doubtful = False  # a connection broke after it took bytes
        self._index_taken = False
        self._changed = Changed()
        self._deadline: asyncio.Timeout | None = None
        self._task = asyncio.create_task(self._run())
        self._task.add_done_callback(self._ended)

    @property
    def done(self) -> bool:
        """Whether nothing more will be sent: the server has the segment, or will not get it."""
        return self._task.done()

    @property
    def error(self) -> BaseException | None:
        """What ended the segment, if it did not end well."""
        if not self._task.done():
            return None
        return ChannelClosed("the publisher was closed") if self._task.cancelled() else self._task.exception()

    async def write(self, data: bytes) -> None:
        """Send bytes now; waits while the server takes less than has been written.

        Raises `ChannelNotFound`, `ChannelClosed`, `SegmentBroken`, `Unreachable` or `Refused`.
        """
        if data:
            self._chunks.append(bytes(data))
            self._size += len(data)
            self._unsent += len(data)
            self._progress()
        await self._changed.until(lambda: self._unsent <= UNSENT_BYTES or self.done)
        if self.error:
            raise self.error

    async def close(self) -> None:
        """Finish the segment, and wait until the server has it. Raises what `write` raises."""
        self._whole = True
        self._progress()
        try:
            await asyncio.wait((self._task,))
        except asyncio.CancelledError:
            await self.abort()
            raise
        if self.error:
            raise self.error

    async def abort(self) -> None:
        """Break the segment off: readers get what was sent, then its end."""
        await self.drop()
        if self._opened:  # even without a byte: readers may be waiting for one
            with contextlib.suppress(*CONNECTION_ERRORS):
                await self._channel.finish(self.seq)

    async def drop(self) -> None:
        """Drop the connection without closing the index at the server."""
        await cancel(self._task)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is None:
            await self.close()
        else:
            await self.abort()

    async def _run(self) -> None:
        """Try until the segment is delivered or cannot be. While it is idle, only `abort` ends this."""
        retry, idle_retry = Retry(self._channel.options), Retry(self._channel.options, math.inf)
        while True:
            began_at = time.monotonic()
            try:
                if not await self._recover():
                    await self._attempt()
                return
            except (*RETRIED, _IndexTaken) as error:
                if isinstance(error, _IndexTaken):
                    self._index_taken = True
                else:
                    self._doubtful = self._doubtful or self._next > 0
                idle = self._size == 0 and not self._whole
                what = f"segment {self.seq} of {self._channel.shown}"
                pause = (idle_retry if idle else retry).pause_after(error, began_at, what)
            if idle:
                await self._changed.wait(pause)  # the first byte written ends the pause
            else:
                await asyncio.sleep(pause)
            if not self._replayable:
                raise SegmentBroken(f"segment {self.seq} broke after {self._size} bytes, too many to keep", self.seq)

    async def _recover(self) -> bool:
        """Find out what became of the last attempt; return True if the server has the whole segment after all."""
        if self._doubtful:
            was_there = await self._channel.finish(self.seq)  # or readers could wait for the rest for ever
            if was_there and (self._whole or self._publisher.continuous):
                stored = await self._channel.stored(self.seq, self._size + 1)
                written = b"".join(self._chunks)
                if self._whole and stored == written:
                    return True
                if self._publisher.continuous and stored and written.startswith(stored):
                    self._chunks = [written[len(stored) :]]  # the rest goes to another index
                    self._size = len(self._chunks[0])
                    self._next, self._doubtful, self._index_taken = 0, False, True
        if self._doubtful or self._index_taken:
            self.seq = await self._publisher.renumber(self)
            self._opened = False
        self._doubtful = self._index_taken = False
        return False

    async def _attempt(self) -> None:
        self._next, self._unsent = 0, self._size
        headers = {"Content-Type": self._publisher.mime}
        reset = self._reset or self._publisher.left_open
        if reset:
            headers[RESET] = "1"
        url = f"{self._channel.url}/{self.seq}"
        post = self._channel.session.post(url, data=self._body(), headers=headers, allow_redirects=False)
        try:
            async with asyncio.timeout(None) as self._deadline:
                self._progress()
                async with post as answer:
                    await self._judge(answer)
        finally:
            self._deadline = None
        if reset:
            self._publisher.left_open = False

    async def _judge(self, answer: aiohttp.ClientResponse) -> None:
        """Return when the segment is stored."""
        if answer.headers.get(CLOSED):
            raise ChannelClosed(f"channel {self._channel.shown} was closed")
        if answer.status == 409 or (answer.status == 200 and not (self._whole and self._unsent == 0)):
            raise _IndexTaken(f"it was answered {answer.status}, and takes nothing more")
        if answer.status != 200:
            raise await self._channel.error_of(answer)
        if self._size and answer.headers.get("Connection", "").lower() == "close":
            raise aiohttp.ClientConnectionError("the server may have answered before it read the segment")

    async def _body(self) -> AsyncIterator[bytes]:
        self._opened = True
        yield b""  # aiohttp holds back the head until there is a chunk; this one puts it on the wire
        while True:
            if data := b"".join(self._chunks[self._next :]):
                self._next = len(self._chunks)
                if self._size > self._publisher.keep_bytes:
                    self._chunks, self._next, self._replayable = [], 0, False
                yield data
                self._unsent -= len(data)
                self._progress()
            elif self._whole:
                return
            else:
                await self._changed.wait()

    def _progress(self) -> None:
        """Wake all waiters, and restart the server's deadline if it is the server's turn."""
        self._changed.notify()
        if self._deadline and not self._deadline.expired():
            seconds = self._channel.options.answer_seconds
            servers_turn = self._whole or self._unsent > 0
            self._deadline.reschedule(asyncio.get_running_loop().time() + seconds if servers_turn else None)

    def _ended(self, _: object) -> None:
        self._changed.notify()
        self._publisher.ended(self.error)
        error = self.error  # also marks it as retrieved: an idle POST may fail unnoticed
        if isinstance(error, Unreachable | SegmentBroken):
            self._publisher.left_open = True
        elif error and not isinstance(error, TrickleError):
            log.error("segment %d of %s: %s", self.seq, self._channel.shown, reason_of(error))
