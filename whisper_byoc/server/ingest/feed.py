"""One live feed of a job: what it is made of is recognised, decoded where it must be, cut, and submitted in order."""

import asyncio
from collections import deque
from contextlib import AsyncExitStack, suppress
from typing import Self

from audio.errors import AudioError, DecoderFailed, MediaError, UnsupportedWav
from audio.ffmpeg import CONTAINERS, wav_from_feed
from audio.ogg import Links
from audio.raw import PLAIN, RawFormat
from audio.riff import WavFormat
from audio.sniff import ENOUGH_BYTES, Sniffer, foreign, index_is_behind
from whisper_byoc.errors import BadSegment, RequestRefused
from whisper_byoc.server.core.job import Job
from whisper_byoc.server.ingest.decoder import LiveDecoder
from whisper_byoc.server.ingest.forms import Upload
from whisper_byoc.server.ingest.framing import Framing, WavFraming, raw_framing
from whisper_byoc.server.ingest.intake import Intake
from whisper_byoc.server.ingest.spool import Spool

INDEXED = ("mov", "caf")
"""Containers that may have what it takes to decode the sound behind it."""
WANTED = (
    "send 16 kHz mono PCM16, or WAV, WebM, Ogg, MP3, FLAC, AAC or MPEG-TS, or say what raw sound it is (encoding, "
    "rate, channels)"
)


class LiveFeed:
    """Cuts what arrives by `framing`. To be used with `async with`."""

    def __init__(self, job: Job, framing: Framing) -> None:
        self.segments = 0
        """What has been submitted to the job; pieces of a live feed count."""
        self.warnings: tuple[str, ...] = ()
        """Sentences about what could not be read, beside the errors that are submitted."""
        self._job = job
        self._framing = framing
        self._waiting: deque[bytes] = deque()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        """Free what decodes the feed."""

    async def take(self, data: bytes) -> None:
        """Take the next bytes, waiting while the job's queue is full. What it has taken when cancelled is not lost.

        Raises `AudioError` for what cannot be read, and `RequestRefused` (409) when the job takes no more.
        """
        await self._cut(data)
        while self._waiting:
            await self._job.inbox.submit(self._waiting[0], live=self._framing.live)
            self._waiting.popleft()
            self.segments += 1

    async def finish(self, rest: bytes = b"", *, complete: bool) -> None:
        """Take the last bytes, and submit what is left; errors are submitted in place of what cannot be read.

        `complete` is False for a feed that broke off. Raises `MediaError` where a complete feed gave no sound at all.
        """
        self.hand_in(rest, complete=complete)

    def hand_in(self, rest: bytes = b"", *, complete: bool) -> list[BadSegment]:
        """Submit the last bytes, and what is left; return the errors that stand in place of what cannot be read."""
        with suppress(AudioError, RequestRefused):  # `finish` of the framing reports what cannot be read
            self._waiting += self._framing.feed(rest) if rest else ()
        tail = [*self._waiting, *self._framing.finish(complete=complete)]
        for each in tail:
            self._job.inbox.submit_now(each, live=self._framing.live)
            self.segments += isinstance(each, bytes)
        self._waiting.clear()
        return [each for each in tail if isinstance(each, BadSegment)]

    def _warn(self, sentence: str) -> None:
        self.warnings = (*self.warnings, sentence)
        self._job.warn(sentence)

    async def _cut(self, data: bytes) -> None:
        if not self._framing.blocking:
            self._waiting += self._framing.feed(data)
            return
        work = asyncio.ensure_future(asyncio.to_thread(self._framing.feed, data))
        try:
            await asyncio.shield(work)
        finally:
            await asyncio.wait({work})  # even if cancelled: until then the framing belongs to the thread
            self._waiting += work.result() if work.exception() is None else ()


