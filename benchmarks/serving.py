"""A server process to measure, ours or another: started, waited for, read from /proc, and ended by its pid."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp

from audio import pcm
from audio.wav import read_wav

__all__ = ["Served", "served", "speech", "started"]

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"
START_SECONDS = 120.0
STOP_SECONDS = 40.0
POLL_SECONDS = 0.01
LISTENING = re.compile(r"listening on port (\d+)\n")


class Served:
    """A server that answers on `url`; times are seconds since its process was started."""

    def __init__(self, pid: int, log: int) -> None:
        self.pid = pid
        self._log = log  # a descriptor
        self.url = ""
        self.listening_s = 0.0
        self.ready_s = 0.0
        self.ready_cpu_s = 0.0

    def memory_mb(self, field: str = "VmRSS") -> float:
        """One of the sizes in /proc/PID/status, in MB of 10**6 bytes: VmRSS, VmHWM, RssAnon, RssFile."""
        for line in Path(f"/proc/{self.pid}/status").read_text(encoding="ascii").splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024 / 1e6
        raise KeyError(field)

    def cpu_seconds(self) -> float:
        """User and system time of all threads so far; it advances in ticks of 10 ms."""
        stat = Path(f"/proc/{self.pid}/stat").read_text(encoding="ascii")
        fields = stat.rpartition(")")[2].split()  # the command's name may hold anything, spaces too
        utime, stime = fields[11:13]  # fields 14 and 15 of proc_pid_stat(5)
        return (int(utime) + int(stime)) / os.sysconf("SC_CLK_TCK")

    def log(self) -> str:
        """Return what it has logged so far."""
        return os.pread(self._log, os.fstat(self._log).st_size, 0).decode("utf-8", "replace")

    def threads(self) -> int:
        """How many threads there are."""
        return len(list(Path(f"/proc/{self.pid}/task").iterdir()))


def environment() -> dict[str, str]:
    """Return the environment of what is measured: one thread of OpenBLAS, as our command line has it, for peers too."""
    return {**os.environ, "OPENBLAS_NUM_THREADS": "1"}


@asynccontextmanager
async def served(pipeline: str, *options: str, cores: Collection[int] = ()) -> AsyncIterator[Served]:
    """Serve `pipeline` on a free port of loopback from the moment it is ready; raises RuntimeError with its log."""
    command = ("-m", "whisper_byoc.cli.main", "serve", "--host", "127.0.0.1", "--port", "0", "--pipeline", pipeline)
    async with started((*command, *options), cores) as server:
        yield server


@asynccontextmanager
async def started(command: Sequence[str], cores: Collection[int] = ()) -> AsyncIterator[Served]:
    """Run a Python program that logs `listening on port N`, and has /readyz; raises RuntimeError with its log.

    It may have these cores only, if some are named.
    """
    with tempfile.TemporaryFile() as log:
        began = time.monotonic()
        process = await asyncio.create_subprocess_exec(
            sys.executable, *command, stdin=asyncio.subprocess.DEVNULL, stderr=log, env=environment()
        )
        server = Served(process.pid, log.fileno())
        try:
            if cores:
                os.sched_setaffinity(process.pid, cores)  # long before it counts them
            await asyncio.wait_for(until_ready(server, process, began), START_SECONDS)
            yield server
        finally:
            await end(process)


async def until_ready(server: Served, process: asyncio.subprocess.Process, began: float) -> None:
    """Take the port from the log, then ask /readyz until it says yes."""
    while not (found := LISTENING.search(text := server.log())):
        if process.returncode is not None:
            raise RuntimeError(f"the server ended with {process.returncode}: {text}")
        await asyncio.sleep(POLL_SECONDS)
    server.url = f"http://127.0.0.1:{found[1]}"
    server.listening_s = time.monotonic() - began
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)) as http:
        while True:
            async with http.get(f"{server.url}/readyz") as answer:
                if answer.status == 200:
                    server.ready_s = time.monotonic() - began
                    server.ready_cpu_s = server.cpu_seconds()
                    return
            await asyncio.sleep(POLL_SECONDS)


async def end(process: asyncio.subprocess.Process) -> None:
    """Ask the process to stop, and kill it if it does not."""
    if process.returncode is None:
        process.send_signal(signal.SIGTERM)
    try:
        await asyncio.wait_for(process.wait(), STOP_SECONDS)
    except TimeoutError:
        process.kill()
        await process.wait()


def speech(name: str) -> bytes:
    """One of the fixtures as a segment: PCM16, 16 kHz, mono."""
    return pcm.encode(read_wav((FIXTURES / name).read_bytes()))
