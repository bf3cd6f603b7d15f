"""The forms in which a live feed's results flow, and how each of them tells of a failure on the way."""

from __future__ import annotations

import json
from typing import Any, Protocol

from whisper_byoc.errors import PeerFailed
from whisper_byoc.network.reading import json_value

__all__ = ["Form", "Raw", "Records", "events", "form_for", "lines"]

LONGEST_RECORD = 128 << 20
"""A record can carry a whole frame as base64."""
HEAD = 160
"""Within so many bytes a record says what it is."""


class Form(Protocol):
    """Cuts a peer's answer where it may be cut."""

    content_type: str | None
    """What the answer to the client is; None: as the peer has it."""
    produced: bool
    """Whether anything of a result was given to be passed on."""

    def begin(self) -> None:
        """Forget what another peer left unfinished."""
        ...

    def feed(self, data: bytes) -> bytes:
        """Take what arrived and give what may be passed on."""
        ...

    def close(self) -> bytes:
        """Give what was held back, when all went well.

        Raises `PeerFailed` when the peer's answer was not whole.
        """
        ...

    def failed(self, job_id: str, message: str) -> bytes | None:
        """Give the end of an answer that failed; None where there is no way to tell."""
        ...


class Raw:
    """Bytes back to back."""

    content_type: str | None = None

    def __init__(self) -> None:
        self.produced = False

    def begin(self) -> None:
        """Nothing is ever held back."""

    def feed(self, data: bytes) -> bytes:
        """Pass all of it on."""
        self.produced = self.produced or bool(data)
        return data

    def close(self) -> bytes:
        """Nothing is held back."""
        return b""

    def failed(self, job_id: str, message: str) -> bytes | None:
        """Say that the answer must break off."""
        return None


class Records:
    """JSON records, whole ones only: as lines, or as server-sent events.

    The end record is held back until it is known that the peer took the whole feed.
    """

    def __init__(self, content_type: str, separator: bytes, template: str) -> None:
        self.content_type: str | None = content_type
        self.produced = False
        self._separator = separator
        self._template = template
        self._rest = bytearray()
        self._last = b""
        self._end = b""
        self._transcripts = 0
        self._errors = 0

    def begin(self) -> None:
        """Forget half a record, and an end without results."""
        self._rest.clear()
        self._end = b""

    def feed(self, data: bytes) -> bytes:
        """Give what is complete by now, but for an end record; nothing comes after that.

        Raises `PeerFailed` for a record without an end.
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
        return self._end_held_back(whole)

    def close(self) -> bytes:
        """Give the end record.

        Raises `PeerFailed` when none came: then nobody knows what is missing.
        """
        if not self._end:
            raise PeerFailed("the other side ended its answer without an end record")
        return self._end

    def failed(self, job_id: str, message: str) -> bytes | None:
        """Give an error record and an end record, numbered after what was passed on."""
        last = decoded(self._last)
        job_id = str(last.get("job_id", job_id))
        seq = last.get("seq", -1) + (0 if self._end else 1)
        timing = last.get("timing")
        audio_ms = timing.get("media_window_end_ms", 0) if isinstance(timing, dict) else 0
        counts = {"audio_ms": audio_ms, "transcripts": self._transcripts, "errors": self._errors}
        if self._end:  # the peer's own count is better
            counts |= {name: last[name] for name in counts if isinstance(last.get(name), int)}
        counts["errors"] += 1
        error = {"type": "error", "job_id": job_id, "seq": seq, "error": message}
        end = {"type": "end", "job_id": job_id, "seq": seq + 1, **counts}
        return b"".join(self._written(record) for record in (error, end))

    def _end_held_back(self, whole: bytes) -> bytes:
        at = 0
        for part in whole.split(self._separator)[:-1]:
            brace = part.find(b"{", 0, HEAD)  # an event stream has comments without one
            if brace >= 0:
                head = part[brace : brace + HEAD].replace(b": ", b":")
                self._last = part
                if b'"type":"end"' in head:
                    self._end = part + self._separator
                    return whole[:at]
                self.produced = True
                self._errors += b'"type":"error"' in head
                self._transcripts += b'"type":"transcript"' in head and b'"is_final":false' not in head
            at += len(part) + len(self._separator)
        return whole

    def _written(self, record: dict[str, Any]) -> bytes:
        text = json.dumps(record, ensure_ascii=False, separators=(",", ":"))
        return self._template.format(seq=record["seq"], json=text).encode("utf-8", "replace")


def lines() -> Records:
    """One record a line."""
    return Records("application/x-ndjson", b"\n", "{json}\n")


def events() -> Records:
    """One record an event."""
    return Records("text/event-stream", b"\n\n", "id: {seq}\ndata: {json}\n\n")


def form_for(accept: str) -> Form:
    """Choose the form that a reader accepts."""
    if "text/event-stream" in accept:
        return events()
    if "application/x-ndjson" in accept:
        return lines()
    return Raw()


def decoded(part: bytes) -> dict[str, Any]:
    """Read a record; nothing of one that is not ours."""
    try:
        found = json_value(part[part.index(b"{") :])
    except ValueError:
        return {}
    return found if isinstance(found, dict) and type(found.get("seq", 0)) is int else {}