class SoundFeed(LiveFeed):
    """A feed of sound: PCM16, WAV, or any media that ffmpeg reads as it arrives."""

    def __init__(
        self,
        job: Job,
        *,
        live: bool,
        raw: bool = True,
        declared: RawFormat | None = None,
        wav: bool = False,
        intake: Intake | None = None,
    ) -> None:
        """Take bytes that are no media for PCM16 if they may be `raw`, all bytes for what is `declared`, or for WAV.

        Media that cannot be decoded as they arrive are held by `intake`, and decoded at their end.
        """
        fmt = declared if isinstance(declared, WavFormat) else PLAIN
        super().__init__(job, raw_framing(fmt, live=live))
        self._raw = raw
        self._wav = WavFraming(live=live)
        self._sniffer = None if declared or wav else Sniffer()  # until it is known what this is
        self._header: bytes | None = None  # of a WAV that may have to go to ffmpeg
        self._kind = ""
        self._decoder: LiveDecoder | None = None
        self._decoded = False
        self._links: Links | None = None  # of a feed of Ogg
        self._trouble = ""
        self._intake = intake
        self._holding = AsyncExitStack()
        self._held: Spool | None = None
        if wav:
            self._read_wav()
        elif isinstance(declared, str):
            self._start(declared)

    async def __aexit__(self, *_: object) -> None:
        if self._decoder is not None:
            await self._decoder.kill()
        await self._holding.aclose()

    async def take(self, data: bytes) -> None:
        if self._sniffer is not None:
            kind = self._sniffer.feed(data)
            if kind is None or (kind in INDEXED and len(self._sniffer.head) < ENOUGH_BYTES):
                return
            data = await self._choose(kind)
        await self._take_known(data)

    async def finish(self, rest: bytes = b"", *, complete: bool) -> None:
        with suppress(AudioError, RequestRefused):  # what cannot be read is told below
            if self._sniffer is not None:
                rest = await self._choose(self._sniffer.feed(rest, more=False) or "")
            if rest and not self._trouble:
                await self._take_known(rest)
            if self._held is not None and not self._trouble:
                await self._decode_held(self._held)
            if self._decoder is not None and not self._trouble:
                if self._links is not None and (left := self._links.finish()):
                    self._links = None
                    await self._decode(left)
                await self._decode(b"")
                if self._decoder.complaint:
                    self._warn(f"the feed was not decoded whole, ffmpeg says: {self._decoder.complaint}")
        tail = [] if self._decoder is not None and not self._decoded else self.hand_in(complete=complete)
        if self._kind and not self._trouble and not tail and not self.segments:
            self._trouble = f"there is no sound in the feed; {WANTED}"
        if self._trouble:
            self._job.inbox.submit_now(BadSegment(self._trouble))
        trouble = self._trouble or next(map(str, tail), "")
        if trouble and complete and not self.segments:
            raise MediaError(trouble)

    async def _choose(self, kind: str) -> bytes:
        """Set up what reads this kind of media, and return the bytes that have arrived.

        Raises `MediaError` where they hold no sound, or must be media, and are none.
        """
        assert self._sniffer is not None
        head, self._sniffer = self._sniffer.head, None
        if kind == CONTAINERS and (what := foreign(head)):
            self._trouble = f"this is {what}, not sound; {WANTED}"
        elif kind in INDEXED and index_is_behind(head):
            if self._intake is not None:
                self._kind, self._job.inbox.fed = kind, True
                self._held = await self._holding.enter_async_context(self._intake.spool(self._job.client))
                return head
            self._trouble = "the index of these media is behind their sound, so they cannot be read as they arrive"
        elif not kind and not self._raw and head:
            self._trouble = f"the body does not begin like the media file that its type names; {WANTED}"
        if self._trouble:
            raise MediaError(self._trouble)
        if kind == "wav":
            self._read_wav()
        elif kind:
            self._start(kind)
        return head

    def _read_wav(self) -> None:
        self._framing, self._header, self._kind = self._wav, b"", "wav"

    def _start(self, kind: str) -> None:
        self._framing, self._header = WavFraming(live=self._framing.live), None  # of what ffmpeg writes
        name = f"job {self._job.info.job_id}"
        self._decoder = LiveDecoder(name, self._take_decoded, lambda: wav_from_feed(kind))
        self._kind = "any media" if kind == CONTAINERS else kind
        self._decoded = False
        if kind == "ogg" and self._links is None:
            self._links = Links()

    async def _take_known(self, data: bytes) -> None:
        if self._held is not None:
            await self._hold(self._held, data)
            return
        if self._decoder is not None:
            await self._decode(data)
            return
        if self._header is None:
            await super().take(data)
            return
        self._header += data
        try:
            await super().take(data)
        except UnsupportedWav:  # ADPCM and so on are left to ffmpeg
            head = self._header
            self._start("wav")
            await self._decode(head)
        else:
            if not self._wav.in_header:
                self._header = None

    async def _hold(self, held: Spool, data: bytes) -> None:
        """Hold bytes until the feed ends. Raises `RequestRefused` as `Spool.write` does, and 413 over the limit."""
        assert self._intake is not None
        try:
            if held.size + len(data) > self._intake.limit:
                raise RequestRefused(
                    413, f"the feed is larger than {self._intake.limit} bytes, and has its index behind"
                )
            await held.append(data)
        except RequestRefused as error:
            self._trouble = str(error)
            raise

    async def _decode_held(self, held: Spool) -> None:
        assert self._intake is not None
        try:
            async with self._intake.decoding(Upload(held, "", in_form=True), self._intake.limit) as recording:
                async for block in recording.blocks():
                    await super().take(block)
                for each in recording.warnings:
                    self._warn(each)
        except (AudioError, RequestRefused) as error:
            if not self._job.inbox.closed:
                self._trouble = f"the feed cannot be read as {self._kind} ({error}); {WANTED}"

    async def _decode(self, data: bytes) -> None:
        """Pass bytes to ffmpeg, or its end if there are none."""
        assert self._decoder is not None
        try:
            for begins, piece in self._links.feed(data) if self._links and data else ((False, data),):
                if begins:
                    await self._decoder.finish()
                    if self._decoded:
                        self.hand_in(complete=True)
                    self._start("ogg")
                await (self._decoder.feed(piece) if piece else self._decoder.finish())
        except DecoderFailed as error:
            self._trouble = f"the feed cannot be decoded here now: {error}"
            raise DecoderFailed(self._trouble) from None
        except MediaError as error:
            self._trouble = f"the feed cannot be read as {self._kind} ({error}); {WANTED}"
            raise MediaError(self._trouble) from None

    async def _take_decoded(self, data: bytes) -> None:
        self._decoded = True
        await super().take(data)
