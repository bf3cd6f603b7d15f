"""TrickleClient against the real server."""

import asyncio

import pytest
from aiohttp import web

from tests.waiting import forever, until
from whisper_byoc import TrickleClient
from whisper_byoc.errors import SegmentFailed, ServerRefused, ServerUnreachable, UsageError
from whisper_byoc.http import listening
from whisper_byoc.server.run import Server, ServerConfig


class Upper:
    content_type = "text/plain; charset=utf-8"

    async def process(self, frame: bytes) -> bytes:
        if frame == b"bad":
            raise ValueError("no")
        return frame.upper()


class Sound(Upper):
    media = "audio"

    async def process(self, frame: bytes) -> bytes:
        return b"%d" % len(frame)


async def test_process_frame(serving):
    api = await serving(Upper())
    async with TrickleClient(api.url + "/") as client:
        assert await client.process_frame(b"one") == b"ONE"
        assert await client.process_frame(b"") == b""
        assert await client.process_frame(bytearray(b"two")) == b"TWO"
    assert not api.table.jobs  # leaving frees the job


async def test_calls_at_once_get_their_own_results(serving):
    api = await serving(Upper())
    async with TrickleClient(api.url) as client:
        got = await asyncio.gather(*(client.process_frame(b"n%d" % number) for number in range(20)))
    assert got == [b"N%d" % number for number in range(20)]


async def test_two_clients_do_not_meet(serving):
    api = await serving(Upper())
    async with TrickleClient(api.url) as one, TrickleClient(api.url) as two:
        assert await asyncio.gather(one.process_frame(b"a"), two.process_frame(b"b")) == [b"A", b"B"]


async def test_a_failed_frame_raises_and_the_next_one_works(serving):
    api = await serving(Upper())
    async with TrickleClient(api.url) as client:
        with pytest.raises(SegmentFailed, match="ValueError: no") as caught:
            await client.process_frame(b"bad")
        assert caught.value.seq == 0
        assert await client.process_frame(b"good") == b"GOOD"


async def test_stream_sends_while_it_receives(serving):
    api = await serving({"video": type("Video", (Upper,), {"media": "video"})()})
    seen = asyncio.Event()

    async def source():
        yield b"abc"
        await seen.wait()  # the first result must come before the second frame is sent
        yield b"def"

    texts = []
    async with TrickleClient(api.url) as client:
        async for record in client.stream(source(), width="1", height="1"):
            seen.set()
            texts.append(record.get("text"))
    assert texts == ["ABC", "DEF", None]


async def test_stream_of_bytes_and_of_nothing(serving):
    api = await serving(Sound())
    async with TrickleClient(api.url) as client:
        assert [each["type"] async for each in client.stream(bytes(200_000))] == ["result", "end"]
        assert [each["type"] async for each in client.stream(b"")] == ["end"]


async def test_leaving_a_stream_early_frees_the_job(serving):
    api = await serving(Sound())

    async def endless():
        while True:
            yield bytes(32_000)

    async with TrickleClient(api.url) as client:
        records = client.stream(endless())
        assert (await anext(records))["type"] == "result"
        await records.aclose()
    assert not api.table.jobs


async def test_a_source_that_raises_is_passed_on_after_what_arrived(serving):
    api = await serving(Sound())

    async def source():
        yield b"abcd"
        raise RuntimeError("microphone unplugged")

    got = []
    async with TrickleClient(api.url) as client:
        with pytest.raises(RuntimeError, match="unplugged"):
            async for record in client.stream(source()):
                got.append(record["type"])
    assert got == ["result", "end"]


async def test_unknown_pipeline_is_refused_at_once(serving):
    api = await serving(Upper())
    async with TrickleClient(api.url, pipeline="other") as client:
        with pytest.raises(ServerRefused, match="model not found") as caught:
            await client.process_frame(b"x")
        assert caught.value.status == 404
        with pytest.raises(ServerRefused, match="model not found"):
            async for _ in client.stream(b"x"):
                pass


async def test_a_server_that_asks_for_a_token():
    async with Server({"test": Upper()}, ServerConfig("127.0.0.1", 0, token="secret")) as server:
        await server.loaded()
        url = f"http://127.0.0.1:{server.port}"
        async with TrickleClient(url, token="secret") as client:
            assert await client.process_frame(b"x") == b"X"
            assert [each["type"] async for each in client.stream(b"x")] == ["result", "end"]
        async with TrickleClient(url) as client:
            with pytest.raises(ServerRefused) as caught:
                await client.process_frame(b"x")
            assert caught.value.status == 401


async def test_nobody_there(unused_tcp_port):
    async with TrickleClient(f"http://127.0.0.1:{unused_tcp_port}") as client:
        with pytest.raises(ServerUnreachable, match="is the server running there"):
            await client.process_frame(b"x")
        with pytest.raises(ServerUnreachable):
            async for _ in client.stream(b"x"):
                pass


async def test_not_entered():
    with pytest.raises(UsageError, match="async with"):
        await TrickleClient().process_frame(b"x")


async def test_no_result_in_time(serving):
    class Slow:
        async def process(self, frame):
            await forever()

    api = await serving(Slow())
    async with TrickleClient(api.url, timeout=0.1) as client:
        with pytest.raises(ServerUnreachable, match=r"within 0\.1 s"):
            await client.process_frame(b"x")
        with pytest.raises(ServerUnreachable, match=r"for 0\.1 s after the end"):
            async for _ in client.stream(b"x"):
                pass


async def test_a_result_that_nobody_waited_for_is_not_taken_for_the_next_frames(serving):
    go = asyncio.Event()

    class Waits:
        async def process(self, frame):
            await go.wait()
            return frame

    api = await serving(Waits())
    async with TrickleClient(api.url) as client:
        given_up = asyncio.ensure_future(client.process_frame(b"first"))
        await until(lambda: api.table.queued)
        given_up.cancel()
        go.set()
        assert await client.process_frame(b"second") == b"second"


async def test_an_answer_without_an_end(forgetful_container):
    async with TrickleClient(forgetful_container) as client:
        with pytest.raises(ServerUnreachable, match="ended its answer before the end of the job"):
            async for _ in client.stream(b"x"):
                pass


@pytest.fixture
async def forgetful_container():
    """A container whose answers end before the job does."""

    async def take(request):
        await request.read()
        return web.json_response({})

    async def give(_):
        return web.Response(text='{"type": "result", "text": "a"}\n', content_type="application/x-ndjson")

    app = web.Application()
    app.router.add_route("PUT", "/live/{job}/source", take)
    app.router.add_route("GET", "/live/{job}/output", give)
    app.router.add_route("DELETE", "/live/{job}", take)
    async with listening(app, "127.0.0.1", 0, keep_alive_seconds=60, shutdown_seconds=1) as port:
        yield f"http://127.0.0.1:{port}"


async def test_a_server_without_the_result_is_not_asked_hot():
    asked = []

    async def take(request):
        await request.read()
        return web.Response()

    async def give(request):
        asked.append(request.path)
        return web.Response(status=204)

    app = web.Application()
    app.router.add_put("/live/{job}/source", take)
    app.router.add_get("/live/{job}/output", give)
    app.router.add_delete("/live/{job}", take)
    async with (
        listening(app, "127.0.0.1", 0, keep_alive_seconds=60, shutdown_seconds=0) as port,
        TrickleClient(f"http://127.0.0.1:{port}", timeout=0.5) as client,
    ):
        with pytest.raises(ServerUnreachable):
            await client.process_frame(b"frame")
    assert 1 < len(asked) < 15
