"""Text on a terminal while it is still being heard: partial text is rewritten in place, final text stays."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, TextIO

from tqdm import tqdm

from whisper_byoc.cli.safetext import fit, json_line, printable

__all__ = ["Display", "LiveText"]

UP, ERASE, DIM, PLAIN = "\x1b[A", "\r\x1b[J", "\x1b[2m", "\x1b[0m"


class LiveText:
    """Turns records into what is to be written, byte for byte.

    On a `terminal` a partial line is rewritten in place, dimmed if `color`; the cursor waits on the line below it,
    where a progress bar may be. Elsewhere there are only final lines, and no escape sequence.
    """

    def __init__(self, *, terminal: bool, color: bool) -> None:
        self._terminal = terminal
        self._color = color
        self._shown = False

    def show(self, record: Mapping[str, Any], columns: int) -> str:
        """Give what to write for a record, on a terminal of so many columns."""
        text = printable(str(record.get("text") or "")).strip()
        if record.get("is_final", True):
            return self.erase() + (f"{text}\n" if text else "")
        if not self._terminal:
            return ""
        before = self.erase()
        text = fit(text, columns - 1)  # some terminals wrap as soon as the last column is written
        self._shown = bool(text)
        if self._color and text:
            text = f"{DIM}{text}{PLAIN}"
        return before + (f"{text}\n" if text else "")

    def erase(self) -> str:
        """Give what takes the partial line away again."""
        if not self._terminal:
            return ""
        before, self._shown = self._shown, False
        return (UP if before else "") + ERASE


class Display:
    """Shows records on `out` and errors on `err`, above a progress bar."""

    def __init__(self, out: TextIO, err: TextIO, *, as_json: bool = False) -> None:
        self._out = out
        self._err = err
        self._as_json = as_json
        terminal = out.isatty() and os.environ.get("TERM") != "dumb" and not as_json
        self._live = LiveText(terminal=terminal, color=not os.environ.get("NO_COLOR"))

    def show(self, record: Mapping[str, Any]) -> None:
        """Show one record. Blocks while the reader of our output does not read."""
        if self._as_json:
            self._write(self._out, json_line(record) + "\n")
            return
        self._write(self._out, self._live.show(record, columns(self._out)))
        if record["type"] == "error":
            reason = printable(str(record.get("error")))
            self._write(self._err, f"segment {record.get('seq')} failed: {reason}\n")

    def close(self) -> None:
        """Take away a partial line that nothing has replaced."""
        self._write(self._out, self._live.erase())

    def _write(self, stream: TextIO, text: str) -> None:
        if not text:
            return
        with tqdm.external_write_mode():  # takes the bar away, and puts it back
            encoding = stream.encoding or "utf-8"
            stream.write(text.encode(encoding, "replace").decode(encoding))
            stream.flush()


def columns(stream: TextIO) -> int:
    """Width of the terminal that `stream` is; 80 where it has none."""
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except (OSError, ValueError):
        return 80
