"""Where the sound to send comes from: files, stdin, the microphone."""

import asyncio
import os
import select
import signal
import sys
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from audio import pcm
from audio.errors import MediaError, PcmError, WavError
from audio.media import audio_blocks, decode_media, decode_sound, in_blocks, load_audio
from audio.raw import ENDINGS, decode_raw, raw_format
from audio.sniff import by_magic, index_is_behind, media_format
from whisper_byoc.aio import race, stop_on_signals
from whisper_byoc.cli.microphone import SOUND_CHUNK_BYTES, microphone
from whisper_byoc.cli.options import existing_file
from whisper_byoc.errors import UsageError

MICROPHONE, STDIN = "--microphone", "-"
STDIN_FILE = Path("/dev/stdin")
STDIN_BYTES = 64 * 1024
"""Read at once: what a pipe of Linux holds."""
DECODE_SECONDS = 3600.0
"""Longest time for one file. A server must limit strangers; someone who decodes their own file has Ctrl-C."""


@dataclass(frozen=True)
class Source:
    """Sound to send."""

    name: str
    chunks: AsyncGenerator[bytes, None]
    """PCM16 mono 16 kHz; from stdin, whatever comes that a server reads as it arrives."""
    size: int | None = None
    """Bytes in all, where that is known beforehand."""


def sound_files(names: Sequence[str]) -> list[Path]:
    """Return the paths of files, of pipes, and of `STDIN`.

    Raises `UsageError` where there is none, or stdin is named twice.
    """
    if names.count(STDIN) > 1:
        raise UsageError("- is there twice, and stdin can be read to its end once")
    return [_sound_file(name) for name in names]


def _sound_file(name: str) -> Path:
    if name == STDIN and sys.stdin.isatty():
        raise UsageError("stdin is a terminal; pipe sound into -, or name a FILE, or use --microphone")
    if name == STDIN:
        return STDIN_FILE
    with suppress(OSError):  # a name that cannot be looked up is told below
        if Path(name).is_fifo():
            return Path(name)
    return existing_file(name)


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
            yield Source("stdin", streamable(not_nothing(stdin_chunks(stop), stop)))
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
    """Read a file, or all of a pipe, as 16 kHz mono samples (n,); `ENDINGS` are raw sound.

    Blocks, so that Ctrl-C ends ffmpeg at once: a worker thread cannot be interrupted, and the handler of asyncio only
    cancels a task. Raises `AudioError` when it is not sound, `UsageError` when it cannot be read.
    """
    with _named(path), _interrupted_at_once():
        return _load(path)


@contextmanager
def _interrupted_at_once() -> Iterator[None]:
    """Let Ctrl-C raise `KeyboardInterrupt` within the context, whatever it does before and after."""
    if threading.current_thread() is not threading.main_thread():  # signals are the business of the main thread
        yield
        return
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Name the file in errors of the context that do not."""
    try:
        yield
    except (WavError, PcmError) as error:
        raise type(error)(f"{path}: {error}") from None
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None


def _load(path: Path) -> NDArray[np.float32]:
    if path == STDIN_FILE or path.is_fifo():
        return _load_pipe(path)
    if (ending := ENDINGS.get(path.suffix.lower())) is None:
        return load_audio(path, timeout=DECODE_SECONDS)
    return _load_raw(path, path.read_bytes(), *ending)


def _load_raw(path: Path, data: bytes, encoding: str, rate: int) -> NDArray[np.float32]:
    if by_magic(data):  # the name misleads
        return load_audio(path, timeout=DECODE_SECONDS)
    fmt = raw_format(encoding, rate)
    return decode_media(path, containers=fmt, timeout=DECODE_SECONDS) if isinstance(fmt, str) else decode_raw(data, fmt)


def _load_pipe(path: Path) -> NDArray[np.float32]:
    data = path.read_bytes()
    if not data:
        raise MediaError(f"Nothing came from {path}; send sound into it.")
    try:
        return decode_sound(data, timeout=DECODE_SECONDS)
    except MediaError as error:
        raise type(error)(f"{path}: {error}") from None


def sound_blocks(path: Path) -> Iterator[bytes]:
    """Read a file, or all of a pipe, as blocks of PCM16; of a file, no more than a block is held.

    Raises as `load_sound` does, when a block is asked for.
    """
    whole = path == STDIN_FILE or path.is_fifo() or path.suffix.lower() in ENDINGS
    blocks = in_blocks(load_sound(path)) if whole else audio_blocks(path)
    while True:
        with _named(path), _interrupted_at_once():
            block = next(blocks, None)
        if block is None:
            return
        yield pcm.encode(block)


async def paced(data: bytes, *, realtime: bool) -> AsyncGenerator[bytes, None]:
    """Yield small chunks; if `realtime`, each of them when its sound would have been spoken."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    for at in range(0, len(data), SOUND_CHUNK_BYTES):
        if realtime:
            await asyncio.sleep(max(0.0, began + to_seconds(at) - loop.time()))
        yield data[at : at + SOUND_CHUNK_BYTES]


async def not_nothing(chunks: AsyncGenerator[bytes, None], stop: asyncio.Event) -> AsyncGenerator[bytes, None]:
    """Pass chunks on; raise `MediaError` where none has come, as of a recorder that fails, unless `stop` is set."""
    empty = True
    async with aclosing(chunks):
        async for chunk in chunks:
            empty = False
            yield chunk
    if empty and not stop.is_set():
        raise MediaError(f"Nothing came from {STDIN_FILE}; send sound into it.")


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


async def streamable(chunks: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    """Pass chunks on as they come. Media that cannot be read so are decoded here, when all of them have come.

    Raises `AudioError` when these cannot be read.
    """
    head, known = b"", False
    async with aclosing(chunks):
        async for chunk in chunks:
            head += chunk
            if known or (kind := media_format(head, more=True)) is not None:
                if not known and (kind == "caf" or index_is_behind(head)):
                    head += b"".join([each async for each in chunks])
                    head = pcm.encode(await asyncio.to_thread(decode_sound, head, timeout=DECODE_SECONDS))
                known = True
                yield head
                head = b""
    if head:
        yield head


def to_seconds(size: int) -> float:
    return size / (pcm.SAMPLE_RATE * pcm.SAMPLE_WIDTH)
