"""A request's body is whole for each peer that is tried, and an answer ends properly, whoever fails."""

import asyncio
from contextlib import asynccontextmanager

import aiohttp
import pytest
from aiohttp import web

from tests.waiting import forever, until
from whisper_byoc.aio import cancel
from whisper_byoc.errors import ReaderGone, RequestRefused
from whisper_byoc.http import listening
from whisper_byoc.network.records import record_stream
from whisper_byoc.network.relay import ClientAnswer, RequestBody
from whisper_byoc.network.serving import NetworkLimits, error_answers
from whisper_byoc.trickle.limits import ByteBudget

BODY = [bytes([n]) * (n * 1000 + 1) for n in range(30)]
WHOLE = b"".join(BODY)
HEAD = {"Content-Type": "application/octet-stream"}


@asynccontextmanager
async def served(handle, path="/", cancellation=True):
    """Serve `handle(request)`, and yield a session, the URL and the port."""
    app = web.Application(client_max_size=0, middlewares=[error_answers("gateway")])
    app.router.add_route("*", path, handle)
    options = {"keep_alive_seconds": 60, "shutdown_seconds": 0.1, "handler_cancellation": cancellation}
    async with listening(app, "127.0.0.1", 0, **options) as port, aiohttp.ClientSession() as http:
        yield http, f"http://127.0.0.1:{port}{path}", port


@asynccontextmanager
async def receiving(use, *, live=False, memory=None, cancellation=True, **limits):
    """Serve a handler that answers with what `use(body)` returns."""
    memory = memory or ByteBudget(1 << 30)

    async def handle(request):
        body = RequestBody(request, memory, NetworkLimits(**limits), live=live)
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


async def joined(body):
    data, _ = await body.for_peer()
    return b"".join([chunk async for chunk in data])


# -- bodies ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunked", [True, False])
async def test_every_peer_gets_a_whole_body_with_its_length(chunked):
    async def use(body):
        for _ in range(2):
            _, headers = await body.for_peer()
            assert headers == {"Content-Length": str(len(WHOLE))}
            assert await joined(body) == WHOLE
        return await joined(body)

    async with receiving(use) as (http, url, _), http.post(url, data=chunks() if chunked else WHOLE) as answer:
        assert await answer.read() == WHOLE


async def test_a_feed_flows_to_the_peer_that_takes_it_and_no_byte_of_it_before():
    async def use(body):
        passed_over, headers = await body.for_peer()
        assert await anext(passed_over) == b"", "its head is sent at once"
        waiting = asyncio.ensure_future(anext(passed_over))
        taking = asyncio.ensure_future(joined(body))
        await asyncio.sleep(0)
        body.take()
        got = await taking
        assert headers == {}
        assert not waiting.done()
        waiting.cancel()
        return got

    async with receiving(use, live=True) as (http, url, _), http.post(url, data=chunks()) as answer:
        assert await answer.read() == WHOLE


@pytest.mark.parametrize("live", [True, False])
async def test_a_body_that_breaks_off_is_an_error_for_whoever_reads_it(live):
    begun, seen = asyncio.Event(), []

    async def use(body):
        begun.set()
        data, _ = await body.for_peer()
        body.take()
        async for _ in data:
            pass

    async def catch(body):
        with pytest.raises(RequestRefused, match="broke off") as caught:
            await use(body)
        assert not live or body.error is caught.value
        seen.append(caught.value.status)
        return b""

    async with receiving(catch, live=live, cancellation=False) as (_, _, port):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
        await begun.wait()
        writer.transport.abort()
        await until(lambda: seen)
    assert seen == [400]


async def slow():
    yield b"x"
    await forever()


@pytest.mark.parametrize(
    ("options", "data", "status", "words"),
    [
        ({"frame_bytes": 1000}, bytes(1001), 413, "1001 bytes"),
        ({"frame_bytes": 1000}, None, 413, "1000 bytes"),
        ({"memory": ByteBudget(1000)}, None, 503, "holds"),
        ({"stall_seconds": 0.1}, slow(), 400, "not there within 0.1 s"),
    ],
)
async def test_bodies_are_bounded_each_and_together(options, data, status, words):
    async with receiving(joined, **options) as (http, url, _), http.post(url, data=data or chunks()) as answer:
        assert answer.status == status
        assert words in await answer.text()


async def test_bodies_count_while_they_come():
    memory = ByteBudget(1000)

    async def part():
        yield bytes(600)
        await forever()

    async with receiving(joined, memory=memory) as (http, url, _):
        first = asyncio.ensure_future(http.post(url, data=part()))
        await until(lambda: memory.held == 600)
        async with http.post(url, data=part()) as answer:
            assert (answer.status, "holds 600 of 1000 bytes" in await answer.text()) == (503, True)
        await cancel(first)
        await until(lambda: memory.held == 0)


# -- answers ---------------------------------------------------------------------------------------------


class Peer:
    """Stands in for a peer's answer: bytes, then its end, an error, or silence."""

    def __init__(self, *data, then=b""):
        self.content = self
        self._data = [*data, then]

    async def readany(self):
        data = self._data.pop(0)
        if data is None:
            await forever()
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
