"""Client, gateway, orchestrator, container: every pipeline through all three hops, over real sockets and processes."""

import asyncio
import base64
import json
import shlex
import sys

import pytest

from audio import pcm
from audio.ffmpeg import ffmpeg_environment, ffmpeg_path
from audio.wav import read_wav
from whisper_byoc import GatewayClient, TrickleClient
from whisper_byoc.trickle import TricklePublisher

FRAME = bytes([1, 2, 3, 250, 255, 250])
TINTED = {
    "green-tint-cpu": bytes([1, 82, 3, 250, 255, 250]),
    "grayscale-cpu": bytes([1, 1, 1, 252, 252, 252]),
    "passthrough": FRAME,
}
DETAILS = {"enable_video_ingress": True, "enable_data_output": True}
HEADER = {"request": "{}", "parameters": json.dumps(DETAILS), "capability": "whisper-demo", "timeout_seconds": 30}
JOB = {"Livepeer": base64.b64encode(json.dumps(HEADER).encode()).decode()}


class Hops:
    """A container, an orchestrator and a gateway that are ready."""

    def __init__(self, container, orchestrator, gateway):
        self.container, self.orchestrator, self.gateway = container, orchestrator, gateway


@pytest.fixture(scope="module")
def running(container_node, orchestrator_node, gateway_node):
    container = container_node().start()
    orchestrator = orchestrator_node(container).start()
    gateway = gateway_node(orchestrator).start()
    return Hops(container.ready(), orchestrator.ready(), gateway.ready())


@pytest.fixture
async def hops(running, idle_again):
    """The three, which must be as idle afterwards as they were before: nothing is leaked."""
    async with idle_again(running.container, running.orchestrator, running.gateway):
        yield running


def sound(fixtures_dir, name):
    return pcm.encode(read_wav((fixtures_dir / name).read_bytes()))


def content(records):
    """What a job said, without what differs from run to run."""
    return [
        {name: value for name, value in record.items() if name not in ("job_id", "stats", "segments")}
        for record in records
    ]


async def transcribed(client, data):
    return [record async for record in client.stream(data)]


@pytest.mark.parametrize("pipeline", TINTED)
async def test_a_frame_through_three_hops_is_the_processors_bytes(hops, pipeline):
    async with GatewayClient(hops.gateway.url, pipeline) as client:
        assert await client.process_frame(FRAME) == TINTED[pipeline]
        assert await client.process_frame(b"") == b""


@pytest.mark.parametrize("pipeline", TINTED)
async def test_live_frames_come_back_one_by_one(hops, pipeline):
    async def frames():
        for _ in range(5):
            yield FRAME[:4]
            yield FRAME[4:]

    async with GatewayClient(hops.gateway.url, pipeline) as client:
        records = [record async for record in client.stream(frames(), width="2", height="1")]
    assert [base64.b64decode(record["data"]) for record in records[:-1]] == [TINTED[pipeline]] * 5
    assert records[-1]["type"] == "end"


@pytest.mark.parametrize("name", ["demo-pipeline.wav", "demo-long-40s.wav"])
async def test_a_text_through_three_hops_is_that_of_a_direct_call(hops, fixtures_dir, texts, name):
    data = sound(fixtures_dir, name)
    async with GatewayClient(hops.gateway.url, "whisper-demo") as client:
        through, records = await client.process_frame(data[: 30 * 32000]), await transcribed(client, data)
    async with TrickleClient(hops.container.url, pipeline="whisper-demo") as client:
        direct, expected = await client.process_frame(data[: 30 * 32000]), await transcribed(client, data)
    assert through == direct
    assert content(records) == content(expected)
    words = " ".join(record["text"] for record in records if record["type"] == "transcript")
    assert words.split() == texts[name]["text"].split()


