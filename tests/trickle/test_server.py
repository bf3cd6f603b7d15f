"""The server's life: in an application, as a program, over https; how it sweeps and stops."""

import asyncio
import contextlib
import re
import signal
import sys

import pytest
from aiohttp import web

from tests.waiting import until
from whisper_byoc.errors import StartError
from whisper_byoc.http import server_tls
from whisper_byoc.trickle import (
    TrickleError,
    TrickleLimits,
    TricklePublisher,
    TrickleServer,
    TrickleSubscriber,
    Unreachable,
)
from whisper_byoc.trickle.server import serve


async def test_a_sweep_that_fails_is_not_the_last_one(caplog):
    class Failing(TrickleServer):
        sweeps = 0

        def sweep(self):
            self.sweeps += 1
            if self.sweeps == 1:
                raise RuntimeError("a defect")

    server = Failing(limits=TrickleLimits(sweep_seconds=0.001))
    async with server.listening("127.0.0.1", 0):
        await until(lambda: server.sweeps > 1)
    assert "a defect" in caplog.text


async def test_a_channel_is_created_once_and_ends_with_the_server():
    server = TrickleServer(changefeed=True)
    async with server.listening("127.0.0.1", 0):
        channel = server.create("ch")
        assert channel is server.create("ch", "text/other")
    assert channel.closed
    assert not server.channels


@contextlib.asynccontextmanager
async def program(*words):
    """Run it as a user does, and give the process and the URL that it names."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "whisper_byoc.trickle", "--port", "0", *words, stderr=asyncio.subprocess.PIPE
    )
    try:
        line = ""
        while "listening" not in line:
            line = (await asyncio.wait_for(process.stderr.readline(), 20)).decode()
            assert line, "it ended"
        yield process, re.search(r"listening on (\S+)", line)[1], line
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def test_as_a_program(quick):
    async with program() as (process, base, line):
        assert "auto-create on" in line
        assert re.fullmatch(r"http://127.0.0.1:\d+/ai/trickle/", base)
        async with (
            TricklePublisher(base + "ch", options=quick()) as publisher,
            TrickleSubscriber(base + "ch", 0, options=quick()) as subscriber,
        ):
            assert await publisher.publish(b"x") == 0
            assert await (await anext(subscriber)).read() == b"x"
            reading = asyncio.create_task(anext(subscriber))
            await asyncio.sleep(0.2)  # nothing outside tells that it is waiting
            process.send_signal(signal.SIGTERM)
            with pytest.raises(StopAsyncIteration):
                await asyncio.wait_for(reading, 10)
        assert await asyncio.wait_for(process.wait(), 10) == 0


async def test_its_options(quick):
    async with program("--base-path", "/", "--no-autocreate", "--changefeed") as (_, base, line):
        assert "auto-create off" in line
        assert base.count("/") == 3
        with pytest.raises(TrickleError, match="no channel"):
            await TricklePublisher(base + "ch", create=True, options=quick()).start()


async def test_a_port_in_use():
    async with TrickleServer().listening("127.0.0.1", 0) as base:
        port = int(base.split(":")[2].split("/")[0])
        with pytest.raises(StartError, match=f"port {port} on 127.0.0.1 is in use"):
            await serve(TrickleServer(), "127.0.0.1", port, asyncio.Event())


@contextlib.asynccontextmanager
async def application(server, **options):
    app = web.Application()
    server.add_routes(app)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, **options).start()
    try:
        yield runner, f"127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def test_a_waiting_reader_does_not_hold_up_the_end_of_an_application(quick):
    server = TrickleServer("/t", autocreate=True)
    async with application(server) as (runner, address):
        url = f"http://{address}/t/ch"
        channel = server.create("ch")
        async with TrickleSubscriber(url, 0, options=quick()) as subscriber:
            reading = asyncio.create_task(anext(subscriber))
            await until(lambda: channel.segments)
            await asyncio.wait_for(runner.cleanup(), 5)
            with pytest.raises(StopAsyncIteration):
                await reading


async def test_https_with_and_without_checking(certificate, quick):
    trusting, checking = quick(verify=False), quick(patience_seconds=0.05)
    async with application(TrickleServer("/", autocreate=True), ssl_context=server_tls(*certificate)) as (_, address):
        url = f"https://{address}/ch"
        async with (
            TricklePublisher(url, create=True, options=trusting) as publisher,
            TrickleSubscriber(url, 0, options=trusting) as subscriber,
        ):
            reading = asyncio.create_task(anext(subscriber))
            await publisher.publish(bytes(200_000))
            assert await (await reading).read() == bytes(200_000)
        async with TricklePublisher(url, options=checking) as publisher:
            with pytest.raises(Unreachable, match=r"(?i)certificate"):
                await publisher.publish(b"x")
        async with TrickleSubscriber(url, 0, options=checking) as subscriber:
            with pytest.raises(Unreachable, match=r"(?i)certificate"):
                await anext(subscriber)
