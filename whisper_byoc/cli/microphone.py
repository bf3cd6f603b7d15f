"""The default microphone as a stream of PCM16, by whatever on this machine can record it."""

import asyncio
import sys
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from audio.errors import MediaError
from audio.ffmpeg import ffmpeg_environment, ffmpeg_path
from audio.recorders import Recorder, dshow_listing, dshow_microphone, ffmpeg_devices, recorders
from whisper_byoc.aio import cancel
from whisper_byoc.process import Program, output_of

CHUNK_BYTES = 3200  # 0.1 s
LIST_SECONDS = 10.0
FIRST_SECONDS = 5.0  # a sound server may have to be started first
LEAVE_SECONDS = 2.0
INSTEAD = "or record with another program and pipe PCM16 in: RECORDER | whisper-byoc send -"


async def find_recorders() -> list[Recorder]:
    """List what could record the default microphone here, best first."""
    try:
        ffmpeg = ffmpeg_path()
        _, listing = await output_of((ffmpeg, "-hide_banner", "-devices"), LIST_SECONDS, ffmpeg_environment())
        named = ""
        if sys.platform == "win32":
            _, named = await output_of(dshow_listing(ffmpeg), LIST_SECONDS, ffmpeg_environment())
    except (MediaError, OSError, TimeoutError):  # no ffmpeg that runs; there may be other recorders
        return recorders(None, ())
    return recorders(ffmpeg, ffmpeg_devices(listing), dshow=dshow_microphone(named))


@asynccontextmanager
async def microphone(stop: asyncio.Event) -> AsyncIterator[AsyncGenerator[bytes, None]]:
    """Record until `stop` is set; the chunks end with the last of the sound. The recorders are tried in turn.

    Raises `MediaError` when none of them works; so does the stream when the recorder ends by itself.
    """
    failures = []
    for recorder in await find_recorders():
        async with AsyncExitStack() as stack:
            try:
                program = await stack.enter_async_context(Program(recorder.command))
            except OSError as error:
                failures.append(f"{recorder.name}: {error.strerror}")
                continue
            program.stdin.close()
            stack.push_async_callback(cancel, asyncio.create_task(_end_when(stop, program)))
            if (first := await _first_chunk(program)) or stop.is_set():
                yield _recording(recorder, program, first, stop)
                return
        failures.append(f"{recorder.name}: {_failure(program)}")
    tried = f"no microphone could be recorded ({'; '.join(failures)}); connect one" if failures else (
        "there is no program to record a microphone with; install alsa-utils, sox or ffmpeg"
    )  # fmt: skip
    raise MediaError(f"{tried}, {INSTEAD}")


async def _first_chunk(program: Program) -> bytes:
    try:
        async with asyncio.timeout(FIRST_SECONDS):
            return await program.stdout.read(CHUNK_BYTES)
    except TimeoutError:
        return b""


async def _recording(
    recorder: Recorder, program: Program, first: bytes, stop: asyncio.Event
) -> AsyncGenerator[bytes, None]:
    chunk = first
    while chunk:
        yield chunk
        chunk = await program.stdout.read(CHUNK_BYTES)
    if not stop.is_set():
        await program.close()
        raise MediaError(f"the recording has ended by itself ({recorder.name}: {_failure(program)})")


async def _end_when(stop: asyncio.Event, program: Program) -> None:
    """Ask the recorder to end when `stop` is set; kill one that does not."""
    await stop.wait()
    program.terminate()
    try:
        await program.wait(LEAVE_SECONDS)
    except TimeoutError:
        program.kill()


def _failure(program: Program) -> str:
    return program.last_error or "it gave no sound"
