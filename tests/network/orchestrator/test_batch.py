"""`/process/request/…`: what a container answers is what the client gets, and no slot stays taken."""

import asyncio
import gzip

import pytest

from tests.waiting import until


@pytest.fixture
def answers(scripted, orchestrate):
    """Return a function that runs an orchestrator over one container, which answers every request so."""

    async def start(status=200, body=b"", **headers):
        async def answer(wire):
            await wire.body()
            await wire.answer(status, body, **headers)

        container = await scripted(answer)
        return await orchestrate(container), container

    return start


async def test_what_passes_to_the_container_and_what_comes_back(scripted, orchestrate):
    seen = []

    async def answer(wire):
        seen.append((wire.method, wire.path, wire.query, wire.headers, await wire.body()))
        await wire.answer(203, b"{}", Content_Type="application/json", X_Metadata="m", Set_Cookie="a=b", Server="x")

    api = await orchestrate(await scripted(answer))
    sent = {"Content-Type": "audio/wav", "Accept": "text/vtt", "Cookie": "c=d", "X-Own": "1", "Authorization": "me"}
    status, body, headers = await api.batch(b"sound", "v1/audio%2Fx?a=1&a=2&b=%26", headers=sent)
    ((method, path, query, got, sound),) = seen
    assert (method, path, sound) == ("POST", "/v1/audio/x", b"sound")
    assert query == "a=1&a=2&b=%26"
    assert (got["content-type"], got["accept"], got["content-length"]) == ("audio/wav", "text/vtt", "5")
    assert not {"livepeer", "cookie", "x-own", "authorization"} & set(got)
    assert (status, body, headers["Content-Type"], headers["X-Metadata"]) == (203, b"{}", "application/json", "m")
    assert "Set-Cookie" not in headers
    assert headers.get("Server") != "x"


async def test_no_route_goes_to_the_base_of_the_container(answers, kit):
    api, container = await answers(200, b"ok")
    for route in ("", "/"):
        assert (await api.batch(b"x", route))[0] == 200
    async with api.post("/process/request", b"x", headers=kit.job()) as answer:
        assert answer.status == 200
    assert container.asked == [("POST", "/")] * 3


@pytest.mark.parametrize("route", ["%2e%2e/secret", "a/..%2f..%2fsecret", "..%2Fsecret"])
async def test_a_route_does_not_leave_the_base_of_the_container(answers, route, kit):
    api, container = await answers(200, b"ok")
    target = f"/process/request/{route}"
    reader, writer = await asyncio.open_connection("127.0.0.1", api.port)
    lines = [f"POST {target} HTTP/1.1", "Host: x", "Content-Length: 0", f"Livepeer: {kit.job()['Livepeer']}"]
    writer.write("\r\n".join([*lines, "", ""]).encode())
    assert b" 400 " in await reader.readline()
    writer.close()
    assert container.asked == []


async def test_compressed_bytes_keep_their_name(scripted, orchestrate):
    packed = gzip.compress(b"hello")
    seen = []

    async def answer(wire):
        seen.append((wire.headers.get("content-encoding"), await wire.body()))
        await wire.answer(200, packed, Content_Encoding="gzip")

    api = await orchestrate(await scripted(answer))
    status, body, headers = await api.batch(packed, headers={"Content-Encoding": "gzip"})
    assert seen == [("gzip", packed)]
    assert (status, body, headers["Content-Encoding"]) == (200, b"hello", "gzip")  # aiohttp unpacks


@pytest.mark.parametrize("status", [400, 402, 404, 413, 415, 422, 500, 501])
async def test_an_error_keeps_its_status_and_its_words(answers, status):
    api, container = await answers(status, b'{"error": "no such sound"}', Content_Type="application/json")
    got, body, headers = await api.batch(b"x")
    assert (got, body) == (status, b"no such sound\n")
    assert headers["Content-Type"].startswith("text/plain")
    assert len(container.asked) == 1
    await api.quiet()


async def test_words_with_half_a_character_are_still_told(answers):
    """As JavaScript writes them when it cuts a text within an emoji."""
    api, _ = await answers(422, b'{"error": "no such sound \\ud83d"}')
    assert (await api.batch(b"x"))[:2] == (422, b"no such sound ?\n")
    status, body, _ = await api.batch(b"x", capability="\ud83d")
    assert (status, body) == (400, b"'\\ud83d' cannot be the name of a capability\n")


