"""Text from the network made safe to show: it could move the cursor, or worse."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Mapping
from typing import Any

__all__ = ["fit", "json_line", "printable", "width"]

JOINERS = "\u200c\u200d"  # Persian, Indic scripts and emoji are written with them
EMOJI_STYLE = "\ufe0f"  # takes no room, but the sign before it may become a wide one
HANGUL_TAILS = range(0x1160, 0x1200)  # drawn into the syllable before them
NO_TEXT = re.compile(r"[^\x20-\x7e]")


def printable(text: str) -> str:
    """Make text safe for a terminal, in one line: no control, no escape, nothing that turns the direction of writing.

    White space becomes a space, other controls and what is no character become U+FFFD, invisible marks go.
    """
    return NO_TEXT.sub(lambda found: _safe(found[0]), text)


def _safe(char: str) -> str:
    kind = unicodedata.category(char)
    if char.isspace():
        return " "
    if kind == "Cf":
        return char if char in JOINERS else ""
    return "\ufffd" if kind in ("Cc", "Cs", "Co", "Cn") else char


def width(char: str) -> int:
    """Columns that a printable character takes: 0, 1 or 2."""
    if unicodedata.category(char) in ("Mn", "Me", "Cf") or ord(char) in HANGUL_TAILS:
        return int(char == EMOJI_STYLE)
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def fit(text: str, columns: int) -> str:
    """Cut printable text to at most `columns`; its end is the newest, so the beginning gives way to `…`."""
    if sum(map(width, text)) <= columns:
        return text
    room, start = columns - 1, len(text)
    while start and width(text[start - 1]) <= room:
        start -= 1
        room -= width(text[start])
    while start < len(text) and width(text[start]) == 0:  # it belongs to the character that was cut off
        start += 1
    return "…" + text[start:] if columns > 0 else ""


def json_line(record: Mapping[str, Any]) -> str:
    """Write a record as one line of JSON, in which everything that `printable` would change is escaped."""

    def escape(found: re.Match[str]) -> str:
        return found[0] if _safe(found[0]) == found[0] else json.dumps(found[0])[1:-1]

    return NO_TEXT.sub(escape, json.dumps(record, ensure_ascii=False))
