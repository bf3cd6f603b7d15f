"""Uploads of recordings: how many are received and decoded, and how much of them is held, at once."""

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass

from aiohttp import StreamReader, web

from audio import pcm
from whisper_byoc.connections import client_of
from whisper_byoc.errors import RequestRefused
from whisper_byoc.params import switch_param
from whisper_byoc.server.core.admission import RETRY_AFTER_SECONDS, YOUNG_SECONDS
from whisper_byoc.server.core.limits import Limits
from whisper_byoc.server.core.metrics import Metrics
from whisper_byoc.server.core.table import SHUTTING_DOWN, TABLE
from whisper_byoc.server.ingest.forms import Upload, read_upload
from whisper_byoc.server.ingest.recordings import Recording
from whisper_byoc.server.ingest.spool import CLIENT_SHARE, Room, Spool

STRICT = switch_param("strict", "refuse sound that cannot be read to its end")
DECODERS = 2
"""Recordings decoded at once: ffmpeg is fast, and the model needs the CPUs."""
AHEAD_SECONDS = 300
"""This much of a recording is decoded before work on it begins, so that its errors are known and, unless it is longer,
its length."""


@dataclass(eq=False)
class _Held:
    """An upload that has a place."""

    client: str
    content: StreamReader
    since: float
    deadline: asyncio.Timeout


class Intake:
    """Bounds how many uploads are held, and how many are decoded, at once."""

    def __init__(self, limits: Limits, metrics: Metrics) -> None:
        self.limit = limits.recording_bytes
        """Limit of one recording, in bytes: as sent, and as PCM16."""
        self.room = Room(limits.spool_bytes)
        """Room for everything held."""
        self._held: list[_Held] = []  # oldest first
        self._limits = limits
        self._decoders = ThreadPoolExecutor(DECODERS, "decoder")
        metrics.gauge("byoc_spooled_bytes", "Recordings that are held, as sent and decoded", lambda: self.room.taken)

    @asynccontextmanager
    async def place(self, client: str, content: StreamReader) -> AsyncIterator[None]:
        """Hold one of the places for a body from the address `client`.

        Raises `RequestRefused`: 429 when all places, or the address's share, are taken; 408 when no byte of the body
        has come and another needs its place.
        """
        self._make_place(client)
        deadline = asyncio.timeout(None)
        held = _Held(client, content, asyncio.get_running_loop().time(), deadline)
        self._held.append(held)
        try:
            async with deadline:
                yield
        except TimeoutError:
            if not deadline.expired():
                raise
            message = "no bytes had arrived, and another upload needed the place"
            raise RequestRefused(408, message, RETRY_AFTER_SECONDS) from None
        finally:
            self._held.remove(held)

    def _make_place(self, client: str) -> None:
        """If there is no place for this client, have an upload that has received no byte give up its own."""
        held = [each for each in self._held if each.deadline.when() is None]  # the others are about to go
        its = [each for each in held if client and each.client == client]
        share = max(self._limits.jobs // CLIENT_SHARE, 1)
        if len(its) < share and len(held) < self._limits.jobs:
            return
        now = asyncio.get_running_loop().time()
        for each in its if len(its) >= share else held:
            if not each.content.total_bytes and now - each.since > YOUNG_SECONDS:
                each.deadline.reschedule(now)
                return
        if len(its) >= share:
            message = f"this server is busy: it has {share} recordings from your address, the most it accepts"
            raise RequestRefused(429, message, RETRY_AFTER_SECONDS, reason="jobs_of_address")
        message = "this server is busy: it has as many recordings as it accepts at once"
        raise RequestRefused(429, message, RETRY_AFTER_SECONDS, reason="jobs")

    @asynccontextmanager
    async def spool(self, client: str) -> AsyncIterator[Spool]:
        """Hold bytes for the address `client` while the context lasts."""
        spool = Spool(self.room, client)
        try:
            yield spool
        finally:
            await spool.free()

    @asynccontextmanager
    async def decoding(self, upload: Upload, limit: int, longest: float | None = None) -> AsyncIterator[Recording]:
        """Decode an upload while the context lasts: at most its first `longest` seconds, and `limit` bytes of PCM16.

        Its field `strict` is a switch. Raises as `pcm16_of` does for errors in its first `AHEAD_SECONDS`, `BadParam`,
        and `RequestRefused`: 429 when too much else is being decoded, and as `Spool.write` does.
        """
        strict, seconds = upload.read(STRICT), self._limits.segment_seconds
        samples = None if longest is None else int(longest * pcm.SAMPLE_RATE)
        async with self.spool(upload.body.client) as spool:
            recording = Recording(spool)
            work = self._decoders.submit(recording.decode, upload, limit, strict=strict, longest=samples)
            try:
                if not await recording.begins(seconds):
                    message = f"the recording was not decoded within {seconds:g} s, because others were before it"
                    raise RequestRefused(429, message, RETRY_AFTER_SECONDS)
                await recording.wait(AHEAD_SECONDS)
                yield recording
            finally:
                recording.stop()
                if not work.cancel():  # until it has ended, the files belong to the thread
                    await asyncio.wait({asyncio.wrap_future(work)})

    async def close(self, _: web.Application) -> None:
        self._decoders.shutdown(wait=False, cancel_futures=True)


INTAKE = web.AppKey("INTAKE", Intake)


@asynccontextmanager
async def received_upload(request: web.Request, *, form_only: bool = False) -> AsyncIterator[Upload]:
    """Hold a place for the request, and read its body.

    Raises `RequestRefused`: 415 for a body that is not a form if `form_only`, 429 when busy; and as `read_upload` does.
    """
    if form_only and request.content_type != "multipart/form-data":
        raise RequestRefused(415, "this route reads forms; send the recording as multipart/form-data")
    intake, client = request.app[INTAKE], client_of(request)
    async with intake.place(client, request.content), intake.spool(client) as spool:
        if request.app[TABLE].draining:
            raise RequestRefused(429, SHUTTING_DOWN, RETRY_AFTER_SECONDS)
        yield await read_upload(request, request.app[TABLE].limits, spool)
