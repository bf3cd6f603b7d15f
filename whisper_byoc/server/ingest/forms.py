"""Request bodies that are one recording or frame: the body itself, or one field of a form."""

import asyncio
from dataclasses import dataclass, field
from typing import TypeVar

from aiohttp import BodyPartReader, web
from aiohttp.http import HttpProcessingError
from multidict import MultiDict, MultiMapping

from whisper_byoc.errors import BadParam, RequestRefused
from whisper_byoc.http import CONNECTION_ERRORS, read_body
from whisper_byoc.params import Param
from whisper_byoc.server.core.limits import Limits

T = TypeVar("T")
FILE_FIELDS = ("file", "audio", "audio_file")
"""Names of the field with the recording: OpenAI's, ai-runner's and whisper-asr-webservice's."""
MAX_FIELDS = 64
MAX_FIELD_BYTES = 64 * 1024
"""Longest other field; prompts may be long, and are cut."""
FORM_BYTES = 256 * 1024
"""What a form may add to the size of the recording."""
CHUNK_BYTES = 256 * 1024
PLAIN_ENCODINGS = ("", "binary", "8bit", "7bit")
MALFORMED = (ValueError, AssertionError, RuntimeError, LookupError, HttpProcessingError)
"""What aiohttp's multipart reader raises at bytes that are no form."""


@dataclass(frozen=True)
class Upload:
    """One recording or frame as it was sent, and the parameters that came with it."""

    data: bytes
    """Never empty."""
    content_type: str
    """As the sender named it, with parameters; empty when it did not."""
    file_name: str = ""
    """As a form names it."""
    in_form: bool = False
    fields: MultiDict[str] = field(default_factory=MultiDict)
    """The query, and in a form its other fields, which win."""

    def field(self, name: str, default: str = "") -> str:
        """Return one field, stripped; `default` when it is absent or empty."""
        return self.fields.get(name, "").strip() or default

    def given(self, *names: str) -> dict[str, str]:
        """Return those of these fields that are there and not empty."""
        return {name: text for name in names if (text := self.field(name))}

    def read(self, param: Param[T]) -> T:
        """Read one field; its default when it is absent or empty."""
        text = self.field(param.name)
        return param.of({param.name: text} if text else {})


def params_without(fields: MultiMapping[str], *names: str) -> dict[str, str]:
    """Return the fields of a query or form but for those of these names, which the route reads itself."""
    return {name: value for name, value in fields.items() if name not in names}


async def read_upload(request: web.Request, limits: Limits) -> Upload:
    """Read a body whole.

    Raises `BadParam` for a form that cannot be used, and `RequestRefused`: 400 for no body or a broken one, 408 when it
    takes longer than the idle limit, 413 over the segment limit, 415 for an encoding that is not read.
    """
    in_form = request.content_type == "multipart/form-data"
    limit, too_large = limits.segment_bytes, _too_large(limits.segment_bytes)
    if (request.content_length or 0) > limit + (FORM_BYTES if in_form else 0):
        raise too_large
    try:
        async with asyncio.timeout(limits.idle_seconds) as deadline:
            if in_form:
                upload = await _read_form(request, limit)
            else:
                kind = request.headers.get("Content-Type", "")
                upload = Upload(
                    await read_body(request.content, limit, too_large), kind, fields=MultiDict(request.query)
                )
    except (*CONNECTION_ERRORS, asyncio.IncompleteReadError) as error:
        if deadline.expired():
            raise RequestRefused(408, f"the body was not complete after {limits.idle_seconds:g} s") from None
        raise RequestRefused(400, f"the body broke off or is malformed: {type(error).__name__}") from None
    if not upload.data:
        raise BadParam("file", "there is nothing in the recording: it has 0 bytes")
    return upload


async def _read_form(request: web.Request, limit: int) -> Upload:
    try:
        upload = await _read_parts(request, limit)
    except MALFORMED as error:
        raise RequestRefused(400, f"the body is not the multipart form that it claims to be: {error}") from None
    if upload is None:
        raise BadParam("file", f"the form has no recording; send it in a field named {' or '.join(FILE_FIELDS)}")
    return upload


async def _read_parts(request: web.Request, limit: int) -> Upload | None:
    found: tuple[bytes, str, str] | None = None
    fields = MultiDict[str]()
    count = 0
    reader = await request.multipart()
    while (part := await reader.next()) is not None:
        count += 1
        if count > MAX_FIELDS:
            raise RequestRefused(400, f"the form has more than {MAX_FIELDS} fields")
        if not isinstance(part, BodyPartReader) or not part.name:
            raise RequestRefused(400, "a part of the form has no name, or is a form itself")
        _check_encoding(part)
        if part.name in FILE_FIELDS:
            if found is not None:
                raise BadParam(part.name, "the form has more than one recording; send one at a time")
            data = await _read_part(part, limit, _too_large(limit))
            found = data, part.headers.get("Content-Type", ""), part.filename or ""
        elif part.filename is not None:
            raise BadParam(part.name, f"{part.name} is not read here; send the recording as {FILE_FIELDS[0]}")
        else:
            message = f"{part.name} is longer than {MAX_FIELD_BYTES} bytes"
            value = await _read_part(part, MAX_FIELD_BYTES, RequestRefused(413, message, param=part.name))
            fields.add(part.name, value.decode())
    fields.extend((name, value) for name, value in request.query.items() if name not in fields)
    return None if found is None else Upload(*found, in_form=True, fields=fields)


async def _read_part(part: BodyPartReader, limit: int, too_large: RequestRefused) -> bytes:
    data = bytearray()
    while chunk := await part.read_chunk(CHUNK_BYTES):
        data += chunk
        if len(data) > limit:
            raise too_large
    return bytes(data)


def _check_encoding(part: BodyPartReader) -> None:
    transfer = part.headers.get("Content-Transfer-Encoding", "").lower()
    if transfer not in PLAIN_ENCODINGS or part.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise RequestRefused(415, f"the part {part.name!r} of the form is encoded; send its bytes as they are")


def _too_large(limit: int) -> RequestRefused:
    return RequestRefused(413, f"the recording is larger than the limit of {limit} bytes; send it in parts")
