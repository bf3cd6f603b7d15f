"""WebSocket `/transcribe`: sound in binary messages, text out as it comes; the dialect of Livepeer's live runner."""

from collections.abc import Iterable, Mapping
from typing import Any

from aiohttp import WSCloseCode, WSMessage, WSMsgType, web

from whisper_byoc.errors import UsageError
from whisper_byoc.http import json_value
from whisper_byoc.server.core.results import Record
from whisper_byoc.server.core.table import TABLE
from whisper_byoc.server.ingest import declared
from whisper_byoc.server.ingest.forms import params_without
from whisper_byoc.server.routes.conversation import CloseEarly, Command, Conversation, span, words_in
from whisper_byoc.server.routes.telling import tells


@tells(answers={101: None})
async def get_transcribe(request: web.Request) -> web.StreamResponse:
    """Serve one client. Errors of the request are answered in HTTP, before the upgrade."""
    pipeline = request.app[TABLE].pipelines.find_speech(request.query.get("pipeline") or request.query.get("model", ""))
    params = {"partials": "true"} if pipeline.live else {}
    params |= params_without(request.query, "pipeline", "model", *declared.NAMES)
    return await LiveRunner(request).serve(pipeline, params, declared.declared_format("", request.query))


class LiveRunner(Conversation):
    async def read(self, message: WSMessage) -> bytes | Command:
        if message.type is WSMsgType.BINARY:
            return bytes(message.data)
        fields = _fields(message.data)
        if fields.pop("type", "") == "eos":
            return Command.END
        if not fields:
            raise CloseEarly(
                WSCloseCode.UNSUPPORTED_DATA,
                "send sound in binary messages, parameters as a JSON object, and eos as text at its end",
            )
        try:
            await self.job.update(fields)
        except UsageError as error:
            raise CloseEarly(WSCloseCode.UNSUPPORTED_DATA, str(error)) from None
        return Command.NOTHING

    def told(self, record: Record) -> Iterable[Mapping[str, Any]]:
        if record.kind == "error":
            raise CloseEarly(WSCloseCode.INTERNAL_ERROR, record.error)
        fields = record.fields()
        if record.kind == "result":
            return [_message(fields)]
        return [{"text": "", "final": True, "warnings": fields["warnings"]}] if "warnings" in fields else []

    def sentence(self, error: CloseEarly) -> Mapping[str, Any]:
        return {"error": str(error)}


def _fields(text: str) -> dict[str, Any]:
    if text.strip() == "eos":
        return {"type": "eos"}
    try:
        message = json_value(text)
    except ValueError:
        return {}
    return message if isinstance(message, dict) else {}


def _message(fields: Mapping[str, Any]) -> dict[str, Any]:
    message = {"text": fields.get("text", ""), "final": fields.get("is_final", True)}
    if (times := span(fields)) is not None:
        message |= {"start": times[0], "end": times[1]}
    if words := words_in(fields):
        message["words"] = words
    return message
