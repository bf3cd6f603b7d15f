"""Jobs that are one request: `POST /live/video-to-video` and `POST /process/request/…`, through both hops."""

import asyncio
import json
import os

import pytest

from tests.network.conftest import Feed
from tests.waiting import until
from whisper_byoc.trickle.limits import ByteBudget

PIXELS = "?width=1&height=1"


async def open_feed(gateway, accept="*/*", query=PIXELS, model="test"):
    feed = Feed()
    headers = {"X-Model-Id": model, "Accept": accept}
    posting = gateway.http.post(f"{gateway.url}/live/video-to-video{query}", data=aiter(feed), headers=headers)
    return feed, await posting


def counts(gateway):
    """What must be as it was when all is over."""
    return gateway.running.jobs, gateway.orchestrator.slots, len(gateway.api.table.jobs)


# --- one frame


async def test_one_frame_through_both_hops(world):
    gateway = await world.pair(world.Pixels())
    frame = os.urandom(100_000)
    status, body, headers = await gateway.live(frame)
    assert (status, body) == (200, frame[::-1])
    assert headers["Content-Type"] == "text/plain; charset=utf-8"
    assert headers["Content-Length"] == "100000"
    assert headers["Lp-Trickle-Seq"] == "0"
    assert headers["X-Orchestrator-Url"] == gateway.orchestrator.url
    await gateway.settled()


async def test_the_model_must_be_named_and_known(world):
    gateway = await world.pair(world.Pixels())
    status, body, _ = await gateway.post("/live/video-to-video", b"x")
    assert status == 400
    assert "test" in json.loads(body)["error"]
    status, body, _ = await gateway.live(b"x", "other")
    assert status == 404
    assert json.loads(body) == {"error": "model not found: 'other'; there are: test"}
    status, body, _ = await gateway.live(b"x", "Test")  # exact
    assert status == 404
    await gateway.settled()


@pytest.mark.parametrize("name", [b"X-Model-Id", b"Content-Type"])
async def test_a_header_that_is_not_text_is_refused(world, name):
    gateway = await world.pair(world.Pixels())
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.running.port)
    model = b"" if name == b"X-Model-Id" else b"X-Model-Id: test\r\n"
    writer.write(
        b"POST /live/video-to-video HTTP/1.1\r\nHost: x\r\n"
        + model
        + name
        + b": \xff\xfe\r\nContent-Length: 1\r\n\r\nx"
    )
    assert (await reader.readline()).startswith(b"HTTP/1.1 400")
    writer.close()
    await gateway.settled()


async def test_too_many_jobs_and_shutting_down_are_503(world):
    gateway = await world.pair(world.Pixels(), jobs=1)
    feed, answer = await open_feed(gateway)
    status, _, headers = await gateway.live(b"x")
    assert (status, headers["Retry-After"]) == (503, "1")
    feed.end()
    await answer.read()
    await gateway.settled()
    gateway.running.draining = True
    status, body, headers = await gateway.live(b"x")
    assert (status, headers["Retry-After"]) == (503, "5")
    assert "shutting down" in json.loads(body)["error"]


async def test_a_feed_that_outlasts_the_drain_gets_an_error_and_an_end(world):
    gateway = await world.pair(world.Pixels(), drain_seconds=0.1)
    feed, answer = await open_feed(gateway, "application/x-ndjson")
    feed.send(b"abc")
    assert json.loads(await answer.content.readline())["text"] == "cba"
    await gateway.running.drain()
    error, end = [json.loads(line) for line in (await answer.read()).splitlines()]
    assert (error["type"], error["seq"]) == ("error", 1)
    assert "shutting down" in error["error"]
    assert (end["type"], end["seq"], end["errors"]) == ("end", 2, 1)
    await gateway.settled()


