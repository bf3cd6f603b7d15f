"""`whisper-byoc up`: three processes that live and die together."""

import asyncio
import os
import re
import signal
import subprocess
import sys

import pytest

from whisper_byoc import GatewayClient

ANY_PORTS = ("--port", "0", "--orchestrator-port", "0", "--gateway-port", "0")
ROLES = ("container", "orchestrator", "gateway")


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


async def gone(pids):
    """Wait until none of them runs any more."""
    for _ in range(400):
        if not any(map(alive, pids)):
            return
        await asyncio.sleep(0.05)
    raise AssertionError(f"still running: {list(filter(alive, pids))}")


@pytest.fixture
def up(command):
    """Give a function that runs it, waits until it is ready, and knows the gateway and the three process ids."""
    started = []

    async def start(*arguments):
        running = await command("up", *ANY_PORTS, *arguments)
        ready = await running.logged(r"ready: send FILE with: whisper-byoc send --gateway (http://127.0.0.1:\d+) FILE")
        running.gateway = ready[1]
        running.children = children(running.process.pid)
        assert len(running.children) == 3
        started.extend(running.children)
        return running

    yield start
    for pid in filter(alive, started):
        os.kill(pid, signal.SIGKILL)


async def test_a_frame_goes_through_and_ctrl_c_ends_all_in_order(up):
    running = await up("--pipelines", "passthrough,green-tint-cpu")
    async with GatewayClient(running.gateway, "passthrough") as client:
        assert await client.process_frame(b"abc") == b"abc"
        assert {each["name"] for each in (await client.capabilities())["capabilities"]} == {
            "passthrough", "green-tint-cpu",
        }  # fmt: skip
    assert all(os.getsid(pid) == pid for pid in running.children), "a terminal's Ctrl-C would reach them as well"
    assert await running.end(signal.SIGINT) == 0
    said = re.findall(r"^(\w+) +\| .*shutting down", running.whole_log, re.MULTILINE)
    assert said == ["gateway", "orchestrator", "container"]
    assert not any(map(alive, running.children))
    assert "Traceback" not in running.whole_log
    assert "\x1b" not in running.whole_log, "colours are for terminals"


@pytest.mark.parametrize("victim", ROLES)
async def test_when_one_dies_all_end_and_it_is_named(up, victim):
    running = await up("--pipelines", "passthrough")
    os.kill(running.children[ROLES.index(victim)], signal.SIGKILL)
    assert await running.end(None) == 1
    last = running.whole_log.splitlines()[-1]
    assert last.startswith(f"whisper-byoc: the {victim} ended with signal SIGKILL: ")
    assert "[INFO] whisper_byoc" in last, "its last line is told"
    assert not any(map(alive, running.children))


async def test_children_do_not_outlive_a_killed_parent(up):
    running = await up("--pipelines", "passthrough")
    running.process.kill()
    await gone(running.children)


async def test_a_second_ctrl_c_kills(up):
    running = await up("--pipelines", "passthrough", "--drain-timeout", "300")
    sending = asyncio.Event()

    async def endless():
        while True:
            yield b"x"
            sending.set()
            await asyncio.sleep(0.05)

    async def send():
        async with GatewayClient(running.gateway, "passthrough") as client:
            return [record async for record in client.stream(endless())]

    feed = asyncio.ensure_future(send())
    await asyncio.wait_for(sending.wait(), 10)
    running.process.send_signal(signal.SIGINT)
    await running.logged(r"gateway +\| .*shutting down: 1 jobs and 0 streams to end")
    assert await running.end(signal.SIGINT) == 130
    assert not any(map(alive, running.children))
    feed.cancel()
    await asyncio.gather(feed, return_exceptions=True)


async def test_a_model_that_cannot_be_had_is_the_sentence_of_serve(command, tmp_path):
    # a proxy where nobody listens stands for a machine without a network
    running = await command(
        "up", *ANY_PORTS, MODEL_DIR=str(tmp_path), https_proxy="http://127.0.0.1:9", HTTPS_PROXY="http://127.0.0.1:9"
    )
    assert await running.end(None) == 1
    last = running.whole_log.splitlines()[-1]
    assert last.startswith("whisper-byoc: the container ended with exit code 1: Model 'tiny' could not be downloaded")
    for way_out in ("whisper-byoc preload", "MODEL_DIR", "demo"):
        assert way_out in last


async def test_a_port_in_use_is_told_in_one_sentence(up, command):
    first = await up("--pipelines", "passthrough")
    port = first.gateway.rpartition(":")[2]
    second = await command("up", *ANY_PORTS, "--pipelines", "passthrough", "--gateway-port", port)
    assert await second.end(None) == 1
    last = second.whole_log.splitlines()[-1]
    assert last.startswith(f"whisper-byoc: the gateway ended with exit code 1: cannot listen on 127.0.0.1:{port}")
    assert await first.end() == 0


@pytest.mark.parametrize(
    ("arguments", "part"), [(["--pipelines", "nonsense"], "model not found"), (["--pipelines", ","], "no pipeline")]
)
async def test_pipelines_that_there_are_not_are_wrong_usage(command, arguments, part):
    running = await command("up", *arguments)
    assert await running.end(None) == 2
    assert part in running.whole_log
    assert running.whole_log.count("\n") == 1


async def test_ctrl_c_ends_all_though_nobody_reads_the_log_any_more(spawn):
    """As in `whisper-byoc up 2>&1 | tee log`, where Ctrl-C ends `tee` first."""
    reading, writing = os.pipe()
    words = ("-m", "whisper_byoc.cli.main", "up", *ANY_PORTS, "--pipelines", "passthrough")
    process = await spawn(sys.executable, *words, stderr=writing)
    os.close(writing)
    with os.fdopen(reading, "rb") as log:
        while b" ready: send FILE" not in await asyncio.to_thread(log.readline):
            pass
    process.send_signal(signal.SIGINT)
    assert await asyncio.wait_for(process.wait(), 40) == 0
