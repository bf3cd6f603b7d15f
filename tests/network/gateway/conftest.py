"""A gateway with orchestrators and containers on loopback: real ones, behind a relay, or scripts."""

import asyncio
import io
import json
from contextlib import AsyncExitStack

import aiohttp
import pytest

from tests.network.conftest import Lengths, Listener, Script, job
from tests.waiting import until
from whisper_byoc.network import gateway as gateway_app
from whisper_byoc.network import orchestrator as orchestrator_app
from whisper_byoc.network.pool import Container
from whisper_byoc.network.serving import Address, NetworkLimits
from whisper_byoc.server.streams import output as stream_output
from whisper_byoc.trickle import TricklePublisher, TrickleSubscriber

ANYWHERE = Address("127.0.0.1:0", 1)


class Pixels:
    """Writes frames as text: with `?width=1&height=1` every 3 bytes of a feed give a result at once."""

    media = "video"
    content_type = "text/plain; charset=utf-8"

    async def process(self, frame):
        if frame == b"bad":
            raise ValueError("a bad frame")
        return frame[::-1]


class Relay(Listener):
    """Passes bytes to an orchestrator until all connections are cut; while it is down it refuses to listen."""

    def __init__(self):
        super().__init__()
        self.target = 0

    async def handle(self, reader, writer):
        there, out = await asyncio.open_connection("127.0.0.1", self.target)
        try:
            await asyncio.gather(self._pass(reader, out), self._pass(there, writer))
        finally:
            out.transport.abort()

    async def _pass(self, reader, writer):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()


class Orchestrator:
    """A real one."""

    def __init__(self, running, url, relay=None):
        self.running = running
        self.url = url
        self.relay = relay

    @property
    def slots(self):
        return self.running.pool.jobs


def offering(**names):
    return {"capabilities": [{"name": name, "available": free} for name, free in names.items()]}


OURS = ("GatewayStream.", "RequestBody.", "forward")
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
        while not wanted(status := (await self.json(f"/process/stream/{name}/status"))[1]):
            await asyncio.sleep(0.005)
        return status

    async def received(self, size):
        """Wait until so many bytes of the stream `one` have arrived at the gateway."""
        channel = self.running.trickle.get("one")
        await until(lambda: sum(segment.size for segment in channel.segments) == size)

    async def offers(self, wanted):
        """Wait until what the gateway says of its orchestrators is as wanted."""
        while not wanted((await self.json("/capabilities"))[1]):
            await asyncio.sleep(0.005)

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
    """Bytes of sound that `Lengths` has told of."""
    return sum(int(record["text"].split()[0]) for record in found if record.get("text"))


class World:
    """Makes gateways, orchestrators and containers that last until the end of the test."""

    def __init__(self, stack, serving, http):
        self.stack = stack
        self.serving = serving
        self.http = http
        self.Sound, self.Pixels, self.heard = Lengths, Pixels, heard
        self.header, self.stream_header, self.offering = header, stream_header, offering

    async def orchestrator(self, *apis, name="test", capacity=8, relayed=False, urls=(), **limits):
        relay = None
        if relayed:
            relay = Relay()
            await relay.listen()
            self.stack.push_async_callback(relay.close)
        containers = [Container(name, url, capacity) for url in (*(api.url for api in apis), *urls)]
        config = orchestrator_app.OrchestratorConfig(
            service=Address(f"127.0.0.1:{relay.port}", 1) if relay else ANYWHERE,
            listen=ANYWHERE,
            secret="secret",
            containers=containers,
            limits=NetworkLimits(**{"drain_seconds": 1.0, "ask_seconds": 0.1, **limits}),
        )
        running = await self.stack.enter_async_context(orchestrator_app.running(config))
        if relay:
            relay.target = running.port
        await until(lambda: all(each.ready for each in running.pool))
        return Orchestrator(running, f"http://127.0.0.1:{relay.port if relay else running.port}", relay)

    async def script(self, answer, offers=None, token=None):
        script = Script(answer)
        for path, told in (("/capabilities", offers), ("/process/token", token)):
            script.told[path] = (404, b"404 page not found\n") if told is None else (200, json.dumps(told).encode())
        await script.listen()
        self.stack.push_async_callback(script.close)
        return script

    async def gateway(self, *orchestrators, public_host="", stack=None, **limits):
        config = gateway_app.GatewayConfig(
            listen=ANYWHERE,
            orchestrators=[each if isinstance(each, str) else each.url for each in orchestrators],
            public_host=public_host,
            limits=NetworkLimits(**{"drain_seconds": 2.0, **limits}),
        )
        running = await (stack or self.stack).enter_async_context(gateway_app.running(config))
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
