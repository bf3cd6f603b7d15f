"""WebSocket `/v1/listen`: Deepgram's live dialect (developers.deepgram.com, "Live Audio")."""

import uuid
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any

from aiohttp import WSCloseCode, WSMessage, WSMsgType, web
from multidict import MultiMapping

from audio.raw import RawFormat
from whisper_byoc.errors import BadParam
from whisper_byoc.http import json_value
from whisper_byoc.params import choice, switch, whole
from whisper_byoc.server.core.results import Record
from whisper_byoc.server.core.table import TABLE
from whisper_byoc.server.ingest.declared import declared_format
from whisper_byoc.server.routes.conversation import CloseEarly, Command, Conversation, span, words_in
from whisper_byoc.server.routes.telling import tells

ENCODINGS: Mapping[str, str] = MappingProxyType({"linear16": "s16le", "linear32": "s32le"})
"""Deepgram's names of raw sound formats -> ours; `mulaw` and `alaw` are the same."""
RAW = (*ENCODINGS, "mulaw", "alaw")
MEDIA = ("flac", "opus", "ogg-opus", "speex", "amr-nb", "amr-wb")
"""Its names of media, which are recognised by their bytes."""
OWN_MODELS = ("nova", "enhanced", "base", "whisper", "flux")
"""Prefixes of Deepgram's own model names, for which the first speech pipeline stands in."""
SHORTEST_PAUSE_S, LONGEST_PAUSE_S = 0.2, 3.0
COMMANDS: Mapping[str, Command] = MappingProxyType(
    {"KeepAlive": Command.NOTHING, "Finalize": Command.FLUSH, "CloseStream": Command.END}
)


@tells(answers={101: None})
async def get_listen(request: web.Request) -> web.StreamResponse:
    """Serve one client. Errors of the request are answered in HTTP, before the upgrade."""
    query = request.query
    pipeline = request.app[TABLE].pipelines.find_speech(query.get("model", ""), OWN_MODELS)
    return await Listener(request).serve(pipeline, _params(query), _raw(query))


def _params(query: MultiMapping[str]) -> dict[str, Any]:
    """Return the job's parameters; `endpointing` is the pause that ends an utterance, in milliseconds."""
    params: dict[str, Any] = {
        "words": True,
        "sentences": False,  # an agent replies to whatever ends here
        "partials": switch("interim_results", query.get("interim_results", "false")),
    }
    language = "multi" if "detect_language" in query else query.get("language", "")
    if language:
        params["language"] = "auto" if language == "multi" else language
    if (milliseconds := query.get("endpointing", "")) not in ("", "true", "false"):
        seconds = whole("endpointing", milliseconds, 0, 60_000) / 1000
        params["pause"] = min(max(seconds, SHORTEST_PAUSE_S), LONGEST_PAUSE_S)
    if hotwords := ", ".join(
        value.partition(":")[0] for name in ("keyterm", "keywords") for value in query.getall(name, ())
    ):
        params["hotwords"] = hotwords
    return params


def _raw(query: MultiMapping[str]) -> RawFormat | None:
    if not (encoding := query.get("encoding", "")) or choice("encoding", encoding, (*RAW, *MEDIA)) in MEDIA:
        return None
    if "sample_rate" not in query:
        raise BadParam("sample_rate", f"{encoding} does not tell its rate: give sample_rate, in Hz")
    names = {"rate": query["sample_rate"], "channels": query.get("channels", "1")}
    return declared_format("", {"encoding": ENCODINGS.get(encoding, encoding), **names})


class Listener(Conversation):
    protocols = ("token",)
    """Deepgram's browser clients offer `token, KEY`."""

    def __init__(self, request: web.Request) -> None:
        super().__init__(request)
        self._id = str(uuid.uuid4())
        self._created = datetime.now(UTC)
        self._events = switch("vad_events", request.query.get("vad_events", "false"))
        self._utterance_ends = bool(request.query.get("utterance_end_ms"))
        self._speaking = False
        self._finalizing = False

    async def read(self, message: WSMessage) -> bytes | Command:
        if message.type is WSMsgType.BINARY:
            return bytes(message.data) or Command.END  # older clients end with an empty message
        try:
            kind = json_value(message.data)["type"]
            command = COMMANDS[kind]
        except (ValueError, TypeError, KeyError):
            known = ", ".join(COMMANDS)
            raise CloseEarly(
                WSCloseCode.UNSUPPORTED_DATA, f"send sound in binary messages, and as text JSON of the type {known}"
            ) from None
        self._finalizing |= command is Command.FLUSH
        return command

    def told(self, record: Record) -> Iterable[Mapping[str, Any]]:
        if record.kind == "error":
            raise CloseEarly(WSCloseCode.INTERNAL_ERROR, record.error)
        fields = record.fields()
        if record.kind == "end":
            yield self._metadata(fields.get("audio_ms", 0) / 1000, fields.get("warnings", ()))
            return
        start, end = span(fields) or (0.0, 0.0)
        if self._events and not self._speaking:
            yield {"type": "SpeechStarted", "channel": [0, 1], "timestamp": start}
        is_final = fields.get("is_final", True)
        self._speaking = not is_final
        yield self._results(fields, start, end, is_final=is_final)
        if is_final and self._utterance_ends:
            yield {"type": "UtteranceEnd", "channel": [0, 1], "last_word_end": end}

    def _results(self, fields: Mapping[str, Any], start: float, end: float, *, is_final: bool) -> dict[str, Any]:
        words = [
            {
                "word": each["word"].strip(".,!?;:").lower(),
                "punctuated_word": each["word"],
                "start": each["start"],
                "end": each["end"],
                "confidence": each["probability"],
            }
            for each in words_in(fields)
        ]
        confidence = sum(each["confidence"] for each in words) / len(words) if words else 0.0
        finalized = self._finalizing and is_final
        self._finalizing &= not is_final
        best = {"transcript": fields.get("text", ""), "confidence": round(confidence, 3), "words": words}
        return {
            "type": "Results",
            "channel_index": [0, 1],
            "duration": round(end - start, 3),
            "start": start,
            "is_final": is_final,
            "speech_final": is_final,
            "from_finalize": finalized,
            "channel": {"alternatives": [best]},
            "metadata": {"request_id": self._id, "model_uuid": self._id, "model_info": self._model_info()},
        }

    def _metadata(self, seconds: float, warnings: Iterable[str]) -> dict[str, Any]:
        told = [{"parameter": "", "type": "stream", "message": each} for each in warnings]
        return {
            "type": "Metadata",
            "transaction_key": "deprecated",
            "request_id": self._id,
            "sha256": "",
            "created": self._created.isoformat(),
            "duration": seconds,
            "channels": 1,
            **({"warnings": told} if told else {}),
        }

    def _model_info(self) -> dict[str, str]:
        return {"name": self.job.info.pipeline, "version": "", "arch": "whisper"}

    def sentence(self, error: CloseEarly) -> Mapping[str, Any]:
        return {"type": "Error", "description": str(error), "message": str(error), "variant": error.code.name}
