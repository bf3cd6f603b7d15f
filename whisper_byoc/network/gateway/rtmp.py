"""RTMP as a way into a stream: a port for each stream, with ffmpeg behind it for as long as somebody publishes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass

from yarl import URL

from whisper_byoc.network.gateway.session import Session
from whisper_byoc.network.serving import Address
from whisper_byoc.network.tasks import Tasks, within
from whisper_byoc.trickle import LocalPublisher, TrickleError, TrickleServer
from whisper_byoc.trickle.byhand import by_time
from whisper_byoc.trickle.http import describe

__all__ = ["RtmpConfig", "RtmpPorts"]

log = logging.getLogger("whisper_byoc.network.gateway")

MOST_PORTS = 16
READ_BYTES = 32 * 1024
PACKET_BYTES = 188
"""MPEG-TS comes in packets of this size; a segment is cut between two."""
SEGMENT_S = 1.0
HELLO = b"\x03"
"""The first byte of every RTMP connection: the version."""
HELLO_S = 5.0
MOST_WAITING = 8
"""So many connections may be there before their first byte has come."""
LISTEN_S = 10.0
"""Longest wait for ffmpeg to listen."""
STALL_S = 60.0
"""A publisher that sends nothing for so long is gone."""
END_S = 2.0
MAKE_WAY_S = END_S + 1.0
"""A publisher that comes back at once waits so long for the end of its last connection."""
FLUSH_S = 0.5
"""At a stop: longest wait for the rest of a publisher that is leaving."""
WILDCARDS = ("", "0.0.0.0", "[::]")


@dataclass(frozen=True)
class RtmpConfig:
    """Where publishers connect, and how ffmpeg is run."""

    address: Address
    """The first stream has this port, others the next that are free."""
    command: Callable[[int], Sequence[str]]
    """Makes the command line of an ffmpeg that waits for RTMP on a port of loopback, and writes MPEG-TS to stdout."""
    environment: Mapping[str, str]


class RtmpPorts:
    """The ports in use. ffmpeg serves one publisher and does not tell streams apart, hence a port for each stream."""

    def __init__(self, config: RtmpConfig | None) -> None:
        self._config = config
        self._entries: set[Entry] = set()
        self._closing = Tasks()

    async def open(self, session: Session, trickle: TrickleServer, host: str) -> str:
        """Give the URL to which the stream's media can be published; empty without RTMP, or when no port is free.

        `host` is how clients reach this gateway; the URL has it where RTMP listens on all interfaces.
        """
        channel = trickle.channels.get(session.input_name)
        if self._config is None or channel is None or not session.takes_media:
            return ""
        entry = Entry(session.id, LocalPublisher(channel), self._config)
        address = self._config.address
        for port in range(address.port, min(address.port + MOST_PORTS, 65536)) if address.port else [0]:
            with contextlib.suppress(OSError):
                bound = await entry.listen(port)
                self._entries.add(entry)
                session.before_stop = entry.finish
                session.over.add_done_callback(lambda _: self._close(entry))
                name = URL(host if "://" in host else f"//{host}").host if address.host in WILDCARDS else address.host
                return f"rtmp://{name}:{bound}/live/{session.id}"
        log.warning("stream %s: none of %d RTMP ports from %d on is free", session.id, MOST_PORTS, address.port)
        return ""

    async def close(self) -> None:
        """End all of them, and wait until nothing is left."""
        for entry in tuple(self._entries):
            self._close(entry)
        await self._closing.close(grace_seconds=2 * END_S)

    def _close(self, entry: Entry) -> None:
        if entry in self._entries:
            self._entries.remove(entry)
            self._closing.start(entry.close())


class Entry:
    """One port: whoever connects is put through to an ffmpeg, whose MPEG-TS goes into the stream."""

    def __init__(self, stream_id: str, publisher: LocalPublisher, config: RtmpConfig) -> None:
        self._stream_id = stream_id
        self._publisher = publisher
        self._config = config
        self._server: asyncio.Server | None = None
        self._connections = Tasks()
        self._one_at_a_time = asyncio.Lock()
        self._incoming: asyncio.Task[None] | None = None

    async def listen(self, port: int) -> int:
        """Listen, and give the port.

        Raises `OSError` when it is taken.
        """
        self._server = await asyncio.start_server(self._accept, self._config.address.listen_host, port)
        return int(self._server.sockets[0].getsockname()[1])

    async def finish(self) -> None:
        """Listen no more, and have what has arrived written to the stream."""
        if self._server is not None:
            self._server.close()
        if self._incoming is not None:
            await asyncio.wait({self._incoming}, timeout=FLUSH_S)
            self._incoming.cancel()  # ffmpeg comes to the end of its input
            await self._connections.close(grace_seconds=END_S)

    async def close(self) -> None:
        """Listen no more, and end the publisher that is there."""
        if self._server is not None:
            self._server.close()
        await self._connections.close()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._connections) > MOST_WAITING:
            writer.close()
        else:
            self._connections.start(self._serve(reader, writer))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Put a publisher through, if it is one and the only one."""
        try:
            hello = await within(HELLO_S, reader.read(1))
            if hello != HELLO:
                log.info("stream %s: a connection to its RTMP port spoke something else", self._stream_id)
                return
            try:
                await within(MAKE_WAY_S, self._one_at_a_time.acquire())
            except TimeoutError:
                log.warning("stream %s: a second RTMP publisher was turned away", self._stream_id)
                return
            try:
                await self._put_through(hello, reader, writer)
            finally:
                self._one_at_a_time.release()
        except (TimeoutError, OSError, TrickleError) as error:
            log.warning("stream %s: RTMP ended: %s", self._stream_id, describe(error))
        finally:
            writer.close()

    async def _put_through(self, hello: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        log.info("stream %s: an RTMP publisher has come", self._stream_id)
        port = free_port()
        process = await asyncio.create_subprocess_exec(
            *self._config.command(port), stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
            env=dict(self._config.environment), start_new_session=True,
        )  # fmt: skip
        loop = asyncio.get_running_loop()
        tasks: list[asyncio.Task[None]] = []
        try:
            inner, outer = await connect(port, process)
            outer.write(hello)
            self._incoming = loop.create_task(pump(reader, outer, STALL_S))
            tasks = [self._incoming, loop.create_task(pump(inner, writer, None))]
            assert process.stdout is not None
            await self._publish(process.stdout)
        finally:
            for task in tasks:
                task.cancel()
            await ended(process)
            await asyncio.gather(*tasks, return_exceptions=True)
            log.info("stream %s: the RTMP publisher has gone", self._stream_id)

    async def _publish(self, source: asyncio.StreamReader) -> None:
        """Write MPEG-TS as segments of a second."""
        writer = None
        try:
            async for data, last in by_time(SEGMENT_S)(packets(source)):
                writer = writer or await self._publisher.next()
                await writer.write(data)
                if last:
                    await writer.close()
                    writer = None
        finally:
            if writer is not None:
                await writer.close()


async def ended(process: asyncio.subprocess.Process) -> None:
    """Wait for a process that has lost its input, and kill it if it does not end, or if nobody waits any longer."""
    try:
        await within(END_S, process.wait())
    except TimeoutError:
        log.debug("ffmpeg is killed")
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


async def packets(source: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """Yield whole MPEG-TS packets as they come."""
    rest = b""
    while data := await source.read(READ_BYTES):
        whole = rest + data
        cut = len(whole) - len(whole) % PACKET_BYTES
        rest = whole[cut:]
        if cut:
            yield whole[:cut]


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, silence: float | None) -> None:
    """Copy one direction of a connection, and end it at the end, or after so many seconds of silence."""
    try:
        while data := await within(silence, reader.read(READ_BYTES)):
            writer.write(data)
            await within(STALL_S, writer.drain())
    except (TimeoutError, OSError):
        pass  # one side has gone; the other notices by the end of it
    finally:
        writer.close()


async def connect(port: int, process: asyncio.subprocess.Process) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect to a program that is about to listen.

    Raises `OSError` when it does not.
    """
    deadline = asyncio.get_running_loop().time() + LISTEN_S
    while True:
        try:
            return await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            if process.returncode is not None or asyncio.get_running_loop().time() > deadline:
                raise
            await asyncio.sleep(0.02)


def free_port() -> int:
    """Find a port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
