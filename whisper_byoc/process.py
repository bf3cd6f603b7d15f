"""Programs that run as children of the event loop and never outlive their owner."""

import asyncio
import logging
import os
import signal
from asyncio.subprocess import PIPE, STDOUT, SubprocessStreamProtocol
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Self

log = logging.getLogger(__name__)

BUFFER_BYTES = 64 * 1024
ERROR_BYTES = 4096
"""How many bytes of the end of stderr are kept."""
CLOSE_SECONDS = 2.0
"""Longest wait for a program that was killed, and for the rest of its stderr."""


class Program:
    """One run of a program, within `async with` or between `start` and `close`.

    It has its own session: a terminal's Ctrl-C does not reach it, and `kill` also ends the processes it has started.
    However the owner exits, even by cancellation, the program is killed and its pipes are closed.

    Args:
        command: the program and its arguments.
        environment: replaces the environment that children inherit.
        merge_stderr: write stderr into stdout instead of keeping its end for `last_error`.
    """

    stdin: asyncio.StreamWriter
    stdout: asyncio.StreamReader

    def __init__(
        self,
        command: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        merge_stderr: bool = False,
    ) -> None:
        self._command = command
        self._environment = environment
        self._merge_stderr = merge_stderr
        self._errors = b""

    async def start(self) -> None:
        """Start it.

        Raises `OSError` when it cannot be started; then there is nothing to close.
        """
        # asyncio.create_subprocess_exec hides the transport, without which the pipes cannot be closed
        self._transport, self._protocol = await asyncio.get_running_loop().subprocess_exec(
            _Streams,
            *self._command,
            stdin=PIPE,
            stdout=PIPE,
            stderr=STDOUT if self._merge_stderr else PIPE,
            env=self._environment,
            start_new_session=True,
        )
        assert self._protocol.stdin is not None
        assert self._protocol.stdout is not None
        self.stdin, self.stdout = self._protocol.stdin, self._protocol.stdout
        self._reading_errors = asyncio.create_task(self._read_errors())

    @property
    def returncode(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs."""
        return self._transport.get_returncode() if self._protocol.exited.is_set() else None

    @property
    def errors(self) -> list[str]:
        """The last non-empty lines on stderr; complete once `close` has returned."""
        lines = (line.strip() for line in self._errors.decode("utf-8", "replace").splitlines())
        return [line for line in lines if line]

    @property
    def last_error(self) -> str:
        """The last of `errors`, at most 200 characters; empty if there is none."""
        return self.errors[-1][:200] if self.errors else ""

    async def wait(self, timeout: float | None = None) -> int:
        """Wait for its end and return its exit code.

        Raises `TimeoutError`.
        """
        async with asyncio.timeout(timeout):
            await self._protocol.exited.wait()
        return self._transport.get_returncode() or 0

    def terminate(self) -> None:
        """Ask it to end (SIGTERM)."""
        if self.returncode is None:
            with suppress(ProcessLookupError):
                self._transport.terminate()

    def kill(self) -> None:
        """Kill it and the processes it has started; does nothing once all of them have ended."""
        if self.returncode is None or not self._reading_errors.done():  # its children hold stderr open
            with suppress(ProcessLookupError):
                os.killpg(self._transport.get_pid(), signal.SIGKILL)

    async def close(self) -> None:
        """Kill it if it still runs, wait until it is gone, and close its pipes. May be called repeatedly."""
        self.kill()
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                await self._protocol.exited.wait()
                await asyncio.wait({self._reading_errors})
        except TimeoutError:
            log.warning("%s: a process that it has started left its session and goes on", self._command[0])
        finally:
            self._reading_errors.cancel()
            self._transport.close()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _read_errors(self) -> None:
        while self._protocol.stderr and (chunk := await self._protocol.stderr.read(ERROR_BYTES)):
            self._errors = (self._errors + chunk)[-ERROR_BYTES:]


class _Streams(SubprocessStreamProtocol):
    """Reports when the program has exited; asyncio's own `Process.wait` also waits until its pipes are drained."""

    def __init__(self) -> None:
        super().__init__(limit=BUFFER_BYTES, loop=asyncio.get_running_loop())
        self.exited = asyncio.Event()

    def process_exited(self) -> None:
        super().process_exited()
        self.exited.set()


async def output_of(
    command: Sequence[str], timeout: float, environment: Mapping[str, str] | None = None
) -> tuple[int, str]:
    """Run a program to completion without input; return its exit code and its output, including stderr.

    Raises `OSError` when it cannot be started, `TimeoutError` when it takes longer than `timeout` seconds.
    """
    async with Program(command, environment=environment, merge_stderr=True) as program, asyncio.timeout(timeout):
        program.stdin.close()
        output = await program.stdout.read()
        return await program.wait(), output.decode("utf-8", "replace")