async def test_text_comes_while_the_sound_is_still_being_sent(hops, fixtures_dir):
    text_came = asyncio.Event()

    async def speech():
        yield sound(fixtures_dir, "demo-pipeline.wav") + bytes(2 * 32000)  # a pause makes the text final
        await text_came.wait()

    async with GatewayClient(hops.gateway.url, "whisper-demo") as client:
        async for record in client.stream(speech()):
            if record.get("text"):
                text_came.set()
    assert text_came.is_set()


async def test_twenty_jobs_at_once(hops, fixtures_dir, texts):
    names = ["demo-hello-world.wav", "demo-stop.wav", "demo-yes.wav"]
    wanted = [names[number % len(names)] for number in range(20)]

    async def one(number, name):
        data = sound(fixtures_dir, name)
        async with GatewayClient(hops.gateway.url, "whisper-demo") as client:
            if number % 2:
                return (await client.process_frame(data)).decode()
            return " ".join(record.get("text", "") for record in await transcribed(client, data))

    heard = await asyncio.gather(*(one(number, name) for number, name in enumerate(wanted)))
    assert [text.split() for text in heard] == [texts[name]["text"].split() for name in wanted]


async def test_a_model_that_there_is_not_is_404_with_the_names_there_are(hops, http):
    async with http.post(
        f"{hops.gateway.url}/live/video-to-video", data=b"x", headers={"X-Model-Id": "nonsense"}
    ) as answer:
        assert answer.status == 404
        message = (await answer.json())["error"]
    assert "model not found: 'nonsense'" in message
    assert "whisper-demo" in message


@pytest.fixture
def start_stream(hops, http):
    """Return a function that starts a stream with these parameters: its URLs, and a task for its events."""

    async def start(name, **params):
        body = {"stream_name": name, "params": json.dumps(params)}
        async with http.post(f"{hops.gateway.url}/process/stream/start", json=body, headers=JOB) as answer:
            assert answer.status == 200, await answer.text()
            urls = await answer.json()
        return urls, asyncio.ensure_future(listen(urls["data_url"]))

    async def listen(url):
        async with http.get(url) as answer:
            lines = [line async for line in answer.content if line.startswith(b"data:")]
            return [json.loads(line[5:]) for line in lines]

    return start


def words(records):
    assert not [each for each in records if each["type"] == "error"]
    assert [each["type"] for each in records[-2:]] == ["end", "stream_ended"]
    texts = [each["text"] for each in records if each["type"] == "transcript" and each.get("is_final", True)]
    return " ".join(texts).split()


async def test_a_stream_of_pcm_segments_is_heard_word_for_word(start_stream, http, fixtures_dir, texts):
    data = sound(fixtures_dir, name := "demo-long-40s.wav")
    urls, listening = await start_stream("hops", input="pcm16")
    async with TricklePublisher(urls["publish_url"], "audio/L16") as publisher:
        for at in range(0, len(data), 64000):
            await publisher.publish(data[at : at + 64000])
            await asyncio.sleep(0.1)  # a channel keeps five segments; nobody speaks 2 s in less
        await publisher.close(delete_channel=True)
    assert words(await asyncio.wait_for(listening, 40)) == texts[name]["text"].split()
    async with http.post(urls["stop_url"], headers=JOB) as answer:
        assert answer.status == 200


async def test_what_ffmpeg_pipes_into_trickle_pub_is_heard_word_for_word(start_stream, spawn, fixtures_dir, texts):
    """As docs/network.md has it."""
    name = "demo-pipeline.wav"
    urls, listening = await start_stream("pipe")
    pipe = f"{shlex.quote(ffmpeg_path())} -re -i {name} -c:a aac -f mpegts - | {{}} trickle pub --delete {{}}"
    command = shlex.join([sys.executable, "-m", "whisper_byoc.cli.main"])
    shell = await spawn(
        "sh", "-c", pipe.format(command, shlex.quote(urls["publish_url"])), cwd=fixtures_dir, env=ffmpeg_environment()
    )
    _, errors = await asyncio.wait_for(shell.communicate(), 40)
    assert shell.returncode == 0, errors.decode()
    assert words(await asyncio.wait_for(listening, 40)) == texts[name]["text"].split()
