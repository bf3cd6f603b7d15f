"""WebSocket `/v1/realtime`: OpenAI's Realtime transcription sessions, in their current form and that of the beta."""

import base64
import binascii
import itertools
import uuid
from collections import deque
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

from aiohttp import WSMessage, WSMsgType, web

from audio import pcm
from audio.raw import PLAIN
from audio.riff import A_LAW, MU_LAW, PCM, WavFormat
from audio.wav import FrameDecoder
from whisper_byoc.errors import BadParam, RequestRefused, UsageError
from whisper_byoc.http import json_value
from whisper_byoc.params import choice, number
from whisper_byoc.server.core.pipeline import Pipeline
from whisper_byoc.server.core.results import Record
from whisper_byoc.server.core.table import TABLE
from whisper_byoc.server.routes.conversation import CloseEarly, Command, Conversation, span
from whisper_byoc.server.routes.telling import tells

FORMATS: Mapping[str, WavFormat] = MappingProxyType(
    {
        "audio/pcm": WavFormat(PCM, 16, 1, 24_000),
        "audio/pcmu": WavFormat(MU_LAW, 8, 1, 8_000),
        "audio/pcma": WavFormat(A_LAW, 8, 1, 8_000),
    }
)
BETA_FORMATS: Mapping[str, str] = MappingProxyType(
    {"pcm16": "audio/pcm", "g711_ulaw": "audio/pcmu", "g711_alaw": "audio/pcma"}
)
BETA_FIELDS: Mapping[str, str] = MappingProxyType(
    {
        "input_audio_format": "format",
        "input_audio_transcription": "transcription",
        "input_audio_noise_reduction": "noise_reduction",
        "turn_detection": "turn_detection",
    }
)
VAD_TYPES = ("server_vad", "semantic_vad")
SHORTEST_PAUSE_MS, LONGEST_PAUSE_MS = 200, 3000
OPENAIS_MODELS = ("gpt-", "whisper-1")
"""Prefixes of OpenAI's model names, for which the first speech pipeline stands in."""
TRANSCRIPTION = "conversation.item.input_audio_transcription"


@tells(answers={101: None})
async def get_realtime(request: web.Request) -> web.StreamResponse:
    """Serve one client. Errors of the request are answered in HTTP, before the upgrade."""
    intent = request.query.get("intent", "transcription")
    if intent != "transcription":
        raise BadParam("intent", f"this server transcribes: intent must be transcription, not {intent!r:.40}")
    pipeline = _pipeline(request, request.query.get("model", ""))
    return await TranscriptionSession(request).serve(pipeline, {"partials": True, "sentences": False}, PLAIN)


def _pipeline(request: web.Request, name: str) -> Pipeline:
    return request.app[TABLE].pipelines.find_speech(name, OPENAIS_MODELS)


