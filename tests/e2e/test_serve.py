"""`whisper-byoc serve` and `send` as processes."""

import asyncio
import json
import re
import signal
import socket
import urllib.request

import aiohttp
import pytest
from wyoming.client import AsyncTcpClient
from wyoming.info import Describe

from audio import pcm
from audio.wav import read_wav
from tests.waiting import until
from whisper_byoc import TrickleClient
from whisper_byoc.errors import ServerRefused


def words(text):
    return re.sub(r"[^a-z ]", "", text.lower()).split()


def is_busy(server):
    with urllib.request.urlopen(f"{server.url}/health", timeout=10) as answer:
        return json.load(answer)["status"] == "OK"


async def test_a_go_style_command_line_serves_until_ctrl_c(command, fixtures_dir, texts):
    server = await (await command("-byocModelID", "whisper-demo", "-host=127.0.0.1", "-port", "0")).ready()
    names = ["demo-yes.wav", "demo-stop.wav"]
    files = [str(fixtures_dir / name) for name in names]
    sender = await command("send", "--realtime", "--url", server.url, *files)
    assert await sender.end(None) == 0, sender.whole_log
    assert [words(line) for line in sender.out.decode().splitlines()] == [words(texts[name]["text"]) for name in names]

    sender = await command("send", "--realtime", "--url", server.url, str(fixtures_dir / "demo-long-40s.wav"))
    await until(lambda: is_busy(server))  # the feed has begun
    assert await sender.end(signal.SIGINT) == 130
    assert (sender.out, sender.whole_log) == (b"", "")

    other = await command("send", "--url", server.url, files[1])
    assert await other.end(None) == 0
    assert words(other.out.decode()) == ["stop"], "the server goes on"
    assert await server.end(signal.SIGINT) == 0
    assert "Traceback" not in server.whole_log


async def test_sigterm_in_mid_utterance_delivers_the_last_words(command, fixtures_dir, texts):
    server = await (await command("serve", WHISPER_BYOC_PIPELINE="whisper-demo", WHISPER_BYOC_PORT="0")).ready()
    name, over = "demo-numbers.wav", asyncio.Event()
    sound = pcm.encode(read_wav((fixtures_dir / name).read_bytes()))

    async def microphone():
        for at in range(0, int(3.3 * 32_000), 3_200):  # with less silence at its end than a pause has
            yield sound[at : at + 3_200]
        await over.wait()

    records = []
    async with TrickleClient(server.url, params={"partials": "true"}) as client:
        with pytest.raises(ServerRefused, match="bytes of the feed were taken"):
            async for record in client.stream(microphone()):
                records.append(record)
                if len(record.get("text", "").split()) > 3 and not record["is_final"]:  # he is still speaking
                    server.process.send_signal(signal.SIGTERM)
                if record["type"] == "end":
                    over.set()
    assert records[0]["is_final"] is False
    assert records[-2]["is_final"] is True
    shown = [words(each["text"]) for each in records[:-1]]
    assert len(shown[-1]) >= len(shown[-2]) > 3
    assert shown[-1][:4] == words(texts[name]["text"])[:4]
    assert records[-1]["errors"] == 0
    assert await server.end(None) == 0


async def test_several_pipelines_from_the_environment(command):
    names = "green-tint-cpu,grayscale-cpu,passthrough"
    server = await (
        await command("serve", MODEL_ID=names, WHISPER_BYOC_PORT="0", CAPABILITY_NAME="tint", PIPELINE="frames")
    ).ready()
    async with aiohttp.ClientSession() as http, http.get(f"{server.url}/version") as answer:
        assert (await answer.json())["pipeline"] == "frames"
    for name, expected in (
        ("tint", bytes([1, 82, 3, 250, 255, 250])),
        ("green-tint-cpu", bytes([1, 82, 3, 250, 255, 250])),
        ("grayscale-cpu", bytes([1, 1, 1, 250, 250, 250])),
        ("passthrough", bytes([1, 2, 3, 250, 250, 250])),
    ):
        async with TrickleClient(server.url, pipeline=name) as client:
            assert await client.process_frame(bytes([1, 2, 3, 250, 250, 250])) == expected
    assert await server.end() == 0


async def test_port_in_use(command):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        server = await command("serve", "--pipeline", "passthrough", "--host", "127.0.0.1", "--port", str(port))
        assert await server.end(None) == 1
    assert server.whole_log.startswith(f"whisper-byoc: port {port} on 127.0.0.1 is in use")
    assert server.whole_log.count("\n") == 1


async def test_a_model_that_cannot_be_had_is_one_sentence_with_the_ways_out(command, tmp_path):
    # a proxy where nobody listens stands for a machine without a network
    server = await command(
        "serve", "--port", "0", "--host", "127.0.0.1",
        MODEL_DIR=str(tmp_path), https_proxy="http://127.0.0.1:9", HTTPS_PROXY="http://127.0.0.1:9",
    )  # fmt: skip
    assert await server.end(None) == 1
    last = server.whole_log.splitlines()[-1]
    assert last.startswith("whisper-byoc: Model 'tiny' could not be downloaded")
    for way_out in ("whisper-byoc preload", "MODEL_DIR", "demo"):
        assert way_out in last
    assert "Traceback" not in server.whole_log


async def test_wyoming_beside_http(node):
    server = node(
        "wyoming", "--host", "127.0.0.1", "--port", "PORT", "--wyoming-port", "0", "--pipeline", "whisper-demo"
    )
    server.start().ready()
    port = int(re.search(r"Wyoming listening on port (\d+)", server.text)[1])
    async with AsyncTcpClient("127.0.0.1", port) as client:
        await client.write_event(Describe().event())
        assert (await client.read_event()).type == "info"
    assert server.end() == 0
