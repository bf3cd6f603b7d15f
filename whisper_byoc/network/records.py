"""Records on their way from a container to a client, as the response to a live feed or as the text of a stream."""

import json
from collections import deque
from collections.abc import AsyncIterator
from typing import Any

from whisper_byoc.aio import Changed
from whisper_byoc.errors import PeerFailed
from whisper_byoc.http import json_value

LONGEST_RECORD = 128 << 20
"""A record can carry a whole frame as base64."""
LONGEST_DECODED = 64 << 10
"""A longer record carries media: it is a result, and is not parsed."""
HEAD = 160
"""An event's record begins within this many bytes."""
MOST_BYTES = 4 << 20
"""Limit of a stream's newest lines, each counted with `LINE_COST` for Python's overhead."""
LINE_COST = 100
COMMENT_EVERY_S = 15.0


class RecordCount:
    """Counts the records of a job, so that a failed one can end like any other: with an error and an end record."""

    def __init__(self) -> None:
        self._job_id = ""
        self._seq = -1
        self._audio_ms = 0
        self._transcripts = 0
        self.errors = 0

    def add(self, record: dict[str, Any]) -> None:
        kind, seq, timing = record.get("type"), record.get("seq"), record.get("timing")
        self._job_id = str(record.get("job_id", self._job_id))
        self._seq = seq if type(seq) is int else self._seq + 1
        self.errors += kind == "error"
        self._transcripts += kind == "transcript" and record.get("is_final") is not False
        end = timing.get("media_window_end_ms") if isinstance(timing, dict) else None
        self._audio_ms = end if type(end) is int else self._audio_ms

    def failure(self, job_id: str, message: str) -> tuple[dict[str, Any], dict[str, Any]]:
        job_id, seq = self._job_id or job_id, self._seq + 1
        counts = {"audio_ms": self._audio_ms, "transcripts": self._transcripts, "errors": self.errors + 1}
        error = {"type": "error", "job_id": job_id, "seq": seq, "error": message}
        return error, {"type": "end", "job_id": job_id, "seq": seq + 1, **counts}


class RecordStream:
    """Cuts a container's response into whole records, as lines or as server-sent events.

    The end record is held back until it is known that the container took the whole feed.
    """

    def __init__(self, content_type: str, separator: bytes, template: str) -> None:
        self.content_type = content_type
        self._separator = separator
        self._template = template
        self._rest = bytearray()
        self._end = b""
        self._count = RecordCount()

    def feed(self, data: bytes) -> bytes:
        """Return the records now complete, without the end record; nothing comes after that.

        Raises `PeerFailed` for a record that is too long.
        """
        if self._end:
            return b""
        searched = max(0, len(self._rest) - len(self._separator))
        self._rest += data
        cut = self._rest.rfind(self._separator, searched)
        if cut < 0:
            if len(self._rest) > LONGEST_RECORD:
                raise PeerFailed(f"the other side sent a record of more than {LONGEST_RECORD} bytes")
            return b""
        cut += len(self._separator)
        whole = bytes(self._rest[:cut])
        del self._rest[:cut]
        return self._without_end(whole)

    def finish(self) -> bytes:
        """Return the end record.

        Raises `PeerFailed` when none came: then it is unknown what is missing.
        """
        if not self._end:
            raise PeerFailed("the other side ended its answer without an end record")
        return self._end

    def failure(self, job_id: str, message: str) -> bytes:
        written = []
        for record in self._count.failure(job_id, message):
            text = json.dumps(record, ensure_ascii=False, separators=(",", ":"))
            written.append(self._template.format(seq=record["seq"], json=text))
        return "".join(written).encode("utf-8", "replace")

    def _without_end(self, whole: bytes) -> bytes:
        at = 0
        for part in whole.split(self._separator)[:-1]:
            begin = part.find(b"{", 0, HEAD)
            if begin >= 0:  # event streams also have comments
                record = {"type": "result"} if len(part) > LONGEST_DECODED else records_in(part[begin:])[0]
                if record.get("type") == "end":
                    self._end = part + self._separator
                    return whole[:at]
                self._count.add(record)
            at += len(part) + len(self._separator)
        return whole


def record_stream(accept: str) -> RecordStream | None:
    """Return the form of records that a client accepts; None for bytes back to back."""
    if "text/event-stream" in accept:
        return RecordStream("text/event-stream", b"\n\n", "id: {seq}\ndata: {json}\n\n")
    if "application/x-ndjson" in accept:
        return RecordStream("application/x-ndjson", b"\n", "{json}\n")
    return None


class RecordLog:
    """The newest lines of a stream's text, for any number of readers at any time.

    A line is UTF-8 without a line break of any kind, whatever the container wrote: it becomes one line of an event.
    """

    def __init__(self) -> None:
        self.ended = False
        """Whether the end record is among them, or nothing more will come."""
        self._count = RecordCount()
        self._lines: deque[bytes] = deque()
        self._first = 0
        """Number of the oldest line kept, counted from the first that came."""
        self._bytes = 0
        self._changed = Changed()

    def add(self, line: bytes) -> None:
        """Take one line; keep-alives are not kept, nor is anything after the end record."""
        line = line.replace(b"\r", b" ").strip()
        if not line or line == b"[]" or self.ended:
            return
        line = line.decode("utf-8", "replace").encode()
        records = records_in(line)
        if all(record.get("type") == "keepalive" for record in records):
            return
        for record in records:
            self._count.add(record)
            self.ended = self.ended or record.get("type") == "end"
        self._append(line)

    def lost(self, job_id: str, message: str) -> None:
        """Report a gap; the record has no number, since the container's own numbering goes on."""
        if not self.ended:
            self._count.errors += 1
            self._append(json.dumps({"type": "error", "job_id": job_id, "error": message}).encode())

    def fail(self, job_id: str, message: str) -> None:
        """Add an error and an end record, unless there already is an end."""
        for record in self._count.failure(job_id, message):
            self.add(json.dumps(record, ensure_ascii=False).encode("utf-8", "replace"))

    def close(self) -> None:
        self.ended = True
        self._changed.notify()

    async def read(self) -> AsyncIterator[bytes | None]:
        """Yield the lines from the oldest kept to the end, and None whenever 15 s pass without one.

        Readers that are too slow are told what they missed.
        """
        at = self._first
        while True:
            if at < self._first:
                error = f"{self._first - at} records were not read in time, and are gone"
                at = self._first
                yield json.dumps({"type": "error", "error": error}).encode()
            elif at < self._first + len(self._lines):
                yield self._lines[at - self._first]
                at += 1
            elif self.ended:
                return
            elif not await self._changed.wait(COMMENT_EVERY_S):
                yield None

    def _append(self, line: bytes) -> None:
        self._lines.append(line)
        self._bytes += len(line) + LINE_COST
        while self._bytes > MOST_BYTES and len(self._lines) > 1:
            self._bytes -= len(self._lines.popleft()) + LINE_COST
            self._first += 1
        self._changed.notify()


def records_in(line: bytes) -> list[dict[str, Any]]:
    """Return the records in a line: an object, or pytrickle's array of strings holding one each.

    Anything else counts as a record without a type.
    """
    found = _decoded(line)
    each = [_decoded(part) if isinstance(part, str) else part for part in found] if isinstance(found, list) else [found]
    return [record if isinstance(record, dict) else {} for record in each or [found]]


def _decoded(text: str | bytes) -> Any:
    try:
        return json_value(text)
    except ValueError:
        return None