class TranscriptionSession(Conversation):
    protocols = ("realtime",)

    def __init__(self, request: web.Request) -> None:
        super().__init__(request)
        self._id = _new("sess")
        self._beta = "realtime=v1" in request.headers.get("OpenAI-Beta", "")
        self._input: dict[str, Any] = {
            "format": {"type": "audio/pcm", "rate": 24_000},
            "noise_reduction": None,
            "transcription": {"model": request.query.get("model", "whisper-1")},
            "turn_detection": {
                "type": VAD_TYPES[0], "threshold": 0.5, "prefix_padding_ms": 300, "silence_duration_ms": 500,
            },
        }  # fmt: skip
        self._sound = FrameDecoder(FORMATS["audio/pcm"])
        self._begun = False
        self._buffer = bytearray()
        """PCM16 of a session without turn detection, until it is committed."""
        self._committed: deque[str] = deque()
        """Items whose text is still to come."""
        self._speaking = ""
        """The item that is being spoken."""
        self._last_item: str | None = None
        self._shown = ""
        self._partial: list[str] = []
        """Of the item being spoken: what deltas have sent, and the words of the last partial text."""
        self._limit = request.app[TABLE].limits.segment_bytes

    # -- from the client

    async def read(self, message: WSMessage) -> bytes | Command:
        """Return the sound of an append. An invalid message gets an `error` event, and the session goes on."""
        event_id = None
        try:
            event = json_value(message.data) if message.type is WSMsgType.TEXT else None
            if not isinstance(event, dict):
                raise BadParam("type", "an event is text, a JSON object with a type")
            event_id = event.get("event_id")
            return await self._handle(event)
        except (ValueError, UsageError, RequestRefused) as error:
            param = error.name if isinstance(error, BadParam) else None
            await self.send(_error(str(error), param=param, event_id=event_id))
            return Command.NOTHING

    async def _handle(self, event: Mapping[str, Any]) -> bytes | Command:
        kind = event.get("type")
        if kind == "input_audio_buffer.append":
            return self._append(event.get("audio"))
        if kind == "input_audio_buffer.commit":
            return await self._commit()
        if kind == "input_audio_buffer.clear":
            self._buffer.clear()
            await self.send(_event("input_audio_buffer.cleared"))
        elif kind in ("session.update", "transcription_session.update"):
            self._beta |= kind == "transcription_session.update"
            await self._update(event.get("session"))
            await self.send(self._session_event("updated"))
        else:
            raise BadParam("type", f"{kind!r:.60} is no event of a transcription session")
        return Command.NOTHING

    def _append(self, audio: object) -> bytes | Command:
        if not isinstance(audio, str):
            raise BadParam("audio", "audio must be a string, the base64 of sound")
        try:
            data = base64.b64decode(audio, validate=True)
        except (binascii.Error, ValueError):
            raise BadParam("audio", "audio is not base64") from None
        self._begun = True
        sound = pcm.encode(self._sound.feed(data))
        if self._input["turn_detection"] is not None:
            return sound
        if len(self._buffer) + len(sound) > self._limit:
            raise BadParam("audio", f"the buffer would be larger than {self._limit} bytes; commit it")
        self._buffer += sound
        return Command.NOTHING

    async def _commit(self) -> Command:
        if self._input["turn_detection"] is not None:
            return Command.FLUSH
        if not self._buffer:
            raise BadParam("audio", "there is nothing in the buffer to commit")
        segment = bytes(self._buffer)
        self._buffer.clear()
        item = _new("item")
        self._committed.append(item)
        for event in self._commitment(item):
            await self.send(event)
        await self.job.inbox.submit(segment)
        return Command.NOTHING

    async def _update(self, session: object) -> None:
        if not isinstance(session, dict):
            raise BadParam("session", "session must be an object")
        changes = self._changes(session)
        if self._begun and any(
            name in changes and changes[name] != self._input[name] for name in ("format", "turn_detection")
        ):
            raise BadParam("session", "format and turn_detection cannot be changed once there is sound")
        await self.job.update(self._params(changes))
        self._input |= changes
        if "format" in changes:
            self._sound = FrameDecoder(FORMATS[changes["format"]["type"]])

    def _changes(self, session: Mapping[str, Any]) -> dict[str, Any]:
        """Return the requested changes to the input, checked and in the current form."""
        if self._beta:
            found = {BETA_FIELDS[name]: value for name, value in session.items() if name in BETA_FIELDS}
            if "format" in found:
                found["format"] = {"type": BETA_FORMATS[choice("input_audio_format", found["format"], BETA_FORMATS)]}
        else:
            choice("session.type", session.get("type", "transcription"), ("transcription",))
            found = dict(_object("audio.input", _object("audio", session.get("audio", {})).get("input", {})))
        known = {name: value for name, value in found.items() if name in self._input}
        if "format" in known:
            wanted = _object("format", known["format"])
            kind = choice("format.type", wanted.get("type", "audio/pcm"), FORMATS)
            number("format.rate", wanted.get("rate", FORMATS[kind].rate), FORMATS[kind].rate, FORMATS[kind].rate)
            known["format"] = {"type": kind, **({"rate": FORMATS[kind].rate} if kind == "audio/pcm" else {})}
        for name in ("transcription", "turn_detection"):
            if known.get(name) is not None:
                known[name] = {**(self._input[name] or {}), **_object(name, known[name])}
        if known.get("turn_detection"):
            choice("turn_detection.type", known["turn_detection"].get("type", VAD_TYPES[0]), VAD_TYPES)
        return known

    def _params(self, changes: Mapping[str, Any]) -> dict[str, Any]:
        """Return the job parameters that follow from these changes."""
        params: dict[str, Any] = {}
        if transcription := changes.get("transcription"):
            named = _pipeline(self.request, str(transcription.get("model") or ""))
            if named.name != self.job.info.pipeline:
                raise BadParam(
                    "model", f"the session has begun with {self.job.info.pipeline}; name another in the URL, as ?model="
                )
            params |= {name: transcription[name] for name in ("language", "prompt") if transcription.get(name)}
            if keywords := transcription.get("keywords"):
                params["hotwords"] = ", ".join(map(str, keywords)) if isinstance(keywords, list) else keywords
        if (detection := changes.get("turn_detection")) and "silence_duration_ms" in detection:
            pause = number("silence_duration_ms", detection["silence_duration_ms"], 0, 60_000)
            params["pause"] = min(max(pause, SHORTEST_PAUSE_MS), LONGEST_PAUSE_MS) / 1000
        return params

    # -- to the client

    def greetings(self) -> Iterable[Mapping[str, Any]]:
        return [self._session_event("created")]

    def told(self, record: Record) -> Iterable[Mapping[str, Any]]:
        if record.kind == "end":
            return
        fields = record.fields()
        if record.kind == "error":
            yield from self._item_failed(record.error)
        elif fields.get("is_final", True):
            yield from self._item_completed(fields)
        else:
            yield from self._begin(fields)
            words, self._partial = self._partial, fields["text"].split()
            pairs = zip(words, self._partial, strict=False)
            stable = [word for word, again in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)]
            yield from self._delta(" ".join(stable))

    def _begin(self, fields: Mapping[str, Any]) -> Iterable[Mapping[str, Any]]:
        if not self._speaking:
            self._speaking = _new("item")
            start, _ = span(fields) or (0.0, 0.0)
            yield _event(
                "input_audio_buffer.speech_started", audio_start_ms=round(start * 1000), item_id=self._speaking
            )

    def _delta(self, text: str) -> Iterable[Mapping[str, Any]]:
        """Send what is new; what was sent cannot be taken back, so nothing is sent where the text has changed."""
        if len(text) > len(self._shown) and text.startswith(self._shown):
            item = self._speaking or self._last_item
            yield _event(f"{TRANSCRIPTION}.delta", item_id=item, content_index=0, delta=text[len(self._shown) :])
            self._shown = text

    def _item_completed(self, fields: Mapping[str, Any]) -> Iterable[Mapping[str, Any]]:
        text, (start, end) = fields.get("text", ""), span(fields) or (0.0, 0.0)
        if self._committed:
            self._speaking = self._committed.popleft()
        else:
            yield from self._begin(fields)
            yield _event("input_audio_buffer.speech_stopped", audio_end_ms=round(end * 1000), item_id=self._speaking)
            yield from self._commitment(self._speaking)
        yield from self._delta(text)
        usage = {"type": "duration", "seconds": round(end - start, 3)}
        item, self._speaking, self._shown, self._partial = self._speaking, "", "", []
        yield _event(f"{TRANSCRIPTION}.completed", item_id=item, content_index=0, transcript=text, usage=usage)

    def _item_failed(self, sentence: str) -> Iterable[Mapping[str, Any]]:
        item = self._committed.popleft() if self._committed else self._speaking or _new("item")
        self._speaking, self._shown, self._partial = "", "", []
        error = {"type": "server_error", "code": "transcription_failed", "message": sentence, "param": None}
        yield _event(f"{TRANSCRIPTION}.failed", item_id=item, content_index=0, error=error)

    def _commitment(self, item: str) -> Iterable[Mapping[str, Any]]:
        before, self._last_item = self._last_item, item
        yield _event("input_audio_buffer.committed", item_id=item, previous_item_id=before)
        content = [{"type": "input_audio", "transcript": None}]
        body = {"id": item, "type": "message", "role": "user", "status": "completed", "content": content}
        kind = "conversation.item.created" if self._beta else "conversation.item.added"
        yield _event(kind, previous_item_id=before, item=body)

    def _session_event(self, verb: str) -> dict[str, Any]:
        if not self._beta:
            session = {"type": "transcription", "object": "realtime.transcription_session", "id": self._id}
            return _event(f"session.{verb}", session={**session, "audio": {"input": self._input}})
        kind = next(name for name, ours in BETA_FORMATS.items() if ours == self._input["format"]["type"])
        fields = {name: self._input[ours] for name, ours in BETA_FIELDS.items()} | {"input_audio_format": kind}
        return _event(f"transcription_session.{verb}", session={"id": self._id, **fields})

    def sentence(self, error: CloseEarly) -> Mapping[str, Any]:
        return _error(str(error), kind="server_error")


def _object(name: str, value: object) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise BadParam(name, f"{name} must be an object, not {value!r:.40}")
    return value


def _new(kind: str) -> str:
    return f"{kind}_{uuid.uuid4().hex}"


def _event(kind: str, **fields: Any) -> dict[str, Any]:
    return {"type": kind, "event_id": _new("event"), **fields}


def _error(
    message: str, *, kind: str = "invalid_request_error", param: str | None = None, event_id: object = None
) -> dict[str, Any]:
    return _event("error", error={"type": kind, "code": None, "message": message, "param": param, "event_id": event_id})
