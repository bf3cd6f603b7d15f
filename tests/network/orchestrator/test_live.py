"""`POST /live/video-to-video`: frames and live feeds, over containers that work, and over some that do not."""

import asyncio
import json

import pytest

from tests.waiting import until
from whisper_byoc.network.pool import Container


@pytest.fixture
def live_script(scripted):
    """Return a function that runs a container whose two sides of a job are these functions."""

    async def start(put, get):
        async def answer(wire):
            if wire.method == "PUT":
                await put(wire)
            elif wire.method == "GET":
                await get(wire)
            else:
                await wire.answer(200, b"{}")

        return await scripted(answer)

    return start


async def take(wire):
    """The side of a container that takes any feed."""
    await wire.body()
    await wire.answer(200, b"{}")


async def never(wire):
    await asyncio.Event().wait()


def record(seq, kind="result", **more):
    return json.dumps({"type": kind, "job_id": "c", "seq": seq, **more}, separators=(",", ":")).encode() + b"\n"


def wedge(*lines, then=None):
    """An output that gives these lines and then does as told, or hangs."""

    async def get(wire):
        await wire.begin(Content_Type="application/x-ndjson")
        for line in lines:
            await wire.piece(line)
        await (then or never)(wire)

    return get


async def opened(api, feed, *, query="", model="test", **headers):
    """Begin a live feed; the answer is at its head."""
    return await api.post(f"/live/video-to-video{query}", feed, headers={"X-Model-Id": model, **headers})


# -- one frame -------------------------------------------------------------------------------------------


async def test_an_empty_frame_is_a_keep_alive(serving, orchestrate, kit):
    container = await serving({"test": kit.Upper()})
    api = await orchestrate(container)
    status, body, _ = await api.live(b"")
    assert (status, body) == (200, b"")
    assert container.table.jobs == ()
    await api.quiet()


async def test_a_frame_whose_work_fails_is_502_with_the_sentence(serving, orchestrate, kit):
    container = await serving({"test": kit.Upper()})
    api = await orchestrate(container)
    status, body, _ = await api.live(b"fail")
    assert status == 502
    assert json.loads(body) == {"error": "the processor failed with ValueError: it was told to fail"}
    await api.quiet()
    assert container.table.jobs == ()


async def test_parameters_and_type_go_to_the_container(live_script, orchestrate):
    async def put(wire):
        seen.append((wire.query, wire.headers.get("content-type"), await wire.body()))
        await wire.answer(200, b"{}")

    async def get(wire):
        await wire.answer(200, b"text", Content_Type="text/plain")

    seen = []
    api = await orchestrate(await live_script(put, get))
    await api.live(b"sound", query="?language=de&prompt=a%26b", **{"Content-Type": "audio/L16"})
    assert seen == [("language=de&prompt=a%26b&alone=30", "audio/L16", b"sound")]


async def test_a_result_that_does_not_come_in_time_is_504(serving, orchestrate, kit):
    gate = kit.Gated()
    container = await serving({"test": gate})
    api = await orchestrate(container, job_seconds=0.4)
    status, body, _ = await api.live(b"x")
    assert status == 504
    assert "did not answer in time" in json.loads(body)["error"]
    await api.quiet()
    assert container.table.jobs == ()
    gate.open.set()
    assert (await api.live(b"x"))[:2] == (200, b"x")


# -- live feeds ------------------------------------------------------------------------------------------


async def test_a_feed_and_a_container_that_pause_for_long_are_not_ended(serving, orchestrate, kit):
    api = await orchestrate(await serving({"test": kit.Reverse()}), stall_seconds=0.15, job_seconds=0.2)
    feed = kit.Feed()
    async with await opened(api, feed, query="?width=2&height=1", **kit.NDJSON) as answer:
        for _ in range(2):
            await asyncio.sleep(0.6)
            feed.send(b"abcdef")
            assert b"result" in await answer.content.readline()
        feed.end()
        assert b'"end"' in await answer.content.read()
    await api.quiet()


# -- refusals --------------------------------------------------------------------------------------------


async def test_a_model_that_nobody_has_is_404_with_the_names_there_are(serving, orchestrate, kit):
    api = await orchestrate(await serving({"test": kit.Upper()}))
    await api.register(name="other", url="http://127.0.0.1:9")
    status, body, _ = await api.live(b"x", model="tset")
    assert status == 404
    assert json.loads(body) == {"error": "model not found: 'tset'; there are: test, other"}
    async with api.post("/live/video-to-video", b"x") as answer:
        assert answer.status == 400
        assert "X-Model-Id" in (await answer.json())["error"]


