"""Request bodies that are one recording or frame: the body itself, or one field of a form."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeVar

from aiohttp import BodyPartReader, web
from aiohttp.http import HttpProcessingError
from multidict import MultiDict, MultiMapping

from whisper_byoc.errors import BadParam, RequestRefused
from whisper_byoc.http import CONNECTION_ERRORS
from whisper_byoc.params import Param
from whisper_byoc.server.core.limits import Limits
from whisper_byoc.server.ingest.spool import Spool

T = TypeVar("T")
FILE_FIELDS = ("file", "audio", "audio_file")
"""Names of the field with the recording: OpenAI's, ai-runner's and whisper-asr-webservice's."""
MAX_FIELDS = 64
MAX_FIELD_BYTES = 64 * 1024
"""Longest other field; prompts may be long, and are cut."""
FORM_BYTES = 256 * 1024
"""Bytes that a form may add to the recording."""
CHUNK_BYTES = 256 * 1024
SLOWEST = 128 * 1024
"""Lowest average rate of a body, in bytes per second, once the idle limit has passed: 1 Mbit/s."""
Keep = Callable[[bytes], Awaitable[None]]
PLAIN_ENCODINGS = ("", "binary", "8bit", "7bit")
MALFORMED = (ValueError, AssertionError, RuntimeError, LookupError, HttpProcessingError)
"""What aiohttp's multipart reader raises for bytes that are not a form."""


@dataclass(frozen=True)
class Upload:
    """One recording or frame as it was sent, and the parameters that came with it."""

    body: Spool
    """Never empty."""
    content_type: str
    """As the sender gave it, with parameters; empty if it did not."""
    file_name: str = ""
    """As given in a form."""
    in_form: bool = False
    fields: MultiDict[str] = field(default_factory=MultiDict)
    """The query and, for a form, its other fields, which take precedence."""

    def field(self, name: str, default: str = "") -> str:
        """Return one field, stripped; `default` when it is absent or empty."""
        return self.fields.get(name, "").strip() or default

    def given(self, *names: str) -> dict[str, str]:
        """Return those of these fields that are present and not empty."""
        return {name: text for name in names if (text := self.field(name))}

    def read(self, param: Param[T]) -> T:
        """Read one field; its default when it is absent or empty."""
        text = self.field(param.name)
        return param.of({param.name: text} if text else {})


def params_without(fields: MultiMapping[str], *names: str) -> dict[str, str]:
    """Return the fields of a query or form except these names, which the route reads itself."""
    return {name: value for name, value in fields.items() if name not in names}


async def read_upload(request: web.Request, limits: Limits, spool: Spool) -> Upload:
    """Read a body into `spool`.

    Raises `BadParam` for a form that cannot be used, and `RequestRefused`: 400 for no body or a broken one, 408 when it
    takes longer than the idle limit and comes slower than `SLOWEST`, 413 over the limit for recordings, 415 for an
    unsupported encoding; and as `Spool.write` does.
    """
    in_form = request.content_type == "multipart/form-data"
    limit, length = limits.recording_bytes, request.content_length or 0
    too_large = RequestRefused(413, f"the recording is larger than the limit of {limit} bytes; send it in parts")
    if length > limit + (FORM_BYTES if in_form else 0):
        raise too_large
    spool.check(length)
    began = asyncio.get_running_loop().time()

    async def keep(data: bytes) -> None:
        if spool.size + len(data) > limit:
            raise too_large
        await spool.append(data)
        deadline.reschedule(began + limits.idle_seconds + spool.size / SLOWEST)

    try:
        async with asyncio.timeout(limits.idle_seconds) as deadline:
            if in_form:
                upload = await _read_form(request, spool, keep)
            else:
                while chunk := await request.content.readany():
                    await keep(chunk)
                kind = request.headers.get("Content-Type", "")
                upload = Upload(spool, kind, fields=MultiDict(request.query))
    except (*CONNECTION_ERRORS, asyncio.IncompleteReadError) as error:
        if deadline.expired():
            message = f"the body was not complete after {limits.idle_seconds:g} s, and arrived too slowly"
            raise RequestRefused(408, message) from None
        raise RequestRefused(400, f"the body broke off or is malformed: {type(error).__name__}") from None
    if not spool.size:
        raise BadParam("file", "the recording is empty (0 bytes)")
    return upload


async def _read_form(request: web.Request, spool: Spool, keep: Keep) -> Upload:
    try:
        upload = await _read_parts(request, spool, keep)
    except MALFORMED as error:
        raise RequestRefused(400, f"the body is not the multipart form that it claims to be: {error}") from None
    if upload is None:
        raise BadParam("file", f"the form has no recording; send it in a field named {' or '.join(FILE_FIELDS)}")
    return upload


async def _read_parts(request: web.Request, spool: Spool, keep: Keep) -> Upload | None:
    found: tuple[str, str] | None = None
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
            found = part.headers.get("Content-Type", ""), part.filename or ""
            while chunk := await part.read_chunk(CHUNK_BYTES):
                await keep(chunk)
        elif part.filename is not None:
            raise BadParam(part.name, f"{part.name} is not accepted here; send the recording as {FILE_FIELDS[0]}")
        else:
            fields.add(part.name, await _read_text(part, part.name))
    fields.extend((name, value) for name, value in request.query.items() if name not in fields)
    return None if found is None else Upload(spool, *found, in_form=True, fields=fields)


async def _read_text(part: BodyPartReader, name: str) -> str:
    data = bytearray()
    while chunk := await part.read_chunk(CHUNK_BYTES):
        data += chunk
        if len(data) > MAX_FIELD_BYTES:
            raise RequestRefused(413, f"{name} is longer than {MAX_FIELD_BYTES} bytes", param=name)
    return data.decode()


def _check_encoding(part: BodyPartReader) -> None:
    transfer = part.headers.get("Content-Transfer-Encoding", "").lower()
    if transfer not in PLAIN_ENCODINGS or part.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise RequestRefused(415, f"the part {part.name!r} of the form is encoded; send its bytes as they are")
