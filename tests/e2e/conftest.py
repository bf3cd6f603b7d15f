"""Commands run as their users run them: in a process of its own, with its log."""

import asyncio
import re
import signal
import sys

import pytest


class Running:
    """A command that runs, what it has logged, and the port it listens on."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.log: list[str] = []
        self.out = b""
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def logged(self, pattern: str) -> re.Match:
        """Wait for a line of the log that ends as `pattern` says."""
        while line := (await asyncio.wait_for(self.process.stderr.readline(), 50)).decode():
            self.log.append(line)
            if found := re.search(pattern + "$", line.rstrip()):
                return found
        raise AssertionError(f"no {pattern!r} in its log: {self.log}")

    async def listening(self) -> "Running":
        """Wait for the exact log line of the tutorial, and take the port from it."""
        self.port = int((await self.logged(r"Trickle server listening on port (\d+)"))[1])
        return self

    async def ready(self) -> "Running":
        """Wait until every pipeline is warm."""
        await self.listening()
        await self.logged(r"ready: .*")
        return self

    async def end(self, number: signal.Signals | None = signal.SIGTERM) -> int:
        """Send the signal, wait for the exit, keep the rest of the log."""
        if number is not None:
            self.process.send_signal(number)
        self.out, rest = await asyncio.wait_for(self.process.communicate(), 50)
        self.log.append(rest.decode())
        return self.process.returncode

    @property
    def whole_log(self) -> str:
        return "".join(self.log)


@pytest.fixture
async def launch():
    """Give a function that runs Python with these arguments; what still runs at the end is killed."""
    running: list[asyncio.subprocess.Process] = []

    async def start(*arguments: str, **environment: str) -> Running:
        import os

        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            sys.executable, *arguments, stdin=asyncio.subprocess.DEVNULL, stdout=pipe, stderr=pipe,
            env=os.environ | environment,
        )  # fmt: skip
        running.append(process)
        return Running(process)

    yield start
    for process in running:
        if process.returncode is None:
            process.kill()
        await process.communicate()


@pytest.fixture
def command(launch):
    """Give a function that runs `whisper-byoc` with these arguments."""
    return lambda *arguments, **environment: launch("-m", "whisper_byoc.cli.main", *arguments, **environment)


@pytest.fixture
def script(launch, tmp_path):
    """Give a function that writes a script and runs it."""

    async def start(source: str) -> Running:
        path = tmp_path / f"script{len(list(tmp_path.iterdir()))}.py"
        path.write_text(source)
        return await launch(str(path))

    return start
