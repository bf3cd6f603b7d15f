"""Real servers on loopback, raw connections, a relay that can be cut, and peers that follow a script."""

import asyncio
import io
from contextlib import AsyncExitStack

import aiohttp
import pytest

from tests.waiting import until
from tests.wires import Listener, Relay
from whisper_byoc.trickle import ClientOptions, TrickleLimits, TricklePublisher, TrickleServer, TrickleSubscriber

QUICK = {
    "patience_seconds": 5.0,
    "longest_pause": 0.1,
    "early_seconds": 0.01,
    "linger_seconds": 0.05,
    "absent_pause": 0.01,
}


class Wire:
    """One connection, byte for byte."""

    def __init__(self, reader, writer):
        self.reader = reader
        self.writer = writer

    async def send(self, *lines, body=b""):
        self.writer.write("\r\n".join([*lines, "", ""]).encode() + body)
        await self.writer.drain()

    async def write(self, data):
        self.writer.write(data)
        await self.writer.drain()

    async def head(self):
        """Read one status line with its headers, as a list of lines."""
        return (await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), 10)).decode()[:-4].split("\r\n")

    async def rest(self):
        return await asyncio.wait_for(self.reader.read(), 20)

    async def silent(self, seconds=0.05):
        """Nothing comes."""
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(self.reader.read(1), seconds)

    def cut(self):
        self.writer.transport.abort()


class Api:
    """A trickle server and the ways to it."""

    def __init__(self, server, base, http, stack):
        self.server = server
        self.base = base
        self.http = http
        self.stack = stack
        self.port = int(base.split(":")[2].split("/")[0])

    def url(self, name="ch"):
        return self.base + name

    async def request(self, method, path, data=None, **options):
        data = io.BytesIO(data) if isinstance(data, bytes) else data
        async with self.http.request(method, self.base + path, data=data, **options) as answer:
            return answer.status, await answer.read(), answer.headers

    async def get(self, path, **options):
        return await self.request("GET", path, **options)

    async def post(self, path, data=None, **options):
        return await self.request("POST", path, data, **options)

    async def delete(self, path, **options):
        return await self.request("DELETE", path, **options)

    async def wire(self, *lines):
        """Open a connection, and send a request's head."""
        wire = Wire(*await asyncio.open_connection("127.0.0.1", self.port))
        self.stack.callback(wire.cut)
        if lines:
            first, *headers = lines
            method, path = first.split(" ")
            await wire.send(f"{method} {self.server.base_path}{path} HTTP/1.1", "Host: x", *headers)
        return wire

    async def preconnect(self, path, *headers, data=b""):
        """Open a chunked POST, and send nothing; or `data`, and wait until it is stored."""
        wire = await self.wire(f"POST {path}", "Transfer-Encoding: chunked", *headers)
        if data:
            name, seq = path.split("/")
            await wire.write(b"%x\r\n%s\r\n" % (len(data), data))
            await self.stored(int(seq), len(data), name)
        return wire

    async def publisher(self, name="ch", mime="text/plain", *, keep_bytes=1 << 20, options=None, **more):
        options = ClientOptions(**{**QUICK, **(options or {})})
        publisher = TricklePublisher(self.url(name), mime, keep_bytes=keep_bytes, options=options, **more)
        return await self.stack.enter_async_context(publisher)

    async def subscriber(self, name="ch", start=-2, **options):
        subscriber = TrickleSubscriber(self.url(name), start, options=ClientOptions(**{**QUICK, **options}))
        return await self.stack.enter_async_context(subscriber)

    def slot(self, seq, name="ch"):
        """The segment that the server holds at this index, if any."""
        channel = self.server.channels.get(name)
        return next((each for each in channel.segments if each.seq == seq), None) if channel else None

    async def slot_there(self, seq, name="ch"):
        await until(lambda: self.slot(seq, name) is not None)
        return self.slot(seq, name)

    async def stored(self, seq, size, name="ch"):
        """Wait until so many bytes of the segment have arrived."""
        await until(lambda: (held := self.slot(seq, name)) and held.size == size)


@pytest.fixture
async def trickle():
    """Return a function that starts a trickle server on a free port of loopback."""
    async with AsyncExitStack() as stack:

        async def start(*, base_path="/ai/trickle/", autocreate=True, changefeed=False, **limits):
            server = TrickleServer(
                base_path, autocreate=autocreate, changefeed=changefeed, limits=TrickleLimits(**limits)
            )
            base = await stack.enter_async_context(server.listening("127.0.0.1", 0))
            session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=20), auto_decompress=False)
            http = await stack.enter_async_context(session)
            return Api(server, base, http, stack)

        yield start


@pytest.fixture
async def relayed(trickle):
    """Return a function that starts a trickle server behind a relay."""
    async with AsyncExitStack() as stack:

        async def start(**options):
            api = await trickle(**options)
            relay = Relay(api.port)
            await relay.listen()
            stack.push_async_callback(relay.close)
            behind = Api(api.server, api.base.replace(f":{api.port}/", f":{relay.port}/"), api.http, api.stack)
            return api, behind, relay

        yield start


class Script(Listener):
    """A server that answers what a function says, and remembers what it was asked."""

    def __init__(self, answer):
        super().__init__()
        self.answer = answer
        self.asked = []

    @property
    def url(self):
        return f"{super().url}/ch"

    @property
    def connections(self):
        return len(self._connections)

    async def handle(self, reader, writer):
        over = False
        while not over:
            lines = (await reader.readuntil(b"\r\n\r\n")).decode()[:-4].split("\r\n")
            method, path, _ = lines[0].split(" ")
            seq = path.rsplit("/", 1)[1]
            self.asked.append((method, seq))
            headers = {key.lower(): value for key, value in (line.split(": ", 1) for line in lines[1:])}
            over = await self.answer(len(self.asked) - 1, method, seq, Wire(reader, writer), headers)


@pytest.fixture
async def scripted():
    """Return a function that serves `answer(number, method, seq, wire, headers)`; a true result ends the connection."""
    async with AsyncExitStack() as stack:

        async def start(answer):
            script = Script(answer)
            await script.listen()
            stack.push_async_callback(script.close)
            return script

        yield start


@pytest.fixture
def quick():
    """Options that shorten every pause."""
    return lambda **options: ClientOptions(**{**QUICK, **options})
