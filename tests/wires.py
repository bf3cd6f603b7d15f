"""Listeners on loopback whose connections end with them, and one that passes bytes on until it is told to cut."""

import asyncio
import contextlib

from tests.ports import free_port
from whisper_byoc.aio import stop_listening


class Listener:
    """A server whose connections end with it; subclasses have `handle(reader, writer)`."""

    def __init__(self):
        self.port = free_port()  # which nobody takes while it does not listen
        self._listener = None
        self._connections = set()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    async def listen(self):
        """Begin, or begin again at the same port."""
        self._listener = await asyncio.start_server(self._accept, "127.0.0.1", self.port)

    def _accept(self, reader, writer):
        task = asyncio.ensure_future(self._serve(reader, writer))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)
        task.add_done_callback(lambda _: writer.transport.abort())  # also of one that is cancelled before it begins

    async def _serve(self, reader, writer):
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            await self.handle(reader, writer)

    async def refuse(self):
        """Refuse connections; those there are go on."""
        await stop_listening(self._listener)

    async def close(self):
        """Refuse connections and cut those there are, as a killed process does."""
        await self.refuse()
        tasks = set(self._connections)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Relay(Listener):
    """Passes bytes to a port of loopback, and back; while it is not `up`, it cuts every connection at once."""

    def __init__(self, target=0):
        super().__init__()
        self.target = target
        self.up = True
        self.after = None
        """Called with bytes and whether they go to the target, before they are passed on; cuts if it returns None."""
        self.connections = 0
        self._writers = set()

    @property
    def passing(self):
        return bool(self._writers)

    async def handle(self, reader, writer):
        self.connections += 1
        if not self.up:
            return
        there, out = await asyncio.open_connection("127.0.0.1", self.target)
        self._writers |= {writer, out}
        try:
            await asyncio.gather(self._pass(reader, out, to_target=True), self._pass(there, writer, to_target=False))
        finally:
            self._writers -= {writer, out}
            out.transport.abort()

    async def _pass(self, reader, writer, *, to_target):
        while data := await reader.read(65536):
            if self.after and (data := self.after(data, to_target)) is None:
                self.cut()
                return
            writer.write(data)
            await writer.drain()
        writer.write_eof()

    def cut(self):
        for writer in self._writers:
            writer.transport.abort()
