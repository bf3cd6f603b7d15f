"""A real orchestrator on loopback, processors that cost nothing, and containers that follow a script."""

import asyncio
import base64
import io
import json
import types
from contextlib import AsyncExitStack

import aiohttp
import pytest

from tests.waiting import until
from whisper_byoc.network.orchestrator import OrchestratorConfig, running
from whisper_byoc.network.pool import Container
from whisper_byoc.network.serving import Address, NetworkLimits

NDJSON = {"Accept": "application/x-ndjson"}
SSE = {"Accept": "text/event-stream"}


class Upper:
    """A text pipeline whose every live body is one segment."""

    content_type = "text/plain; charset=utf-8"

    async def process(self, frame):
        if frame == b"fail":
            raise ValueError("it was told to fail")
        return frame.upper()


class Lengths:
    """Stands in for speech: `n bytes` for each segment; live feeds are cut as sound is."""

    media = "audio"
    content_type = "text/plain; charset=utf-8"

    async def process(self, frame):
        return b"%d bytes" % len(frame)


class Reverse:
    """A pipeline of frames, which with `?width=&height=` cuts a live feed."""

    def __init__(self):
        self.frames = []

    async def process(self, frame):
        self.frames.append(frame)
        if frame == b"fail  ":
            raise ValueError("it was told to fail")
        return frame[::-1]


class Gated:
    """Works on nothing before it may."""

    content_type = "text/plain; charset=utf-8"

    def __init__(self):
        self.open = asyncio.Event()
        self.begun = 0

    async def process(self, frame):
        self.begun += 1
        await self.open.wait()
        return frame


class Feed:
    """A chunked body that is sent as the test says."""

    def __init__(self):
        self._queue = asyncio.Queue()

    def send(self, data):
        self._queue.put_nowait(data)

    def end(self):
        self._queue.put_nowait(None)

    async def __aiter__(self):
        yield b""  # or aiohttp would send the head with the first chunk only
        while (data := await self._queue.get()) is not None:
            yield data


class Orchestrator:
    """An orchestrator under test and an HTTP session to it."""

    def __init__(self, run, http):
        self.run = run
        self.pool = run.pool
        self.url = f"http://127.0.0.1:{run.port}"
        self.port = run.port
        self.http = http

    async def json(self, path):
        async with self.http.get(f"{self.url}{path}") as answer:
            return answer.status, await answer.json()

    async def status(self):
        return (await self.json("/status"))[1]

    async def ready(self, count=1):
        """So many containers can take jobs, and their pipelines are known."""
        await until(lambda: sum(each.ready and each.pipelines is not None for each in self.pool) >= count)

    async def quiet(self):
        """No slot, stream, task, channel or byte is left."""
        left = {}

        def nothing_left():
            left.update(
                slots=self.pool.jobs, streams=len(self.run.streams), held=self.run.memory.held,
                channels=len(self.run.trickle.channels),
            )  # fmt: skip
            return not any(left.values())

        try:
            await until(nothing_left)
        except AssertionError:
            raise AssertionError(f"left: {left}") from None

    def post(self, path, data=None, **options):
        data = io.BytesIO(data) if isinstance(data, bytes) else data
        return self.http.post(f"{self.url}{path}", data=data, **options)

    async def live(self, data, *, model="test", query="", **headers):
        """One frame, or an async iterable as a live feed; the whole answer."""
        headers = {"X-Model-Id": model, **headers}
        async with self.post(f"/live/video-to-video{query}", data, headers=headers) as answer:
            return answer.status, await answer.read(), answer.headers

    async def records(self, data, *, model="test", query=""):
        status, body, headers = await self.live(data, model=model, query=query, **NDJSON)
        assert status == 200, body
        assert headers["Content-Type"] == "application/x-ndjson"
        return [json.loads(line) for line in body.splitlines()]

    async def batch(self, data=b"", route="", *, capability="test", timeout=10, headers=None):
        headers = {**job(capability, timeout), **(headers or {})}
        async with self.post(f"/process/request/{route}", data, headers=headers) as answer:
            return answer.status, await answer.read(), answer.headers

    async def register(self, secret="", **fields):
        body = {"name": "test", "capacity": 4, **fields}
        headers = {"Authorization": secret} if secret else {}
        async with self.post("/capability/register", json.dumps(body).encode(), headers=headers) as answer:
            return answer.status, await answer.text()


def job(capability="test", timeout=10, request="{}", parameters="{}", **more):
    """The header of a job."""
    fields = {"capability": capability, "timeout_seconds": timeout, "request": request, "parameters": parameters}
    return {"Livepeer": base64.b64encode(json.dumps(fields | more).encode()).decode()}


