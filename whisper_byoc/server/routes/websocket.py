"""WebSocket `/transcribe`: sound in binary messages, text out as it comes; the dialect of Livepeer's live runner."""

import asyncio
import json
from typing import Any

from aiohttp import WSCloseCode, WSMessage, WSMsgType, web

from audio.errors import AudioError
from whisper_byoc.aio import cancel, first_of
from whisper_byoc.errors import ByocError, RequestRefused
from whisper_byoc.http import json_value
from whisper_byoc.server.core.job import Job
from whisper_byoc.server.core.results import Record
from whisper_byoc.server.core.table import SHUTTING_DOWN, TABLE
from whisper_byoc.server.ingest import declared
from whisper_byoc.server.ingest.feed import SoundFeed
from whisper_byoc.server.ingest.forms import params_without
from whisper_byoc.server.ingest.framing import LiveInput
from whisper_byoc.server.ingest.recordings import temporary_job
from whisper_byoc.server.routes.answers import deliver

MAX_MESSAGE_BYTES = 1 << 20
"""32 s of sound; senders send parts of a second."""
PROTOCOL = "whisper-byoc"
"""What a browser names beside the protocol that carries its token: one has to be chosen."""
CLOSING_TYPES = (WSMsgType.CLOSE, WSMsgType.CLOSING, WSMsgType.CLOSED, WSMsgType.ERROR)


class CloseEarly(ByocError):
    """The conversation ends early: with a sentence for the client, and a close code."""

    def __init__(self, code: WSCloseCode, message: str) -> None:
        super().__init__(message)
        self.code = code


async def get_transcribe(request: web.Request) -> web.StreamResponse:
    """Serve one client. Errors of the request are answered in HTTP, before the upgrade."""
    table = request.app[TABLE]
    socket = web.WebSocketResponse(max_msg_size=MAX_MESSAGE_BYTES, protocols=(PROTOCOL,))
    if not socket.can_prepare(request):
        raise RequestRefused(426, "this is a WebSocket: connect to it as ws://, or POST a recording here")
    pipeline = table.pipelines.find_speech(request.query.get("pipeline") or request.query.get("model", ""))
    params = {"partials": "true"} if pipeline.live else {}
    params |= params_without(request.query, "pipeline", "model", *declared.NAMES)
    raw = declared.declared_format("", request.query)
    try:
        async with temporary_job(table, pipeline, params) as job:
            await socket.prepare(request)
            await _converse(request, socket, SoundFeed(job, live=pipeline.live, declared=raw), job)
        await socket.close()
    except CloseEarly as error:
        await _send(request, socket, {"error": str(error)})
        await socket.close(code=error.code)
    return socket


async def _converse(request: web.Request, socket: web.WebSocketResponse, sound: SoundFeed, job: Job) -> None:
    """Receive and send at once, until all results are sent.

    Raises `CloseEarly` for what the client did wrong, a segment without a result and a server that shuts down,
    `ConnectionError` when the client is gone.
    """
    idle_seconds = request.app[TABLE].limits.idle_seconds
    receiving = asyncio.ensure_future(_receive(socket, sound, job, idle_seconds))
    sending = asyncio.ensure_future(_send_results(request, socket, job))
    try:
        await first_of(receiving, sending)
        for task in (sending, receiving):
            if task.done():
                task.result()
        await sending
        if receiving.done():
            raise CloseEarly(WSCloseCode.GOING_AWAY, f"the stream ended before its eos: {SHUTTING_DOWN}")
    finally:
        await cancel(receiving, sending)


async def _receive(socket: web.WebSocketResponse, sound: SoundFeed, job: Job, idle_seconds: float) -> None:
    """Submit the sound until `eos`, then go on receiving, to answer pings and to notice that the client goes.

    Returns only when the server ends the input.
    """
    try:
        with job.feeding():
            whole = await _submit_sound(socket, sound, job, idle_seconds)
            ended_by_server = job.closing.is_set()
            job.end_input()
    except RequestRefused as error:
        raise CloseEarly(WSCloseCode.GOING_AWAY, str(error)) from None
    while not ended_by_server:
        if _sound_in(await socket.receive(), ended=True) is not None and whole:
            raise CloseEarly(WSCloseCode.POLICY_VIOLATION, "there was sound after the end of the stream (eos)")


async def _submit_sound(socket: web.WebSocketResponse, sound: SoundFeed, job: Job, idle_seconds: float) -> bool:
    """Return whether all of it could be read; where not, the job has an error behind what could.

    Raises `CloseEarly` when it is media of which nothing can be read.
    """
    idle = CloseEarly(WSCloseCode.POLICY_VIOLATION, f"nothing arrived for {idle_seconds:g} s")
    async with sound as feed:
        try:
            async with LiveInput(socket.receive, job.closing, idle_seconds, idle) as messages:
                while (message := await messages.next()) is not None:
                    job.touch()
                    data = _sound_in(message)
                    if data is None:
                        break
                    await feed.take(data)
            await feed.finish(complete=True)
        except AudioError as error:
            if not feed.segments:
                raise CloseEarly(WSCloseCode.UNSUPPORTED_DATA, str(error)) from None
            await feed.finish(complete=False)
            return False
    return True


def _sound_in(message: WSMessage, *, ended: bool = False) -> bytes | None:
    """Return the sound in a message; None for `eos`, and for any text after it (`ended`).

    Raises `CloseEarly` for other text, `ConnectionError` when there will be no more messages.
    """
    if message.type in CLOSING_TYPES:
        raise ConnectionResetError("the client hung up")
    if message.type is WSMsgType.BINARY:
        return bytes(message.data)
    if ended or _is_end(message.data):
        return None
    raise CloseEarly(WSCloseCode.UNSUPPORTED_DATA, "send sound in binary messages, and eos as text at its end")


def _is_end(text: str) -> bool:
    if text.strip() == "eos":
        return True
    try:
        message = json_value(text)
    except ValueError:
        return False
    return isinstance(message, dict) and message.get("type") == "eos"


async def _send_results(request: web.Request, socket: web.WebSocketResponse, job: Job) -> None:
    with job.reading():
        async for record in job.results.unread_records():
            if record.kind == "error":
                raise CloseEarly(WSCloseCode.INTERNAL_ERROR, record.error)
            if record.kind == "result":
                await _send(request, socket, _message(record))


async def _send(request: web.Request, socket: web.WebSocketResponse, fields: dict[str, Any]) -> None:
    await deliver(request, socket.send_str(json.dumps(fields, ensure_ascii=False)))


def _message(record: Record) -> dict[str, Any]:
    """Make the message for a result: times in seconds, of the text where it has some, else of its sound."""
    fields = record.fields()
    message = {"text": fields.get("text", ""), "final": fields.get("is_final", True)}
    if "timing" not in fields:
        return message
    timing, segments = fields["timing"], fields["segments"]
    start = segments[0]["start_ms"] if segments else timing["media_window_start_ms"]
    end = segments[-1]["end_ms"] if segments else timing["media_window_end_ms"]
    return {**message, "start": start / 1000, "end": end / 1000}
