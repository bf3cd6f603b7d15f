"""Two of each, all connected: one is killed in mid-job, and the other jobs do not notice.

A job by the first gateway goes to the first orchestrator and the first container, one by the second to the second
ones: where two are equally free, the one named first is taken.
"""

import asyncio
import base64
import contextlib
import json
import time

import pytest

from audio import pcm
from audio.wav import read_wav
from whisper_byoc import GatewayClient
from whisper_byoc.errors import ClientError, ServerRefused
from whisper_byoc.trickle import TrickleError, TricklePublisher

LONG = "demo-long-40s.wav"
SHORT = "demo-pipeline.wav"
PAUSE = bytes(int(1.5 * 32000))
"""After it there is a final record of what came before."""
DETAILS = {"enable_video_ingress": True, "enable_data_output": True}
JOB = {"request": "{}", "parameters": json.dumps(DETAILS), "capability": "whisper-demo", "timeout_seconds": 30}
HEADERS = {"Livepeer": base64.b64encode(json.dumps(JOB).encode()).decode()}


class Mesh:
    """Containers, orchestrators and gateways, two of each."""

    def __init__(self, node, orchestrator_node, gateway_node):
        serve = ("serve", "--host", "127.0.0.1", "--port", "PORT", "--pipeline", "whisper-demo", "--pipeline",
                 "passthrough", "--idle-timeout", "5")  # fmt: skip
        self.containers = [node(*serve).start() for _ in range(2)]
        self.orchestrators = [orchestrator_node(*self.containers[::way]).start() for way in (1, -1)]
        self.gateways = [gateway_node(*self.orchestrators[::way]).start() for way in (1, -1)]
        self.nodes = [*self.containers, *self.orchestrators, *self.gateways]

    async def whole(self, http):
        """Have all of them run, idle, and know each other."""
        for node in self.nodes:
            node.revive()
        deadline = time.monotonic() + 30
        while not await self._settled(http):
            assert time.monotonic() < deadline, "\n".join(node.text[-2000:] for node in self.nodes)
            await asyncio.sleep(0.1)

    async def _settled(self, http):
        for node in self.orchestrators:
            offers = {each["name"]: each for each in await capabilities(http, node)}
            places = offers["whisper-demo"]["containers"]
            if not all(each["ready"] and not each["load"] for each in places):
                return False
        full = [{"name": "whisper-demo", "available": 4 * 32}, {"name": "passthrough", "available": 4 * 32}]
        known = [await capabilities(http, node) for node in self.gateways]
        return all([each for each in offers if each in full] == full for offers in known)


async def capabilities(http, node):
    async with http.get(f"{node.url}/capabilities") as answer:
        return (await answer.json())["capabilities"]


@pytest.fixture(scope="module")
def started(node, orchestrator_node, gateway_node):
    return Mesh(node, orchestrator_node, gateway_node)


@pytest.fixture
async def mesh(started, http):
    await started.whole(http)
    return started


@pytest.fixture
def speech(fixtures_dir):
    return {name: pcm.encode(read_wav((fixtures_dir / name).read_bytes())) for name in (LONG, SHORT)}


class Talk:
    """A live job of a sentence that is spoken twice: it has a record of the first time, and waits for the second."""

    def __init__(self, receiving, go_on):
        self.receiving = receiving
        self._go_on = go_on

    async def rest(self):
        """Send what is left, and return all records."""
        self._go_on.set()
        async with asyncio.timeout(40):
            return await self.receiving


async def feed(gateway, data):
    """Talk by one live request."""
    go_on, answered, records = asyncio.Event(), asyncio.Event(), []

    async def source():
        yield data + PAUSE
        await go_on.wait()
        yield data

    async def receive():
        async with GatewayClient(gateway.url, "whisper-demo") as client:
            async for record in client.stream(source()):
                records.append(record)
                answered.set()
        return records

    receiving = asyncio.ensure_future(receive())
    async with asyncio.timeout(30):
        await answered.wait()
    return Talk(receiving, go_on)


async def stream(http, gateway, data):
    """Talk by a BYOC stream of PCM16 segments."""
    go_on, answered = asyncio.Event(), asyncio.Event()
    body = {"params": json.dumps({"input": "pcm16"})}
    async with http.post(f"{gateway.url}/process/stream/start", json=body, headers=HEADERS) as answer:
        assert answer.status == 200, await answer.text()
        urls = await answer.json()

    async def publish():
        async with TricklePublisher(urls["publish_url"], "audio/L16") as publisher:
            await publisher.publish(data + PAUSE)
            await go_on.wait()
            await publisher.publish(data)
            await publisher.close(delete_channel=True)

    async def receive():
        sending, records = asyncio.ensure_future(publish()), []
        async with http.get(urls["data_url"]) as answer:
            async for line in answer.content:
                if line.startswith(b"data:"):
                    records.append(json.loads(line[5:]))
                    answered.set()
        sending.cancel()
        with contextlib.suppress(asyncio.CancelledError, TrickleError):
            await sending  # its channel ends with the stream
        assert records.pop() == {"type": "stream_ended"}
        return records

    receiving = asyncio.ensure_future(receive())
    async with asyncio.timeout(30):
        await answered.wait()
    return Talk(receiving, go_on)


