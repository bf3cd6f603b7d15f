"""One live feed of a job: what it is made of is recognised, decoded where it must be, cut, and submitted in order."""

import asyncio
from collections import deque
from contextlib import suppress
from typing import Self

from audio.errors import AudioError, DecoderFailed, MediaError, UnsupportedWav
from audio.ffmpeg import wav_from_feed
from audio.riff import WavFormat
from audio.sniff import media_format
from whisper_byoc.errors import BadSegment, RequestRefused
from whisper_byoc.server.core.job import Job
from whisper_byoc.server.ingest.declared import PLAIN
from whisper_byoc.server.ingest.decoder import LiveDecoder
from whisper_byoc.server.ingest.framing import AudioFraming, Framing, RawFraming, WavFraming

WANTED = "send 16 kHz mono PCM16, or WAV, WebM, Ogg, MP3, FLAC, AAC or MPEG-TS"


class LiveFeed:
    """Cuts what arrives by `framing`. To be used with `async with`."""

    def __init__(self, job: Job, framing: Framing) -> None:
        self.segments = 0
        """What has been submitted to the job; pieces of a live feed count."""
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
        self._hand_in_tail(rest, complete=complete)

    def _hand_in_tail(self, rest: bytes, *, complete: bool) -> None:
        with suppress(AudioError, RequestRefused):  # `finish` of the framing reports what cannot be read
            self._waiting += self._framing.feed(rest) if rest else ()
        for tail in (*self._waiting, *self._framing.finish(complete=complete)):
            self._job.inbox.submit_now(tail, live=self._framing.live)
            self.segments += isinstance(tail, bytes)
        self._waiting.clear()

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
        self, job: Job, *, live: bool, raw: bool = True, declared: WavFormat | None = None, wav: bool = False
    ) -> None:
        """Take bytes that are no media for PCM16 if they may be `raw`, all bytes for what is `declared`, or for WAV."""
        framing = RawFraming(declared, live=live) if declared and declared != PLAIN else AudioFraming(live=live)
        super().__init__(job, framing)
        self._raw = raw
        self._wav = WavFraming(live=live)
        self._head: bytes | None = None if declared or wav else b""  # until it is known what this is
        self._header: bytes | None = None  # of a WAV that may have to go to ffmpeg
        self._kind = ""
        self._decoder: LiveDecoder | None = None
        self._decoded = False
        self._trouble = ""
        if wav:
            self._choose("wav")

    async def __aexit__(self, *_: object) -> None:
        if self._decoder is not None:
            await self._decoder.kill()

    async def take(self, data: bytes) -> None:
        if self._head is not None:
            data, self._head = self._head + data, None
            kind = media_format(data, more=True)
            if kind is None:
                self._head = data
                return
            self._choose(kind)
        await self._take_known(data)

    async def finish(self, rest: bytes = b"", *, complete: bool) -> None:
        if self._head is not None:
            rest, self._head = self._head + rest, None
            if rest:
                self._choose(media_format(rest) or "", complete=complete)
        if self._decoder is None and self._header is None:
            self._hand_in_tail(rest, complete=complete)
        else:
            await self._finish_media(rest, complete=complete)

    async def _finish_media(self, rest: bytes, *, complete: bool) -> None:
        with suppress(AudioError, RequestRefused):
            if rest and not self._trouble:
                await self._take_known(rest)
        if self._decoder is None:
            self._hand_in_tail(b"", complete=complete)
            return
        with suppress(AudioError, RequestRefused):
            if not self._trouble:
                await self._decode(b"")
        if self._decoded:
            self._hand_in_tail(b"", complete=complete)
        elif not self._trouble:
            self._trouble = f"there is no sound in the feed; {WANTED}"
        if self._trouble:
            self._job.inbox.submit_now(BadSegment(self._trouble))
            if complete and not self.segments:
                raise MediaError(self._trouble)

    def _choose(self, kind: str, *, complete: bool = True) -> None:
        """Set up what reads this kind of media; raise `MediaError` where it must be media, and is none."""
        if kind == "wav":
            self._framing, self._header = self._wav, b""
        elif kind:
            self._start(kind)
        elif not self._raw and complete:
            raise MediaError(f"the body does not begin like the media file that its type names; {WANTED}")

    def _start(self, kind: str) -> None:
        self._framing, self._header = WavFraming(live=self._framing.live), None  # of what ffmpeg writes
        name = f"job {self._job.info.job_id}"
        self._decoder = LiveDecoder(name, self._take_decoded, lambda: wav_from_feed(kind))
        self._kind = kind

    async def _take_known(self, data: bytes) -> None:
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

    async def _decode(self, data: bytes) -> None:
        """Pass bytes to ffmpeg, or its end if there are none."""
        assert self._decoder is not None
        try:
            await (self._decoder.feed(data) if data else self._decoder.finish())
        except DecoderFailed as error:
            self._trouble = f"the feed cannot be decoded here now: {error}"
            raise DecoderFailed(self._trouble) from None
        except MediaError as error:
            self._trouble = f"the feed cannot be read as {self._kind} ({error}); {WANTED}"
            if self._kind == "mov":
                self._trouble += ", or an MP4 whose index is at its beginning (ffmpeg -movflags +faststart)"
            raise MediaError(self._trouble) from None

    async def _take_decoded(self, data: bytes) -> None:
        self._decoded = True
        await super().take(data)
