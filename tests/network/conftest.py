"""Gateways and orchestrators on loopback, processors that cost nothing, and peers that follow a script."""

import asyncio
import base64
import io
import json
import types
from contextlib import AsyncExitStack

import aiohttp
import pytest

from tests.server.stubs import Sound
from tests.waiting import until
from tests.wires import Listener, Relay
from whisper_byoc.network import gateway as gateway_app
from whisper_byoc.network import orchestrator as orchestrator_app
from whisper_byoc.network.pool import Container
from whisper_byoc.network.serving import NetworkLimits
from whisper_byoc.server.streams import output as stream_output
from whisper_byoc.trickle import TricklePublisher, TrickleSubscriber

NDJSON = {"Accept": "application/x-ndjson"}
SSE = {"Accept": "text/event-stream"}
ANYWHERE = ("127.0.0.1", 0)


class Upper:
    """A text pipeline whose every live body is one segment."""

    content_type = "text/plain; charset=utf-8"

    async def process(self, frame):
        if frame == b"fail":
            raise ValueError("it was told to fail")
        return frame.upper()


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
    """An orchestrator under test and an HTTP session to it; others may reach it through a relay."""

    def __init__(self, run, http, relay=None):
        self.run = run
        self.pool = run.pool
        self.port = relay.port if relay else run.port
        self.url = f"http://127.0.0.1:{self.port}"
        self.relay = relay
        self.http = http

    @property
    def slots(self):
        return sum(len(each.slots) for each in self.pool)

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
                slots=self.slots, streams=len(self.run.streams), held=self.run.memory.held,
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
    """Return a function that runs an orchestrator over these containers until the test is over."""
    async with AsyncExitStack() as stack:

        async def start(*containers, wait=True, secret="", trickle_host="", capacity=4, name="test", **limits):
            known = [
                each if isinstance(each, Container) else Container(name, getattr(each, "url", each), capacity)
                for each in containers
            ]
            limits = NetworkLimits(**{"ask_seconds": 0.05, "linger_seconds": 0.05, "drain_seconds": 5.0, **limits})
            config = orchestrator_app.OrchestratorConfig(
                *ANYWHERE, secret=secret, containers=known, trickle_host=trickle_host, limits=limits
            )
            run = await stack.enter_async_context(orchestrator_app.Orchestrator.running(config))
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
        self.hanging = 0
        """Requests that it does not answer because it is frozen."""

    async def handle(self, reader, writer):
        wire = Wire(reader, writer)
        while True:
            await wire.next()
            if self.frozen:
                self.hanging += 1
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
    """Return a function that serves `answer(wire)` as a container."""
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
        Upper=Upper, Sound=Sound, Reverse=Reverse, Gated=Gated, Feed=Feed, job=job, NDJSON=NDJSON, SSE=SSE,
    )  # fmt: skip


# -- gateways, with what is behind them -----------------------------------------------------------------


class Pixels:
    """Writes frames as text: with `?width=1&height=1` every 3 bytes of a feed give a result at once."""

    media = "video"
    content_type = "text/plain; charset=utf-8"

    async def process(self, frame):
        if frame == b"bad":
            raise ValueError("a bad frame")
        return frame[::-1]


def offering(**names):
    return {"capabilities": [{"name": name, "available": free} for name, free in names.items()]}


OURS = ("GatewayStream.", "RequestBody.")
"""Coroutines of the gateway's that belong to one job or stream."""


def at_work():
    """What the gateway is doing for jobs and streams."""
    names = [task.get_coro().__qualname__ for task in asyncio.all_tasks()]
    return [name for name in names if name.startswith(OURS)]


