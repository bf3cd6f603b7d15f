"""The answer to a client: begun once, ended in its form, and its reader's troubles are nobody else's."""

import asyncio
from contextlib import asynccontextmanager

import aiohttp
import pytest
from aiohttp import web

from whisper_byoc.errors import PeerFailed, ReaderGone, RequestRefused
from whisper_byoc.network.answers import as_json, as_text, says
from whisper_byoc.network.form import Raw, lines
from whisper_byoc.network.out import Out, peer_failed

HEAD = {"Content-Type": "application/octet-stream"}


class Peer:
    """Stands in for a peer's answer: bytes, then its end, an error, or silence."""

    status = 200

    def __init__(self, *data, then=b""):
        self.content = self
        self.url = aiohttp.client.URL("http://peer:80/x")
        self._data = [*data, then]

    async def readany(self):
        data = self._data.pop(0)
        if data is None:
            await asyncio.sleep(60)
        if isinstance(data, BaseException):
            raise data
        return data


@asynccontextmanager
async def served(use, form=Raw, stall=5.0, wrap=as_json):
    """Serve a handler that does `use(out)`."""

    async def handle(request):
        return await use(Out(request, form(), stall))

    app = web.Application()
    app.router.add_get("/", wrap(handle))
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    async with aiohttp.ClientSession() as http:
        yield http, f"http://127.0.0.1:{runner.addresses[0][1]}/"
    await runner.cleanup()


async def test_bytes_pass_and_the_answer_ends():
    async def use(out):
        await out.copy(Peer(b"ab", b"cd"), {**HEAD, "X-A": "b"})
        assert out.produced
        return await out.finish()

    async with served(use) as (http, url), http.get(url) as answer:
        assert (answer.status, answer.headers["X-A"], await answer.read()) == (200, "b", b"abcd")


async def test_an_error_before_the_head_is_an_error():
    async def use(out):
        return await out.fail(RequestRefused(503, "full", retry_after=7))

    for wrap, body in ((as_json, '{"error": "full"}'), (as_text, "full\n")):
        async with served(use, wrap=wrap) as (http, url), http.get(url) as answer:
            assert (answer.status, answer.headers["Retry-After"], await answer.text()) == (503, "7", body)


async def test_an_error_after_the_head_is_told_in_the_form():
    async def use(out):
        with pytest.raises(PeerFailed, match="http://peer"):
            await out.copy(Peer(b'{"seq":0}\n{"se', then=aiohttp.ClientPayloadError("cut")), HEAD)
        return await out.fail(RequestRefused(502, "gone"))

    async with served(use, lines) as (http, url), http.get(url) as answer:
        records = [each async for each in answer.content]
        assert answer.headers["Content-Type"] == "application/x-ndjson"
    assert records[0] == b'{"seq":0}\n'
    assert b'"seq":1,"error":"gone"' in records[1]
    assert b'"type":"end"' in records[2]


async def test_raw_bytes_break_off():
    async def use(out):
        await out.copy(Peer(b"ab"), HEAD)
        return await out.fail(RequestRefused(502, "gone"))

    async with served(use) as (http, url), http.get(url) as answer:
        with pytest.raises(aiohttp.ClientPayloadError):
            await answer.read()


async def test_a_head_with_a_length_waits_for_the_first_byte():
    async def use(out):
        with pytest.raises(PeerFailed):
            await out.copy(Peer(then=aiohttp.ClientPayloadError("cut")), {**HEAD, "Content-Length": "2"})
        await out.copy(Peer(b"four"), {**HEAD, "Content-Length": "4"})
        return await out.finish()

    async with served(use) as (http, url), http.get(url) as answer:
        assert await answer.read() == b"four"


async def test_a_peer_whose_answer_differs_in_kind_cannot_follow_another():
    async def use(out):
        await out.begin(200, HEAD)
        with pytest.raises(PeerFailed, match="differs in kind"):
            await out.copy(Peer(b"x"), {"Content-Type": "text/plain"})
        await out.copy(Peer(b"same"), HEAD)
        return await out.finish()

    async with served(use) as (http, url), http.get(url) as answer:
        assert await answer.read() == b"same"


async def test_a_silent_peer_is_given_up_unless_it_may_be_silent():
    silences = []

    def may_be_silent():
        silences.append(None)
        return len(silences) < 3

    async def use(out):
        with pytest.raises(PeerFailed) as caught:
            await out.copy(Peer(b"x", None, None, None, None), HEAD, may_be_silent)
        assert caught.value.status == 504
        return await out.finish()

    async with served(use, stall=0.05) as (http, url), http.get(url) as answer:
        assert await answer.read() == b"x"
    assert len(silences) == 3


async def test_a_reader_who_has_gone_is_not_the_peers_fault(caplog):
    over = asyncio.get_running_loop().create_future()

    async def use(out):
        await out.begin(200, HEAD)
        try:
            await out.copy(Peer(*[bytes(1 << 20)] * 100), HEAD)
        except ReaderGone:
            over.set_result(None)
            raise
        return await out.finish()

    async with served(use, stall=0.3) as (http, url):
        answer = await http.get(url)
        answer.close()
        await asyncio.wait_for(over, 20)
    assert not [each for each in caplog.records if each.levelname == "ERROR"]


@pytest.mark.parametrize(
    ("error", "status", "reached"),
    [
        (TimeoutError(), 504, True), (aiohttp.ServerTimeoutError(), 504, True),
        (aiohttp.ConnectionTimeoutError("no route"), 502, False),
        (aiohttp.ClientConnectorError(aiohttp.client_reqrep.ConnectionKey("h", 1, False, True, None, None, None),
                                      OSError(111, "refused")), 502, False),
        (aiohttp.ServerDisconnectedError(), 502, True), (ConnectionResetError(), 502, True), (OSError("x"), 502, True),
    ],
)  # fmt: skip
def test_what_went_wrong_with_a_peer(error, status, reached):
    failed = peer_failed("the peer", error)
    assert (failed.status, failed.reached) == (status, reached)
    assert str(failed).startswith("the peer ")
    assert not str(failed).endswith(": ")


@pytest.mark.parametrize(
    ("body", "words"),
    [(b'{"error":"a b"}', "a b"), (b"plain\n", "plain"), (b"", "else"), (b" ", "else"), (b'{"x":1}', '{"x":1}'),
     (b"[1]", "[1]"), (b"\xff", "\ufffd"), (b"[" * 9999, "[" * 500), (b'{"error":{"a":1}}', "{'a': 1}")],
)  # fmt: skip
def test_the_sentence_in_an_error_answer(body, words):
    assert says(body, "else") == words