class Video:
    media = "video"

    async def process(self, frame):
        return frame


async def test_what_the_container_refuses_comes_in_its_own_words(serving, orchestrate, kit):
    container = await serving({"sound": kit.Sound(), "video": Video()}, segment_bytes=1000)
    api = await orchestrate(container, name="sound")
    await api.register(name="video", url=container.url)
    feed = kit.Feed()  # which never ends: the refusal does not wait for it
    feed.send(b"xx")
    for model, query, data, headers, status, words in (
        ("sound", "", feed, {"Content-Type": "text/plain", **kit.NDJSON}, 415, "text/plain"),
        ("sound", "", b"xx", {"Content-Type": "audio/mpeg"}, 415, "is not media"),
        ("video", "", feed, {}, 400, "width"),
        ("video", "?width=100&height=100", feed, kit.SSE, 413, "100x100"),
        ("video", "", bytes(2000), {}, 413, "limit of 1000 bytes"),
    ):
        got, body, _ = await api.live(data, model=model, query=query, **headers)
        assert got == status, (model, query, body)
        assert words in json.loads(body)["error"]
        await api.quiet()
    assert container.table.jobs == ()


async def test_a_feed_that_is_refused_half_way_ends_at_once(live_script, orchestrate, kit):
    """The container keeps such a job open for who comes back, so its output says nothing and does not end."""

    async def put(wire):
        await wire.chunk()
        await wire.answer(400, b'{"error": "this is no WAV"}', Connection="close")

    api = await orchestrate(await live_script(put, wedge(record(0))))
    feed = kit.Feed()
    feed.send(b"x")
    async with await opened(api, feed, **kit.NDJSON) as answer:
        records = [json.loads(line) async for line in answer.content]
    assert [each["type"] for each in records] == ["result", "error", "end"] or records[0]["type"] == "error"
    assert records[-2]["error"] == "this is no WAV"
    await api.quiet()


async def test_a_container_that_is_busy_after_all_is_passed_over(live_script, serving, orchestrate, kit):
    async def busy(wire):
        await wire.answer(503, b'{"error": "all taken"}', Connection="close")
        wire.cut()

    async def unknown(wire):
        await asyncio.sleep(0.05)
        await wire.answer(404)

    full = await live_script(busy, unknown)
    real = await serving({"test": kit.Upper()})
    api = await orchestrate(Container("test", full.url, 8), Container("test", real.url, 4))
    for _ in range(2):
        await until(lambda: api.pool.free("test") == 12)  # who was passed over is asked how it is first
        assert (await api.live(b"hello"))[:2] == (200, b"HELLO")
        await until(lambda: api.pool.free("test") == 12)
        feed = kit.Feed()
        feed.send(b"hello")
        feed.end()
        assert (await api.records(feed))[0]["text"] == "HELLO"
    assert full.count("PUT") == 4
    only = await orchestrate(full)
    status, body, headers = await only.live(b"x")
    assert (status, json.loads(body), headers["Retry-After"]) == (503, {"error": "all taken"}, "1")
    await api.quiet()


async def test_a_container_that_does_not_open_the_job_is_504(live_script, orchestrate, kit):
    api = await orchestrate(await live_script(take, never), open_seconds=0.3)
    feed = kit.Feed()
    status, body, _ = await api.live(feed, **kit.NDJSON)
    assert status == 504
    assert "in time" in json.loads(body)["error"]
    await api.quiet()


async def test_a_container_that_is_busy_with_a_feed_is_followed_by_one_that_gets_all_of_it(
    live_script, serving, orchestrate, kit
):
    body = [bytes([n]) * (20_000 + n) for n in range(20)]
    go_on = asyncio.Event()

    async def put(wire):
        await go_on.wait()
        await wire.answer(503, Connection="close")

    full = await live_script(put, never)
    api = await orchestrate(full)
    feed = kit.Feed()
    for chunk in body:
        feed.send(chunk)
    posting = asyncio.ensure_future(api.live(feed))
    await until(lambda: full.count("PUT"))
    mirror = kit.Reverse()
    await api.register(url=(await serving({"test": mirror})).url)
    go_on.set()
    feed.end()
    status, answer, _ = await posting
    assert (status, answer) == (200, b"".join(body)[::-1])
    assert mirror.frames == [b"".join(body)]
    await api.quiet()


