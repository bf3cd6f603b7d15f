"""The shutdown of a container: who is told what, in which order, and the second signal."""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
from aiohttp import web

from audio import pcm
from audio.wav import read_wav
from benchmarks.held import children
from tests.waiting import until
from whisper_byoc.http import listening
from whisper_byoc.trickle.publisher import TricklePublisher
from whisper_byoc.trickle.server import TrickleServer
from whisper_byoc.trickle.subscriber import TrickleSubscriber

SLOW = """
import asyncio

class Slow:
    async def process(self, frame):
        await asyncio.sleep(600)
"""


@contextlib.asynccontextmanager
async def orchestrator():
    """Serve trickle channels and registrations, and note what comes, in order."""
    happened, trickle = [], TrickleServer("/ai/trickle/")

    async def register(_):
        happened.append("registered")
        return web.Response(text="ok")

    async def unregister(_):
        happened.append("unregistered")
        return web.Response(text="ok")

    async def token(_):
        return web.json_response({"available_capacity": 1})

    app = web.Application(client_max_size=0)
    trickle.add_routes(app)
    app.add_routes(
        [
            web.post("/capability/register", register),
            web.post("/capability/unregister", unregister),
            web.get("/process/token", token),
        ]
    )
    async with listening(app, "127.0.0.1", 0, keep_alive_seconds=60, shutdown_seconds=0.1) as port:
        yield f"http://127.0.0.1:{port}", trickle, happened


async def test_a_container_leaves_the_orchestrator_first_and_then_gives_streams_their_tail(command, http, fixtures_dir):
    sound = pcm.encode(read_wav((fixtures_dir / "demo-numbers.wav").read_bytes()))[: int(3.3 * 32_000)]
    async with orchestrator() as (url, trickle, happened):
        server = await command(
            "serve", "--pipeline", "whisper-demo", "--host", "127.0.0.1", "--port", "0",
            "--orch-url", url, "--orch-secret", "s", "--stream-host", "127.0.0.1",
        )  # fmt: skip
        await server.ready()
        await until(lambda: "registered" in happened)
        body = {"gateway_request_id": "s", "params": {"input": "pcm16"}}
        for name, key in (("s", "subscribe_url"), ("s-data", "data_url"), ("s-events", "events_url")):
            trickle.create(name)
            body[key] = f"{url}/ai/trickle/{name}"
        async with http.post(f"{server.url}/stream/start", json=body) as answer:
            assert answer.status == 200, await answer.text()

        async def read(name):
            async with TrickleSubscriber(body[name], start=0) as subscriber:
                async for segment in subscriber:
                    for line in (await segment.read()).splitlines():
                        happened.append(json.loads(line))

        reading = [asyncio.ensure_future(read(name)) for name in ("data_url", "events_url")]
        async with TricklePublisher(body["subscribe_url"], "audio/L16") as publisher:
            await publisher.publish(sound)  # it ends in mid-utterance, so that its text comes only at the end
            await until(lambda: any("first_ingest" in str(each) for each in happened))
            assert await server.end() == 0, server.whole_log
            for name in ("s-data", "s-events"):
                trickle.close(name)
            await asyncio.gather(*reading)
        trickle.close("s")
    records = [each for each in happened if isinstance(each, dict) and "seq" in each]
    assert [each["seq"] for each in records] == list(range(len(records)))
    text, error, end = records[-3:]
    assert text["text"]
    assert "shutting down" in error["error"], "its publisher had not ended it"
    assert (end["type"], end["errors"]) == ("end", 1)
    assert happened.index("unregistered") < happened.index(text)
    events = [each["event"]["type"] for each in happened if "event" in each]
    assert events[-1] == "stream_stopped"


def may_have_pids_of_its_own():
    words = ("unshare", "-r", "-p", "-f", "--mount-proc", "true")
    return (
        shutil.which("unshare") is not None and subprocess.run(words, check=False, capture_output=True).returncode == 0
    )


@pytest.mark.parametrize("first_process", [False, True], ids=["", "as in a container"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_the_second_signal_ends_a_busy_container_at_once(spawn, http, tmp_path, number, first_process):
    if first_process and not may_have_pids_of_its_own():
        pytest.skip("this system does not let users have a pid namespace")
    script = tmp_path / "slow.py"
    script.write_text(SLOW)
    command = (sys.executable, "-m", "whisper_byoc.cli.main", "run", "--host", "127.0.0.1", "--port", "0", str(script))
    inner = ("unshare", "-r", "-p", "-f", "--kill-child", "--mount-proc") if first_process else ()
    process = await spawn(*inner, *command)
    log = b""
    while b"ready" not in log:
        log += await process.stderr.readline()
    port = log.partition(b"listening on port ")[2].split()[0].decode()
    async with http.put(f"http://127.0.0.1:{port}/live/job/source", data=b"frame") as answer:
        assert answer.status == 200
    pid = children(process.pid)[0] if first_process else process.pid
    os.kill(pid, number)
    while b"shutting down" not in log:
        log += await process.stderr.readline()
    os.kill(pid, number)
    async with asyncio.timeout(20):  # it would drain for 30 s
        _, rest = await process.communicate()
    assert process.returncode in (-number, 128 + number)
    assert b"Traceback" not in log + rest
