"""A whole recording: decoded by a thread to 16 kHz mono PCM16, and read in the meantime."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress

from audio import pcm
from audio.errors import MediaError
from audio.media import BLOCK_SAMPLES, TIMEOUT, audio_blocks, decoded_blocks
from audio.raw import PLAIN, RawFormat, raw_blocks
from audio.riff import WavFormat
from audio.sniff import WHOLE_BYTES, by_magic, is_media
from whisper_byoc.aio import Changed
from whisper_byoc.errors import RequestRefused
from whisper_byoc.server.ingest.declared import NAMES, TYPES, declared_format
from whisper_byoc.server.ingest.forms import Upload
from whisper_byoc.server.ingest.spool import Spool

NOT_SOUND = ("text/", "image/", "application/json", "application/xml")
BLOCK_BYTES = BLOCK_SAMPLES * pcm.SAMPLE_WIDTH


def pcm16_of(upload: Upload, limit: int, *, strict: bool, warn: Callable[[str], object]) -> Iterator[bytes]:
    """Decode an upload, block by block, to PCM16 of at most `limit` bytes.

    Fields, type or file name may declare raw sound; a body that is not a form, has no type, and looks like neither
    media nor anything else is PCM16. What is cut off is read as far as it goes, with a warning, or refused if `strict`.
    Raises `AudioError`, `BadParam`, and `RequestRefused`: 413 for raw sound over the limit, 415 for a type that cannot
    be sound.
    """
    kind = upload.content_type.partition(";")[0].strip().lower() or "application/octet-stream"
    if kind.startswith(NOT_SOUND):
        raise RequestRefused(415, f"{kind} is not sound; send a media file, or 16 kHz mono PCM16 as audio/pcm")
    declared, file, size = _declared(upload, kind), upload.body.file, upload.body.size
    seconds = limit // pcm.SAMPLE_WIDTH / pcm.SAMPLE_RATE
    if isinstance(declared, WavFormat):
        grown = size // declared.frame_bytes * PLAIN.rate // declared.rate * PLAIN.frame_bytes
        if grown > limit:
            message = f"the sound has {grown} bytes as PCM16, over the limit of {limit}; send it in parts"
            raise RequestRefused(413, message)
        sound = raw_blocks(file, size, declared)
    elif declared is None:
        sound = audio_blocks(file, timeout=TIMEOUT, max_seconds=seconds, strict=strict, warn=warn)
    else:
        sound = decoded_blocks(file, containers=declared, max_seconds=seconds, strict=strict, warn=warn)
    first = next(sound, None)
    if first is None:
        raise MediaError("There is no sound in the recording; check how it was made.")
    yield from map(pcm.encode, itertools.chain((first,), sound))


def _declared(upload: Upload, kind: str) -> RawFormat | None:
    """Return the format of raw sound, as `declared_format` does; None for media."""
    declared = declared_format(upload.content_type, upload.fields, upload.file_name)
    certain = any(upload.field(name) for name in NAMES) or (kind in TYPES and kind != "audio/basic")  # .au's type too
    head = upload.body.read(0, WHOLE_BYTES)
    if declared is not None:
        return declared if certain or not by_magic(head) else None
    pcm16 = not upload.in_form and kind == "application/octet-stream" and not is_media(head)
    return PLAIN if pcm16 else None


class Recording:
    """Sound as 16 kHz mono PCM16, which `decode` writes to a spool in a thread, and `blocks` reads in order."""

    def __init__(self, spool: Spool) -> None:
        self.decoded = False
        """Whether its end is known; until then it may get longer."""
        self.samples = 0
        self.warnings: list[str] = []
        """Sentences about what could not be read."""
        self._spool = spool
        self._error: Exception | None = None
        self._begun = self._stopped = False
        self._changed = Changed()
        self._loop = asyncio.get_running_loop()

    @property
    def seconds(self) -> float:
        """Its length, to the millisecond."""
        return round(self.samples / pcm.SAMPLE_RATE, 3)

    @property
    def work_units(self) -> int:
        """Whole seconds, rounded up: the unit by which Livepeer's audio runners are paid."""
        return -(-self.samples // pcm.SAMPLE_RATE)

    def decode(self, upload: Upload, limit: int, *, strict: bool = False, longest: int | None = None) -> None:
        """Decode an upload as `pcm16_of` does, at most its first `longest` samples, and close it. Runs in a thread.

        Its errors are raised to those who read the sound.
        """
        self._begun = True
        self._notify()
        try:
            for block in pcm16_of(upload, limit, strict=strict, warn=self.warnings.append):
                samples = len(block) // pcm.SAMPLE_WIDTH
                if longest is not None:
                    samples = min(samples, longest - self.samples)
                self._spool.write(block[: samples * pcm.SAMPLE_WIDTH])
                self.samples += samples
                self._notify()
                if self._stopped or self.samples == longest:
                    break
        except Exception as error:
            self._error = error
        finally:
            upload.body.close()
            self.decoded = True
            self._notify()

    def stop(self) -> None:
        """Have `decode` end after its current block."""
        self._stopped = True

    async def wait(self, seconds: float) -> None:
        """Wait until its end is known, or this many seconds of it are decoded.

        Raises the error of `decode`.
        """
        await self._changed.until(lambda: self.decoded or self.samples >= seconds * pcm.SAMPLE_RATE)
        if self._error is not None:
            raise self._error

    async def begins(self, timeout: float) -> bool:
        """Wait until a thread has begun to decode it; return False when `timeout` seconds passed first."""
        return await self._changed.until(lambda: self._begun, timeout)

    async def blocks(self) -> AsyncIterator[bytes]:
        """Yield the sound, 10 s at a time, as it is decoded.

        Raises the error of `decode`, as soon as it is known.
        """
        position = 0
        while True:
            await self.wait((position + BLOCK_BYTES) / pcm.SAMPLE_WIDTH / pcm.SAMPLE_RATE)
            if not (block := await asyncio.to_thread(self._spool.read, position, BLOCK_BYTES)):
                return
            position += len(block)
            yield block

    def _notify(self) -> None:
        with suppress(RuntimeError):  # the server and its loop are gone
            self._loop.call_soon_threadsafe(self._changed.notify)
