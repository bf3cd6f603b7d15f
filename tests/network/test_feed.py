"""A request's body on its way: whole for each peer that is tried, bounded, and never half without an error."""

import asyncio
from contextlib import asynccontextmanager

import aiohttp
import pytest
from aiohttp import web

from tests.waiting import until
from whisper_byoc.errors import RequestRefused
from whisper_byoc.network import feed as feeds
from whisper_byoc.network.feed import Feed
from whisper_byoc.trickle.limits import Memory

BODY = [bytes([n]) * (n * 1000 + 1) for n in range(30)]
WHOLE = b"".join(BODY)


@asynccontextmanager
async def served(use, *, hold=1 << 20, most=None, memory=None, cancel=True):
    """Serve a handler that does `use(feed)` with the body of each request, and answers with what it gives."""
    memory = memory or Memory(1 << 30)

    async def handle(request):
        try:
            async with Feed(request, memory, hold, most) as feed:
                return web.Response(body=await use(feed))
        except RequestRefused as error:
            return web.Response(status=error.status, text=str(error))
        finally:
            assert memory.held == 0

    app = web.Application(client_max_size=0)
    app.router.add_post("/", handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=cancel)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    async with aiohttp.ClientSession() as http:
        yield http, f"http://127.0.0.1:{runner.addresses[0][1]}/", runner.addresses[0][1]
    await runner.cleanup()


async def chunks(data=BODY):
    for each in data:
        yield each
        await asyncio.sleep(0)


async def joined(feed, stop=None):
    got = b""
    async for chunk in feed.chunks():
        got += chunk
        if stop is not None and len(got) >= stop:
            break
    return got


@pytest.mark.parametrize("chunked", [True, False])
async def test_every_peer_gets_the_whole_body(chunked):
    async def use(feed):
        assert feed.length == (None if chunked else len(WHOLE))
        for stop in (0, 1000, 200_000):
            assert WHOLE.startswith(await joined(feed, stop))
        assert feed.replayable
        assert await joined(feed) == WHOLE
        return await joined(feed)

    async with served(use) as (http, url, _), http.post(url, data=chunks() if chunked else WHOLE) as answer:
        assert await answer.read() == WHOLE


async def test_a_feed_of_unknown_length_sends_its_head_before_its_first_byte():
    async def use(feed):
        return await anext(feed.chunks())

    async with served(use) as (http, url, _), http.post(url, data=chunks()) as answer:
        assert await answer.read() == b""


async def test_a_settled_feed_gives_only_what_was_not_taken():
    async def use(feed):
        first = feed.chunks()
        taken = await anext(first) + await anext(first)
        feed.settle()
        assert not feed.replayable
        rest = b""
        async for chunk in first:
            rest += chunk
        return taken + rest + await joined(feed)

    async with served(use) as (http, url, _), http.post(url, data=chunks()) as answer:
        assert await answer.read() == WHOLE


async def test_beyond_what_is_held_it_cannot_be_repeated_and_is_still_whole():
    async def use(feed):
        got = await joined(feed)
        assert not feed.replayable
        return got

    async with served(use, hold=5000) as (http, url, _), http.post(url, data=chunks()) as answer:
        assert await answer.read() == WHOLE


async def test_an_iterator_of_an_earlier_peer_ends_when_another_begins():
    async def use(feed):
        first = feed.chunks()
        await anext(first)
        second = await joined(feed)
        return second + b"|" + b"".join([chunk async for chunk in first])

    async with served(use) as (http, url, _), http.post(url, data=chunks()) as answer:
        assert await answer.read() == WHOLE + b"|"


async def test_a_peer_that_does_not_read_keeps_the_sender_waiting(monkeypatch):
    monkeypatch.setattr(feeds, "UNSENT_BYTES", 100_000)
    held = []

    async def use(feed):
        first = feed.chunks()
        await anext(first)
        await asyncio.sleep(0.3)
        held.append(feed._held)
        return str(len(await joined(feed))).encode()

    big = [bytes(50_000)] * 60
    async with served(use, hold=1 << 30) as (http, url, _), http.post(url, data=chunks(big)) as answer:
        assert await answer.read() == b"3000000"
    assert held[0] < 1_000_000


async def test_a_body_that_breaks_off_is_an_error_for_whoever_reads_it():
    begun, seen = asyncio.Event(), []

    async def use(feed):
        begun.set()
        with pytest.raises(RequestRefused, match="broke off") as caught:
            await joined(feed)
        seen.append((caught.value.status, caught.value is feed.error))
        raise caught.value

    async with served(use, cancel=False) as (_, _, port):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
        await begun.wait()
        writer.transport.abort()
        await until(lambda: seen)
    assert seen == [(400, True)]


async def test_a_body_over_the_limit_is_refused_before_it_is_read():
    async def use(feed):
        raise AssertionError

    async with served(use, most=1000) as (http, url, _), http.post(url, data=bytes(1001)) as answer:
        assert answer.status == 413
        assert "1001 bytes" in await answer.text()


async def test_a_chunked_body_over_the_limit_is_refused_on_the_way():
    async with served(joined, most=1000) as (http, url, _), http.post(url, data=chunks()) as answer:
        assert answer.status == 413


async def test_all_feeds_together_are_bounded():
    async with served(joined, memory=Memory(1000)) as (http, url, _), http.post(url, data=chunks()) as answer:
        assert answer.status == 503


async def test_a_sender_who_hangs_up_leaves_no_bytes_behind():
    memory = Memory(1 << 20)
    there = asyncio.Event()

    async def use(feed):
        await anext(feed.chunks())
        there.set()
        await asyncio.sleep(60)

    async with served(use, memory=memory) as (_, _, port):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nhello")
        await there.wait()
        assert memory.held == 5
        writer.transport.abort()
        while memory.held:
            await asyncio.sleep(0.01)
