"""Where the sound to send comes from: files, stdin, the microphone."""

import asyncio
import os
import select
import signal
import sys
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from audio import pcm
from audio.errors import PcmError, WavError
from audio.media import load_audio
from audio.riff import may_become_wav
from audio.sniff import is_media
from whisper_byoc.aio import race, stop_on_signals
from whisper_byoc.cli.microphone import SOUND_CHUNK_BYTES, microphone
from whisper_byoc.cli.options import existing_file
from whisper_byoc.errors import UsageError

MICROPHONE, STDIN = "--microphone", "-"
STDIN_BYTES = 64 * 1024
"""Read at once: what a pipe of Linux holds."""
DECODE_SECONDS = 3600.0
"""Longest time for one file. A server must limit strangers; someone who decodes their own file has Ctrl-C."""
RAW_ENDINGS = frozenset({".pcm", ".raw", ".s16le"})


@dataclass(frozen=True)
class Source:
    """Sound to send."""

    name: str
    chunks: AsyncGenerator[bytes, None]
    """PCM16 mono 16 kHz."""
    size: int | None = None
    """Bytes in all, where that is known beforehand."""


def check_source(name: str) -> None:
    if name == STDIN and sys.stdin.isatty():
        raise UsageError("stdin is a terminal; pipe PCM16 mono 16 kHz into -, or name a FILE, or use --microphone")
    if name not in (STDIN, MICROPHONE):
        existing_file(name)


@asynccontextmanager
async def open_source(name: str, *, realtime: bool) -> AsyncIterator[Source]:
    """Open a file, `STDIN` or the `MICROPHONE`. The first Ctrl-C ends stdin or the recording, a second one the program.

    Raises `AudioError` when there is no sound.
    """
    if name == MICROPHONE:
        with first_interrupt() as stop:
            async with microphone(stop) as chunks:
                yield Source("microphone", chunks)
    elif name == STDIN:
        with first_interrupt() as stop:
            yield Source("stdin", raw_or_wav(stdin_chunks(stop)))
    else:
        data = pcm.encode(load_sound(Path(name)))
        yield Source(Path(name).name, paced(data, realtime=realtime), len(data))


@contextmanager
def first_interrupt() -> Iterator[asyncio.Event]:
    """Yield an event that the first Ctrl-C sets instead of doing what it usually does."""
    before = signal.getsignal(signal.SIGINT)
    try:
        stop = stop_on_signals(signal.SIGINT, die=False)  # the next one is a KeyboardInterrupt
    except (NotImplementedError, RuntimeError, ValueError):  # Windows, or not the main thread
        yield asyncio.Event()
        return
    try:
        yield stop
    finally:
        asyncio.get_running_loop().remove_signal_handler(signal.SIGINT)
        signal.signal(signal.SIGINT, before)


def load_sound(path: Path) -> NDArray[np.float32]:
    """Read a file as 16 kHz mono samples (n,); `RAW_ENDINGS` are PCM16 of that kind.

    Blocks, so that Ctrl-C ends ffmpeg at once: a worker thread cannot be interrupted, and the handler of asyncio only
    cancels a task. Raises `AudioError` when it is not sound, `UsageError` when it cannot be read.
    """
    if threading.current_thread() is not threading.main_thread():  # signals are the business of the main thread
        return _load(path)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return _load(path)
    finally:
        signal.signal(signal.SIGINT, before)


def _load(path: Path) -> NDArray[np.float32]:
    try:
        if path.suffix.lower() in RAW_ENDINGS:
            return pcm.decode(path.read_bytes())
        return load_audio(path, timeout=DECODE_SECONDS)
    except (WavError, PcmError) as error:
        raise type(error)(f"{path}: {error}") from None
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None


async def paced(data: bytes, *, realtime: bool) -> AsyncGenerator[bytes, None]:
    """Yield small chunks; if `realtime`, each of them when its sound would have been spoken."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    for at in range(0, len(data), SOUND_CHUNK_BYTES):
        if realtime:
            await asyncio.sleep(max(0.0, began + to_seconds(at) - loop.time()))
        yield data[at : at + SOUND_CHUNK_BYTES]


async def stdin_chunks(stop: asyncio.Event) -> AsyncGenerator[bytes, None]:
    """Yield what arrives on stdin until its end, or until `stop` is set; what has arrived by then still counts."""
    descriptor = sys.stdin.fileno()
    while not stop.is_set():
        with suppress(OSError, NotImplementedError):  # files and /dev/null need no wait, and Windows has none
            await race(_readable(descriptor), stop.wait())
            if stop.is_set() and not select.select([descriptor], [], [], 0)[0]:
                return
        chunk = await asyncio.to_thread(os.read, descriptor, STDIN_BYTES)
        if not chunk:
            return
        yield chunk


async def _readable(descriptor: int) -> bool:
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(descriptor, readable.set)
    try:
        return await readable.wait()
    finally:
        loop.remove_reader(descriptor)


async def raw_or_wav(chunks: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    """Pass chunks on.

    Raises `UsageError` when they begin like a media file, which the server would take for noise.
    """
    known = False
    async with aclosing(chunks):
        async for chunk in chunks:
            if not known and is_media(chunk) and not may_become_wav(chunk):
                into = "ffmpeg -i FILE -f s16le -ar 16000 -ac 1 - | whisper-byoc send -"
                raise UsageError(f"stdin is a media file, not PCM16 or WAV; name the file instead of -, or use: {into}")
            known = True
            yield chunk


def to_seconds(size: int) -> float:
    return size / (pcm.SAMPLE_RATE * pcm.SAMPLE_WIDTH)
