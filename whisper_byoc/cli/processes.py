"""Commands of ours as child processes that live and die together."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import sys
from collections.abc import Callable
from types import TracebackType
from typing import Any, NoReturn

from whisper_byoc.cli import lifeline
from whisper_byoc.cli.lines import Lines
from whisper_byoc.errors import StartError

__all__ = ["Child", "Processes", "Show"]

Show = Callable[[str, str], object]
"""Takes the name of a process and a line of its log."""
LISTENING = re.compile(r"listening on port (\d+)$")
COMMAND = (sys.executable, "-m", "whisper_byoc.cli.main")
READ_BYTES = 64 * 1024
OUTPUT_S = 1.0
"""A process that has ended may have left so much to read."""


class Child:
    """One of our commands in a process and a session of its own; a terminal's Ctrl-C does not reach it."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, show: Show) -> None:
        self.name = name
        self.port: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        """The port it listens on, once it does."""
        self._last_line = ""
        self._process = process
        self._show = show
        self._reading = asyncio.create_task(self._read())
        self.ended = asyncio.create_task(self._end())
        """Done when the process has ended and all that it said was shown."""

    @classmethod
    async def begin(cls, name: str, arguments: tuple[str, ...], show: Show) -> Child:
        """Start `whisper-byoc ARGUMENTS`."""
        process = await asyncio.create_subprocess_exec(
            *COMMAND, *arguments,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
            env={**os.environ, lifeline.VARIABLE: "1"}, start_new_session=True,
        )  # fmt: skip
        return cls(name, process, show)

    @property
    def epitaph(self) -> str:
        """What became of it, in one sentence."""
        code = self._process.returncode
        how = f"exit code {code}" if code is None or code >= 0 else f"signal {signal.Signals(-code).name}"
        said = self._last_line.removeprefix("whisper-byoc: ")
        return f"the {self.name} ended with {how}" + (f": {said}" if said else " and said nothing")

    async def stop(self, seconds: float) -> None:
        """Ask it to end, and kill it if it has not done so within `seconds`."""
        if not self.ended.done():
            self._signal(signal.SIGTERM)
            await asyncio.wait({self.ended}, timeout=seconds)
        if not self.ended.done():
            self._show(self.name, f"(killed: it had not ended within {seconds:g} s)")
            self.kill()
        await self.ended

    def kill(self) -> None:
        """End it, and what it has started, at once."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            if number == signal.SIGKILL:
                os.killpg(self._process.pid, number)
            else:
                self._process.send_signal(number)

    async def _read(self) -> None:
        assert self._process.stdout is not None
        lines = Lines()
        while data := await self._process.stdout.read(READ_BYTES):
            for line in lines.feed(data):
                self._take(line)
        for line in lines.close():
            self._take(line)

    def _take(self, line: str) -> None:
        self._last_line = line if line.strip() else self._last_line
        if (found := LISTENING.search(line)) and not self.port.done():
            self.port.set_result(int(found[1]))
        self._show(self.name, line)

    async def _end(self) -> None:
        await self._process.wait()
        await asyncio.wait({self._reading}, timeout=OUTPUT_S)  # a grandchild may hold the pipe open
        self._reading.cancel()
        self.port.cancel()


class Processes:
    """Children within `async with`; leaving it stops them, the newest first.

    `show` gets every line of their logs; each may take `stop_seconds` to end.
    """

    def __init__(self, show: Show, stop_seconds: float) -> None:
        self._show = show
        self._stop_seconds = stop_seconds
        self._children: list[Child] = []

    async def __aenter__(self) -> Processes:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for child in reversed(self._children):
            await child.stop(self._stop_seconds)

    async def start(self, name: str, *arguments: str) -> int:
        """Start a command, and give the port it listens on.

        Raises `StartError` when it ends before that.
        """
        child = await Child.begin(name, arguments, self._show)
        self._children.append(child)
        first: set[asyncio.Future[Any]] = {child.port, child.ended}
        await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
        if child.ended.done():
            raise StartError(child.epitaph)
        return child.port.result()

    async def any_death(self) -> NoReturn:
        """Wait until one of them ends, and raise `StartError`, which names it and its last words."""
        await asyncio.wait({child.ended for child in self._children}, return_when=asyncio.FIRST_COMPLETED)
        raise StartError(next(child.epitaph for child in self._children if child.ended.done()))

    def kill(self) -> None:
        """End all of them at once."""
        for child in self._children:
            child.kill()
