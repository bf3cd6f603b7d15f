"""One ffmpeg for one live feed: media in, sound or pictures out, as they come."""

import asyncio
import errno
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from audio.errors import DecoderFailed, MediaError
from audio.ffmpeg import complaints, ffmpeg_environment
from whisper_byoc.aio import cancel, first_of
from whisper_byoc.process import Program

log = logging.getLogger(__name__)

HANG_SECONDS = 10.0
"""An ffmpeg that takes no input for this long, and gives no output although its sink is waiting, hangs."""
USED_UP = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN)
"""Errors for a lack of descriptors, memory or processes, which others will free."""
FLUSH_SECONDS = 3.0
"""The same for the remaining output of an ffmpeg that gets no more input or has died; a stop has to be answered."""


class LiveDecoder:
    """Runs ffmpeg with the given command line from the first bytes on, and passes its output to `sink`.

    When an ffmpeg dies or hangs, losing whatever it had not decoded yet, `lost` gets a sentence and another ffmpeg
    takes its place, as MPEG-TS allows. Failures without any output in between count as one loss. Without `lost`, each
    is an error.
    """

    def __init__(
        self,
        name: str,
        sink: Callable[[bytes], Awaitable[None]],
        command: Callable[[], list[str]],
        lost: Callable[[str], None] | None = None,
    ) -> None:
        self.complaint = ""
        """What an ffmpeg that ended normally last said about damage."""
        self._name = name
        self._sink = sink
        self._command = command
        self._lost = lost
        self._running: tuple[Program, asyncio.Task[None]] | None = None  # and the task that reads its output
        self._at_sink = False
        self._outputs = 0
        self._outputs_at_loss = -1

    async def feed(self, data: bytes) -> None:
        """Pass bytes to ffmpeg; if it dies of them, pass them to another one.

        Raises `DecoderFailed` when there is no ffmpeg, `MediaError` when it failed and there is no `lost`, and whatever
        `sink` raises.
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
        """Close ffmpeg's input, pass on the rest of its output, and end it. Raises as `feed` does."""
        if self._running is not None:
            program, _ = self._running
            program.stdin.close()
        await self._end(FLUSH_SECONDS, finished=True)

    async def kill(self) -> None:
        """End ffmpeg at once and drop its output."""
        running, self._running = self._running, None
        if running is not None:
            program, reading = running
            reading.cancel()
            await program.close()
            await cancel(reading)

    async def _start(self) -> tuple[Program, asyncio.Task[None]]:
        command = await asyncio.to_thread(self._command)  # looks for ffmpeg on the disk
        program = Program(command, environment=ffmpeg_environment())
        try:
            await program.start()
        except OSError as error:
            if error.errno not in USED_UP:
                raise
            raise DecoderFailed(f"ffmpeg cannot be started now ({error.strerror}); try again later") from error
        program.stdin.transport.set_write_buffer_limits(0)  # or a hang would be noticed later
        return program, asyncio.create_task(self._read(program))

    async def _read(self, program: Program) -> None:
        while data := await program.stdout.read(32 * 1024):
            self._outputs += 1
            self._at_sink = True
            try:
                await self._sink(data)
            finally:
                self._at_sink = False
        await program.wait()

    async def _written(self, data: bytes, stdin: asyncio.StreamWriter, reading: asyncio.Task[None]) -> bool:
        """Return whether ffmpeg took the bytes; it does not when it has died, hangs, or `sink` has failed."""
        stdin.write(data)
        draining = asyncio.create_task(stdin.drain())
        try:
            await self._happens(HANG_SECONDS, draining, reading)
            return draining.done() and draining.exception() is None
        finally:
            await cancel(draining)

    async def _happens(self, seconds: float, *futures: asyncio.Future[Any]) -> bool:
        """Wait until one of the futures is done; return False when ffmpeg has hung for `seconds`.

        While the sink is busy (it may be waiting for the model), it is not ffmpeg's turn.
        """
        while True:
            before = self._outputs
            if await first_of(*futures, timeout=seconds):
                return True
            if self._outputs == before and not self._at_sink:
                return False

    async def _end(self, seconds: float, *, finished: bool = False) -> None:
        """Let ffmpeg end by itself, but kill it if it hangs for `seconds`. Raises as `feed` does."""
        if self._running is None:
            return
        (program, reading), self._running = self._running, None
        try:
            ended = await self._happens(seconds, reading)
        finally:
            reading.cancel()
            await program.close()
        await asyncio.wait({reading})
        if not reading.cancelled():
            reading.result()
        if self._lost is None and (not ended or (program.returncode or 0) < 0):
            raise DecoderFailed("ffmpeg hung, or was killed; try again later")
        if not ended:
            self._failed("ffmpeg hung")
        elif program.returncode or not finished:
            found = complaints(program.errors) or [program.last_error or "no message"]
            self._failed(f"ffmpeg ended with {program.returncode}: {found[-1]}")
        elif found := complaints(program.errors):
            self.complaint = found[-1]
            log.warning("%s: ffmpeg: %s", self._name, self.complaint)

    def _failed(self, why: str) -> None:
        log.warning("%s: %s", self._name, why)
        if self._lost is None:
            raise MediaError(why)
        if self._outputs != self._outputs_at_loss:
            self._outputs_at_loss = self._outputs
            self._lost(f"some of the input could not be decoded and was lost: {why}")
