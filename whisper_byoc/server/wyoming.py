"""Speech to text for Home Assistant and other clients of the Wyoming protocol, over TCP."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, suppress
from typing import Any, cast

from wyoming.asr import Transcribe, Transcript, TranscriptChunk, TranscriptStart, TranscriptStop
from wyoming.audio import AudioChunk, AudioStart, AudioStop
from wyoming.error import Error
from wyoming.event import Event, Eventable, async_read_event, async_write_event
from wyoming.info import AsrModel, AsrProgram, Attribution, Describe, Info
from wyoming.ping import Ping, Pong

from audio.errors import AudioError
from whisper_byoc import __version__
from whisper_byoc.aio import Tasks, cancel, stop_listening
from whisper_byoc.connections import LINGER_BYTES, LINGER_SECONDS, client_address
from whisper_byoc.errors import ByocError, RequestRefused, StartError
from whisper_byoc.http import where
from whisper_byoc.languages import LANGUAGES
from whisper_byoc.server.core.job import Job
from whisper_byoc.server.core.table import JobTable
from whisper_byoc.server.ingest.declared import declared_format
from whisper_byoc.server.ingest.recording_jobs import temporary_job
from whisper_byoc.server.ingest.sound_feed import SoundFeed

log = logging.getLogger(__name__)

LARGEST_PART = 1 << 20
"""Bytes of an event's data or payload; clients send fractions of a second at a time."""
MOST_CONNECTIONS = 256
ENCODINGS = {1: "u8", 2: "s16le", 3: "s24le", 4: "s32le"}
"""Bytes of a sample -> its encoding."""
ABOUT = Attribution("whisper-byoc", "https://github.com/openai/whisper")


@asynccontextmanager
async def listening(table: JobTable, host: str, port: int) -> AsyncIterator[int]:
    """Serve Wyoming clients while the context lasts; yield the port (chosen by the system if `port` is 0).

    Raises `StartError` when the address is not available.
    """
    clients = Tasks()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await _Client(table, _Bounded(reader), writer).serve()
        except (ConnectionError, asyncio.IncompleteReadError) as error:
            log.debug("a Wyoming client is gone: %r", error)
        except TimeoutError:
            log.debug("a Wyoming client neither sends nor reads")
            writer.transport.abort()  # closing would wait for the client to read

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(clients) >= MOST_CONNECTIONS:
            writer.close()
        else:
            task = clients.start(serve(reader, writer))
            task.add_done_callback(lambda _: writer.close())  # even if cancelled before it begins

    try:
        server = await asyncio.start_server(accept, **where(host, port))
    except OSError as error:
        raise StartError(
            f"port {port} on {host} cannot be opened for Wyoming: {error.strerror}; choose another"
        ) from None
    try:
        port = server.sockets[0].getsockname()[1]
        log.info("Wyoming listening on port %d", port)
        yield port
    finally:
        await stop_listening(server)
        await clients.close()