class Gateway:
    """A gateway under test, and an HTTP session to it."""

    def __init__(self, running, http, stack):
        self.running = running
        self.http = http
        self.stack = stack
        self.url = f"http://127.0.0.1:{running.port}"

    async def json(self, path):
        async with self.http.get(self.url + path) as answer:
            return answer.status, await answer.json(content_type=None) if answer.status == 200 else await answer.text()

    async def post(self, path, data=b"", **options):
        body = io.BytesIO(data) if isinstance(data, bytes) else data
        async with self.http.post(self.url + path, data=body, **options) as answer:
            return answer.status, await answer.read(), answer.headers

    async def live(self, data, model="test", query="", **headers):
        headers = {"X-Model-Id": model, **headers}
        return await self.post(
            f"/live/video-to-video{query}", data, headers=headers, skip_auto_headers=["Content-Type"]
        )

    async def batch(self, data=b"", route="", job=None, **headers):
        return await self.post(
            f"/process/request/{route}", data, headers={"Livepeer": header(**(job or {})), **headers}
        )

    async def start(self, name="", params=None, **options):
        body = {"stream_id": name, "params": json.dumps(params) if params is not None else ""}
        status, answer, _ = await self.post(
            "/process/stream/start", json.dumps(body).encode(), headers={"Livepeer": stream_header(**options)}
        )
        return (status, json.loads(answer)) if status == 200 else (status, answer.decode())

    def follow(self, url, **headers):
        """Read a stream's events in the background."""
        reader = Reader(self.http, url, headers)
        self.stack.callback(reader.task.cancel)
        return reader

    async def publish(self, url, *segments):
        async with TricklePublisher(url, "video/MP2T") as publisher:
            for segment in segments:
                await publisher.publish(segment)

    async def end(self, url):
        async with self.http.delete(url) as answer:
            assert answer.status == 200

    def collect(self, url):
        """Read the segments of a channel in the background."""
        found = []

        async def run():
            async with TrickleSubscriber(url, start=0) as subscriber:
                async for segment in subscriber:
                    found.append(await segment.read())

        task = asyncio.ensure_future(run())
        self.stack.callback(task.cancel)
        return found, task

    async def status(self, name="one", wanted=lambda status: True):
        """Wait until the status of a stream is as wanted, and return it."""
        seen = []

        async def is_wanted():
            seen.append((await self.json(f"/process/stream/{name}/status"))[1])
            return wanted(seen[-1])

        await until(is_wanted)
        return seen[-1]

    async def received(self, size):
        """Wait until so many bytes of the stream `one` have arrived at the gateway."""
        channel = self.running.trickle.get("one")
        await until(lambda: sum(segment.size for segment in channel.segments) == size)

    async def offers(self, wanted):
        """Wait until what the gateway says of its orchestrators is as wanted."""

        async def are_wanted():
            return wanted((await self.json("/capabilities"))[1])

        await until(are_wanted)

    async def settled(self):
        """Wait until nothing is going on any more."""
        await until(lambda: not self.running.jobs and not len(self.running.streams))
        await until(lambda: not self.running.memory.held)
        await until(lambda: not at_work())


class Reader:
    """One reader of a stream's events."""

    def __init__(self, http, url, headers):
        self.events = []
        self.comments = 0
        self.connected = asyncio.Event()
        self.task = asyncio.ensure_future(self._run(http, url, headers))

    async def _run(self, http, url, headers):
        async with http.get(url, headers=headers) as answer:
            assert answer.status == 200, await answer.text()
            assert answer.headers["Content-Type"].startswith("text/event-stream")
            self.connected.set()
            fields = {}
            async for line in answer.content:
                name, _, value = line.decode().rstrip("\n").partition(": ")
                if name in ("id", "data", "event"):
                    fields[name] = value
                elif line == b"\n" and fields:
                    self.events.append(fields)
                    fields = {}
                elif line.startswith(b":"):
                    self.comments += 1

    @property
    def records(self):
        return [json.loads(each["data"]) for each in self.events if "event" not in each]

    async def ended(self):
        await asyncio.wait_for(self.task, 20)
        assert self.events[-1] == {"event": "end", "data": '{"type":"stream_ended"}'}
        return self.records


def header(capability="test", seconds=20, parameters=None, request=None, **rest):
    details = {"parameters": json.dumps(parameters or {}), "request": json.dumps(request or {})}
    return job(capability, seconds, **details, **rest)["Livepeer"]


def stream_header(capability="test", seconds=20, ingress=True, egress=False, data=True, **parameters):
    parameters |= {"enable_video_ingress": ingress, "enable_video_egress": egress, "enable_data_output": data}
    return header(capability, seconds, parameters)


class Worker:
    """A container by script: it answers what the test says, and writes to the channels what the test says."""

    def __init__(self, world):
        self.world = world
        self.started = []
        self.stops = 0
        self.refusal = None
        self.params = (200, b'{"said": "yes"}')
        self.on_stop = None
        self.stop_answer = b'{"bye": 1}'

    async def __call__(self, wire):
        body = await wire.body()
        if wire.path == "/stream/start":
            if self.refusal:
                await wire.answer(*self.refusal)
                return
            self.started.append(json.loads(body))
        elif wire.path == "/stream/stop":
            self.stops += 1
            if self.on_stop:
                await self.on_stop()
            await wire.answer(200, self.stop_answer, Content_Type="application/json")
            return
        elif wire.path == "/stream/params":
            self.asked = body
            await wire.answer(*self.params, Content_Type="application/json")
            return
        await wire.answer(200, b"{}", Content_Type="application/json")

    def url(self, kind, number=-1):
        return self.started[number][f"{kind}_url"]

    async def say(self, *messages, kind="data", number=-1):
        async with TricklePublisher(self.url(kind, number), "application/json", join=True) as publisher:
            for message in messages:
                data = message if isinstance(message, bytes) else json.dumps(message).encode() + b"\n"
                await publisher.publish(data)

    async def event(self, *events, number=-1):
        await self.say(*({"event": event} for event in events), kind="events", number=number)


