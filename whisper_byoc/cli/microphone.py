"""The default microphone as a stream of PCM16, by whatever on this machine can record it."""

from __future__ import annotations

import asyncio
import tempfile
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import IO

from audio.errors import MediaError
from audio.recorders import Recorder
from whisper_byoc.cli.programs import find_recorders, kill

__all__ = ["microphone"]

CHUNK_BYTES = 3200  # 0.1 s
FIRST_SECONDS = 5.0  # a sound server may have to be started first
LEAVE_SECONDS = 2.0
INSTEAD = "or record with another program and pipe PCM16 in: RECORDER | whisper-byoc send -"


@asynccontextmanager
async def microphone(stop: asyncio.Event) -> AsyncIterator[AsyncGenerator[bytes, None]]:
    """Record until `stop` is set, then give what is left and end. What can record is tried one after the other.

    Raises `MediaError` when nothing does; the stream itself raises it when the recorder ends on its own.
    """
    troubles = []
    for recorder in await find_recorders():
        with tempfile.TemporaryFile() as complaints:
            try:
                process = await asyncio.create_subprocess_exec(
                    *recorder.command, stdin=DEVNULL, stdout=PIPE, stderr=complaints, start_new_session=True
                )
            except OSError as error:
                troubles.append(f"{recorder.name}: {error.strerror}")
                continue
            ending = asyncio.ensure_future(end_when(stop, process))
            try:
                if (first := await beginning(process)) or stop.is_set():
                    yield recording(recorder, process, first, stop, complaints)
                    return
                troubles.append(f"{recorder.name}: {last_line(complaints)}")
            finally:
                ending.cancel()
                await asyncio.wait({ending})
                await kill(process)
    tried = f"no microphone could be recorded ({'; '.join(troubles)}); connect one" if troubles else (
        "there is no program to record a microphone with; install alsa-utils, sox or ffmpeg"
    )  # fmt: skip
    raise MediaError(f"{tried}, {INSTEAD}")


async def beginning(process: Process) -> bytes:
    """Wait for the first sound; b"" when there is none."""
    assert process.stdout is not None
    try:
        return await asyncio.wait_for(process.stdout.read(CHUNK_BYTES), FIRST_SECONDS)
    except TimeoutError:
        return b""


async def recording(
    recorder: Recorder, process: Process, first: bytes, stop: asyncio.Event, complaints: IO[bytes]
) -> AsyncGenerator[bytes, None]:
    """Give the sound as it comes, up to the last of it."""
    assert process.stdout is not None
    chunk = first
    while chunk:
        yield chunk
        chunk = await process.stdout.read(CHUNK_BYTES)
    if not stop.is_set():
        raise MediaError(f"the recording has ended by itself ({recorder.name}: {last_line(complaints)})")


async def end_when(stop: asyncio.Event, process: Process) -> None:
    """Ask the recorder to end when `stop` is set; one that does not is killed."""
    await stop.wait()
    if process.returncode is None:
        process.terminate()
        try:
            await asyncio.wait_for(process.wait(), LEAVE_SECONDS)
        except TimeoutError:
            await kill(process)


def last_line(complaints: IO[bytes]) -> str:
    """Tell what a recorder wrote last on stderr."""
    complaints.seek(0)
    lines = [line for line in complaints.read().decode(errors="replace").splitlines() if line.strip()]
    return lines[-1].strip()[:200] if lines else "it gave no sound"
