"""One live feed of a job: its bytes are cut into segments and submitted in order."""

import asyncio
from collections import deque
from contextlib import suppress
from typing import Self

from audio.errors import AudioError
from whisper_byoc.errors import BadSegment, RequestRefused
from whisper_byoc.server.core.job import Job
from whisper_byoc.server.ingest.framing import Framing


class LiveFeed:
    """Cuts what arrives with `framing`. To be used with `async with`."""

    def __init__(self, job: Job, framing: Framing) -> None:
        self.segments = 0
        """How many segments, or pieces of a live feed, have been submitted to the job."""
        self.warnings: tuple[str, ...] = ()
        """Sentences about what could not be read, besides the submitted errors."""
        self.job = job
        self.framing = framing
        """May be replaced by another at any byte."""
        self._waiting: deque[bytes] = deque()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        """Free what decodes the feed."""

    async def take(self, data: bytes) -> None:
        """Take the next bytes, waiting while the job's queue is full. Bytes taken before a cancellation are not lost.

        Raises `AudioError` for what cannot be read, and `RequestRefused` (409) when the job accepts nothing more.
        """
        await self.cut(data)

    async def finish(self, rest: bytes = b"", *, complete: bool) -> None:
        """Take the last bytes, and submit what is left, with errors in place of what cannot be read.

        `complete` is False for a feed that broke off. Raises `MediaError` when a complete feed held no sound at all.
        """
        self.hand_in(rest, complete=complete)

    def hand_in(self, rest: bytes = b"", *, complete: bool) -> list[BadSegment]:
        """Submit the last bytes and what is left; return the errors that stand in for what cannot be read."""
        with suppress(AudioError, RequestRefused):  # `finish` of the framing reports what cannot be read
            self._waiting += self.framing.feed(rest) if rest else ()
        tail = [*self._waiting, *self.framing.finish(complete=complete)]
        for each in tail:
            self.job.inbox.submit_now(each, live=self.framing.live)
            self.segments += isinstance(each, bytes)
        self._waiting.clear()
        return [each for each in tail if isinstance(each, BadSegment)]

    def warn(self, sentence: str) -> None:
        self.warnings = (*self.warnings, sentence)
        self.job.warn(sentence)

    async def cut(self, data: bytes) -> None:
        """Cut the next bytes and submit what they complete, as `take` does with bytes that need no decoding."""
        await self._frame(data)
        while self._waiting:
            await self.job.inbox.submit(self._waiting[0], live=self.framing.live)
            self._waiting.popleft()
            self.segments += 1

    async def _frame(self, data: bytes) -> None:
        if not self.framing.blocking:
            self._waiting += self.framing.feed(data)
            return
        work = asyncio.ensure_future(asyncio.to_thread(self.framing.feed, data))
        try:
            await asyncio.shield(work)
        finally:
            await asyncio.wait({work})  # even if cancelled: until then the framing belongs to the thread
            self._waiting += work.result() if work.exception() is None else ()
