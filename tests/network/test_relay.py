"""A request's body is whole for each peer that is tried, and an answer ends properly, whoever fails."""

import asyncio
from contextlib import asynccontextmanager

import aiohttp
import pytest
from aiohttp import web

from tests.waiting import until
from whisper_byoc.errors import ReaderGone, RequestRefused
from whisper_byoc.network.records import record_stream
from whisper_byoc.network.relay import ClientAnswer, RequestBody
from whisper_byoc.network.serving import error_answers
from whisper_byoc.trickle.limits import ByteBudget

BODY = [bytes([n]) * (n * 1000 + 1) for n in range(30)]
WHOLE = b"".join(BODY)
HEAD = {"Content-Type": "application/octet-stream"}


@asynccontextmanager
async def served(handle, path="/", cancellation=True):
    """Serve `handle(request)`, and yield a session, the URL and the port."""
    app = web.Application(client_max_size=0, middlewares=[error_answers("gateway")])
    app.router.add_route("*", path, handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=cancellation)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    port = runner.addresses[0][1]
    async with aiohttp.ClientSession() as http:
        yield http, f"http://127.0.0.1:{port}{path}", port
    await runner.cleanup()


@asynccontextmanager
async def receiving(use, *, keep=1 << 20, limit=None, memory=None, cancellation=True):
    """Serve a handler that answers with what `use(body)` returns."""
    memory = memory or ByteBudget(1 << 30)

    async def handle(request):
        body = RequestBody(request, memory, keep, limit)
        try:
            return web.Response(body=await use(body))
        finally:
            body.release()

    async with served(handle, cancellation=cancellation) as found:
        yield found
    assert memory.held == 0


async def chunks(data=BODY):
    for each in data:
        yield each
        await asyncio.sleep(0)


async def joined(body, stop=None):
    got = b""
    async for chunk in body.chunks():
        got += chunk
        if stop is not None and len(got) >= stop:
            break
    return got


# -- bodies ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunked", [True, False])
async def test_every_peer_gets_the_whole_body(chunked):
    async def use(body):
        assert body.length == (None if chunked else len(WHOLE))
        for stop in (0, 1000, 200_000):
            assert WHOLE.startswith(await joined(body, stop))
        assert body.repeatable
        assert await joined(body) == WHOLE
        return await joined(body)

    async with receiving(use) as (http, url, _), http.post(url, data=chunks() if chunked else WHOLE) as answer:
        assert await answer.read() == WHOLE


async def test_a_feed_sends_its_head_before_its_first_byte():
    async def use(body):
        return await anext(body.chunks())

    async with receiving(use) as (http, url, _), http.post(url, data=chunks()) as answer:
        assert await answer.read() == b""


async def test_a_second_peer_misses_nothing_while_the_reading_for_the_first_still_waits():
    go_on = asyncio.Event()

    async def sent():
        yield b"first"
        await go_on.wait()
        yield b"second"

    async def use(body):
        first = asyncio.ensure_future(joined(body))
        await until(lambda: body.waiting)
        second = asyncio.ensure_future(joined(body))
        await asyncio.sleep(0)
        go_on.set()
        return await first + b"|" + await second

    async with receiving(use) as (http, url, _), http.post(url, data=sent()) as answer:
        assert await answer.read() == b"firstsecond|firstsecond"


async def test_what_is_released_is_not_kept_and_the_rest_still_comes():
    async def use(body):
        first = body.chunks()
        taken = await anext(first) + await anext(first)
        body.release()
        assert not body.repeatable
        return taken + b"".join([chunk async for chunk in first])

    async with receiving(use) as (http, url, _), http.post(url, data=chunks()) as answer:
        assert await answer.read() == WHOLE


async def test_beyond_what_is_kept_it_cannot_be_repeated_and_is_still_whole():
    async def use(body):
        got = await joined(body)
        assert not body.repeatable
        return got

    async with receiving(use, keep=5000) as (http, url, _), http.post(url, data=chunks()) as answer:
        assert await answer.read() == WHOLE