class _Bounded:
    """A reader that refuses event parts that are too large before holding any of them."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self.readline, self.read = reader.readline, reader.read
        self._reader = reader

    async def readexactly(self, size: int) -> bytes:
        if not isinstance(size, int) or size > LARGEST_PART:
            raise ConnectionAbortedError(f"an event of {size!r} bytes is over the limit of {LARGEST_PART}")
        return await self._reader.readexactly(size)


class _Client:
    """One connection: any number of recordings, one after the other."""

    def __init__(self, table: JobTable, reader: _Bounded, writer: asyncio.StreamWriter) -> None:
        self._table = table
        self._reader = reader
        self._writer = writer
        self._wanted = Transcribe()
        self._idle_seconds = table.limits.idle_seconds

    async def serve(self) -> None:
        while (event := await self._next()) is not None:
            if Describe.is_type(event.type):
                await self._send(_info(self._table))
            elif Ping.is_type(event.type):
                await self._send(Pong())
            elif Transcribe.is_type(event.type):
                self._wanted = Transcribe.from_event(event)
            elif AudioStart.is_type(event.type):
                await self._transcribe(event)

    async def _next(self) -> Event | None:
        """Return the next event; None at the end, and for anything that is not an event.

        Raises `TimeoutError` when there is none within the idle limit.
        """
        await asyncio.sleep(0)  # events that wait already come without a pause, and nobody else would have a turn
        with suppress(TypeError, KeyError, AttributeError, UnicodeError, RecursionError):
            async with asyncio.timeout(self._idle_seconds):
                event = await async_read_event(cast("asyncio.StreamReader", self._reader))
                return event if event is None or isinstance(event.data or {}, dict) else None
        return None

    async def _send(self, message: Eventable) -> None:
        async with asyncio.timeout(self._idle_seconds):
            await async_write_event(message.event(), self._writer)

    async def _transcribe(self, start: Event) -> None:
        """Answer one recording; what goes wrong is an `error` event, after which the connection is closed."""
        try:
            async with AsyncExitStack() as stack:
                pipeline = self._table.pipelines.find_speech(str(self._wanted.name or ""))
                params: dict[str, Any] = {"sentences": False}
                params |= {"language": self._wanted.language} if self._wanted.language else {}
                names = [*(self._wanted.transcript_names or ()), *(self._wanted.transcript_terms or ())]
                params |= {"hotwords": ", ".join(names)} if names else {}
                sound = AudioStart.from_event(start)
                named = {"encoding": ENCODINGS.get(sound.width, ""), "rate": sound.rate, "channels": sound.channels}
                declared = declared_format("", {name: str(value) for name, value in named.items()})
                client = client_address(self._writer.transport)
                job = await stack.enter_async_context(temporary_job(self._table, pipeline, params, client=client))
                await self._send(TranscriptStart(language=self._wanted.language))
                telling = asyncio.ensure_future(self._tell(job))
                stack.push_async_callback(cancel, telling)
                await self._take(job, SoundFeed(job, live=pipeline.live, declared=declared))
                await telling
        except (ByocError, AudioError, KeyError, TypeError) as error:
            code = str(error.status) if isinstance(error, RequestRefused) else None
            message = f"bad audio-start: {error}" if isinstance(error, (KeyError, TypeError)) else str(error)
            await self._send(Error(message, code))
            await self._linger()
            raise ConnectionAbortedError("the recording could not be transcribed") from None

    async def _linger(self) -> None:
        """Drop what the client still sends: closing would reset the connection, and the error might be lost."""
        try:
            self._writer.write_eof()
        except OSError:  # the client has reset it already
            return
        left = LINGER_BYTES
        async with asyncio.timeout(LINGER_SECONDS):
            while left > 0 and (data := await self._reader.read(LARGEST_PART)):
                left -= len(data)

    async def _take(self, job: Job, sound: SoundFeed) -> None:
        with job.feeding():
            async with sound as feed:
                while (event := await self._next()) is not None and not AudioStop.is_type(event.type):
                    job.touch()
                    if AudioChunk.is_type(event.type):
                        await feed.take(event.payload or b"")
                if event is None:
                    raise ConnectionResetError("the client hung up in a recording")
                await feed.finish(complete=True)
            job.end_input()

    async def _tell(self, job: Job) -> None:
        """Send the text of each utterance as it comes, and all of it at the end."""
        texts: list[str] = []
        language = None
        with job.reading():
            async with aclosing(job.results.unread_records()) as records:
                async for record in records:
                    fields = record.fields()
                    if record.kind == "error":
                        raise RequestRefused(422, record.error)
                    if record.kind == "result" and (text := fields.get("text", "")):
                        language = fields.get("language")
                        texts.append(text)
                        await self._send(TranscriptChunk(f" {text}" if len(texts) > 1 else text))
        await self._send(Transcript(" ".join(texts), language=language))
        await self._send(TranscriptStop())


def _info(table: JobTable) -> Info:
    models = [
        AsrModel(each.name, ABOUT, installed=True, description=each.name, version=__version__, languages=[*LANGUAGES])
        for each in table.pipelines.speech
    ]
    program = AsrProgram(
        "whisper-byoc", ABOUT, True, "Whisper on the CPU", __version__, models, supports_transcript_streaming=True
    )
    return Info(asr=[program])
