"""A process is killed, or told to end, in mid-job.

Killed: its own jobs end with one error each, all others go on, and nothing is left of them.

What is killed is a process of its own; what only stands around it runs in that of the test.
"""

import asyncio
import base64
import contextlib
import json
import re
import types

import pytest

from tests.waiting import until
from whisper_byoc import GatewayClient
from whisper_byoc.errors import ClientError, ServerRefused
from whisper_byoc.network import directory, gateway, orchestrator, pool
from whisper_byoc.network.pool import Container
from whisper_byoc.network.serving import NetworkLimits
from whisper_byoc.server.streams import output as stream_output
from whisper_byoc.trickle import TrickleError, TricklePublisher

SOUND = """
import asyncio

class Sound:
    media = "audio"
    content_type = "text/plain; charset=utf-8"

    async def process(self, frame):
        if frame.startswith(b"slow"):
            await asyncio.sleep(60)
        return b"%d bytes" % len(frame)
"""
TALK = bytes(16 * 32000)
"""Of its first 15 s there is a record at once."""
DETAILS = {"enable_video_ingress": True, "enable_data_output": True}
JOB = {"request": "{}", "parameters": json.dumps(DETAILS), "capability": "Sound", "timeout_seconds": 30}
HEADERS = {"Livepeer": base64.b64encode(json.dumps(JOB).encode()).decode()}
ANYWHERE = ("127.0.0.1", 0)
QUICK = NetworkLimits(ask_seconds=0.1, drain_seconds=1.0)


class Talk:
    """A live job that has got a record of its first half, and waits before it sends the second."""

    def __init__(self):
        self.answered, self._go_on, self._records = asyncio.Event(), asyncio.Event(), []
        self._receiving = None
        self.orchestrator = ""

    async def begun(self, receiving):
        self._receiving = asyncio.ensure_future(receiving)
        async with asyncio.timeout(90):
            await self.answered.wait()
        return self

    async def halves(self):
        yield TALK
        await self._go_on.wait()
        yield TALK

    def got(self, record):
        self._records.append(record)
        self.answered.set()

    async def ended(self):
        """Send the second half, and return all records."""
        self._go_on.set()
        async with asyncio.timeout(90):
            await self._receiving
        assert [each["seq"] for each in self._records] == list(range(len(self._records)))
        return self._records

    async def is_whole(self):
        records = await self.ended()
        assert [each["type"] for each in records if "text" not in each] == ["end"]
        assert sum(int(each["text"].split()[0]) for each in records[:-1]) == 2 * len(TALK)

    async def is_broken(self):
        """It has the text of before, one error and an end; return the error."""
        records = await self.ended()
        assert [each["type"] for each in records if "text" not in each] == ["error", "end"]
        return records[-2]["error"]


async def feed(url):
    """Talk by one live request to a gateway."""
    talk = Talk()

    async def receive():
        async with GatewayClient(url, "Sound") as client:
            async for record in client.stream(talk.halves()):
                talk.got(record)

    return await talk.begun(receive())


async def stream(http, url):
    """Talk by a BYOC stream of PCM16 segments."""
    talk = Talk()
    body = {"params": json.dumps({"input": "pcm16"})}
    async with http.post(f"{url}/process/stream/start", json=body, headers=HEADERS) as answer:
        assert answer.status == 200, await answer.text()
        urls = await answer.json()
    async with http.get(urls["status_url"]) as answer:
        talk.orchestrator = (await answer.json())["orchestrator"]

    async def publish():
        async with TricklePublisher(urls["publish_url"], "audio/L16") as publisher:
            async for half in talk.halves():
                await publisher.publish(half)
            await publisher.close(delete_channel=True)

    async def receive():
        sending = asyncio.ensure_future(publish())
        async with http.get(urls["data_url"]) as answer:
            async for line in answer.content:
                if line.startswith(b"data:") and (record := json.loads(line[5:])) != {"type": "stream_ended"}:
                    talk.got(record)
        sending.cancel()
        with contextlib.suppress(asyncio.CancelledError, TrickleError):
            await sending  # its channel ends with the stream

    return await talk.begun(receive())


async def frame(url, data=b"quick "):
    async with GatewayClient(url, "Sound") as client:
        return await client.process_frame(data)


async def offered(http, node, places):
    """Wait until so many jobs could be taken."""

    async def are_there():
        async with http.get(f"{node}/capabilities") as answer:
            return sum(each["available"] for each in (await answer.json())["capabilities"]) == places

    await until(are_there)


@pytest.fixture
async def nodes(monkeypatch):
    """Return functions that run an orchestrator for containers, and a gateway for orchestrators, in this process."""
    monkeypatch.setattr(directory, "ASK_EVERY_S", 0.2)
    for module in (directory, pool):  # of equally free ones the one that was named first is taken
        monkeypatch.setattr(module, "random", types.SimpleNamespace(random=lambda: 0.0))
    async with contextlib.AsyncExitStack() as stack:

        async def run_orchestrator(*urls):
            containers = [Container("Sound", url, 4) for url in urls]
            config = orchestrator.OrchestratorConfig(*ANYWHERE, containers=containers, limits=QUICK)
            return await stack.enter_async_context(orchestrator.Orchestrator.running(config))

        async def run_gateway(*urls):
            config = gateway.GatewayConfig(*ANYWHERE, urls, limits=QUICK)
            return await stack.enter_async_context(gateway.Gateway.running(config))

        yield types.SimpleNamespace(orchestrator=run_orchestrator, gateway=run_gateway)


def url_of(node):
    return f"http://127.0.0.1:{node.port}"


def at_work(orchestrator):
    """Count the places at containers that are taken."""
    return sum(len(container.slots) for container in orchestrator.pool)


