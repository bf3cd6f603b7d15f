"""`run_processor` as its users run it: a script in a process of its own, stopped by signals."""

import asyncio
import contextlib
import json
import re
import signal
import socket
import urllib.request
from pathlib import Path

import pytest

from tests.waiting import forever
from whisper_byoc import TrickleClient, run_processor
from whisper_byoc.errors import ServerRefused, ServerUnreachable

PRELUDE = """
import asyncio, sys, time
from whisper_byoc import run_processor

class Upper:
    content_type = "text/plain; charset=utf-8"
    async def process(self, frame):
        return frame.upper()
"""


SERVE = 'asyncio.run(run_processor(Upper(), host="127.0.0.1", port=0))'


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_serves_until_a_signal_and_exits_with_0(script, number):
    running = await (await script(PRELUDE + SERVE)).listening()
    async with TrickleClient(running.url) as client:
        assert await client.process_frame(b"hello") == b"HELLO"
    assert await running.end(number) == 0
    assert "Traceback" not in running.whole_log


async def test_sigterm_with_work_queued_finishes_it(script):
    slow = """
class Slow(Upper):
    async def process(self, frame):
        await asyncio.sleep(0.2)
        return frame.upper()

asyncio.run(run_processor(Slow(), host="127.0.0.1", port=0))
"""
    running = await (await script(PRELUDE + slow)).listening()
    records, first = [], asyncio.Event()

    async def source():
        for _ in range(5):
            yield b"abc"
        await first.wait()
        running.process.send_signal(signal.SIGTERM)
        await forever()
        yield b"never sent"

    async with TrickleClient(running.url) as client:
        with pytest.raises(ServerRefused, match="shutting down"):
            async for record in client.stream(source(), width="1", height="1"):
                records.append(record)
                first.set()
    assert [each.get("text") for each in records] == ["ABC"] * 5 + [None]
    assert records[-1]["type"] == "end"
    assert await running.end(None) == 0


async def test_a_processor_that_blocks_its_loop_does_not_block_the_server(script):
    blocking = """
class Blocking(Upper):
    async def process(self, frame):
        if frame == b"block":
            time.sleep(1000)
        return frame.upper()

from whisper_byoc.server import hosted
from whisper_byoc.server.core.limits import Limits
hosted.UNBLOCK_SECONDS = 0.5
limits = Limits(segment_seconds=0.5, drain_seconds=1)
asyncio.run(run_processor(Blocking(), host="127.0.0.1", port=0, limits=limits))
"""
    running = await (await script(PRELUDE + blocking)).listening()
    async with TrickleClient(running.url) as client:
        assert await client.process_frame(b"x") == b"X"
        with pytest.raises(Exception, match="segment time limit"):
            await client.process_frame(b"block")
    health = await asyncio.to_thread(lambda: urllib.request.urlopen(f"{running.url}/health", timeout=5).read())
    assert json.loads(health)["status"] in ("IDLE", "OK")
    assert await running.end() == 0
    assert "cannot be waited for" in running.whole_log


async def test_port_in_use_is_one_sentence(script):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        running = await script(PRELUDE + SERVE.replace("port=0", f"port={port}"))
        assert await running.end(None) == 1
    assert f"StartError: port {port} on 127.0.0.1 is in use; choose another port" in running.whole_log


async def test_a_processor_that_fails_to_initialize_ends_the_server(script):
    source = """
class Broken(Upper):
    async def initialize(self):
        raise OSError("no weights")

try:
    asyncio.run(run_processor(Broken(), host="127.0.0.1", port=0))
except Exception as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""
    running = await script(PRELUDE + source)
    assert await running.end(None) == 1
    assert "StartError: pipeline Broken failed to initialize: OSError: no weights" in running.whole_log


async def test_hooks_run_once_on_the_authors_own_loop(script, tmp_path):
    source = f"""
from pathlib import Path
trace = Path({str(tmp_path / "trace")!r})

