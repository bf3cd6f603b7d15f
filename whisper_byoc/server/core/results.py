"""The numbered records of one job: unread ones are never dropped, read ones are kept while there is room."""

from __future__ import annotations

import base64
import json
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from whisper_byoc.aio import Changed
from whisper_byoc.processors.base import Result

__all__ = ["Record", "ResultRing"]


MAX_ERROR = 2000
"""Characters of an error: what a processor raises may be of any length, and errors do not count against the ring."""


@dataclass(frozen=True)
class Record:
    """One numbered outcome of a job."""

    job_id: str
    seq: int
    kind: Literal["result", "error", "end"]
    result: Result
    content_type: str = "application/octet-stream"

    @property
    def size(self) -> int:
        """Bytes that count against the ring."""
        return len(self.result.body)

    @property
    def partial(self) -> bool:
        """Whether the next record takes its place."""
        return self.result.partial

    @property
    def error(self) -> str:
        """The sentence of an error record."""
        return str((self.result.record or {}).get("error", ""))

    def fields(self) -> dict[str, Any]:
        """Build the JSON object that followers get.

        A result without a record of its own carries its bytes as `text`, or as base64 `data`.
        """
        head: dict[str, Any] = {"type": self.kind, "job_id": self.job_id, "seq": self.seq}
        if self.result.record is not None:
            # a segment's id holds the record's number, which the processor cannot know
            segments = self.result.record.get("segments")
            named = [{"id": f"{self.job_id}-{self.seq}-{n}", **each} for n, each in enumerate(segments or ())]
            return head | dict(self.result.record) | ({} if segments is None else {"segments": named})
        if self.content_type.startswith("text/"):
            return head | {"text": self.result.body.decode("utf-8", "replace")}
        return head | {"size": self.size, "data": base64.b64encode(self.result.body).decode("ascii")}

    def json(self) -> bytes:
        """One line of UTF-8 JSON, without the newline."""
        return json.dumps(self.fields(), ensure_ascii=False, separators=(",", ":")).encode()


class ResultRing:
    """A bounded ring of records. `add` waits while unread records fill it; the reader makes room."""

    def __init__(self, job_id: str, content_type: str, max_records: int, max_bytes: int) -> None:
        self._job_id = job_id
        self._content_type = content_type
        self._max_records = max_records
        self._max_bytes = max_bytes
        self._kept: deque[Record] = deque()
        self._kept_bytes = 0
        self._unread_bytes = 0
        self._read_up_to = 0
        self._handed_out = 0  # a reader has, or has had, everything below
        self._changed = Changed()
        self.next_seq = 0
        """What trickle calls latest: the number of the newest record plus one."""
        self.ended = False

    @property
    def unread(self) -> int:
        """Records that no reader has had yet; the end record does not count."""
        return self.next_seq - int(self.ended) - self._read_up_to

    async def add(self, result: Result) -> Record:
        """Append a result, after waiting for room. A partial one that nobody has seen gives way to what comes next."""
        if self._kept and self._kept[-1].result.partial and self._kept[-1].seq >= self._handed_out:
            self._take_back()
        await self._changed.until(lambda: self._has_room(len(result.body)))
        return self._append("result", result)

    async def add_error(self, message: str) -> None:
        """Append an error record, after waiting for room."""
        await self._changed.until(lambda: self._has_room(0))
        self.force_error(message)

    def force_error(self, message: str) -> None:
        """Append an error record at once: for a job that is being ended while its ring is full."""
        shown = message if len(message) <= MAX_ERROR else f"{message[:MAX_ERROR]}…"
        writable = shown.encode("utf-8", "backslashreplace").decode()  # names of files may hold what is no UTF-8
        self._append("error", Result(b"", {"error": writable}))

    def end(self, summary: Mapping[str, Any]) -> None:
        """Append the end record; nothing comes after it."""
        self._append("end", Result(b"", summary))
        self.ended = True
        self._changed.notify()

    async def next_unread(self, timeout: float | None) -> Record | None:
        """Wait for the oldest unread record (the end record again and again); None when `timeout` passed."""
        if not await self._changed.until(lambda: self.ended or self._read_up_to < self.next_seq, timeout):
            return None
        return self._hand_out(self._read_up_to)

    async def wait_for(self, seq: int, timeout: float) -> Record | None:
        """Wait for record `seq` by number; None when it did not come in time or is no longer kept."""
        await self._changed.until(lambda: self.ended or seq < self.next_seq, timeout)
        return self._hand_out(seq)

    async def until_ended(self, timeout: float) -> bool:
        """Wait for the end; False when `timeout` passed."""
        return await self._changed.until(lambda: self.ended, timeout)

    def at(self, seq: int) -> Record | None:
        """Record `seq`, if it is kept."""
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

    def _hand_out(self, seq: int) -> Record | None:
        record = self.at(seq)
        if record is not None:
            self._handed_out = max(self._handed_out, seq + 1)
        return record

    def _take_back(self) -> None:
        """Forget the newest record, which nobody has read."""
        gone = self._kept.pop()
        self._kept_bytes -= gone.size
        self._unread_bytes -= gone.size
        self.next_seq -= 1

    def _append(self, kind: Literal["result", "error", "end"], result: Result) -> Record:
        record = Record(self._job_id, self.next_seq, kind, result, self._content_type)
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
        """Forget the oldest records that have been read, as far as the bounds ask for it."""
        while self._kept and self._kept[0].seq < self._read_up_to:
            if len(self._kept) <= self._max_records and self._kept_bytes <= self._max_bytes:
                return
            self._kept_bytes -= self._kept.popleft().size
