"""One ffmpeg for one live feed: MPEG-TS in, sound (or pictures) out, as they come; a new one when it dies."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress

from audio.ffmpeg import ffmpeg_environment, pcm_from_ts

__all__ = ["LiveDecoder", "ended", "tail"]

log = logging.getLogger(__name__)

READ_BYTES = 32 * 1024
WRITE_SECONDS = 60.0
"""Longest wait for ffmpeg to take bytes; it waits in turn for the sink, which may be waiting for the model."""
FLUSH_SECONDS = 5.0
ERROR_BYTES = 4096


class LiveDecoder:
    """Feeds an ffmpeg of the given command line, and hands what comes out to `sink`. It starts with the first bytes."""

    def __init__(
        self,
        name: str,
        sink: Callable[[bytes], Awaitable[None]],
        command: Callable[[], list[str]] = pcm_from_ts,
    ) -> None:
        self._name = name
        self._sink = sink
        self._command = command
        self._process: asyncio.subprocess.Process | None = None
        self._reading: asyncio.Task[None] | None = None
        self._errors: asyncio.Task[bytes] | None = None

    async def feed(self, data: bytes) -> None:
        """Give ffmpeg the next bytes; when it has died of those before, a new one gets them.

        Raises `MediaError` when there is no ffmpeg, and what `sink` raises.
        """
        for _ in range(2):
            process = await self._running()
            assert process.stdin is not None
            try:
                process.stdin.write(data)
                await asyncio.wait_for(process.stdin.drain(), WRITE_SECONDS)
            except (TimeoutError, ConnectionError):
                await self._bury()
            else:
                return
        log.warning("%s: ffmpeg takes no input; %d bytes of the feed are lost", self._name, len(data))

    async def finish(self) -> None:
        """Close the input and hand over what is still inside; then there is no process any more."""
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
            if self._reading is not None:
                await asyncio.wait({self._reading}, timeout=FLUSH_SECONDS)
        await self._bury()

    async def kill(self) -> None:
        """End the process at once, whatever is in it, and whatever went wrong with it."""
        if self._reading is not None:
            self._reading.cancel()
        try:
            await self._bury()
        except Exception as error:
            log.debug("%s: what ffmpeg gave was not taken: %s", self._name, error)

    async def _running(self) -> asyncio.subprocess.Process:
        """Give a process that lives, and whose output is taken.

        Raises what `sink` has raised.
        """
        if self._process is not None and (self._process.returncode is not None or self._gives_no_more()):
            await self._bury()
        if self._process is None:
            pipe = asyncio.subprocess.PIPE
            command = await asyncio.to_thread(self._command)  # looks for ffmpeg on the disk
            self._process = await asyncio.create_subprocess_exec(
                *command, stdin=pipe, stdout=pipe, stderr=pipe, env=ffmpeg_environment(), start_new_session=True
            )
            self._reading = asyncio.ensure_future(self._read(self._process))
            self._errors = asyncio.ensure_future(tail(self._process))
        return self._process

    def _gives_no_more(self) -> bool:
        return self._reading is not None and self._reading.done()

    async def _taken(self, stdin: asyncio.StreamWriter) -> bool:
        """Wait until ffmpeg takes its input; False when it died, is stuck, or `sink` takes nothing from it any more."""
        draining = asyncio.ensure_future(stdin.drain())
        others = {self._reading} if self._reading is not None else set()
        try:
            await asyncio.wait({draining, *others}, timeout=WRITE_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            return draining.done() and draining.exception() is None
        finally:
            draining.cancel()

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        while sound := await process.stdout.read(READ_BYTES):
            await self._sink(sound)

    async def _bury(self) -> None:
        """Take leave of the process: read it out, end it if it lives, log what it said."""
        process, reading, errors = self._process, self._reading, self._errors
        self._process = self._reading = self._errors = None
        if process is None or reading is None or errors is None:
            return
        if process.returncode is not None and not reading.done():
            await asyncio.wait({reading}, timeout=FLUSH_SECONDS)
        whole = reading.done() and not reading.cancelled() and reading.exception() is None
        if process.returncode is None and not whole:  # it would wait for ever for somebody who takes its output
            with suppress(ProcessLookupError):
                process.kill()
        reading.cancel()
        await asyncio.wait({reading})
        if process.stdin is not None:
            process.stdin.close()
        code = await ended(process)
        said = (await errors).decode("utf-8", "replace").strip()
        if code != 0 or said:
            log.warning("%s: ffmpeg ended with %d: %s", self._name, code, said.splitlines()[-1] if said else "no word")
        if not reading.cancelled() and (error := reading.exception()) is not None:
            raise error


async def ended(process: asyncio.subprocess.Process) -> int:
    """Wait for the end of a process whose output nobody reads any more, and give its exit code."""
    assert process.stdout is not None
    while await process.stdout.read(READ_BYTES):  # asyncio waits for its pipes too, of which a full one stays open
        pass
    return await process.wait()


async def tail(process: asyncio.subprocess.Process) -> bytes:
    """Read stderr to its end, and keep the last of it."""
    assert process.stderr is not None
    kept = b""
    while chunk := await process.stderr.read(ERROR_BYTES):
        kept = (kept + chunk)[-ERROR_BYTES:]
    return kept