# -- containers that die ---------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["cut", "frozen"])
async def test_a_container_that_dies_before_its_answer_is_502(live_script, orchestrate, kit, how):
    """Whether its sockets break, or it is found out to be dead while they stay open."""
    begun = asyncio.Event()

    async def put(wire):
        begun.set()
        await never(wire)

    dying, other = await live_script(put, never), await live_script(put, never)
    api = await orchestrate(dying, open_seconds=20, answer_seconds=0.1)
    feed = kit.Feed()
    feed.send(b"x")
    posting = asyncio.ensure_future(api.live(feed))
    await begun.wait()
    await api.register(url=other.url)
    if how == "cut":
        await dying.close()
    else:
        dying.frozen = True
    status, body, _ = await posting
    assert status == 502
    assert dying.url in json.loads(body)["error"]
    assert not other.asked
    await api.quiet()


async def test_a_container_that_drains_in_mid_feed_is_read_to_its_end_and_does_not_begin_anew(
    live_script, orchestrate, kit
):
    refused = asyncio.Event()

    async def put(wire):
        await wire.chunk()
        await asyncio.sleep(0.2)
        await wire.answer(503, b'{"error": "the server is shutting down"}', Connection="close")
        refused.set()

    async def tail(wire):
        await refused.wait()
        await asyncio.sleep(0.2)
        await wire.piece(record(1))
        await wire.piece(record(2, "end"))
        await wire.piece(b"")

    first = await live_script(put, wedge(record(0), then=tail))
    second = await live_script(put, wedge(record(0), then=tail))
    api = await orchestrate(first, second)
    feed = kit.Feed()
    feed.send(b"x")
    records = await api.records(feed)
    assert [(each["type"], each["seq"]) for each in records] == [("result", 0), ("result", 1), ("error", 2), ("end", 3)]
    assert records[2]["error"] == "the server is shutting down"
    assert first.count("PUT") + second.count("PUT") == 1
    await api.quiet()


async def test_a_container_that_says_nothing_after_the_end_of_the_feed_is_given_up(live_script, orchestrate, kit):
    api = await orchestrate(await live_script(take, wedge(record(0))), stall_seconds=0.3)
    feed = kit.Feed()
    feed.end()
    records = await api.records(feed)
    assert [each["type"] for each in records] == ["result", "error", "end"]
    assert "in time" in records[1]["error"]
    await api.quiet()


# -- clients that leave ----------------------------------------------------------------------------------


async def test_a_client_that_hangs_up_while_a_frame_is_worked_on_does_too(serving, orchestrate, kit):
    gate = kit.Gated()
    container = await serving({"test": gate})
    api = await orchestrate(container)
    posting = asyncio.ensure_future(api.live(b"x"))
    await until(lambda: gate.begun == 1)
    posting.cancel()
    await api.quiet()
    assert container.table.jobs == ()


# -- several containers, and shutdown --------------------------------------------------------------------


async def test_draining_takes_nothing_new_and_lets_a_feed_come_to_its_end(serving, orchestrate, kit):
    api = await orchestrate(await serving({"test": kit.Reverse()}))
    feed = kit.Feed()
    async with await opened(api, feed, query="?width=2&height=1", **kit.NDJSON) as answer:
        draining = asyncio.ensure_future(api.run.drain())
        await until(lambda: api.run.draining)
        status, body, headers = await api.live(b"x")
        assert (status, json.loads(body)) == (503, {"error": "the orchestrator is shutting down"})
        assert "Retry-After" in headers
        assert (await api.json("/readyz"))[0] == 503
        feed.send(b"abcdef")
        feed.end()
        assert len((await answer.content.read()).splitlines()) == 2
    await draining
    await api.quiet()


async def test_a_feed_that_has_no_end_is_told_of_the_shutdown(serving, orchestrate, kit):
    containers = [await serving({"test": kit.Reverse()}) for _ in range(2)]
    api = await orchestrate(*containers, drain_seconds=0.3)
    feed = kit.Feed()
    async with await opened(api, feed, query="?width=2&height=1", **kit.NDJSON) as answer:
        draining = asyncio.ensure_future(api.run.drain())
        error, end = [json.loads(line) async for line in answer.content]
    assert error["error"] == "the orchestrator is shutting down"
    assert end["type"] == "end"
    await draining
    await api.quiet()