async def idle(*running):
    await until(lambda: not any(node.jobs or len(node.streams) or node.memory.held for node in running))


@pytest.fixture
def containers(node, tmp_path_factory):
    """Two processes."""
    script = tmp_path_factory.mktemp("sound") / "sound.py"
    script.write_text(SOUND)
    return [
        node("run", "--host", "127.0.0.1", "--stream-host", "127.0.0.1", "--port", "PORT", str(script))
        for _ in range(2)
    ]


async def start(*processes):
    await asyncio.gather(*(asyncio.to_thread(each.start) for each in processes))


async def test_a_killed_container_takes_its_own_jobs_only(containers, nodes, idle_again, http):
    await start(*containers)
    first, second = containers
    around = await nodes.orchestrator(first.url, second.url)
    door = await nodes.gateway(url_of(around))
    url = url_of(door)
    await offered(http, url, 8)
    async with idle_again(second):
        working = asyncio.ensure_future(frame(url, b"slow"))
        await until(lambda: at_work(around))
        unharmed = [await feed(url)]
        broken = [await feed(url)]
        unharmed.append(await stream(http, url))
        broken.append(await stream(http, url))
        first.kill()
        with pytest.raises(ServerRefused, match=first.url) as failed:
            await working
        assert failed.value.status == 502
        for talk in broken:
            assert first.url in await talk.is_broken()
        assert await frame(url) == b"6 bytes", "the other one takes over"
        for talk in unharmed:
            await talk.is_whole()
    await idle(around, door)
    await start(first)
    await offered(http, url, 8)
    await (await feed(url)).is_whole()
    async with http.get(f"{first.url}/metrics") as answer:
        assert re.search(r'byoc_input_bytes_total{pipeline="Sound"} [1-9]', await answer.text()), "it has work again"
    for container in containers:
        container.kill()
    # whichever of them the orchestrator has not yet asked in vain how it is
    with pytest.raises(ServerRefused, match=f"{first.url}|{second.url}") as failed:
        await frame(url)
    assert failed.value.status == 502
    await idle(around, door)
    assert at_work(around) == 0


class Sound:
    media = "audio"
    content_type = "text/plain; charset=utf-8"

    def __init__(self):
        self.go_on = asyncio.Event()

    async def process(self, frame):
        if frame.startswith(b"slow"):
            await self.go_on.wait()
        return b"%d bytes" % len(frame)


async def test_a_killed_orchestrator_takes_its_own_jobs_only(serving, node, nodes, idle_again, http, monkeypatch):
    monkeypatch.setattr(stream_output, "FIRST_LINE_S", 0.1)
    sound = Sound()
    container = await serving({"Sound": sound})
    command = ("orchestrator", "-serviceAddr", "127.0.0.1:PORT", "-byocContainerURL", container.url,
               "-byocModelID", "Sound", "-byocCapacity", "4")  # fmt: skip
    first, second = [node(*command) for _ in range(2)]
    await start(first, second)
    gateways = [await nodes.gateway(*urls) for urls in ((first.url, second.url), (first.url,))]
    url, only_first = map(url_of, gateways)
    await asyncio.gather(offered(http, url, 8), offered(http, only_first, 4))
    async with idle_again(second):
        working = asyncio.ensure_future(frame(only_first, b"slow"))
        broken = [await feed(only_first), await stream(http, only_first)]
        await offered(http, url, 5)
        unharmed = await stream(http, url)
        assert unharmed.orchestrator == second.url, "it has more free places"
        first.kill()
        with pytest.raises(ServerRefused, match=first.url) as failed:
            await working
        assert failed.value.status == 502
        for talk in broken:
            await talk.is_broken()
        assert await frame(url) == b"6 bytes", "the other one takes over"
        await unharmed.is_whole()
    await start(first)
    await offered(http, url, 8)
    for talk in [await feed(only_first), await stream(http, only_first)]:
        await talk.is_whole()
    sound.go_on.set()
    await idle(*gateways)
    await until(lambda: not container.server.streams.streams)


async def test_a_killed_gateway_takes_its_own_jobs_only(serving, node, nodes, http):
    container = await serving({"Sound": Sound()})
    around = await nodes.orchestrator(container.url)
    killed = node("gateway", "-orchAddr", url_of(around), "-httpAddr", "127.0.0.1:PORT")
    await start(killed)
    other = await nodes.gateway(url_of(around))
    await asyncio.gather(offered(http, killed.url, 4), offered(http, url_of(other), 4))
    talks = [await feed(url) for url in (killed.url, url_of(other))]
    killed.kill()
    with pytest.raises(ClientError):
        await talks[0].ended()
    await talks[1].is_whole()
    await idle(around, other)
    await until(lambda: at_work(around) == 0)
    await start(killed)
    await offered(http, killed.url, 4)
    await (await feed(killed.url)).is_whole()


async def test_processes_that_are_told_to_end_let_their_jobs_come_to_an_end(containers, node, http):
    container = containers[0]
    await start(container)
    around = node(
        "orchestrator", "-serviceAddr", "127.0.0.1:PORT", "-byocContainerURL", container.url,
        "-byocModelID", "Sound", "-byocCapacity", "4",
    )  # fmt: skip
    await start(around)
    door = node("gateway", "-orchAddr", around.url, "-httpAddr", "127.0.0.1:PORT")
    for victim in (door, around, container):
        await asyncio.to_thread(door.revive)
        await asyncio.to_thread(around.revive)
        await offered(http, door.url, 4)
        talk = await feed(door.url)
        victim.process.terminate()
        await until(lambda victim=victim: "shutting down" in victim.text)
        if victim is container:
            assert "shutting down" in await talk.is_broken()
        else:
            await talk.is_whole()
        assert await asyncio.to_thread(victim.process.wait, 20) == 0
        assert "Traceback" not in victim.text