async def test_a_body_that_breaks_off_is_an_error_for_whoever_reads_it():
    begun, seen = asyncio.Event(), []

    async def use(body):
        begun.set()
        with pytest.raises(RequestRefused, match="broke off"):
            await joined(body)
        seen.append(body.error.status)
        return b""

    async with receiving(use, cancellation=False) as (_, _, port):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
        await begun.wait()
        writer.transport.abort()
        await until(lambda: seen)
    assert seen == [400]


@pytest.mark.parametrize(
    ("options", "data", "status", "words"),
    [
        ({"limit": 1000}, bytes(1001), 413, "1001 bytes"),
        ({"limit": 1000}, None, 413, "1000 bytes"),
        ({"memory": ByteBudget(1000)}, None, 503, "holds"),
    ],
)
async def test_bodies_are_bounded_each_and_together(options, data, status, words):
    async with receiving(joined, **options) as (http, url, _), http.post(url, data=data or chunks()) as answer:
        assert answer.status == status
        assert words in await answer.text()


async def test_a_bug_while_reading_a_body_is_logged_and_is_not_called_a_lack_of_room(caplog):
    class Broken:
        held = 0

        def take(self, _):
            raise ZeroDivisionError("a bug")

        def give(self, _):
            pass

    async with receiving(joined, memory=Broken()) as (http, url, _), http.post(url, data=b"x") as answer:
        assert answer.status == 500
    assert "ZeroDivisionError: a bug" in caplog.text


# -- answers ---------------------------------------------------------------------------------------------


class Peer:
    """Stands in for a peer's answer: bytes, then its end, an error, or silence."""

    def __init__(self, *data, then=b""):
        self.content = self
        self._data = [*data, then]

    async def readany(self):
        data = self._data.pop(0)
        if data is None:
            await asyncio.sleep(60)
        if isinstance(data, BaseException):
            raise data
        return data


def answering(use, accept="", stall=5.0, path="/"):
    """Serve a handler that does `use(client)`."""

    async def handle(request):
        return await use(ClientAnswer(request, stall, record_stream(accept)))

    return served(handle, path)


@pytest.mark.parametrize(("path", "body"), [("/live/x", '{"error": "full"}'), ("/process/x", "full\n")])
async def test_an_error_before_the_head_is_an_error(path, body):
    async def use(client):
        return await client.fail(RequestRefused(503, "full", retry_after=7))

    async with answering(use, path=path) as (http, url, _), http.get(url) as answer:
        assert (answer.status, answer.headers["Retry-After"], await answer.text()) == (503, "7", body)


async def test_bytes_that_cannot_go_on_break_off():
    async def use(client):
        await client.begin(200, HEAD)
        await client.copy(Peer(b"ab"))
        return await client.fail(RequestRefused(502, "gone"))

    async with answering(use) as (http, url, _), http.get(url) as answer:
        with pytest.raises(aiohttp.ClientPayloadError):
            await answer.read()


@pytest.mark.parametrize("how", ["copy", "end"])
async def test_a_reader_who_takes_nothing_is_cut_off_in_every_phase_of_the_answer(caplog, how):
    over = asyncio.get_running_loop().create_future()

    async def handle(request):
        client = ClientAnswer(request, 0.2)
        await client.begin(200, HEAD)
        try:
            if how == "copy":
                await client.copy(Peer(*[bytes(1 << 20)] * 100))
            request.transport.write(bytes(64 << 20))  # more than the sockets hold
            await client.end()
        except ReaderGone:
            over.set_result(None)
            raise

    async with served(handle) as (_, _, port):
        _, writer = await asyncio.open_connection("127.0.0.1", port, limit=1000)
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        await asyncio.wait_for(over, 20)
        writer.transport.abort()
    assert not [each for each in caplog.records if each.levelname == "ERROR"]