# --- live feeds


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("application/x-ndjson", "application/x-ndjson"),
        ("text/event-stream", "text/event-stream"),
        ("text/plain", "text/plain; charset=utf-8"),
        ("*/*", "text/plain; charset=utf-8"),
    ],
)
async def test_results_of_a_live_feed_come_while_it_is_sent(world, accept, kind):
    gateway = await world.pair(world.Pixels())
    feed, answer = await open_feed(gateway, accept)
    assert answer.status == 200
    assert answer.headers["Content-Type"] == kind
    feed.send(b"ab")
    feed.send(b"c")
    first = b""
    while b"cba" not in first:
        first += await asyncio.wait_for(answer.content.readany(), 10)
    feed.send(b"def")
    feed.end()
    text = (first + await answer.read()).decode()
    if accept == "application/x-ndjson":
        records = [json.loads(line) for line in text.splitlines()]
        assert [record["type"] for record in records][-1] == "end"
        assert [record["seq"] for record in records] == list(range(len(records)))
        assert sum(record["type"] == "end" for record in records) == 1
    elif accept == "text/event-stream":
        events = [part.split("\n") for part in text.strip().split("\n\n") if not part.startswith(":")]
        assert [event[0] for event in events] == [f"id: {number}" for number in range(len(events))]
        assert json.loads(events[-1][1][6:])["type"] == "end"
    else:
        assert text == "cba\nfed\n"
    await gateway.settled()
    await until(lambda: counts(gateway) == (0, 0, 0))


async def test_a_large_feed_comes_through_byte_for_byte(world):
    class Same(world.Pixels):
        content_type = "application/octet-stream"

    gateway = await world.pair(Same())
    frames = [os.urandom(300_000) for _ in range(20)]

    async def body():
        for frame in frames:
            for at in range(0, len(frame), 70_001):
                yield frame[at : at + 70_001]

    headers = {"X-Model-Id": "test"}
    url = f"{gateway.url}/live/video-to-video?width=1000&height=100"
    async with gateway.http.post(url, data=body(), headers=headers) as answer:
        assert await answer.read() == b"".join(frame[::-1] for frame in frames)
    await gateway.settled()


async def test_a_client_who_goes_away_frees_everything_on_all_hops(world):
    gateway = await world.pair(world.Pixels())
    before = await gateway.json("/status"), await gateway.json("/capabilities")
    answers = [await open_feed(gateway, "application/x-ndjson") for _ in range(3)]
    for feed, _ in answers:
        feed.send(b"abc")
    await asyncio.gather(*(answer.content.readline() for _, answer in answers))
    assert counts(gateway) == (3, 3, 3)
    assert (await gateway.json("/status"))[1]["jobs"] == 3
    for _, answer in answers:
        answer.close()
    await gateway.settled()
    await until(lambda: counts(gateway) == (0, 0, 0))
    await gateway.offers(lambda told: told == before[1][1])
    assert (await gateway.json("/status"))[1]["jobs"] == before[0][1]["jobs"]


async def test_a_feed_that_breaks_off_is_no_failure_of_the_orchestrator(world):
    one, two = [await world.serving(world.Pixels()) for _ in range(2)]
    orchestrators = [await world.orchestrator(each) for each in (one, two)]
    gateway = await world.gateway(*orchestrators)
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.running.port)
    writer.write(
        b"POST /live/video-to-video?width=1&height=1 HTTP/1.1\r\nHost: x\r\nX-Model-Id: test\r\n"
        b"Accept: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nnonsense\r\n"
    )
    text = await asyncio.wait_for(reader.read(), 10)
    assert b"reaking" not in text
    await gateway.settled()
    for each in orchestrators:
        await until(lambda each=each: each.slots == 0)
    writer.close()


async def test_a_bug_while_a_body_is_read_is_a_500_and_in_the_log(world, monkeypatch, caplog):
    def bug(*_):
        raise RuntimeError("a bug of ours")

    gateway = await world.pair(world.Pixels())
    monkeypatch.setattr(ByteBudget, "take", bug)
    told = "the server failed on this request; its log says why"
    status, body, _ = await gateway.live(b"abc")
    assert (status, json.loads(body)) == (500, {"error": told})
    assert (await gateway.batch(b"abc"))[:2] == (500, f"{told}\n".encode())
    assert caplog.text.count("RuntimeError: a bug of ours") == 2
    assert (await gateway.json("/status"))[1]["jobs"] == 0
    await gateway.settled()


# --- orchestrators that fail


