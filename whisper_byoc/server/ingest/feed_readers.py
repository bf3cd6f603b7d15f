"""How a live feed of media is read: by ffmpeg, as it arrives or once complete; most WAVs in process."""

from collections.abc import Iterator
from contextlib import contextmanager

from audio.errors import AudioError, DecoderFailed, MediaError, UnsupportedWav
from audio.ffmpeg import CONTAINERS, wav_from_feed
from audio.ogg import Links
from whisper_byoc.errors import RequestRefused
from whisper_byoc.server.ingest.decoder import LiveDecoder
from whisper_byoc.server.ingest.feed import LiveFeed
from whisper_byoc.server.ingest.forms import Upload
from whisper_byoc.server.ingest.framing import WavFraming
from whisper_byoc.server.ingest.intake import Intake
from whisper_byoc.server.ingest.spool import Spool

WANTED = (
    "send 16 kHz mono PCM16, or WAV, WebM, Ogg, MP3, FLAC, AAC or MPEG-TS, or say what raw sound it is (encoding, "
    "rate, channels)"
)


class MediaReader:
    """Media that ffmpeg decodes as they arrive; each link of a chained Ogg gets its own ffmpeg."""

    def __init__(self, feed: LiveFeed, kind: str) -> None:
        self._feed = feed
        self._kind = kind
        self._links = Links() if kind == "ogg" else None
        self._begin()

    def _begin(self) -> None:
        self._feed.framing = WavFraming(live=self._feed.framing.live, required=False)  # of what ffmpeg writes
        name = f"job {self._feed.job.info.job_id}"
        self._decoder = LiveDecoder(name, self._feed.cut, lambda: wav_from_feed(self._kind))

    async def take(self, data: bytes) -> None:
        """Have the feed cut the sound in the next bytes. Raises `MediaError` for what cannot be read."""
        with _telling(self._kind):
            for begins, piece in self._links.feed(data) if self._links else ((False, data),):
                if begins:
                    await self._decoder.finish()
                    self._feed.hand_in(complete=True)
                    self._begin()
                await self._decoder.feed(piece)

    async def finish(self) -> None:
        """Have the feed cut what is left: no more bytes will come. Raises as `take` does."""
        with _telling(self._kind):
            if self._links and (left := self._links.finish()):
                await self._decoder.feed(left)
            await self._decoder.finish()
        if self._decoder.complaint:
            self._feed.warn(f"the feed was not completely decoded; ffmpeg says: {self._decoder.complaint}")

    async def close(self) -> None:
        await self._decoder.kill()


class WavMediaReader(MediaReader):
    """A WAV, which needs no ffmpeg unless its format is one such as ADPCM."""

    def __init__(self, feed: LiveFeed) -> None:
        super().__init__(feed, "wav")
        self._wav: WavFraming | None = WavFraming(live=feed.framing.live)
        self._header = b""
        feed.framing = self._wav

    async def take(self, data: bytes) -> None:
        if self._wav is None:
            await super().take(data)
            return
        self._header = self._header + data if self._wav.in_header else b""
        try:
            await self._feed.cut(data)
        except UnsupportedWav:
            self._wav = None
            self._begin()
            await super().take(self._header)


class HeldReader:
    """Media that can be decoded only once complete."""

    def __init__(self, feed: LiveFeed, kind: str, intake: Intake) -> None:
        self._feed = feed
        self._kind = kind
        self._intake = intake
        self._held = Spool(intake.room, feed.job.client)
        feed.job.inbox.fed = True

    async def take(self, data: bytes) -> None:
        """Hold the bytes. Raises `RequestRefused`: as `Spool.write` does, and 413 over the limit."""
        limit = self._intake.limit
        if self._held.size + len(data) > limit:
            raise RequestRefused(413, f"the feed is larger than {limit} bytes and has its index at the end")
        await self._held.append(data)

    async def finish(self) -> None:
        """Have the feed cut all of the sound. Raises `MediaError` for what cannot be read."""
        try:
            async with self._intake.decoding(Upload(self._held, "", in_form=True), self._intake.limit) as recording:
                async for block in recording.blocks():
                    await self._feed.cut(block)
                for each in recording.warnings:
                    self._feed.warn(each)
        except (AudioError, RequestRefused) as error:
            raise _unreadable(self._kind, error) from None

    async def close(self) -> None:
        await self._held.free()


@contextmanager
def _telling(kind: str) -> Iterator[None]:
    """Turn ffmpeg's failures into sentences."""
    try:
        yield
    except DecoderFailed as error:
        raise DecoderFailed(f"the feed cannot be decoded now: {error}") from None
    except MediaError as error:
        raise _unreadable("any media" if kind == CONTAINERS else kind, error) from None


def _unreadable(kind: str, error: Exception) -> MediaError:
    return MediaError(f"the feed cannot be read as {kind} ({error}); {WANTED}")
