"""`python -m whisper_byoc.trickle`, https, and the bytes moved by hand."""

import asyncio
import contextlib
import io
import re
import shutil
import signal
import ssl
import subprocess
import sys

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from tests.waiting import until
from whisper_byoc.errors import StartError
from whisper_byoc.trickle import TrickleError, TricklePublisher, TrickleServer, TrickleSubscriber, Unreachable
from whisper_byoc.trickle.pipe import by_line, by_size, by_time, chunks_of, publish, subscribe
from whisper_byoc.trickle.server import listening, serve


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
        assert base.startswith("http://127.0.0.1:")
        assert base.endswith("/ai/trickle/")
        async with TricklePublisher(base + "ch", options=quick()) as publisher:
            assert await publisher.publish(b"x") == 0
            async with TrickleSubscriber(base + "ch", 0, options=quick()) as subscriber:
                assert await (await anext(subscriber)).read() == b"x"
                reading = asyncio.create_task(anext(subscriber))
                await asyncio.sleep(0.3)
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
    server = TrickleServer()
    async with listening(server, "127.0.0.1", 0) as base:
        port = int(base.split(":")[2].split("/")[0])
        with pytest.raises(StartError, match=f"port {port} on 127.0.0.1 is in use"):
            await serve(TrickleServer(), "127.0.0.1", port, asyncio.Event())


async def test_in_somebody_elses_application():
    server = TrickleServer("/t", autocreate=True)
    app = web.Application()

    async def hello(_):
        return web.Response(text="hello")

    app.router.add_get("/", hello)
    server.add_routes(app)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    base = f"http://127.0.0.1:{runner.addresses[0][1]}"
    async with TricklePublisher(f"{base}/t/ch") as publisher, TrickleSubscriber(f"{base}/t/ch", 0) as subscriber:
        await publisher.publish(b"x")
        assert await (await anext(subscriber)).read() == b"x"
        reading = asyncio.create_task(anext(subscriber))
        await asyncio.sleep(0.05)
        await asyncio.wait_for(runner.cleanup(), 5)  # a waiting reader does not hold the shutdown up
        with pytest.raises(StopAsyncIteration):
            await reading


async def test_as_a_context_of_its_own():
    async with TrickleServer(changefeed=True) as server:
        assert server.create("ch") is server.create("ch", "text/other")
    assert not server.channels


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificate")
async def test_https_with_and_without_checking(tmp_path, quick):
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subject = ["-subj", "/CN=localhost", "-days", "1", "-nodes", "-newkey", "rsa:2048"]
    subprocess.run(
        ["openssl", "req", "-x509", *subject, "-keyout", key, "-out", certificate], check=True, capture_output=True
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server = TrickleServer("/", autocreate=True)
    app = web.Application()
    server.add_routes(app)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
    url = f"https://127.0.0.1:{runner.addresses[0][1]}/ch"
    try:
        trusting, checking = quick(verify=False), quick(patience_seconds=0.05)
        async with (
            TricklePublisher(url, create=True, options=trusting) as publisher,
            TrickleSubscriber(url, 0, options=trusting) as subscriber,
        ):
            reading = asyncio.create_task(anext(subscriber))
            await publisher.publish(bytes(200_000))
            assert await (await reading).read() == bytes(200_000)
        async with TricklePublisher(url, join=False, options=checking) as publisher:
            with pytest.raises(Unreachable, match=r"(?i)certificate"):
                await publisher.publish(b"x")
        async with TrickleSubscriber(url, 0, options=checking) as subscriber:
            with pytest.raises(Unreachable, match=r"(?i)certificate"):
                await anext(subscriber)
    finally:
        await runner.cleanup()


@pytest.mark.parametrize(
    "url", ["", "ch", "ftp://host/ch", "http:///ch", "http://host", "http://host/", "http://[::1/ch"]
)
def test_what_is_no_channel_url(url):
    for end in (TricklePublisher, TrickleSubscriber):
        with pytest.raises(TrickleError, match="not the URL of a channel"):
            end(url)


# --- by hand


async def given_in(pieces):
    for piece in pieces:
        yield piece


async def segments_of(pieces):
    """What `publish` would send."""
    segments = [b""]
    async for data, last in pieces:
        segments[-1] += data
        if last:
            segments.append(b"")
    return segments if segments[-1] else segments[:-1]


PIECES = st.lists(st.binary(min_size=1, max_size=40))


@given(PIECES, st.integers(1, 50))
async def test_by_size(pieces, size):
    whole = b"".join(pieces)
    expected = [whole[start : start + size] for start in range(0, len(whole), size)]
    assert await segments_of(by_size(given_in(pieces), size)) == expected


@given(st.lists(st.lists(st.sampled_from([b"a", b"\n", b"bc", b"\n\n"]), min_size=1).map(b"".join)))
async def test_by_line(pieces):
    assert await segments_of(by_line(given_in(pieces))) == b"".join(pieces).splitlines(keepends=True)


async def test_a_line_without_an_end_is_cut():
    got = await segments_of(by_line(given_in([b"x" * 8] * 5), longest=10))
    assert b"".join(got) == b"x" * 40
    assert max(map(len, got)) < 20


@given(PIECES)
async def test_by_time(pieces):
    ticks = iter(range(10**6))
    got = await segments_of(by_time(given_in(pieces), 3, lambda: next(ticks)))
    assert b"".join(got) == b"".join(pieces)


async def test_from_a_file_to_a_file(trickle):
    api = await trickle()
    publisher = await api.publisher(create=True)
    subscriber = await api.subscriber(start=0)
    sink, told = io.BytesIO(), []
    reading = asyncio.create_task(subscribe(subscriber, sink, lambda segment, size: told.append((segment.seq, size))))
    source = io.BytesIO(b"one\ntwo\nrest")
    assert await publish(by_line(chunks_of(source)), publisher) == 3
    await publisher.close(delete_channel=True)
    assert await asyncio.wait_for(reading, 10) == 3
    assert sink.getvalue() == b"one\ntwo\nrest"
    assert told == [(0, 4), (1, 4), (2, 4)]


async def test_a_source_that_breaks_ends_the_segment_for_its_readers(trickle):
    api = await trickle()
    publisher = await api.publisher()

    async def breaking():
        yield b"part"
        await until(lambda: api.slot(0) and api.slot(0).size == 4)
        raise OSError("the disk")

    with pytest.raises(OSError, match="the disk"):
        await publish(by_size(breaking(), 1000), publisher)
    assert api.slot(0).closed
