"""The numbered records of one job, bounded, and the text that they make up."""

import base64
import json
from collections import deque
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, overload

from whisper_byoc.aio import Changed
from whisper_byoc.errors import ProcessorError
from whisper_byoc.processors.base import Result

Kind = Literal["result", "error", "end"]

MAX_ERROR_CHARACTERS = 2000
"""Longest error: a processor may raise one of any length, and errors do not count against the ring."""


@dataclass(frozen=True)
class Record:
    """One numbered outcome of a job."""

    job_id: str
    seq: int
    kind: Kind
    result: Result
    content_type: str
    line: bytes = b""
    """The record as JSON, if already written; that of a body, which would be larger than the body, is not kept."""

    @property
    def size(self) -> int:
        """Bytes that count against the ring."""
        return len(self.result.body)

    @property
    def partial(self) -> bool:
        """Whether the next record replaces it."""
        return self.result.partial

    @property
    def error(self) -> str:
        return str((self.result.record or {}).get("error", ""))

    def fields(self) -> dict[str, Any]:
        """Return the JSON object that followers get.

        A result without a record of its own carries its bytes as `text`, or as base64 `data`.
        """
        head: dict[str, Any] = {"type": self.kind, "job_id": self.job_id, "seq": self.seq}
        if self.result.record is None:
            if self.content_type.startswith("text/"):
                return head | {"text": self.result.body.decode("utf-8", "replace")}
            return head | {"size": self.size, "data": base64.b64encode(self.result.body).decode("ascii")}
        fields = {**head, **self.result.record}
        if fields.get("segments") is not None:  # the id contains the record's number, unknown to the processor
            fields["segments"] = [
                {"id": f"{self.job_id}-{self.seq}-{number}", **each} for number, each in enumerate(fields["segments"])
            ]
        return fields

    def json(self) -> bytes:
        """Return one line of UTF-8 JSON, without the newline.

        Raises `ProcessorError` for a record that is no JSON.
        """
        try:
            return self.line or json.dumps(self.fields(), ensure_ascii=False, separators=(",", ":")).encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise ProcessorError(f"the record of a Result must be JSON: {error}") from None