class Traced(Upper):
    def __init__(self):
        self.loop = asyncio.get_running_loop()
    async def note(self, what):
        assert asyncio.get_running_loop() is self.loop
        with trace.open("a") as file:
            file.write(what + "\\n")
    async def initialize(self):
        await self.note("initialize")
    async def process(self, frame):
        await self.note("process")
        return frame
    async def shutdown(self):
        await self.note("shutdown")

async def main():
    await run_processor(Traced(), host="127.0.0.1", port=0)
    print("back from run_processor")

asyncio.run(main())
"""
    running = await (await script(PRELUDE + source)).listening()
    async with TrickleClient(running.url) as client:
        await client.process_frame(b"x")
    running.process.send_signal(signal.SIGTERM)
    assert await running.end(None) == 0
    assert running.out == b"back from run_processor\n"
    assert Path(tmp_path / "trace").read_text().split() == ["initialize", "process", "shutdown"]


async def test_a_processor_can_neither_end_the_server_nor_write_into_its_log(script):
    hostile = """
class Hostile(Upper):
    async def process(self, frame):
        if frame == b"exit":
            sys.exit("bye")
        if frame.startswith(b"task"):
            leaving = asyncio.create_task(self.process(b"exit"))
            await (asyncio.gather(leaving) if frame == b"task" else asyncio.wait({leaving}))
        if frame == b"interrupt":
            raise KeyboardInterrupt
        if frame == b"base":
            raise BaseException("of no kind")
        if frame == b"forge":
            raise ValueError("\\x1b[2J\\n2026-01-01 00:00:00,000 [INFO] forged\\r")
        return frame.upper()

asyncio.run(run_processor(Hostile(), host="127.0.0.1", port=0))
"""
    running = await (await script(PRELUDE + hostile)).listening()
    async with TrickleClient(running.url) as client:
        for frame, words in (
            (b"exit", "bye"),
            (b"task", "bye"),
            (b"interrupt", "KeyboardInterrupt"),
            (b"base", "BaseException: of no kind"),
            (b"forge", "ValueError"),
        ):
            with pytest.raises(Exception, match=words):
                await client.process_frame(frame)
        assert await client.process_frame(b"task that nobody asks") == b"TASK THAT NOBODY ASKS"
        assert await client.process_frame(b"next") == b"NEXT"
    assert await running.end() == 0
    assert not re.search(r"[\x00-\x09\x0b-\x1f]", running.whole_log)
    assert not re.search(r"^[0-9-]+ [0-9:,]+ \[INFO\] forged", running.whole_log, re.MULTILINE)
    assert "  | ValueError: \\x1b[2J" in running.whole_log


async def test_second_signal_does_not_wait(script):
    slow = """
class Slow(Upper):
    async def process(self, frame):
        await asyncio.sleep(60)
        return frame

asyncio.run(run_processor(Slow(), host="127.0.0.1", port=0))
"""
    running = await (await script(PRELUDE + slow)).listening()

    def put() -> None:
        request = urllib.request.Request(f"{running.url}/live/job/source", data=b"x", method="PUT")
        urllib.request.urlopen(request, timeout=5).read()

    await asyncio.to_thread(put)
    running.process.send_signal(signal.SIGTERM)
    await running.logged("shutting down.*")
    assert await running.end(signal.SIGTERM) == -signal.SIGTERM


async def test_cancelling_stops_the_server(unused_tcp_port):
    class Upper:
        async def process(self, frame):
            return frame.upper()

    serving = asyncio.ensure_future(run_processor(Upper(), host="127.0.0.1", port=unused_tcp_port))
    async with asyncio.timeout(60), TrickleClient(f"http://127.0.0.1:{unused_tcp_port}") as client:
        answer = b""
        while not answer:
            with contextlib.suppress(ServerUnreachable, ServerRefused):  # not yet listening, or not yet ready
                answer = await client.process_frame(b"x")
    assert answer == b"X"
    serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await serving
