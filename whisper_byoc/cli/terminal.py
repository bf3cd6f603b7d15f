"""Text for a terminal: made safe, cut to fit, and rewritten in place until it is final."""

import json
import os
import re
import unicodedata
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any, TextIO

JOINERS = "\u200c\u200d"  # Persian, Indic scripts and emoji are written with them
EMOJI_STYLE = "\ufe0f"  # takes no room, but may make the character before it a wide one
HANGUL_TAILS = range(0x1160, 0x1200)  # drawn into the syllable before them
NOT_ASCII_TEXT = re.compile(r"[^\x20-\x7e]")
UP, ERASE, DIM, PLAIN = "\x1b[A", "\r\x1b[J", "\x1b[2m", "\x1b[0m"


def printable(text: str) -> str:
    """Make text safe for a terminal, in one line: no control, no escape, nothing that changes the writing direction.

    White space becomes a space, other controls and unassigned characters become U+FFFD, invisible marks are removed.
    """
    return NOT_ASCII_TEXT.sub(lambda found: _safe(found[0]), text)


def json_line(record: Mapping[str, Any]) -> str:
    """Write a record as one line of JSON, in which everything that `printable` would change is escaped."""

    def escape(found: re.Match[str]) -> str:
        return found[0] if _safe(found[0]) == found[0] else json.dumps(found[0])[1:-1]

    return NOT_ASCII_TEXT.sub(escape, json.dumps(record, ensure_ascii=False))


def width(char: str) -> int:
    """Columns that a printable character takes: 0, 1 or 2."""
    if unicodedata.category(char) in ("Mn", "Me", "Cf") or ord(char) in HANGUL_TAILS:
        return int(char == EMOJI_STYLE)
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def fit(text: str, columns: int) -> str:
    """Cut printable text to at most `columns`; the end is the newest, so the beginning is replaced by `…`."""
    if sum(map(width, text)) <= columns:
        return text
    room, start = columns - 1, len(text)
    while start and width(text[start - 1]) <= room:
        start -= 1
        room -= width(text[start])
    while start < len(text) and width(text[start]) == 0:  # it belongs to the character that was cut off
        start += 1
    return "…" + text[start:] if columns > 0 else ""


def _safe(char: str) -> str:
    kind = unicodedata.category(char)
    if char.isspace():
        return " "
    if kind == "Cf":
        return char if char in JOINERS else ""
    return "\ufffd" if kind in ("Cc", "Cs", "Co", "Cn") else char


class Display:
    """Shows records on `out` and errors on `err`, above a progress bar.

    On a terminal a partial line is rewritten in place, dimmed unless NO_COLOR is set; the cursor waits on the line
    below it, where the progress bar may be. Elsewhere only final lines are written, one for each segment, and no escape
    sequence. A mark that belongs to the text before is put behind it; where the cursor cannot go back, an open line is
    ended later.
    """

    def __init__(self, out: TextIO, err: TextIO, *, as_json: bool = False, quiet: bool = False) -> None:
        """`quiet`: only what goes to `err`."""
        self._out = out
        self._err = err
        self._as_json = as_json
        self._quiet = quiet
        self._terminal = out.isatty() and os.environ.get("TERM") != "dumb" and not as_json
        self._dimmed = not os.environ.get("NO_COLOR")
        self._partial_shown = False
        self._notice_shown = False
        self._column = 0  # behind the last final line
        self._line_open = False

    def show(self, record: Mapping[str, Any]) -> None:
        """Show one record; before the first one of the demo model, a notice.

        Blocks while the reader of our output does not read.
        """
        if record.get("model") == "demo" and not self._notice_shown:
            from whisper_byoc.speech.models import DEMO_NOTICE  # here, as it takes a tenth of a second

            self._notice_shown = True
            self._write(self._err, f"whisper-byoc: {DEMO_NOTICE}\n")
        if self._as_json:
            self._write(self._out, json_line(record) + "\n")
            return
        if not self._quiet:
            self._show_text(record)
        if record["type"] == "error":
            reason, self._column = printable(str(record.get("error"))), 0
            self._write(self._err, f"segment {record.get('seq')} failed: {reason}\n")
        warnings = record.get("warnings")
        for each in warnings if isinstance(warnings, list) else ():
            self._write(self._err, f"whisper-byoc: {printable(str(each))}\n")

    def close(self) -> None:
        """Remove a partial line that no final one has replaced, and end an open one."""
        self._write(self._out, self._erase() + self._end_line())

    def _show_text(self, record: Mapping[str, Any]) -> None:
        text = printable(str(record.get("text") or "")).strip()
        if not record.get("is_final", True):
            if self._terminal:
                self._show_partial(text)
            return
        try:
            lines = [printable(str(each["text"])).strip() for each in record.get("segments", ())]
        except (TypeError, KeyError):
            lines = []
        if " ".join(lines) == text:
            text = "\n".join(lines)
        self._write(self._out, self._erase() + self._final(text, is_open=bool(record.get("is_open"))))

    def _final(self, text: str, *, is_open: bool) -> str:
        """Return what writes final text, and before it the mark with which it begins to the end of the line before."""
        from whisper_byoc.speech.transcript import LEADING_MARK  # here, as it takes numpy

        written = ""
        mark = LEADING_MARK.match(text)
        if mark and (self._line_open or self._column):
            back = "" if self._line_open else f"{UP}\x1b[{self._column + 1}G"
            self._line_open, self._column, text = False, 0, text[mark.end() :]
            written = f"{back}{mark[0].rstrip()}\n"
        if not text:
            return written
        written += self._end_line() + text
        if self._terminal:
            self._column = sum(map(width, text.rpartition("\n")[2])) % _columns(self._out)
        self._line_open = is_open and not self._terminal
        return written if self._line_open else f"{written}\n"

    def _end_line(self) -> str:
        was_open, self._line_open = self._line_open, False
        return "\n" if was_open else ""

    def _show_partial(self, text: str) -> None:
        before = self._erase()
        text = fit(text, _columns(self._out) - 1)  # some terminals wrap as soon as the last column is written
        self._partial_shown = bool(text)
        if text:
            text = f"{DIM}{text}{PLAIN}\n" if self._dimmed else f"{text}\n"
        self._write(self._out, before + text)

    def _erase(self) -> str:
        """Return what removes the partial line."""
        if not self._terminal:
            return ""
        before, self._partial_shown = self._partial_shown, False
        return (UP if before else "") + ERASE

    def _write(self, stream: TextIO, text: str) -> None:
        from tqdm import tqdm  # here, as every command imports this module for its messages

        if not text:
            return
        # removes the bar, and draws it again; a pipe needs none of it, and one that nobody reads would block the bar
        with tqdm.external_write_mode() if stream.isatty() else nullcontext():
            encoding = stream.encoding or "utf-8"
            stream.write(text.encode(encoding, "replace").decode(encoding))
            stream.flush()


def _columns(stream: TextIO) -> int:
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except (OSError, ValueError):
        return 80