class ResultRing:
    """A bounded ring of records. Unread ones are never dropped; those that were read are kept while there is room.

    `add` waits while the ring is full of unread records; reading makes room.
    """

    def __init__(self, job_id: str, content_type: str, max_records: int, max_bytes: int) -> None:
        self._job_id = job_id
        self._content_type = content_type
        self._max_records = max_records
        self._max_bytes = max_bytes
        self._kept: deque[Record] = deque()
        self._kept_bytes = 0
        self._unread_bytes = 0
        self._read_up_to = 0
        self._seen_up_to = 0  # some reader has got everything below, though it may still be writing it
        self._changed = Changed()
        self.next_seq = 0
        """What trickle calls latest: the number of the newest record plus one."""
        self.ended = False

    @property
    def unread(self) -> int:
        """Records that no reader has had yet; the end record does not count."""
        return self.next_seq - int(self.ended) - self._read_up_to

    async def add(self, result: Result) -> Record:
        """Append a result, after waiting for room. It replaces a partial one that no reader has got.

        Raises `ProcessorError` for a record that is no JSON.
        """
        if self._kept and self._kept[-1].partial and self._kept[-1].seq >= self._seen_up_to:
            replaced = self._kept.pop()
            self._kept_bytes -= replaced.size
            self._unread_bytes -= replaced.size
            self.next_seq -= 1
        await self._changed.until(lambda: self._has_room(len(result.body)))
        return self._append("result", result)

    async def add_error(self, message: str) -> None:
        """Append an error record, after waiting for room."""
        await self._changed.until(lambda: self._has_room(0))
        self.force_error(message)

    def force_error(self, message: str) -> None:
        """Append an error record at once: for a job that is being ended while its ring is full."""
        shown = message if len(message) <= MAX_ERROR_CHARACTERS else f"{message[:MAX_ERROR_CHARACTERS]}…"
        writable = shown.encode("utf-8", "backslashreplace").decode()  # names of files may hold what is no UTF-8
        self._append("error", Result(b"", {"error": writable}))

    def end(self, summary: Mapping[str, Any]) -> None:
        """Append the end record, the last one.

        Raises `ProcessorError` for a summary that is no JSON.
        """
        self._append("end", Result(b"", summary))
        self.ended = True
        self._changed.notify()

    async def next_unread(self, timeout: float | None) -> Record | None:
        """Wait for the oldest unread record, in the end always the end record; None when `timeout` seconds passed."""
        if not await self._changed.until(lambda: self.ended or self._read_up_to < self.next_seq, timeout):
            return None
        return self._see(self._read_up_to)

    @overload
    def unread_records(self) -> AsyncGenerator[Record, None]: ...
    @overload
    def unread_records(self, silence: float) -> AsyncGenerator[Record | None, None]: ...
    async def unread_records(self, silence: float | None = None) -> AsyncGenerator[Record | None, None]:
        """Yield unread records as they come, up to the end record, and None after every `silence` seconds without one.

        A record counts as read when the caller asks for the next one.
        """
        ended = False
        while not ended:
            record = await self.next_unread(silence)
            yield record
            if record is not None:
                self.mark_read(record)
                ended = record.kind == "end"

    async def wait_for(self, seq: int, timeout: float) -> Record | None:
        """Wait for record `seq`; None when it did not come in time, or is no longer kept."""
        await self._changed.until(lambda: self.ended or seq < self.next_seq, timeout)
        return self._see(seq)

    async def until_ended(self, timeout: float) -> bool:
        return await self._changed.until(lambda: self.ended, timeout)

    def at(self, seq: int) -> Record | None:
        """Return record `seq`, if it is kept."""
        if not self._kept or not self._kept[0].seq <= seq <= self._kept[-1].seq:
            return None
        return self._kept[seq - self._kept[0].seq]

    def mark_read(self, record: Record) -> None:
        """Remember that the reader has `record`, which frees its room."""
        if record.seq == self._read_up_to and record.kind != "end":
            self._read_up_to += 1
            self._unread_bytes -= record.size
            self._trim()
            self._changed.notify()

    def _see(self, seq: int) -> Record | None:
        record = self.at(seq)
        if record is not None:
            self._seen_up_to = max(self._seen_up_to, seq + 1)
        return record

    def _append(self, kind: Kind, result: Result) -> Record:
        record = Record(self._job_id, self.next_seq, kind, result, self._content_type)
        if result.record is not None:
            record = replace(record, line=record.json())
        self._kept.append(record)
        self._kept_bytes += record.size
        self._unread_bytes += record.size
        self.next_seq += 1
        self._trim()
        self._changed.notify()
        return record

    def _has_room(self, size: int) -> bool:
        unread = self.next_seq - self._read_up_to
        return unread == 0 or (unread < self._max_records and self._unread_bytes + size <= self._max_bytes)

    def _trim(self) -> None:
        while self._kept and self._kept[0].seq < self._read_up_to:
            if len(self._kept) <= self._max_records and self._kept_bytes <= self._max_bytes:
                return
            self._kept_bytes -= self._kept.popleft().size


class TranscriptLog:
    """The final transcripts of a job, at most `max_bytes` of them: the ring may have forgotten its oldest results."""

    def __init__(self, max_bytes: int) -> None:
        self.dropped = 0
        """Records that were dropped, the oldest first."""
        self._lines: deque[bytes] = deque()
        self._bytes = 0
        self._max_bytes = max_bytes

    def add(self, record: Record) -> None:
        """Keep a record, if it is a final transcript with text."""
        fields = record.result.record or {}
        if fields.get("type") != "transcript" or not fields.get("is_final") or not fields.get("text"):
            return
        line = record.json()
        self._lines.append(line)
        self._bytes += len(line)
        while self._bytes > self._max_bytes and len(self._lines) > 1:
            self._bytes -= len(self._lines.popleft())
            self.dropped += 1

    def lines(self) -> tuple[bytes, ...]:
        return tuple(self._lines)
