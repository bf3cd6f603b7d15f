"""One ffmpeg for one live feed: MPEG-TS in, sound or pictures out, as they come. When it dies, another replaces it."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from audio.ffmpeg import ffmpeg_environment
from whisper_byoc.aio import cancel, first_of
from whisper_byoc.process import Program

log = logging.getLogger(__name__)

WRITE_SECONDS = 60.0
"""Longest wait for ffmpeg to take bytes: it waits for the sink, which may wait for the model."""
FLUSH_SECONDS = 5.0
"""Longest wait for the rest of the output of an ffmpeg that gets no more input, or has died."""


class LiveDecoder:
    """Runs an ffmpeg of the given command line from the first bytes on, and passes its output to `sink`."""

    def __init__(self, name: str, sink: Callable[[bytes], Awaitable[None]], command: Callable[[], list[str]]) -> None:
        self._name = name
        self._sink = sink
        self._command = command
        self._running: tuple[Program, asyncio.Task[None]] | None = None  # with the task that reads its output

    async def feed(self, data: bytes) -> None:
        """Pass bytes to ffmpeg; if it dies of them, another one gets them.

        Raises `MediaError` when there is no ffmpeg, and what `sink` raises.
        """
        for _ in range(2):
            if self._running is None or self._running[1].done():
                await self._end(FLUSH_SECONDS)
                self._running = await self._start()
            program, reading = self._running
            if await self._written(data, program.stdin, reading):
                return
            await self._end(FLUSH_SECONDS)
        log.warning("%s: ffmpeg takes no input; %d bytes of the feed are lost", self._name, len(data))

    async def finish(self) -> None:
        """Close ffmpeg's input, pass on the rest of its output, and end it. Raises what `sink` raises."""
        if self._running is not None:
            program, _ = self._running
            program.stdin.close()
        await self._end(FLUSH_SECONDS)

    async def kill(self) -> None:
        """End ffmpeg at once and drop its output."""
        try:
            await self._end(0)
        except Exception as error:
            log.debug("%s: the output of ffmpeg was not taken: %s", self._name, error)

    async def _start(self) -> tuple[Program, asyncio.Task[None]]:
        command = await asyncio.to_thread(self._command)  # looks for ffmpeg on the disk
        program = Program(command, environment=ffmpeg_environment())
        await program.start()
        return program, asyncio.create_task(self._read(program))

    async def _read(self, program: Program) -> None:
        while data := await program.stdout.read(32 * 1024):
            await self._sink(data)
        await program.wait()

    async def _written(self, data: bytes, stdin: asyncio.StreamWriter, reading: asyncio.Task[None]) -> bool:
        """Return whether ffmpeg took the bytes; it does not when it has died, hangs, or `sink` has failed."""
        stdin.write(data)
        draining = asyncio.create_task(stdin.drain())
        try:
            await first_of(draining, reading, timeout=WRITE_SECONDS)
            return draining.done() and draining.exception() is None
        finally:
            await cancel(draining)

    async def _end(self, seconds: float) -> None:
        """Let ffmpeg end by itself within `seconds`, then kill it. Raises what `sink` raised."""
        if self._running is None:
            return
        (program, reading), self._running = self._running, None
        try:
            await asyncio.wait({reading}, timeout=seconds)
        finally:
            reading.cancel()
            await program.close()
        if program.returncode or program.last_error:
            why = program.last_error or "no message"
            log.warning("%s: ffmpeg ended with %s: %s", self._name, program.returncode, why)
        await asyncio.wait({reading})
        if not reading.cancelled():
            reading.result()
