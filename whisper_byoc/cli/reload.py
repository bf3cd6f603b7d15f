"""A command that begins anew whenever the source changes, for development."""

import os
import signal
import subprocess
import time
from pathlib import Path

from whisper_byoc.cli.processes import COMMAND

LOOK_SECONDS = 0.3
STOP_SECONDS = 10.0
"""Time for a command to end its jobs; then it is killed."""


class _Terminated(Exception):
    """SIGTERM, which the command has not got."""


def _raise_terminated(*_: object) -> None:
    raise _Terminated


def reloading(folder: Path, words: list[str]) -> int:
    """Run a command, and again after each change of a Python file in the folder; return its code when a signal ends it.

    One that fails is tried again at the next change.
    """
    signal.signal(signal.SIGTERM, _raise_terminated)
    environment = {name: value for name, value in os.environ.items() if name != "WHISPER_BYOC_RELOAD"}
    while True:
        before = _times(folder)
        with subprocess.Popen([*COMMAND, *words], env=environment) as process:
            try:
                while _times(folder) == before:
                    time.sleep(LOOK_SECONDS)
            except KeyboardInterrupt:  # the command has got it too
                return process.wait()
            except _Terminated:
                _stop(process)
                return process.wait()
            _stop(process)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()


def _times(folder: Path) -> dict[str, int]:
    """Return when each file was changed; one that goes meanwhile is left out."""
    found = {}
    for path in folder.rglob("*.py"):
        try:
            found[str(path)] = path.stat().st_mtime_ns
        except OSError:
            continue
    return found
