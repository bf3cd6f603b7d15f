"""`whisper-byoc up`: three processes that start and end together."""

import asyncio
import os
import re
import signal
import socket
import subprocess

import aiohttp
import pytest

from tests.waiting import forever, until
from whisper_byoc import GatewayClient
from whisper_byoc.speech.models import DEMO_NOTICE

ANY_PORTS = ("--port", "0", "--orchestrator-port", "0", "--gateway-port", "0")


def children(pid):
    """Process ids of the children."""
    listed = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    return [int(child) for child, parent in map(str.split, listed.splitlines()) if int(parent) == pid]


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.fixture
def up(launch, tmp_path, monkeypatch):
    """Return a function that runs it in a folder with a user's own audio.py, and waits until it is ready."""
    (tmp_path / "audio.py").write_text("mine = 1\n")
    monkeypatch.chdir(tmp_path)
    started = []

    async def start(*arguments):
        words = ("up", *ANY_PORTS, "--pipelines", "passthrough,green-tint-cpu", *arguments)
        running = await launch("-P", "-m", "whisper_byoc.cli.main", *words)  # -P as for the installed script
        ready = await running.logged(r"ready: send FILE with: whisper-byoc send --gateway (http://127.0.0.1:\d+) FILE")
        running.gateway = ready[1]
        listening = re.search(r"orchestrator listening on port (\d+)", running.whole_log)
        running.orchestrator = f"http://127.0.0.1:{listening[1]}"
        running.children = children(running.process.pid)
        assert len(running.children) == 3
        started.extend(running.children)
        return running

    yield start
    for pid in filter(alive, started):
        os.kill(pid, signal.SIGKILL)


async def test_a_frame_goes_through_and_ctrl_c_ends_all_in_order(up):
    running = await up("--pipeline", "passthrough,whisper-demo", "--gateway-token", "of this test")
    await running.logged(rf"up +\| {DEMO_NOTICE}")
    async with aiohttp.ClientSession() as http, http.get(f"{running.gateway}/capabilities") as answer:
        assert answer.status == 401
    async with GatewayClient(running.gateway, "passthrough", token="of this test") as client:
        assert await client.process_frame(b"abc") == b"abc"
        assert {each["name"] for each in (await client.capabilities())["capabilities"]} == {
            "passthrough", "whisper-demo",
        }  # fmt: skip
    async with aiohttp.ClientSession() as http:
        container = {"name": "passthrough", "url": "http://127.0.0.1:9", "capacity": 99}
        async with http.post(f"{running.orchestrator}/capability/register", json=container) as answer:
            assert (answer.status, await answer.text()) == (400, "invalid authorization\n")
    assert all(os.getsid(pid) == pid for pid in running.children), "a terminal's Ctrl-C would reach them as well"
    assert await running.end(signal.SIGINT) == 0
    ended = re.findall(r"^(\w+) +\| .*shutting down", running.whole_log, re.MULTILINE)
    assert ended == ["gateway", "orchestrator", "container"]
    assert not any(map(alive, running.children))
    assert f"whisper-demo: {DEMO_NOTICE}" in running.whole_log, "the container says it too"
    assert "Traceback" not in running.whole_log
    assert "\x1b" not in running.whole_log, "colours are for terminals"


async def test_when_one_dies_all_end_and_it_is_named(up):
    running = await up()
    os.kill(running.children[1], signal.SIGKILL)
    assert await running.end(None) == 1
    last = running.whole_log.splitlines()[-1]
    assert last.startswith("whisper-byoc: the orchestrator ended with signal SIGKILL: ")
    assert "[INFO] whisper_byoc" in last, "its last line is told"
    assert not any(map(alive, running.children))


async def test_children_do_not_outlive_a_killed_parent(up):
    running = await up()
    running.process.kill()
    await until(lambda: not any(map(alive, running.children)))


async def test_a_second_ctrl_c_kills(up):
    running = await up("--drain-timeout", "300")

    async def endless():
        yield bytes(1 << 16)
        await forever()

    async def send():
        async with GatewayClient(running.gateway, "passthrough") as client:
            return [record async for record in client.stream(endless())]

    feed = asyncio.ensure_future(send())
    async with asyncio.timeout(60), aiohttp.ClientSession() as http:
        jobs = 0
        while not jobs:
            async with http.get(f"{running.gateway}/status") as answer:
                jobs = (await answer.json())["jobs"]
    running.process.send_signal(signal.SIGINT)
    await running.logged(r"gateway +\| .*shutting down: 1 jobs and 0 streams to end")
    assert await running.end(signal.SIGINT) == 130
    assert not any(map(alive, running.children))
    feed.cancel()
    await asyncio.wait({feed})


async def test_a_port_in_use_is_told_in_one_sentence(command):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        running = await command("up", *ANY_PORTS[:-1], port, "--pipelines", "passthrough")
        assert await running.end(None) == 1
    last = running.whole_log.splitlines()[-1]
    assert last.startswith("whisper-byoc: the gateway ended with exit code 1: ")
    assert port in last
