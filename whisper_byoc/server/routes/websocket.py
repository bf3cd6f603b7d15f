"""WebSocket `/transcribe`: PCM16 in binary messages, text out as it comes; the dialect of Livepeer's live runner."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from aiohttp import WSCloseCode, WSMessage, WSMsgType, web

from whisper_byoc.errors import ByocError, RequestRefused
from whisper_byoc.server.core.job import Job
from whisper_byoc.server.core.results import Record
from whisper_byoc.server.ingest.framing import AudioFraming
from whisper_byoc.server.ingest.recording_job import opened, speech_pipeline
from whisper_byoc.server.routes.answers import drop
from whisper_byoc.server.routes.keys import TABLE
from whisper_byoc.server.routes.output import records

__all__ = ["routes"]

MAX_MESSAGE_BYTES = 1 << 20
"""32 s of sound; senders send parts of a second."""
SEND_SECONDS = 60.0
"""Longest wait for a client that does not read."""
NOT_PARAMS = frozenset({"pipeline", "model"})


def routes() -> list[web.RouteDef]:
    """Make the route."""
    return [web.get("/transcribe", get_transcribe, allow_head=False)]


class HangUp(ByocError):
    """The conversation ends early: with a sentence for the client, and a close code."""

    def __init__(self, code: WSCloseCode, message: str) -> None:
        super().__init__(message)
        self.code = code


async def get_transcribe(request: web.Request) -> web.StreamResponse:
    """Talk to one client. What is wrong with its request is said in HTTP, before the upgrade."""
    table = request.app[TABLE]
    socket = web.WebSocketResponse(max_msg_size=MAX_MESSAGE_BYTES)
    if not socket.can_prepare(request):
        raise RequestRefused(426, "this is a WebSocket: connect to it as ws://, or POST a recording here")
    pipeline = speech_pipeline(table, request.query.get("pipeline") or request.query.get("model", ""))
    params = {"partials": "true"} if pipeline.live else {}
    params |= {name: value for name, value in request.query.items() if name not in NOT_PARAMS}
    try:
        async with opened(table, pipeline, params) as job:
            await socket.prepare(request)
            await converse(socket, job, table.limits.idle_seconds, live=pipeline.live)
        await socket.close()
    except HangUp as error:
        try:
            await send(socket, {"error": str(error)})
            await socket.close(code=error.code)
        except ConnectionError:
            drop(request)
    except ConnectionError:
        drop(request)
    return socket


async def converse(socket: web.WebSocketResponse, job: Job, idle_seconds: float, *, live: bool) -> None:
    """Listen and speak at once, until all results are sent.

    Raises `HangUp` for what the client did wrong, a segment without a result and a server that shuts down,
    `ConnectionError` when the client is gone.
    """
    hearing = asyncio.ensure_future(hear(socket, job, idle_seconds, live=live))
    speaking = asyncio.ensure_future(speak(socket, job))
    try:
        await asyncio.wait({hearing, speaking}, return_when=asyncio.FIRST_COMPLETED)
        for task in (speaking, hearing):
            if task.done():
                task.result()
        await speaking
        if hearing.done():
            raise HangUp(WSCloseCode.GOING_AWAY, "the server ended the stream before its eos; it may be shutting down")
    finally:
        for task in (hearing, speaking):
            task.cancel()
        await asyncio.gather(hearing, speaking, return_exceptions=True)


async def hear(socket: web.WebSocketResponse, job: Job, idle_seconds: float, *, live: bool) -> None:
    """Hand the sound to the job until `eos`, then keep listening: pings want their answer, and the client may go.

    Returns only when it is the server that ends the input.
    """
    framing = AudioFraming(live=live)
    try:
        with job.feeding():
            async with aclosing(sound(socket, job, idle_seconds)) as messages:
                async for data in messages:
                    for segment in framing.feed(data):
                        await job.inbox.submit(segment, live=live)
            for tail in framing.finish(complete=True):
                job.inbox.submit_now(tail, live=live)
            ended_here = job.closing.is_set()
            job.end_input()
    except RequestRefused as error:
        raise HangUp(WSCloseCode.GOING_AWAY, str(error)) from None
    while not ended_here:
        message = await socket.receive()
        check_gone(message)
        if message.type is WSMsgType.BINARY:
            raise HangUp(WSCloseCode.POLICY_VIOLATION, "there was sound after the end of the stream (eos)")


async def sound(socket: web.WebSocketResponse, job: Job, idle_seconds: float) -> AsyncGenerator[bytes, None]:
    """Yield binary messages until `eos`, or until the job wants no more.

    Raises `HangUp` for other messages and after `idle_seconds` of nothing, `ConnectionError` when the client is gone.
    """
    closing = asyncio.ensure_future(job.closing.wait())
    receiving: asyncio.Task[WSMessage] | None = None
    try:
        while not job.closing.is_set():
            receiving = asyncio.ensure_future(socket.receive())
            await asyncio.wait({receiving, closing}, timeout=idle_seconds, return_when=asyncio.FIRST_COMPLETED)
            if not receiving.done():
                if job.closing.is_set():
                    return
                raise HangUp(WSCloseCode.POLICY_VIOLATION, f"nothing arrived for {idle_seconds:g} s")
            job.touch()
            message = receiving.result()
            check_gone(message)
            if message.type is WSMsgType.BINARY:
                yield message.data
            elif is_end(message.data):
                return
            else:
                raise HangUp(WSCloseCode.UNSUPPORTED_DATA, "send sound in binary messages, and eos as text at its end")
    finally:
        for task in (closing, receiving):
            if task is not None:
                task.cancel()
                await asyncio.wait({task})


async def speak(socket: web.WebSocketResponse, job: Job) -> None:
    """Send every result as it comes, until the end.

    Raises `HangUp` at the first error, which is the last that the client hears.
    """
    with job.reading():
        async for record in records(job):
            if record is None:
                continue
            if record.kind == "end":
                return
            if record.kind == "error":
                raise HangUp(WSCloseCode.INTERNAL_ERROR, record.error)
            await send(socket, result(record))
            job.results.mark_read(record)


async def send(socket: web.WebSocketResponse, fields: dict[str, Any]) -> None:
    """Send one message.

    Raises `ConnectionError` when the client is gone, or does not read.
    """
    try:
        await asyncio.wait_for(socket.send_str(json.dumps(fields, ensure_ascii=False)), SEND_SECONDS)
    except TimeoutError:
        raise ConnectionResetError("the client does not read") from None


def result(record: Record) -> dict[str, Any]:
    """Build the message for a result: times in seconds, of the text where it has some, else of its sound."""
    fields = record.fields()
    message = {"text": fields.get("text", ""), "final": fields.get("is_final", True)}
    if "timing" not in fields:
        return message
    timing, segments = fields["timing"], fields["segments"]
    start = segments[0]["start_ms"] if segments else timing["media_window_start_ms"]
    end = segments[-1]["end_ms"] if segments else timing["media_window_end_ms"]
    return {**message, "start": start / 1000, "end": end / 1000}


def check_gone(message: WSMessage) -> None:
    """Raise `ConnectionError` for a message that says that there will be none any more."""
    if message.type in (WSMsgType.CLOSE, WSMsgType.CLOSING, WSMsgType.CLOSED, WSMsgType.ERROR):
        raise ConnectionResetError("the client hung up")


def is_end(text: str) -> bool:
    """Whether a text message is the end of the stream: `eos`, or an object of that `type`."""
    if text.strip() == "eos":
        return True
    try:
        message = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return isinstance(message, dict) and message.get("type") == "eos"