def words(records):
    return " ".join(each["text"] for each in records if each["type"] == "transcript" and each["is_final"]).split()


def broke(records, texts):
    """The records tell of a failure, and of what was said before it."""
    assert [each["type"] for each in records[-2:]] == ["error", "end"]
    assert [each["seq"] for each in records] == list(range(len(records)))
    assert words(records) == texts[SHORT]["text"].split()
    return records[-2]["error"]


async def frame(gateway, data):
    async with GatewayClient(gateway.url, "whisper-demo") as client:
        return (await client.process_frame(data)).decode().split()


@pytest.fixture(params=["feed", "stream"])
def talk(request, http):
    """Give a function that begins a job at a gateway, in either way."""
    return feed if request.param == "feed" else lambda gateway, data: stream(http, gateway, data)


async def test_a_killed_container_takes_its_own_jobs_only(mesh, idle_again, talk, speech, texts, http):
    survivors = [node for node in mesh.nodes if node is not mesh.containers[0]]
    async with idle_again(*survivors):
        broken, unharmed = [await talk(gateway, speech[SHORT]) for gateway in mesh.gateways]
        mesh.containers[0].kill()
        assert mesh.containers[0].url in broke(await broken.rest(), texts)
        assert words(await unharmed.rest()) == texts[SHORT]["text"].split() * 2
        assert await frame(mesh.gateways[0], speech[SHORT]) == texts[SHORT]["text"].split(), "the other one takes over"
    await mesh.whole(http)
    await (await talk(mesh.gateways[0], speech[SHORT])).rest()
    async with http.get(f"{mesh.containers[0].url}/metrics") as answer:
        assert 'byoc_input_bytes_total{pipeline="whisper-demo"}' in await answer.text(), "it has work again"


async def test_a_killed_orchestrator_takes_its_own_jobs_only(mesh, idle_again, talk, speech, texts, http):
    survivors = [node for node in mesh.nodes if node is not mesh.orchestrators[0]]
    async with idle_again(*survivors, seconds=45):
        broken, unharmed = [await talk(gateway, speech[SHORT]) for gateway in mesh.gateways]
        mesh.orchestrators[0].kill()
        broke(await broken.rest(), texts)
        assert words(await unharmed.rest()) == texts[SHORT]["text"].split() * 2
        assert await frame(mesh.gateways[0], speech[SHORT]) == texts[SHORT]["text"].split(), "the other one takes over"
        await mesh.whole(http)
        assert words(await (await talk(mesh.gateways[0], speech[SHORT])).rest()) == texts[SHORT]["text"].split() * 2


async def test_a_killed_gateway_takes_its_own_jobs_only(mesh, idle_again, speech, texts, http):
    survivors = [node for node in mesh.nodes if node is not mesh.gateways[0]]
    async with idle_again(*survivors):
        broken, unharmed = [await feed(gateway, speech[SHORT]) for gateway in mesh.gateways]
        mesh.gateways[0].kill()
        with pytest.raises(ClientError):
            await broken.rest()
        assert words(await unharmed.rest()) == texts[SHORT]["text"].split() * 2
        await mesh.whole(http)
        assert words(await (await feed(mesh.gateways[0], speech[SHORT])).rest()) == texts[SHORT]["text"].split() * 2


@pytest.mark.parametrize("role", ["containers", "orchestrators"])
async def test_a_frame_whose_container_or_orchestrator_dies_is_an_error(mesh, idle_again, speech, texts, http, role):
    victim = getattr(mesh, role)[0]
    async with idle_again(*(node for node in mesh.nodes if node is not victim), seconds=20):
        working = asyncio.ensure_future(frame(mesh.gateways[0], speech[LONG][: 28 * 32000]))
        while not any(
            place["load"] for each in await capabilities(http, mesh.orchestrators[0]) for place in each["containers"]
        ):
            assert not working.done(), "it must be at work"
        victim.kill()
        with pytest.raises(ServerRefused, match=victim.url) as failed:
            await working
        assert failed.value.status == 502
        assert await frame(mesh.gateways[0], speech[SHORT]) == texts[SHORT]["text"].split(), "the other one takes over"


async def test_when_all_are_gone_the_answer_says_so_and_the_next_job_works(mesh, speech, texts, http):
    for container in mesh.containers:
        container.kill()
    headers = {"X-Model-Id": "whisper-demo"}
    async with http.post(f"{mesh.gateways[0].url}/live/video-to-video", data=speech[SHORT], headers=headers) as answer:
        assert answer.status == 502
        message = (await answer.json())["error"]
    assert any(container.url in message for container in mesh.containers)
    await mesh.whole(http)
    assert await frame(mesh.gateways[0], speech[SHORT]) == texts[SHORT]["text"].split()
