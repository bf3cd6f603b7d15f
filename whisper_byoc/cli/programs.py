"""Other programs, run without blocking the event loop and without outliving their time limit."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from asyncio.subprocess import PIPE, STDOUT, Process
from collections.abc import Sequence
from contextlib import suppress

from audio.errors import MediaError
from audio.ffmpeg import ffmpeg_environment, ffmpeg_path
from audio.recorders import Recorder, dshow_listing, dshow_microphone, ffmpeg_devices, recorders

__all__ = ["find_recorders", "kill", "output_of"]

LIST_SECONDS = 10.0


async def output_of(command: Sequence[str], seconds: float) -> tuple[int, str]:
    """Run a program; give its exit code and what it printed, stderr included.

    Raises `OSError` when it cannot be started, `asyncio.TimeoutError` when it takes longer than `seconds`.
    """
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.DEVNULL, stdout=PIPE, stderr=STDOUT,
        env=ffmpeg_environment(), start_new_session=True,
    )  # fmt: skip
    try:
        text, _ = await asyncio.wait_for(process.communicate(), seconds)
    finally:
        await kill(process)
    assert process.returncode is not None
    return process.returncode, text.decode(errors="replace")


async def kill(process: Process) -> None:
    """Kill a program that was started in a session of its own, with its children; does nothing if it has ended."""
    if process.returncode is None:
        with suppress(ProcessLookupError):
            if hasattr(os, "killpg"):
                os.killpg(process.pid, signal.SIGKILL)
            else:
                process.kill()
        await process.wait()


async def find_recorders() -> list[Recorder]:
    """List what could record the default microphone here, best first."""
    try:
        ffmpeg = ffmpeg_path()
        _, listing = await output_of((ffmpeg, "-hide_banner", "-devices"), LIST_SECONDS)
        named = (await output_of(dshow_listing(ffmpeg), LIST_SECONDS))[1] if sys.platform == "win32" else ""
    except (TimeoutError, MediaError, OSError):  # none, or none that runs: others may do
        return recorders(None, ())
    return recorders(ffmpeg, ffmpeg_devices(listing), dshow=dshow_microphone(named))
