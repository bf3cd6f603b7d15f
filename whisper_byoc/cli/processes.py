"""Commands of ours as child processes that start and end together, and share one log."""

import asyncio
import codecs
import io
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import MappingProxyType
from typing import NoReturn, Self, TextIO

from whisper_byoc.aio import cancel, first_of
from whisper_byoc.cli.terminal import printable
from whisper_byoc.errors import StartError
from whisper_byoc.process import Program

LogLine = Callable[[str, str], object]
"""Takes the name of a process and a line of its log."""

COMMAND = (sys.executable, "-P", "-m", "whisper_byoc.cli.main")
"""Without the current folder on the path (-P): an `audio.py` there would hide ours."""
LISTENING = re.compile(r"listening on port (\d+)(?:$|\")")  # as text or JSON
PIPE_READ_BYTES = 64 * 1024
OUTPUT_SECONDS = 1.0
"""Longest wait for the rest of the output of a process that has ended."""

PARENT_PIPE = "WHISPER_BYOC_PARENT_PIPE"
"""Set in the environment of a child that is to end when its stdin does."""
PARENT_GRACE_SECONDS = 5.0
"""Time for a child to clean up after its parent has died."""

LONGEST_LOG_LINE = 16 * 1024
"""Characters; a longer line is cut into several."""
NAME_WIDTH = 13
COLOURS = MappingProxyType({"container": 36, "orchestrator": 35, "gateway": 33, "up": 32})
"""Cyan, magenta, yellow, green: legible on black and on white."""


class Processes:
    """Child processes within `async with`; leaving it stops them, the newest first.

    `log` is called for every line that they write; each has `stop_seconds` to end.
    """

    def __init__(self, log: LogLine, stop_seconds: float) -> None:
        self.children: list[Child] = []
        self._log = log
        self._stop_seconds = stop_seconds

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        try:
            await self.stop()
        finally:
            self.kill()

    async def start(self, name: str, *arguments: str, variables: Mapping[str, str] = MappingProxyType({})) -> int:
        """Start `whisper-byoc ARGUMENTS` with these variables beside ours, and return the port it listens on.

        Raises `StartError` when it ends before that.
        """
        environment = os.environ | {PARENT_PIPE: "1", **variables}
        program = Program([*COMMAND, *arguments], environment=environment, merge_stderr=True)
        await program.start()
        child = Child(name, program, self._log)
        self.children.append(child)
        await first_of(child.port, child.ended)
        if child.ended.done():
            raise StartError(child.outcome)
        return child.port.result()

    async def first_end(self) -> NoReturn:
        """Wait until one of them ends, and raise `StartError`, which names it and its last line."""
        await first_of(*(child.ended for child in self.children))
        raise StartError(next(child.outcome for child in self.children if child.ended.done()))

    async def stop(self) -> None:
        for child in reversed(self.children):
            await child.stop(self._stop_seconds)

    def kill(self) -> None:
        for child in self.children:
            child.kill()


class Child:
    """A command of ours that runs as a program."""

    def __init__(self, name: str, program: Program, log: LogLine) -> None:
        self.name = name
        self.port: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        """The port it listens on, once it does."""
        self._last_line = ""
        self._program = program
        self._log = log
        self._reading = asyncio.create_task(self._read())
        self.ended = asyncio.create_task(self._end())
        """Done when the process has ended and all its output was logged."""

    @property
    def outcome(self) -> str:
        """How it ended, with its last line, in one sentence."""
        code = self._program.returncode
        how = f"exit code {code}" if code is None or code >= 0 else f"signal {signal.Signals(-code).name}"
        last = self._last_line.removeprefix("whisper-byoc: ")
        return f"the {self.name} ended with {how}" + (f": {last}" if last else " and said nothing")

    async def stop(self, seconds: float) -> None:
        """Ask it to end, and kill it if it has not done so within `seconds`."""
        self._program.terminate()
        if not await first_of(self.ended, timeout=seconds):
            self._log(self.name, f"(killed: it had not ended within {seconds:g} s)")
            self.kill()
        await self.ended

    def kill(self) -> None:
        self._program.kill()

    async def _read(self) -> None:
        lines, ended = LogLines(), False
        while not ended:
            data = await self._program.stdout.read(PIPE_READ_BYTES)
            ended = not data
            for line in lines.feed(data, final=ended):
                self._last_line = line if line.strip() else self._last_line
                if (found := LISTENING.search(line)) and not self.port.done():
                    self.port.set_result(int(found[1]))
                self._log(self.name, line)

    async def _end(self) -> None:
        await self._program.wait()
        await first_of(self._reading, timeout=OUTPUT_SECONDS)  # a grandchild may hold the pipe open
        await cancel(self._reading)
        await self._program.close()
        self.port.cancel()


class LogLines:
    """Cuts the bytes that a process writes into lines of text that a terminal can show."""

    def __init__(self) -> None:
        utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._decoder = io.IncrementalNewlineDecoder(utf8, translate=True)  # a carriage return ends a line, too
        self._rest = ""

    def feed(self, data: bytes, *, final: bool = False) -> list[str]:
        """Return the lines that are complete by now, but for empty ones; if `final`, the rest as well."""
        *lines, self._rest = (self._rest + self._decoder.decode(data, final)).split("\n")
        if final or len(self._rest) >= LONGEST_LOG_LINE:
            lines.append(self._rest)
            self._rest = ""
        parts = [line[at : at + LONGEST_LOG_LINE] for line in lines for at in range(0, len(line), LONGEST_LOG_LINE)]
        return [printable(part) for part in parts]


def write_log_line(out: TextIO, name: str, text: str) -> None:
    """Write a line with its process's name before it, in colour on a terminal unless NO_COLOR is set.

    A reader that has gone, as `tee` at Ctrl-C, or a full disk is ignored: the caller has processes to stop in order.
    """
    head = f"{name:<{NAME_WIDTH}}|"
    if out.isatty() and not os.environ.get("NO_COLOR"):
        head = f"\x1b[{COLOURS[name]}m{head}\x1b[0m"
    with suppress(OSError):
        out.write(f"{head} {text}\n")
        out.flush()


def end_with_parent() -> None:
    """End this process when its stdin ends, if its parent has asked for that.

    The kernel closes the parent's end of the pipe whatever the parent dies of, SIGKILL included, on every Unix.
    """
    if os.environ.pop(PARENT_PIPE, ""):
        threading.Thread(target=_wait_for_parent, name="parent-pipe", daemon=True).start()


def _wait_for_parent() -> None:
    while os.read(0, 1024):
        pass
    for _ in range(2):  # the second signal ends it at once
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(PARENT_GRACE_SECONDS)
    os.kill(os.getpid(), signal.SIGKILL)
