"""What a stream has said so far: the lines of its data channel, for any number of readers at any time."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import AsyncIterator
from typing import Any

from whisper_byoc.aio import Changed
from whisper_byoc.network.reading import json_value

__all__ = ["RecordLog", "is_fragment"]

MOST_LINES = 1000
MOST_BYTES = 4 << 20
KEEP_ALIVE_S = 15.0


class RecordLog:
    """The newest lines, numbered from 0; readers that are too slow for it are told what they missed.

    A line is UTF-8 without a line break of any kind, whatever the container wrote: it becomes one line of an event.
    """

    def __init__(self) -> None:
        self.ended = False
        """Whether the end record is among them, or nothing more will come."""
        self.produced = False
        """Whether there is any result."""
        self.last_seq = -1
        self._transcripts = 0
        self._errors = 0
        self._audio_ms = 0
        self._lines: deque[bytes] = deque()
        self._first = 0
        self._bytes = 0
        self._changed = Changed()

    def add(self, line: bytes) -> None:
        """Take one line; a container's sign of life is not kept, nor is anything after the end record."""
        line = line.replace(b"\r", b" ").strip()
        if not line or line == b"[]" or self.ended:
            return
        line = line.decode("utf-8", "replace").encode()
        records = records_in(line)
        if all(record.get("type") == "keepalive" for record in records):
            return
        for record in records:
            self._count(record)
        self._append(line)

    def lost(self, job_id: str, segments: int) -> None:
        """Tell that lines were gone before they could be fetched."""
        message = f"{segments} segments of the stream's text were gone before they could be read"
        self._add_own({"type": "error", "job_id": job_id, "seq": self.last_seq + 1, "error": message})

    def unheard(self, job_id: str, segments: int) -> None:
        """Tell that input was gone before it could be sent on; without a number, as the container counts on."""
        message = (
            f"{segments} segments of the input were gone before they could be sent on; publish no faster than live"
        )
        if not self.ended:
            self._errors += 1
            self._append(json.dumps({"type": "error", "job_id": job_id, "error": message}).encode())

    def fail(self, job_id: str, message: str) -> None:
        """Add an error record and an end record, unless there is an end already."""
        self._add_own({"type": "error", "job_id": job_id, "seq": self.last_seq + 1, "error": message})
        counts = {"audio_ms": self._audio_ms, "transcripts": self._transcripts, "errors": self._errors}
        self._add_own({"type": "end", "job_id": job_id, "seq": self.last_seq + 1, **counts})

    def close(self) -> None:
        """Let readers come to the end."""
        self.ended = True
        self._changed.notify()

    async def read(self, start: int = 0) -> AsyncIterator[tuple[int, bytes] | None]:
        """Yield numbered lines from `start` on until the end; None for every 15 s of silence.

        A `start` that never was, as of another stream of the same name, is 0.
        """
        at = start if start <= self._first + len(self._lines) else 0
        while True:
            if at < self._first:
                missed = {"type": "error", "error": f"{self._first - at} records were not read in time, and are gone"}
                at = self._first
                yield at - 1, json.dumps(missed).encode()
            elif at < self._first + len(self._lines):
                yield at, self._lines[at - self._first]
                at += 1
            elif self.ended:
                return
            elif not await self._changed.wait(KEEP_ALIVE_S):
                yield None

    def _add_own(self, record: dict[str, Any]) -> None:
        self.add(json.dumps(record, ensure_ascii=False).encode("utf-8", "replace"))

    def _count(self, record: dict[str, Any]) -> None:
        """Note an end, and keep what an end record of ours must tell."""
        kind, seq, timing = record.get("type"), record.get("seq"), record.get("timing")
        self.ended = self.ended or kind == "end"
        self.last_seq = seq if type(seq) is int else self.last_seq + 1
        self.produced = self.produced or kind not in ("error", "end")
        self._errors += kind == "error"
        self._transcripts += kind == "transcript" and record.get("is_final") is not False
        end = timing.get("media_window_end_ms") if isinstance(timing, dict) else None
        self._audio_ms = end if type(end) is int else self._audio_ms

    def _append(self, line: bytes) -> None:
        self._lines.append(line)
        self._bytes += len(line)
        while len(self._lines) > MOST_LINES or (self._bytes > MOST_BYTES and len(self._lines) > 1):
            self._bytes -= len(self._lines.popleft())
            self._first += 1
        self._changed.notify()


def records_in(line: bytes) -> list[dict[str, Any]]:
    """Find the records in a line: an object, or pytrickle's array of strings that hold one each.

    What is neither counts as a record of no type.
    """
    found = decoded(line)
    each = [decoded(part) if isinstance(part, str) else part for part in found] if isinstance(found, list) else [found]
    return [record if isinstance(record, dict) else {} for record in each or [found]]


def is_fragment(rest: bytes) -> bool:
    """Whether what has no line break behind it is the beginning of a record, and its writer broke off."""
    return rest.lstrip()[:1] in (b"{", b"[") and decoded(rest) is None


def decoded(text: str | bytes) -> Any:
    """Decode JSON; None for what is none."""
    try:
        return json_value(text)
    except ValueError:
        return None