@pytest.fixture
async def orchestrate():
    """Give a function that runs an orchestrator over these containers until the test is over."""
    async with AsyncExitStack() as stack:

        async def start(*containers, wait=True, secret="", trickle_host="", capacity=4, name="test", **limits):
            known = [
                each if isinstance(each, Container) else Container(name, getattr(each, "url", each), capacity)
                for each in containers
            ]
            limits = NetworkLimits(**{"ask_seconds": 0.05, "linger_seconds": 0.05, "drain_seconds": 5.0, **limits})
            config = OrchestratorConfig(
                Address("127.0.0.1:0", 8936), secret=secret, containers=known, trickle_host=trickle_host, limits=limits
            )
            run = await stack.enter_async_context(running(config))
            session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30))
            orchestrator = Orchestrator(run, await stack.enter_async_context(session))
            if wait:
                await orchestrator.ready(len(known))
            return orchestrator

        yield start


class Wire:
    """One connection to a scripted peer, and the request that came over it."""

    def __init__(self, reader, writer):
        self.reader = reader
        self.writer = writer
        self.method = self.path = ""
        self.query = ""
        self.headers = {}

    async def next(self):
        lines = (await self.reader.readuntil(b"\r\n\r\n")).decode()[:-4].split("\r\n")
        self.method, target, _ = lines[0].split(" ")
        self.path, _, self.query = target.partition("?")
        self.headers = {key.lower(): value for key, value in (line.split(": ", 1) for line in lines[1:])}

    async def chunk(self):
        """The next chunk of a chunked body; empty at its end."""
        size = int(await self.reader.readuntil(b"\r\n"), 16)
        data = await self.reader.readexactly(size)
        await self.reader.readexactly(2)
        return data

    async def body(self):
        if "chunked" not in self.headers.get("transfer-encoding", ""):
            return await self.reader.readexactly(int(self.headers.get("content-length", 0)))
        data = b""
        while more := await self.chunk():
            data += more
        return data

    async def answer(self, status=200, body=b"", **headers):
        """A whole answer with its length."""
        lines = [f"HTTP/1.1 {status} x", f"Content-Length: {len(body)}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        await self.write("\r\n".join([*lines, "", ""]).encode() + body)

    async def begin(self, status=200, **headers):
        """The head of an answer in chunks."""
        lines = [f"HTTP/1.1 {status} x", "Transfer-Encoding: chunked"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        await self.write("\r\n".join([*lines, "", ""]).encode())

    async def piece(self, data):
        """One chunk of an answer; an empty one ends it."""
        await self.write(b"%x\r\n%b\r\n" % (len(data), data))

    async def write(self, data):
        self.writer.write(data)
        await self.writer.drain()

    def cut(self):
        self.writer.transport.abort()


class Listener:
    """A server whose connections end with it; subclasses have `handle(reader, writer)`."""

    def __init__(self):
        self.port = 0
        self._listener = None
        self._connections = set()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    async def listen(self):
        """Begin, or begin again at the same port."""
        self._listener = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self.port = self._listener.sockets[0].getsockname()[1]

    def _accept(self, reader, writer):
        if not self._listener.is_serving():  # it had been in the backlog
            writer.transport.abort()
            return
        task = asyncio.ensure_future(self._serve(reader, writer))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _serve(self, reader, writer):
        try:
            await self.handle(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.transport.abort()

    async def close(self):
        """Refuse connections and cut those there are, as a killed process does."""
        self._listener.close()
        tasks = set(self._connections)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Script(Listener):
    """A peer that answers what a function says, and remembers what it was asked. As a container it is well."""

    def __init__(self, answer):
        super().__init__()
        self.answer = answer
        self.asked = []
        self.headers = []
        self.told = {"/readyz": (200, b"{}"), "/version": (200, b'{"model_id":"test"}')}
        """What it says of itself: status and body."""
        self.frozen = False

    async def handle(self, reader, writer):
        wire = Wire(reader, writer)
        while True:
            await wire.next()
            if self.frozen:
                await asyncio.Event().wait()
            if wire.path in self.told:
                await wire.answer(*self.told[wire.path])
            else:
                self.asked.append((wire.method, wire.path))
                self.headers.append(wire.headers)
                await self.answer(wire)

    def count(self, method, ending=""):
        return sum(each[0] == method and each[1].endswith(ending) for each in self.asked)


@pytest.fixture
async def scripted():
    """Give a function that serves `answer(wire)` as a container."""
    async with AsyncExitStack() as stack:

        async def start(answer):
            script = Script(answer)
            await script.listen()
            stack.push_async_callback(script.close)
            return script

        yield start


@pytest.fixture
def kit():
    """What tests put together: processors, bodies, headers."""
    return types.SimpleNamespace(
        Upper=Upper, Lengths=Lengths, Reverse=Reverse, Gated=Gated, Feed=Feed, job=job, NDJSON=NDJSON, SSE=SSE,
    )  # fmt: skip
