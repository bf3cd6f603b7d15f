"""A WebSocket that takes sound and sends text as it comes, in whichever dialect its client speaks."""

import asyncio
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from enum import Enum
from typing import Any

from aiohttp import WSCloseCode, WSMessage, WSMsgType, web

from audio.errors import AudioError
from audio.raw import RawFormat
from whisper_byoc.aio import cancel, first_of
from whisper_byoc.connections import client_of
from whisper_byoc.errors import ByocError, RequestRefused
from whisper_byoc.server.core.job import Job
from whisper_byoc.server.core.pipeline import Pipeline
from whisper_byoc.server.core.results import Record
from whisper_byoc.server.core.table import SHUTTING_DOWN, TABLE
from whisper_byoc.server.ingest.framing import LiveInput
from whisper_byoc.server.ingest.intake import INTAKE
from whisper_byoc.server.ingest.recording_jobs import temporary_job
from whisper_byoc.server.ingest.sound_feed import SoundFeed
from whisper_byoc.server.routes.answers import deliver

MAX_MESSAGE_BYTES = 1 << 20
"""32 s of sound; clients send fractions of a second at a time."""
CLOSING_TYPES = (WSMsgType.CLOSE, WSMsgType.CLOSING, WSMsgType.CLOSED, WSMsgType.ERROR)


class CloseEarly(ByocError):
    """The conversation ends early: with a sentence for the client, and a close code."""

    def __init__(self, code: WSCloseCode, message: str) -> None:
        super().__init__(message)
        self.code = code


class Command(Enum):
    """What a message without sound asks for."""

    NOTHING = "nothing"
    FLUSH = "flush"
    """End the utterance that is being spoken."""
    END = "end"
    """There will be no more sound."""


