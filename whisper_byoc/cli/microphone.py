"""The default microphone as a stream of PCM16, by whatever on this machine can record it."""

import asyncio
import re
import shutil
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection
from contextlib import AsyncExitStack, asynccontextmanager

from audio import pcm
from audio.errors import MediaError
from audio.ffmpeg import ffmpeg_environment, ffmpeg_path, pcm_from_device
from whisper_byoc.aio import cancel
from whisper_byoc.process import Program, output_of

SOUND_CHUNK_BYTES = int(0.1 * pcm.SAMPLE_RATE) * pcm.SAMPLE_WIDTH
LIST_SECONDS = 10.0
FIRST_SECONDS = 5.0  # a sound server may have to be started first
LEAVE_SECONDS = 2.0
INSTEAD = "or record with another program and pipe PCM16 in: RECORDER | whisper-byoc send -"
RATE = str(pcm.SAMPLE_RATE)
SOX_RAW = ("-t", "raw", "-e", "signed-integer", "-b", "16", "-L", "-c", "1", "-r", RATE)


Recorders = dict[str, tuple[str, ...]]
"""Commands that record the microphone to stdout as PCM16 mono 16 kHz, by names for messages, best first."""


async def find_recorders() -> Recorders:
    """Return what may record the default microphone here."""
    try:
        ffmpeg = ffmpeg_path()
        _, listing = await output_of((ffmpeg, "-hide_banner", "-devices"), LIST_SECONDS, ffmpeg_environment())
    except (MediaError, OSError, TimeoutError):  # no ffmpeg that runs; there may be other recorders
        return recorders(None, ())
    return recorders(ffmpeg, ffmpeg_devices(listing))


def recorders(
    ffmpeg: str | None,
    devices: Collection[str],
    *,
    platform: str = sys.platform,
    which: Callable[[str], str | None] = shutil.which,
) -> Recorders:
    """Return the programs on PATH that can record on this platform. Any of them may still fail.

    `ffmpeg` is the path of ffmpeg if there is one, `devices` the result of `ffmpeg_devices`.
    """
    candidates = {
        "parec": ("--raw", "--format=s16le", f"--rate={RATE}", "--channels=1", "--latency-msec=100"),
        "arecord": ("-q", "-t", "raw", "-f", "S16_LE", "-c", "1", "-r", RATE),
        "rec": ("-q", *SOX_RAW, "-"),
        "sox": ("-q", "-d", *SOX_RAW, "-"),
    }
    if platform != "linux":  # PulseAudio and ALSA belong there
        del candidates["parec"], candidates["arecord"]
    found = {name: (path, *options) for name, options in candidates.items() if (path := which(name))}
    sources = {
        "linux": {"pulse": "default", "alsa": "default"},
        "darwin": {"avfoundation": ":default"},
    }
    for device, source in sources.get(platform, {}).items():
        if ffmpeg and device in devices:
            found[f"ffmpeg ({device})"] = tuple(pcm_from_device(device, source, ffmpeg))
    return found


def ffmpeg_devices(listing: str) -> frozenset[str]:
    """Return the devices that ffmpeg can record from, out of what `ffmpeg -hide_banner -devices` prints."""
    rows = re.findall(r"^ D[ E]d? +(\S+)", listing, re.MULTILINE)
    return frozenset(name for row in rows for name in row.split(","))


@asynccontextmanager
async def microphone(stop: asyncio.Event) -> AsyncIterator[AsyncGenerator[bytes, None]]:
    """Record until `stop` is set; the chunks end with the last of the sound. The recorders are tried in turn.

    Raises `MediaError` when none of them works; so does the stream when the recorder ends by itself.
    """
    failures = []
    for name, command in (await find_recorders()).items():
        async with AsyncExitStack() as stack:
            try:
                program = await stack.enter_async_context(Program(command))
            except OSError as error:
                failures.append(f"{name}: {error.strerror}")
                continue
            program.stdin.close()
            stack.push_async_callback(cancel, asyncio.create_task(_end_when(stop, program)))
            if (first := await _first_chunk(program)) or stop.is_set():
                yield _recording(name, program, first, stop)
                return
        failures.append(f"{name}: {_recorder_error(program)}")
    if not failures:
        raise MediaError(f"no program here can record a microphone; install alsa-utils, sox or ffmpeg, {INSTEAD}")
    raise MediaError(f"cannot record a microphone ({'; '.join(failures)}); connect one, {INSTEAD}")


async def _first_chunk(program: Program) -> bytes:
    try:
        async with asyncio.timeout(FIRST_SECONDS):
            return await program.stdout.read(SOUND_CHUNK_BYTES)
    except TimeoutError:
        return b""


async def _recording(name: str, program: Program, first: bytes, stop: asyncio.Event) -> AsyncGenerator[bytes, None]:
    chunk = first
    while chunk:
        yield chunk
        chunk = await program.stdout.read(SOUND_CHUNK_BYTES)
    if not stop.is_set():
        await program.close()
        raise MediaError(f"the recording stopped by itself ({name}: {_recorder_error(program)})")


async def _end_when(stop: asyncio.Event, program: Program) -> None:
    await stop.wait()
    program.terminate()
    try:
        await program.wait(LEAVE_SECONDS)
    except TimeoutError:
        program.kill()


def _recorder_error(program: Program) -> str:
    return program.last_error or "no sound"
