"""GatewayClient against gateways that behave and that do not."""

import asyncio

import pytest
from aiohttp import web

from tests.waiting import forever, until
from whisper_byoc import GatewayClient
from whisper_byoc.client import feed
from whisper_byoc.errors import ServerRefused, ServerUnreachable, UsageError


async def never_answers(_):
    await forever()


async def drain(records):
    return [record async for record in records]


async def test_process_frame(gateway):
    await gateway.serve(gateway.upper)
    async with GatewayClient(gateway.url + "/", "name", params={"language": "en"}) as client:
        assert await client.process_frame(b"one") == b"ONE"
        assert await client.process_frame(b"") == b""
        assert await client.process_frame(bytearray(b"two")) == b"TWO"
        assert await asyncio.gather(*(client.process_frame(b"n%d" % n) for n in range(20))) == [
            b"N%d" % n for n in range(20)
        ]
    first = gateway.requests[0]
    assert (first.headers["X-Model-Id"], dict(first.query)) == ("name", {"language": "en"})


async def test_stream_sends_while_it_receives(gateway):
    await gateway.serve(gateway.upper)
    seen = asyncio.Event()

    async def source():
        yield b"abc"
        await seen.wait()  # the first result must come before the second chunk is sent
        yield b""
        yield b"def"

    texts = []
    async with GatewayClient(gateway.url, "name", token="secret") as client:
        async for record in client.stream(source(), content_type="audio/L16", width="1"):
            seen.set()
            texts.append(record.get("text"))
    assert texts == ["ABC", "DEF", None]
    (request,) = gateway.requests
    assert request.query["width"] == "1"
    headers = {name: request.headers.get(name) for name in ("Accept", "Content-Type", "X-Model-Id", "Authorization")}
    assert headers == {
        "Accept": "application/x-ndjson",
        "Content-Type": "audio/L16",
        "X-Model-Id": "name",
        "Authorization": "Bearer secret",
    }
    assert request.headers["Transfer-Encoding"] == "chunked"


async def test_stream_of_bytes_and_of_nothing(gateway):
    await gateway.serve(gateway.upper)
    async with GatewayClient(gateway.url, "name") as client:
        texts = [record.get("text", "") for record in await drain(client.stream(b"x" * 200_000))]
        assert "".join(texts) == "X" * 200_000
        assert [record["type"] for record in await drain(client.stream(b""))] == ["end"]


async def test_streams_of_one_client_side_by_side(gateway):
    await gateway.serve(gateway.upper)
    async with GatewayClient(gateway.url, "name") as client:
        got = await asyncio.gather(*(drain(client.stream(b"n%d" % number)) for number in range(20)))
    assert [records[0]["text"] for records in got] == [f"N{number}" for number in range(20)]


async def test_leaving_early_ends_the_request_and_the_source(gateway):
    await gateway.serve(gateway.upper)
    closed = []

    async def endless():
        try:
            while True:
                yield b"x" * 1000
        finally:
            closed.append(True)

    async with GatewayClient(gateway.url, "name") as client:
        records = client.stream(endless())
        assert (await anext(records))["type"] == "result"
        await records.aclose()
        assert closed == [True]
        await until(lambda: gateway.running == 0)


@pytest.mark.parametrize("answers", [True, False])
async def test_cancelling_a_reader_ends_the_request_and_the_source(gateway, answers):
    closed = asyncio.Event()

    async def silent():
        try:
            yield b"x"
            await forever()
        finally:
            closed.set()

    await gateway.serve(gateway.upper if answers else never_answers)
    async with GatewayClient(gateway.url, "name") as client:
        reader = asyncio.ensure_future(drain(client.stream(silent())))
        await until(lambda: gateway.running)
        reader.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reader
        assert closed.is_set()
        await until(lambda: gateway.running == 0)


async def test_a_source_that_raises_is_passed_on_after_what_arrived(gateway):
    await gateway.serve(gateway.upper)

    async def source():
        yield b"abcd"
        raise RuntimeError("microphone unplugged")

    got = []
    async with GatewayClient(gateway.url, "name") as client:
        with pytest.raises(RuntimeError, match="unplugged"):
            async for record in client.stream(source()):
                got.append(record["type"])
    assert got == ["result", "end"]


async def test_a_refusal_while_the_source_is_silent(gateway):
    async def refuse(_):
        return web.json_response({"error": "model not found: 'y'; there are: x"}, status=404)

    async def source():
        yield b"x"
        await forever()

    await gateway.serve(refuse)
    async with GatewayClient(gateway.url, "y") as client:
        with pytest.raises(ServerRefused, match="there are: x") as caught:
            await drain(client.stream(source()))
    assert caught.value.status == 404