def heard(found):
    """Bytes of sound that `Sound` has told of."""
    return sum(int(record["text"].split()[0]) for record in found if record.get("text"))


class World:
    """Makes gateways, orchestrators and containers that last until the end of the test."""

    def __init__(self, stack, serving, http):
        self.stack = stack
        self.serving = serving
        self.http = http
        self.Sound, self.Pixels, self.heard = Sound, Pixels, heard
        self.header, self.stream_header, self.offering = header, stream_header, offering

    async def orchestrator(self, *apis, name="test", capacity=8, relayed=False, urls=(), **limits):
        relay = None
        if relayed:
            relay = Relay()
            await relay.listen()
            self.stack.push_async_callback(relay.close)
        containers = [Container(name, url, capacity) for url in (*(api.url for api in apis), *urls)]
        config = orchestrator_app.OrchestratorConfig(
            *ANYWHERE,
            service_port=relay.port if relay else 0,
            secret="secret",
            containers=containers,
            limits=NetworkLimits(**{"drain_seconds": 1.0, "ask_seconds": 0.1, **limits}),
        )
        running = await self.stack.enter_async_context(orchestrator_app.Orchestrator.running(config))
        if relay:
            relay.target = running.port
        await until(lambda: all(each.ready for each in running.pool))
        return Orchestrator(running, self.http, relay)

    async def script(self, answer, offers=None):
        script = Script(answer)
        told = (404, b"404 page not found\n") if offers is None else (200, json.dumps(offers).encode())
        script.told["/capabilities"] = told
        await script.listen()
        self.stack.push_async_callback(script.close)
        return script

    async def gateway(self, *orchestrators, public_host="", stack=None, **limits):
        config = gateway_app.GatewayConfig(
            *ANYWHERE,
            orchestrators=[each if isinstance(each, str) else each.url for each in orchestrators],
            public_host=public_host,
            limits=NetworkLimits(**{"drain_seconds": 2.0, **limits}),
        )
        running = await (stack or self.stack).enter_async_context(gateway_app.Gateway.running(config))
        made = Gateway(running, self.http, self.stack)
        await made.offers(lambda told: all(each["trouble"] != "not asked yet" for each in told["orchestrators"]))
        return made

    async def pair(self, processor, *, capacity=8, container=None, **limits):
        """One of each."""
        api = await self.serving(processor, **(container or {}))
        orchestrator = await self.orchestrator(api, capacity=capacity)
        gateway = await self.gateway(orchestrator, **limits)
        gateway.api, gateway.orchestrator = api, orchestrator
        return gateway

    async def worker_pair(self, *, relayed=False, **limits):
        """A container by script, with an orchestrator and a gateway."""
        worker = await self.worker(relayed=relayed)
        return worker, await self.gateway(worker.orchestrator, **limits)

    async def two_workers(self):
        """Two of them, each with an orchestrator of its own, at one gateway."""
        workers = [await self.worker(relayed=True) for _ in range(2)]
        return workers, await self.gateway(*(worker.orchestrator for worker in workers))

    async def worker(self, *, relayed):
        worker = Worker(self)
        worker.script = await self.script(worker)
        worker.orchestrator = await self.orchestrator(urls=[worker.script.url], relayed=relayed)
        return worker

    async def over(self, gateway):
        """Wait until nothing is left of any stream, on any hop."""
        await gateway.settled()
        await until(lambda: not gateway.running.trickle.channels)
        if hasattr(gateway, "orchestrator"):
            await until(lambda: gateway.orchestrator.slots == 0)
            await until(lambda: not gateway.api.server.streams.streams)
            assert (await gateway.json("/status"))[1]["streams"] == 0


@pytest.fixture
async def world(serving, monkeypatch):
    monkeypatch.setattr(stream_output, "FIRST_LINE_S", 0.1)
    async with AsyncExitStack() as stack:
        http = await stack.enter_async_context(aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30)))
        yield World(stack, serving, http)
