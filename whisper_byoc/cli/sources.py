"""Where the sound to send comes from: files, stdin, the microphone."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from audio import pcm
from audio.media import load_audio
from whisper_byoc.cli.microphone import microphone
from whisper_byoc.errors import UsageError

__all__ = ["MICROPHONE", "STDIN", "Source", "check", "open_source", "to_seconds"]

MICROPHONE, STDIN = "--microphone", "-"
CHUNK_SECONDS = 0.1
CHUNK_BYTES = int(CHUNK_SECONDS * pcm.SAMPLE_RATE) * pcm.SAMPLE_WIDTH
RAW_ENDINGS = frozenset({".pcm", ".raw", ".s16le"})


@dataclass(frozen=True)
class Source:
    """Sound on its way."""

    name: str
    chunks: AsyncGenerator[bytes, None]
    """PCM16 mono 16 kHz."""
    size: int | None = None
    """Bytes in all, where that is known beforehand."""


def check(name: str) -> None:
    """Raise `UsageError` when a source cannot be: no such file, or a keyboard."""
    if name == STDIN and sys.stdin.isatty():
        raise UsageError("stdin is a terminal; pipe PCM16 mono 16 kHz into -, or name a FILE, or use --microphone")
    if name not in (STDIN, MICROPHONE) and not Path(name).is_file():
        raise UsageError(f"no such file: {name}")


@asynccontextmanager
async def open_source(name: str, *, realtime: bool) -> AsyncIterator[Source]:
    """Open a file, `STDIN` or the `MICROPHONE`. The first Ctrl-C ends the last two, a second one has its usual effect.

    Raises `AudioError` when there is no sound to be had.
    """
    if name == MICROPHONE:
        with first_interrupt() as stop:
            async with microphone(stop) as chunks:
                yield Source("microphone", chunks)
    elif name == STDIN:
        with first_interrupt() as stop:
            yield Source("stdin", from_stdin(stop))
    else:
        data = await asyncio.to_thread(load, Path(name))
        yield Source(Path(name).name, paced(data, realtime), len(data))


@contextmanager
def first_interrupt() -> Iterator[asyncio.Event]:
    """Give an event that the first Ctrl-C sets instead of doing what it usually does."""
    loop, stop, before = asyncio.get_running_loop(), asyncio.Event(), signal.getsignal(signal.SIGINT)

    def give_back() -> None:
        if loop.remove_signal_handler(signal.SIGINT):
            signal.signal(signal.SIGINT, before)

    def on_interrupt() -> None:
        give_back()
        stop.set()

    try:
        loop.add_signal_handler(signal.SIGINT, on_interrupt)
    except (NotImplementedError, RuntimeError, ValueError):  # Windows, or not the main thread
        yield stop
        return
    try:
        yield stop
    finally:
        give_back()


def load(path: Path) -> bytes:
    """Read a file as PCM16 mono 16 kHz; raises `AudioError` when it is not sound."""
    return path.read_bytes() if path.suffix.lower() in RAW_ENDINGS else pcm.encode(load_audio(path))


async def paced(data: bytes, realtime: bool) -> AsyncGenerator[bytes, None]:
    """Yield small chunks, each when its sound would have been spoken if `realtime`."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    for at in range(0, len(data), CHUNK_BYTES):
        if realtime:
            await asyncio.sleep(max(0.0, began + to_seconds(at) - loop.time()))
        yield data[at : at + CHUNK_BYTES]


async def from_stdin(stop: asyncio.Event) -> AsyncGenerator[bytes, None]:
    """Yield what comes on stdin, as it comes, until its end or until `stop` is set."""
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    try:
        transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    except ValueError:  # stdin is a file, which has its end
        while not stop.is_set() and (chunk := await asyncio.to_thread(sys.stdin.buffer.read, CHUNK_BYTES)):
            yield chunk
        return
    closing = asyncio.ensure_future(stop.wait())
    closing.add_done_callback(lambda _: transport.close())  # the reader gives what it has, then its end
    try:
        while chunk := await reader.read(CHUNK_BYTES):
            yield chunk
    finally:
        closing.cancel()
        await asyncio.wait({closing})


def to_seconds(size: int) -> float:
    """Bytes of PCM16 to seconds of sound."""
    return size / (pcm.SAMPLE_RATE * pcm.SAMPLE_WIDTH)