async def test_401_is_a_bad_gateway_and_the_container_stays(answers):
    api, container = await answers(401, b"who are you")
    status, body, _ = await api.batch(b"x")
    assert status == 502
    assert b"does not take the token" in body
    await api.ready()
    assert (await api.batch(b"x"))[0] == 502
    assert container.count("POST") == 2
    await api.quiet()


async def test_the_token_is_shown(scripted, orchestrate):
    async def answer(wire):
        await wire.body()
        await wire.answer(200 if wire.headers.get("authorization") == "Bearer t0ken" else 401)

    container = await scripted(answer)
    api = await orchestrate()
    assert (await api.register(url=container.url, token="t0ken")) == (200, "ok")
    assert (await api.batch(b"x"))[0] == 200


async def test_an_answer_that_does_not_come_in_the_jobs_time_is_504_and_frees_the_slot(scripted, orchestrate):
    async def never(wire):
        await wire.body()
        await asyncio.Event().wait()

    first, second = await scripted(never), await scripted(never)
    api = await orchestrate(first, second)
    status, body, _ = await api.batch(b"x", timeout=1)
    assert status == 504
    assert b"did not answer in time" in body
    assert first.count("POST") + second.count("POST") == 1  # it may have begun
    await api.quiet()


async def test_a_refused_connection_goes_to_another_container(scripted, orchestrate, unused_tcp_port_factory):
    async def answer(wire):
        await wire.answer(200, await wire.body())

    good = await scripted(answer)
    api = await orchestrate(good, ask_seconds=60)
    gone = f"http://127.0.0.1:{unused_tcp_port_factory()}"
    await api.register(url=gone, capacity=1000)
    await asyncio.sleep(0)
    api.pool.of("test")[1].is_ready()  # the follower has not noticed yet
    assert (await api.batch(b"body", "x"))[:2] == (200, b"body")
    await api.quiet()


async def test_a_container_that_breaks_off_before_its_answer_is_an_error_and_nobody_else_gets_the_job(
    scripted, orchestrate
):
    got = []

    async def broken(wire):
        got.append(await wire.body())
        wire.cut()

    api = await orchestrate(*[await scripted(broken) for _ in range(2)])
    status, body, _ = await api.batch(b"the body", "x")
    assert status == 502
    assert b"failed" in body
    assert got == [b"the body"]
    await api.quiet()


async def test_no_free_place_is_503_and_a_capability_that_nobody_offers_too(scripted, orchestrate):
    go = asyncio.Event()

    async def slow(wire):
        await wire.body()
        await go.wait()
        await wire.answer(200)

    api = await orchestrate(await scripted(slow), capacity=1)
    first = asyncio.ensure_future(api.batch(b"x"))
    await until(lambda: api.slots == 1)
    status, body, headers = await api.batch(b"x")
    assert (status, body) == (503, b"no capacity for 'test': all 1 places are taken\n")
    assert int(headers["Retry-After"]) >= 1
    go.set()
    assert (await first)[0] == 200
    status, body, _ = await api.batch(b"x", capability="other")
    assert status == 503
    assert body.startswith(b"No capacity available for capability other")
    await api.quiet()


async def test_a_client_that_hangs_up_frees_the_slot_and_ends_the_work(scripted, orchestrate):
    hung_up = asyncio.Event()

    async def slow(wire):
        await wire.body()
        assert await wire.reader.read(1) == b""
        hung_up.set()

    api = await orchestrate(await scripted(slow))
    posting = asyncio.ensure_future(api.batch(b"x"))
    await until(lambda: api.slots == 1)
    posting.cancel()
    await asyncio.wait_for(hung_up.wait(), 10)
    await api.quiet()


async def test_events_flow_as_they_come(scripted, orchestrate, kit):
    more = asyncio.Event()

    async def events(wire):
        await wire.body()
        await wire.begin(Content_Type="text/event-stream", Cache_Control="no-cache")
        await wire.piece(b"data: 1\n\n")
        await more.wait()
        await wire.piece(b"data: [DONE]\n\n")
        await wire.piece(b"")

    api = await orchestrate(await scripted(events))
    async with api.post("/process/request/x", b"{}", headers=kit.job()) as answer:
        assert answer.headers["Content-Type"] == "text/event-stream"
        assert answer.headers["Cache-Control"] == "no-cache"
        assert await answer.content.readuntil(b"\n\n") == b"data: 1\n\n"
        more.set()
        assert await answer.content.read() == b"data: [DONE]\n\n"
    await api.quiet()
