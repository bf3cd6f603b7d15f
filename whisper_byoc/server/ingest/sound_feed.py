"""A live feed of sound, whose format is recognised by its first bytes."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress

from audio.errors import AudioError, MediaError
from audio.ffmpeg import CONTAINERS
from audio.raw import PLAIN, RawFormat
from audio.riff import WavFormat
from audio.sniff import ENOUGH_BYTES, Sniffer, foreign, index_is_behind
from whisper_byoc.errors import BadSegment, RequestRefused
from whisper_byoc.server.core.job import Job
from whisper_byoc.server.ingest.feed import LiveFeed
from whisper_byoc.server.ingest.feed_readers import WANTED, HeldReader, MediaReader, WavMediaReader
from whisper_byoc.server.ingest.framing import raw_framing
from whisper_byoc.server.ingest.intake import Intake

INDEXED = ("mov", "caf")
"""Containers that may have what is needed to decode the sound after the sound itself."""


class SoundFeed(LiveFeed):
    """A feed of sound: PCM16, WAV, or any media that ffmpeg reads as it arrives."""

    def __init__(
        self,
        job: Job,
        *,
        live: bool,
        raw: bool = True,
        declared: RawFormat | None = None,
        intake: Intake | None = None,
    ) -> None:
        """Treat all bytes as `declared`, if given; else bytes that are not media are PCM16, if they may be `raw`.

        Media that cannot be decoded as they arrive are held by `intake` and decoded at the end.
        """
        fmt = declared if isinstance(declared, WavFormat) else PLAIN
        super().__init__(job, raw_framing(fmt, live=live))
        self._raw = raw
        self._intake = intake
        self._sniffer = None if declared else Sniffer()  # until the format is known
        self._reader: MediaReader | HeldReader | None = None  # for what is not raw sound
        self._trouble = ""
        if isinstance(declared, str):
            self._reader = self._reader_of(declared)

    async def __aexit__(self, *_: object) -> None:
        if self._reader is not None:
            await self._reader.close()

    async def take(self, data: bytes) -> None:
        with self._noting_trouble():
            if self._sniffer is not None:
                kind = self._sniffer.feed(data)
                if kind is None or (kind in INDEXED and len(self._sniffer.head) < ENOUGH_BYTES):
                    return
                data = self._choose(kind, self._sniffer.head)
            await self._read(data)

    async def finish(self, rest: bytes = b"", *, complete: bool) -> None:
        with suppress(AudioError, RequestRefused), self._noting_trouble():  # what cannot be read is reported below
            if self._sniffer is not None:
                rest = self._choose(self._sniffer.feed(rest, more=False) or "", self._sniffer.head)
            if rest and not self._trouble:
                await self._read(rest)
            if self._reader is not None and not self._trouble:
                await self._reader.finish()
        tail = self.hand_in(complete=complete)
        if self._reader is not None and not self._trouble and not tail and not self.segments:
            self._trouble = f"there is no sound in the feed; {WANTED}"
        if self._trouble:
            self.job.inbox.submit_now(BadSegment(self._trouble))
        trouble = self._trouble or next(map(str, tail), "")
        if trouble and complete and not self.segments:
            raise MediaError(trouble)

    async def _read(self, data: bytes) -> None:
        await (self._reader.take(data) if self._reader else self.cut(data))

    def _choose(self, kind: str, head: bytes) -> bytes:
        """Choose the reader for this kind of media, and return the bytes that have arrived.

        Raises `MediaError` if they hold no sound, or must be media but are not.
        """
        self._sniffer = None
        if kind == CONTAINERS and (what := foreign(head)):
            raise MediaError(f"this is {what}, not sound; {WANTED}")
        if kind in INDEXED and index_is_behind(head):
            if self._intake is None:
                raise MediaError("the index of this file is at its end, so it cannot be decoded as it arrives")
            self._reader = HeldReader(self, kind, self._intake)
        elif kind:
            self._reader = self._reader_of(kind)
        elif head and not self._raw:
            raise MediaError(f"the body does not begin like the media type it is declared as; {WANTED}")
        return head

    def _reader_of(self, kind: str) -> MediaReader:
        return WavMediaReader(self) if kind == "wav" else MediaReader(self, kind)

    @contextmanager
    def _noting_trouble(self) -> Iterator[None]:
        """Note why the rest of the feed cannot be read; if the job accepts no more, that is not the feed's fault."""
        try:
            yield
        except MediaError as error:
            self._trouble = str(error)
            raise
        except RequestRefused as error:
            self._trouble = "" if self.job.inbox.closed else str(error)
            raise
