"""The whole text of one job, kept for whoever asks at the end; readers of its results may have taken them long ago."""

from __future__ import annotations

from collections import deque

from whisper_byoc.server.core.results import Record

__all__ = ["TranscriptLog"]

MOST_BYTES = 16 << 20
"""A record of an utterance has some 400 bytes: that is more than a day of talk."""


class TranscriptLog:
    """The final transcript records of a job; the oldest go when there are too many."""

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self.dropped = 0
        """Records that are gone."""
        self._lines: deque[bytes] = deque()
        self._bytes = 0
        self._most = most_bytes

    def add(self, record: Record) -> None:
        """Keep a record, if it is a final transcript with text."""
        fields = record.result.record or {}
        if fields.get("type") != "transcript" or not fields.get("is_final") or not fields.get("text"):
            return
        line = record.json()
        self._lines.append(line)
        self._bytes += len(line)
        while self._bytes > self._most and len(self._lines) > 1:
            self._bytes -= len(self._lines.popleft())
            self.dropped += 1

    def lines(self) -> tuple[bytes, ...]:
        """Give what is kept, in order, as JSON."""
        return tuple(self._lines)
