"""What a stream has said so far: the lines of its data channel, for any number of readers at any time."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import AsyncIterator
from typing import Any

from whisper_byoc.trickle.signal import Signal

__all__ = ["RecordLog", "kind_of"]

MOST_LINES = 1000
MOST_BYTES = 4 << 20
KEEP_ALIVE_S = 15.0


class RecordLog:
    """The newest lines, numbered from 0; readers that are too slow for it are told what they missed."""

    def __init__(self) -> None:
        self.ended = False
        """Whether the end record is among them, or nothing more will come."""
        self.produced = False
        """Whether there is any result."""
        self.last_seq = -1
        self._lines: deque[bytes] = deque()
        self._first = 0
        self._bytes = 0
        self._changed = Signal()

    def add(self, line: bytes) -> None:
        """Take one line; a container's sign of life is not kept."""
        line = line.strip()
        record = record_in(line)
        kind = record.get("type")
        if not line or line == b"[]" or kind == "keepalive" or self.ended:
            return
        seq = record.get("seq")
        self.last_seq = seq if isinstance(seq, int) else self.last_seq + 1
        self.produced = self.produced or kind not in ("error", "end")
        self.ended = kind == "end"
        self._append(line)

    def fail(self, job_id: str, message: str) -> None:
        """Add an error record and an end record, unless there is an end already."""
        if not self.ended:
            self.add(
                json.dumps({"type": "error", "job_id": job_id, "seq": self.last_seq + 1, "error": message}).encode()
            )
            self.add(json.dumps({"type": "end", "job_id": job_id, "seq": self.last_seq + 1, "errors": 1}).encode())

    def close(self) -> None:
        """Let readers come to the end."""
        self.ended = True
        self._changed.wake()

    async def read(self, start: int = 0) -> AsyncIterator[tuple[int, bytes] | None]:
        """Yield numbered lines from `start` on until the end; None for every 15 s of silence."""
        at = start
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

    def _append(self, line: bytes) -> None:
        self._lines.append(line)
        self._bytes += len(line)
        while len(self._lines) > MOST_LINES or (self._bytes > MOST_BYTES and len(self._lines) > 1):
            self._bytes -= len(self._lines.popleft())
            self._first += 1
        self._changed.wake()


def record_in(line: bytes) -> dict[str, Any]:
    """Find the record in a line: an object, or pytrickle's array of one string that holds one."""
    try:
        found = json.loads(line)
        if isinstance(found, list) and len(found) == 1 and isinstance(found[0], str):
            found = json.loads(found[0])
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def kind_of(line: bytes) -> str:
    """Give the type of the record in a line; empty if it has none."""
    return str(record_in(line).get("type", ""))
