"""Request bodies that are one recording or frame: the body itself, or a field of a form with others around it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field

from aiohttp import BodyPartReader, web
from aiohttp.http import HttpProcessingError
from multidict import MultiDict

from whisper_byoc.errors import RequestRefused
from whisper_byoc.server.core.limits import Limits
from whisper_byoc.server.routes.source import BROKEN

__all__ = ["FieldRefused", "Upload", "on_or_off", "read_upload"]

FILE_FIELDS = ("file", "audio")
"""Names of the field with the recording: OpenAI's, and ai-runner's."""
MAX_FIELDS = 64
MAX_FIELD_BYTES = 8192
"""Longest other field; a prompt is at most 1000 characters."""
FORM_BYTES = 256 * 1024
"""What a form may add to the recording."""
CHUNK_BYTES = 256 * 1024
PLAIN = ("", "binary", "8bit", "7bit")
MALFORMED = (ValueError, AssertionError, RuntimeError, LookupError, HttpProcessingError)
"""What aiohttp's multipart reader raises at bytes that are no form."""


class FieldRefused(RequestRefused):
    """The server will not take this request because of one field, `param`."""

    def __init__(self, param: str, message: str, status: int = 400) -> None:
        super().__init__(status, message)
        self.param = param


@dataclass(frozen=True)
class Upload:
    """What came: never empty."""

    data: bytes
    content_type: str
    """As the sender named it, with parameters; empty when it did not."""
    in_form: bool = False
    fields: MultiDict[str] = field(default_factory=MultiDict)
    """The query, and in a form its other fields, which win."""

    def field(self, name: str, default: str = "") -> str:
        """Give one field, stripped; `default` when it is absent or empty."""
        return self.fields.get(name, "").strip() or default

    def choice(self, name: str, choices: Mapping[str, object] | tuple[str, ...], default: str) -> str:
        """Give a field that is one of `choices`.

        Raises `FieldRefused` (400) for anything else.
        """
        value = self.field(name, default)
        if value not in choices:
            raise FieldRefused(name, f"{name} must be one of {', '.join(choices)}, not {value[:40]!r}")
        return value


async def read_upload(request: web.Request, limits: Limits) -> Upload:
    """Read a body whole.

    Raises `RequestRefused`: 400 for no body or a broken one, 408 when it takes longer than the idle limit, 413 over the
    segment limit, 415 for an encoding that is not read.
    """
    in_form = request.content_type == "multipart/form-data"
    most = limits.segment_bytes + (FORM_BYTES if in_form else 0)
    if (request.content_length or 0) > most:
        raise too_large(limits.segment_bytes)
    reading = read_form(request, limits.segment_bytes) if in_form else read_plain(request, limits.segment_bytes)
    try:
        upload = await asyncio.wait_for(reading, limits.idle_seconds)
    except TimeoutError:
        raise RequestRefused(408, f"the body was not complete after {limits.idle_seconds:g} s") from None
    except BROKEN as error:
        raise RequestRefused(400, f"the body broke off or is malformed: {type(error).__name__}") from None
    if not upload.data:
        raise FieldRefused("file", "there is nothing in the recording: it has 0 bytes")
    return upload


async def read_plain(request: web.Request, limit: int) -> Upload:
    """Read a body that is the recording."""
    body = bytearray()
    while chunk := await request.content.readany():
        body += chunk
        if len(body) > limit:
            raise too_large(limit)
    return Upload(bytes(body), request.headers.get("Content-Type", ""), fields=MultiDict(request.query))


async def read_form(request: web.Request, limit: int) -> Upload:
    """Read a form.

    Raises `RequestRefused` (400) for bytes that are none, or without a recording.
    """
    try:
        upload = await read_parts(request, limit)
    except MALFORMED as error:
        raise RequestRefused(400, f"the body is not the multipart form that it claims to be: {error}") from None
    if upload is None:
        raise FieldRefused("file", f"the form has no recording; send it in a field named {' or '.join(FILE_FIELDS)}")
    return upload


async def read_parts(request: web.Request, limit: int) -> Upload | None:
    """Read the parts of a form, each under its own limit; None when there was no recording among them."""
    found: tuple[bytes, str] | None = None
    fields = MultiDict[str]()
    count = 0
    reader = await request.multipart()
    while (part := await reader.next()) is not None:
        count += 1
        if count > MAX_FIELDS:
            raise RequestRefused(400, f"the form has more than {MAX_FIELDS} fields")
        if not isinstance(part, BodyPartReader) or not part.name:
            raise RequestRefused(400, "a part of the form has no name, or is a form itself")
        check_encoding(part)
        if part.name in FILE_FIELDS:
            if found is not None:
                raise FieldRefused(part.name, "the form has more than one recording; send one at a time")
            found = await read_part(part, limit, too_large(limit)), part.headers.get("Content-Type", "")
        elif part.filename is not None:
            raise FieldRefused(part.name, f"{part.name} is not read here; send the recording as {FILE_FIELDS[0]}")
        else:
            message = f"{part.name} is longer than {MAX_FIELD_BYTES} bytes"
            value = await read_part(part, MAX_FIELD_BYTES, FieldRefused(part.name, message, 413))
            fields.add(part.name, value.decode())
    fields.extend((name, value) for name, value in request.query.items() if name not in fields)
    return None if found is None else Upload(*found, in_form=True, fields=fields)


async def read_part(part: BodyPartReader, limit: int, refusal: RequestRefused) -> bytes:
    """Read one part to its end.

    Raises `refusal` beyond `limit` bytes.
    """
    data = bytearray()
    while chunk := await part.read_chunk(CHUNK_BYTES):
        data += chunk
        if len(data) > limit:
            raise refusal
    return bytes(data)


def check_encoding(part: BodyPartReader) -> None:
    """Refuse (415) a part that would have to be unpacked first."""
    transfer = part.headers.get("Content-Transfer-Encoding", "").lower()
    if transfer not in PLAIN or part.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise RequestRefused(415, f"the part {part.name!r} of the form is encoded; send its bytes as they are")


def too_large(limit: int) -> RequestRefused:
    """Give the error for a recording over the limit."""
    return RequestRefused(413, f"the recording is larger than the limit of {limit} bytes; send it in parts")


def on_or_off(upload: Upload, name: str) -> bool:
    """Read a field that is on or off; absent is off.

    Raises `FieldRefused` (400) for anything else.
    """
    value = upload.field(name, "false").lower()
    if value not in ("true", "false", "1", "0", "on", "off"):
        raise FieldRefused(name, f"{name} must be true or false, not {value[:40]!r}")
    return value in ("true", "1", "on")