async def two(world, post, offers=9):
    """A script that is asked first, and a real one."""
    script = await world.script(post, world.offering(test=offers))
    orchestrator = await world.orchestrator(await world.serving(world.Pixels()))
    gateway = await world.gateway(script, orchestrator)
    return script, orchestrator, gateway


async def test_an_orchestrator_without_capacity_is_passed_over(world):
    async def busy(wire):
        await wire.answer(503, b'{"error": "full"}', Retry_After=3, Connection="close")

    script, orchestrator, gateway = await two(world, busy)
    status, body, headers = await gateway.live(b"abc")
    assert (status, body) == (200, b"cba")
    assert headers["X-Orchestrator-Url"] == orchestrator.url
    assert len(script.asked) == 1
    lonely = await world.gateway(script)
    status, body, headers = await lonely.live(b"abc")
    assert (status, headers["Retry-After"], json.loads(body)) == (503, "3", {"error": "full"})


async def test_an_orchestrator_that_is_busy_is_replaced_by_one_that_gets_the_whole_feed(world):
    sent = os.urandom(300_000).hex().encode()

    async def busy(wire):
        await wire.answer(503, Connection="close")

    script, orchestrator, gateway = await two(world, busy)
    headers = {"X-Model-Id": "test", "Accept": "application/x-ndjson"}

    async def body():
        for at in range(0, len(sent), 50_000):
            yield sent[at : at + 50_000]

    url = f"{gateway.url}/live/video-to-video?width=1000&height=100"
    async with gateway.http.post(url, data=body(), headers=headers) as answer:
        records = [json.loads(line) for line in (await answer.read()).splitlines()]
    assert len(script.asked) == 1
    assert [(record["type"], record["seq"]) for record in records] == [("result", 0), ("result", 1), ("end", 2)]
    assert "".join(each["text"][::-1] for each in records[:-1]).encode() == sent
    await gateway.settled()
    await until(lambda: orchestrator.slots == 0)


async def test_an_orchestrator_that_dies_with_a_frame_is_502(world):
    async def dies(wire):
        bodies.append(await wire.body())
        wire.cut()

    bodies = []
    script, _, gateway = await two(world, dies)
    status, body, _ = await gateway.live(b"abc")
    assert status == 502
    assert script.url in json.loads(body)["error"]
    assert bodies == [b"abc"]
    await gateway.settled()


@pytest.mark.parametrize("accept", ["application/x-ndjson", "text/event-stream"])
async def test_an_orchestrator_that_dies_after_a_result_gives_an_error_and_an_end(world, accept):
    record = b'{"type":"transcript","job_id":"j","seq":0,"is_final":true,"text":"a"}'
    first = record + b"\n" if "json" in accept else b"id: 0\ndata: " + record + b"\n\n"

    async def dies(wire):
        await wire.begin(Content_Type=accept)
        await wire.piece(first)
        await wire.body()
        wire.cut()

    _, _, gateway = await two(world, dies)
    feed, answer = await open_feed(gateway, accept)
    assert await answer.content.readline()
    feed.send(b"abc")
    feed.end()
    text = (await answer.read()).decode()
    found = [json.loads(line[line.index("{") :]) for line in text.splitlines() if "{" in line]
    assert [(each["type"], each["seq"]) for each in found][-2:] == [("error", 1), ("end", 2)]
    assert found[-1]["errors"] == 1
    await gateway.settled()


async def test_an_orchestrator_that_says_nothing_after_the_end_of_a_feed_is_given_up(world):
    async def hangs(wire):
        await wire.begin(Content_Type="application/x-ndjson")
        await wire.body()
        await asyncio.Event().wait()

    script = await world.script(hangs, world.offering(test=1))
    gateway = await world.gateway(script, stall_seconds=0.2)
    feed, answer = await open_feed(gateway, "application/x-ndjson")
    await asyncio.sleep(0.6)  # silence is all right as long as the client sends
    feed.send(b"abc")
    feed.end()
    records = [json.loads(line) for line in (await answer.read()).splitlines()]
    assert [record["type"] for record in records] == ["error", "end"]
    assert "in time" in records[0]["error"]
    await gateway.settled()
