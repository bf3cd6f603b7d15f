"""The output of several processes as one log: whole lines, each with the name of its process, and nothing harmful."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from typing import TextIO

from whisper_byoc.cli.safetext import printable

__all__ = ["Lines", "NamedLog"]

LONGEST_LINE = 16 * 1024
"""Bytes; a longer line is cut into several."""
NAME_WIDTH = 13
COLOURS = (36, 35, 33, 32)
"""Cyan, magenta, yellow, green: legible on black and on white."""
BREAK = re.compile(rb"\r\n|\r|\n")


class Lines:
    """Cuts a process's bytes into lines of text that a terminal can show."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[str]:
        """Give the lines that are complete by now, but for empty ones; a carriage return ends a line, too."""
        self._rest += data
        held = b"\r" if self._rest.endswith(b"\r") else b""  # the \n may be on its way
        *whole, self._rest = BREAK.split(self._rest[: len(self._rest) - len(held)])
        self._rest += held
        while len(self._rest) > LONGEST_LINE:
            whole.append(self._rest[:LONGEST_LINE])
            self._rest = self._rest[LONGEST_LINE:]
        parts = [part[at : at + LONGEST_LINE] for part in whole for at in range(0, len(part), LONGEST_LINE)]
        return [printable(part.decode("utf-8", "replace")) for part in parts]

    def close(self) -> list[str]:
        """Give what had no line break behind it."""
        return self.feed(b"\n") if self._rest else []


class NamedLog:
    """Writes lines with their sender's name before them, in colour on a terminal unless NO_COLOR is set."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._coloured = out.isatty() and not os.environ.get("NO_COLOR")
        self._colours: dict[str, int] = {}

    def line(self, name: str, text: str) -> None:
        """Write one line, in one piece. A reader that has gone, as `tee` at Ctrl-C, or a full disk is no error here.

        Whoever logs has processes to look after, and to end in order.
        """
        head = f"{name:<{NAME_WIDTH}}|"
        if self._coloured:
            colour = self._colours.setdefault(name, COLOURS[len(self._colours) % len(COLOURS)])
            head = f"\x1b[{colour}m{head}\x1b[0m"
        with suppress(OSError):
            self._out.write(f"{head} {text}\n")
            self._out.flush()