class Conversation(ABC):
    """A conversation with one client. A dialect defines what messages mean, and how records are sent."""

    protocols: tuple[str, ...] = ("whisper-byoc",)
    """Subprotocols from which one is chosen if a client names any, as it does to show its token."""

    def __init__(self, request: web.Request) -> None:
        self.request = request
        self.socket = web.WebSocketResponse(max_msg_size=MAX_MESSAGE_BYTES, protocols=self.protocols)
        self.job: Job
        self._idle_seconds = request.app[TABLE].limits.idle_seconds

    @abstractmethod
    async def read(self, message: WSMessage) -> bytes | Command:
        """Return the sound in a message, or what it asks for; raise `CloseEarly` for an invalid message."""

    @abstractmethod
    def told(self, record: Record) -> Iterable[Mapping[str, Any]]:
        """Return the messages for a result, an error (unless it ends the conversation) or the end."""

    def greetings(self) -> Iterable[Mapping[str, Any]]:
        """Return the messages that the server sends first."""
        return ()

    @abstractmethod
    def sentence(self, error: CloseEarly) -> Mapping[str, Any]:
        """Return the last message of a conversation that ends early."""

    async def send(self, message: Mapping[str, Any]) -> None:
        """Send one message; raise `ConnectionError` when the client does not read."""
        text = (
            json.dumps(message, ensure_ascii=False).encode("utf-8", "replace").decode()
        )  # clients name lone surrogates
        await deliver(self.request, self.socket.send_str(text))

    async def serve(
        self, pipeline: Pipeline, params: Mapping[str, Any], declared: RawFormat | None = None
    ) -> web.WebSocketResponse:
        """Converse until all results are sent; `declared` is the format of raw sound, if not 16 kHz mono PCM16.

        Errors in the request are raised before the upgrade, and also to a client that asks for no upgrade: a browser
        does not tell a page why its WebSocket was refused.
        """
        try:
            client = client_of(self.request)
            async with temporary_job(self.request.app[TABLE], pipeline, params, client=client) as self.job:
                if not self.socket.can_prepare(self.request):
                    raise RequestRefused(426, "this is a WebSocket: connect to it as ws://")
                await self.socket.prepare(self.request)
                for message in self.greetings():
                    await self.send(message)
                intake = self.request.app[INTAKE]
                await self._converse(SoundFeed(self.job, live=pipeline.live, declared=declared, intake=intake))
            await self.socket.close()
        except CloseEarly as error:
            await self.send(self.sentence(error))
            await self.socket.close(code=error.code)
        return self.socket

    async def _converse(self, sound: SoundFeed) -> None:
        """Receive and send at once, until all results are sent.

        Raises `CloseEarly` for what the client did wrong, a segment without a result and a server that shuts down,
        `ConnectionError` when the client is gone.
        """
        receiving = asyncio.ensure_future(self._receive(sound))
        sending = asyncio.ensure_future(self._send_results())
        try:
            await first_of(receiving, sending)
            for task in (sending, receiving):
                if task.done():
                    task.result()
            await sending
            if receiving.done():
                raise CloseEarly(WSCloseCode.GOING_AWAY, f"the stream ended before its end was told: {SHUTTING_DOWN}")
        finally:
            await cancel(receiving, sending)

    async def _receive(self, sound: SoundFeed) -> None:
        """Submit the sound until its end, then go on receiving, to answer pings and to notice when the client leaves.

        Returns only when the server ends the input.
        """
        try:
            with self.job.feeding():
                whole = await self._submit_sound(sound)
                ended_by_server = self.job.closing.is_set()
                self.job.end_input()
        except RequestRefused as error:
            raise CloseEarly(WSCloseCode.GOING_AWAY, str(error)) from None
        while not ended_by_server:
            if _received(await self._message()).type is WSMsgType.BINARY and whole:
                raise CloseEarly(WSCloseCode.POLICY_VIOLATION, "there was sound after the end of the stream")

    async def _submit_sound(self, sound: SoundFeed) -> bool:
        """Return whether all of it could be read; if not, the job has an error after the part that could.

        Raises `CloseEarly` for media of which nothing can be read.
        """
        idle = CloseEarly(WSCloseCode.POLICY_VIOLATION, f"nothing arrived for {self._idle_seconds:g} s")
        async with sound as feed:
            try:
                async with LiveInput(self._message, self.job.closing, self._idle_seconds, idle) as messages:
                    while (message := await messages.next()) is not None:
                        self.job.touch()
                        found = await self.read(_received(message))
                        if found is Command.END:
                            break
                        if found is Command.FLUSH:
                            self.job.inbox.flush()
                        elif isinstance(found, bytes):
                            await feed.take(found)
                await feed.finish(complete=True)
            except AudioError as error:
                if not feed.segments:
                    raise CloseEarly(WSCloseCode.UNSUPPORTED_DATA, str(error)) from None
                await feed.finish(complete=False)
                return False
        return True

    async def _message(self) -> WSMessage:
        await asyncio.sleep(0)  # messages that wait already come without a pause, and nobody else would have a turn
        return await self.socket.receive()

    async def _send_results(self) -> None:
        with self.job.reading():
            async for record in self.job.results.unread_records():
                for message in self.told(record):
                    await self.send(message)


def _received(message: WSMessage) -> WSMessage:
    """Raise `ConnectionError` when there will be no more messages."""
    if message.type in CLOSING_TYPES:
        raise ConnectionResetError("the client hung up")
    return message


def span(fields: Mapping[str, Any]) -> tuple[float, float] | None:
    """Return when a record's text, or else its sound, begins and ends, in seconds; None for a record without times."""
    if "timing" not in fields:
        return None
    timing, segments = fields["timing"], fields["segments"]
    start = segments[0]["start_ms"] if segments else timing["media_window_start_ms"]
    end = segments[-1]["end_ms"] if segments else timing["media_window_end_ms"]
    return start / 1000, end / 1000


def words_in(fields: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the words of a record with their times in seconds; empty unless they were asked for."""
    return [
        {
            "word": word["text"].strip(),
            "start": word["start_ms"] / 1000,
            "end": word["end_ms"] / 1000,
            "probability": word["probability"],
        }
        for segment in fields.get("segments", ())
        for word in segment.get("words", ())
    ]