async def test_a_gateway_that_dies_in_the_middle(gateway):
    async def dies(request):
        answer = await gateway.begin(request)
        await gateway.tell(answer, type="result", text="a")
        request.transport.abort()
        return answer

    async def source():
        yield b"x"
        await forever()

    await gateway.serve(dies)
    got = []
    async with GatewayClient(gateway.url, "name") as client:
        with pytest.raises(ServerUnreachable, match="no answer from"):
            async for record in client.stream(source()):
                got.append(record["text"])
    assert got in (["a"], [])  # a reset may overtake what was sent before it


async def test_an_answer_without_an_end(gateway):
    async def no_end(request):
        answer = await gateway.begin(request)
        await gateway.tell(answer, type="result", text="a")
        return answer

    await gateway.serve(no_end)
    got = []
    async with GatewayClient(gateway.url, "name") as client:
        with pytest.raises(ServerUnreachable, match="ended its answer before the end of the job"):
            async for record in client.stream(b"x"):
                got.append(record["text"])
    assert got == ["a"]


async def test_an_answer_that_lingers_after_its_end_holds_nobody(gateway, monkeypatch):
    monkeypatch.setattr(feed, "SETTLE_SECONDS", 0.1)

    async def lingers(request):
        answer = await gateway.begin(request)
        await gateway.tell(answer, type="end")
        await forever()
        return answer

    await gateway.serve(lingers)
    async with GatewayClient(gateway.url, "name") as client:
        assert await drain(client.stream(b"x")) == [{"type": "end"}]
    await until(lambda: gateway.running == 0)


async def test_garbage_in_the_answer(gateway):
    async def garbage(request):
        answer = await gateway.begin(request)
        await gateway.tell(answer, type="result", text="a")
        await answer.write(b"\n<html>\x1b[2J\n")
        await forever()
        return answer

    await gateway.serve(garbage)
    async with GatewayClient(gateway.url, "name") as client:
        with pytest.raises(ServerRefused, match="no record: <html>"):
            await drain(client.stream(b"x"))
    await until(lambda: gateway.running == 0)


async def test_slow_gateways(gateway):
    async def silent():
        yield b"x"
        await forever()

    await gateway.serve(never_answers)
    async with GatewayClient(gateway.url, "name", timeout=0.2) as client:
        with pytest.raises(ServerUnreachable, match=r"within 0\.2 s"):
            await client.process_frame(b"x")
        with pytest.raises(ServerUnreachable, match=r"for 0\.2 s after the end"):
            await drain(client.stream(b"x"))
        with pytest.raises(ServerUnreachable, match=r"did not begin to answer within 0\.2 s"):
            await drain(client.stream(silent()))
    await until(lambda: gateway.running == 0)


async def test_a_gateway_that_stops_reading(gateway):
    async def stops(request):
        answer = await gateway.begin(request)
        await gateway.tell(answer, type="result", text="a")
        await forever()
        return answer

    async def much():
        while True:
            yield bytes(1 << 20)

    await gateway.serve(stops)
    async with GatewayClient(gateway.url, "name", timeout=0.2) as client:
        with pytest.raises(ServerUnreachable, match=r"took no more of the feed for 0\.2 s"):
            await drain(client.stream(much()))


async def test_a_source_may_be_silent_for_longer_than_the_time_limit(gateway):
    async def source():
        yield b"a"
        await asyncio.sleep(0.3)  # it is time that must pass
        yield b"b"

    await gateway.serve(gateway.upper)
    async with GatewayClient(gateway.url, "name", timeout=0.1) as client:
        assert [record.get("text") for record in await drain(client.stream(source()))] == ["A", "B", None]


async def test_capabilities(gateway):
    known = {"capabilities": [{"name": "whisper-tiny", "available": 31}], "orchestrators": []}
    await gateway.serve(known=known)
    async with GatewayClient(gateway.url) as client:
        assert await client.capabilities() == known


@pytest.mark.parametrize("answer", ["[]", "{}", '{"capabilities": 3}', '{"capabilities": [{"name": 3}]}', "<html>"])
async def test_capabilities_of_something_else(gateway, answer):
    await gateway.serve(known=answer)
    async with GatewayClient(gateway.url) as client:
        with pytest.raises(ServerRefused, match="as a gateway does"):
            await client.capabilities()


async def test_nobody_there(unused_tcp_port):
    async with GatewayClient(f"http://127.0.0.1:{unused_tcp_port}", "name") as client:
        for attempt in (client.process_frame(b"x"), drain(client.stream(b"x")), client.capabilities()):
            with pytest.raises(ServerUnreachable, match="is the server running there"):
                await attempt


async def test_not_entered():
    with pytest.raises(UsageError, match="async with GatewayClient"):
        await GatewayClient(model="x").process_frame(b"x")
