"""What a process of ours holds: memory, threads, descriptors, children, and the tasks of its event loop.

`python benchmarks/held.py REPORT COMMAND...` runs `whisper-byoc COMMAND...`. At each SIGUSR1 it adds a line to the file
REPORT: its tasks, as a JSON object of how many there are of each name.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Held", "ask", "children", "held_by", "settled", "task_names"]

ANSWER_SECONDS = 20.0
POLL_SECONDS = 0.05


@dataclass(frozen=True)
class Held:
    """What a process holds at one moment, or may hold."""

    memory_mb: float
    """VmRSS, in MB of 10**6 bytes."""
    threads: int
    descriptors: int
    children: int
    tasks: Counter[str]
    """How many tasks there are of each coroutine function."""

    def beyond(self, base: Held) -> list[str]:
        """Name what there is more of than in `base`."""
        names = ("memory_mb", "threads", "descriptors", "children")
        more = [f"{getattr(self, each) - getattr(base, each):.0f} {each}" for each in names]
        more += [f"{number} tasks {name}" for name, number in (self.tasks - base.tasks).items()]
        return [each for each in more if int(each.split()[0]) > 0]


def held_by(pid: int, tasks: Counter[str]) -> Held:
    """Read from /proc what a process holds, beside its tasks."""
    folder = Path(f"/proc/{pid}")
    status = dict(line.split(":", 1) for line in (folder / "status").read_text(encoding="utf-8").splitlines())
    memory = int(status["VmRSS"].split()[0]) * 1024 / 1e6
    descriptors = len(list((folder / "fd").iterdir()))
    return Held(memory, int(status["Threads"]), descriptors, len(children(pid)), tasks)


def children(pid: int) -> list[int]:
    """Return the ids of the processes that this one has started, if they still run."""
    found = []
    for each in Path("/proc").iterdir():
        if each.name.isdigit():
            try:
                state, parent = (each / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()[:2]
            except OSError:  # it has ended meanwhile
                continue
            if int(parent) == pid and state != "Z":
                found.append(int(each.name))
    return found


def task_names(loop: asyncio.AbstractEventLoop) -> Counter[str]:
    """Count the tasks of a loop by the names of their coroutines."""
    coroutines = (task.get_coro() for task in asyncio.all_tasks(loop))
    return Counter(getattr(each, "__qualname__", type(each).__name__) for each in coroutines)


def ask(pid: int, report: Path) -> Held:
    """Have a process that was started by this program say what it holds. Blocks, as `settled` does."""
    before = report.stat().st_size
    os.kill(pid, signal.SIGUSR1)
    deadline = time.monotonic() + ANSWER_SECONDS
    while not (told := report.read_bytes()[before:]).endswith(b"\n"):
        if time.monotonic() > deadline:
            raise TimeoutError(f"process {pid} did not say within {ANSWER_SECONDS:g} s what it holds")
        time.sleep(POLL_SECONDS / 10)
    return held_by(pid, Counter(json.loads(told)))


def settled(measure: Callable[[], Held], base: Held, seconds: float) -> Held:
    """Measure until no more is held than in `base`, for so many seconds at most; return the last measurement."""
    deadline = time.monotonic() + seconds
    while (now := measure()).beyond(base) and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    return now


def main() -> None:
    """Run a command of whisper-byoc that tells its tasks."""
    report = Path(sys.argv[1]).open("a", buffering=1, encoding="utf-8")  # noqa: SIM115 - now: later none may be left

    def tell(*_: object) -> None:
        try:
            names = task_names(asyncio.get_running_loop())
        except RuntimeError:  # it does not run yet
            names = Counter()
        print(json.dumps(names), file=report)

    signal.signal(signal.SIGUSR1, tell)
    from whisper_byoc.cli.main import main as command

    os._exit(command(sys.argv[2:]))  # as the command does: torch must not be torn down under a thread


if __name__ == "__main__":
    main()
