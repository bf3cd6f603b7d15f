"""`/process/stream/…`: streams from their start to their last words, through gateway, orchestrator and container."""

import asyncio
import json
from contextlib import AsyncExitStack

import pytest

from tests.waiting import forever, until
from whisper_byoc.aio import cancel
from whisper_byoc.network import gateway_streams, records
from whisper_byoc.trickle import TricklePublisher

PCM = {"input": "pcm16"}
KEYS = {
    "stream_id", "whip_url", "whep_url", "rtmp_url", "rtmp_output_url", "update_url", "status_url", "data_url",
    "stop_url", "publish_url", "subscribe_url",
}  # fmt: skip


async def test_the_start_answer_has_every_key_of_go_livepeer(world):
    gateway = await world.pair(world.Sound())
    status, answer = await gateway.start("one", PCM)
    assert status == 200
    assert set(answer) == KEYS
    route = f"{gateway.url}/process/stream/one"
    assert answer["stream_id"] == "one"
    for name in ("update", "status", "data", "stop"):
        assert answer[f"{name}_url"] == f"{route}/{name}"
    assert answer["publish_url"] == f"{gateway.url}/ai/trickle/one"
    assert answer["subscribe_url"] == answer["rtmp_url"] == answer["whip_url"] == ""
    assert (await gateway.post("/process/stream/one/stop"))[0] == 200
    await world.over(gateway)


async def test_ids_come_from_names_or_from_nowhere(world):
    gateway = await world.pair(world.Sound())

    async def started(body):
        status, answer, _ = await gateway.post(
            "/process/stream/start", json.dumps(body).encode(), headers={"Livepeer": world.stream_header()}
        )
        assert status == 200, answer
        return json.loads(answer)["stream_id"]

    assert await started({"stream_id": "a", "stream_name": "n"}) == "n-a"
    name = await started({"stream_name": "n", "stream_id": ""})
    assert name.startswith("n-")
    assert len(name) == 10
    assert len(await started({})) == 8
    status, answer = await gateway.start("n-a")
    assert status == 400
    assert "already running" in answer


BAD_BODIES = {
    b"{": "not JSON", b"[]": "object", b"[" * 3000: "nested", b'{"stream_id": 7}': "strings",
    b'{"stream_id": "a/b"}': "a/b", b'{"stream_id": ".."}': "bad stream id", b'{"stream_id": "a-out"}': "another",
    b'{"params": "[1]"}': "params", b'{"params": 5}': "params",
}  # fmt: skip


async def test_bad_bodies(world):
    gateway = await world.pair(world.Sound())
    for body, words in BAD_BODIES.items():
        headers = {"Livepeer": world.stream_header()}
        status, answer, _ = await gateway.post("/process/stream/start", body, headers=headers)
        assert status == 400
        assert words in answer.decode()
    await world.over(gateway)


async def test_a_body_that_is_too_large_and_a_header_that_is_missing(world):
    gateway = await world.pair(world.Sound())
    headers = {"Livepeer": world.stream_header()}
    assert (await gateway.post("/process/stream/start", bytes((10 << 20) + 1), headers=headers))[0] == 413
    assert (await gateway.post("/process/stream/start", b"{}"))[0] == 400


async def test_bodies_that_are_more_together_than_may_be_held(world):
    gateway = await world.pair(world.Sound(), total_bytes=1000)
    headers = {"Livepeer": world.stream_header()}

    async def part():
        yield bytes(600)
        await forever()

    first = asyncio.ensure_future(gateway.post("/process/stream/start", part(), headers=headers))
    await until(lambda: gateway.running.memory.held == 600)
    status, words, _ = await gateway.post("/process/stream/start", part(), headers=headers)
    assert (status, b"holds 600 of 1000 bytes" in words) == (503, True)
    await cancel(first)
    await until(lambda: gateway.running.memory.held == 0)


async def test_a_refusal_of_the_container_is_in_the_start_answer(world):
    gateway = await world.pair(world.Pixels())
    status, answer = await gateway.start("one", {"width": 5})
    assert status == 400
    assert "width and height" in answer
    await world.over(gateway)
    assert (await gateway.start("one", {"width": 4, "height": 4}))[0] == 200


async def test_no_more_streams_than_places_and_none_while_shutting_down(world):
    gateway = await world.pair(world.Sound(), jobs=2)
    for name in ("a", "b"):
        assert (await gateway.start(name))[0] == 200
    assert (await gateway.start("c"))[0] == 503
    await gateway.post("/process/stream/a/stop")
    gateway.running.draining = True
    assert (await gateway.start("c"))[0] == 503


async def test_the_public_address_is_in_the_urls(world):
    orchestrator = await world.orchestrator(await world.serving(world.Sound()))
    for public, base in (("gw.example:99", "http://gw.example:99"), ("https://gw.example", "https://gw.example")):
        gateway = await world.gateway(orchestrator, public_host=public)
        answer = (await gateway.start())[1]
        assert answer["status_url"] == f"{base}/process/stream/{answer['stream_id']}/status"
        assert answer["publish_url"].startswith(f"{base}/ai/trickle/")
        await gateway.post(f"/process/stream/{answer['stream_id']}/stop")


@pytest.mark.filterwarnings("ignore:verify_ssl is deprecated", "ignore::ResourceWarning")  # pytrickle's
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("kind", ["ours", "pytrickle"])
async def test_pcm_comes_back_as_text_and_the_end_of_input_ends_the_stream(world, request, kind):
    gateway = await world.pair(world.Sound())
    _, answer = await gateway.start("one", PCM)
    early = gateway.follow(answer["data_url"])
    await early.connected.wait()  # headers come at once
    chunks = [bytes(3200)] * 4
    if kind == "ours":
        await gateway.publish(answer["publish_url"], *chunks)
    else:
        pytrickle = request.getfixturevalue("pytrickle")
        publisher = pytrickle.Publisher(answer["publish_url"], "video/MP2T")
        for number, chunk in enumerate(chunks, 1):
            async with await publisher.next() as writer:
                await writer.write(chunk)
            await gateway.received(3200 * number)
        await publisher.close()
    await gateway.received(12_800)
    await gateway.end(answer["publish_url"])
    found = await early.ended()
    assert world.heard(found) == 12_800
    assert found[-1]["type"] == "end"
    assert [record["seq"] for record in found] == list(range(len(found)))
    assert await gateway.follow(answer["data_url"]).ended() == found
    await world.over(gateway)
    assert (await gateway.json("/process/stream/one/status"))[1]["state"] == "ended"


async def test_stop_says_the_last_words_before_it_answers_and_is_idempotent(world):
    gateway = await world.pair(world.Sound())
    _, answer = await gateway.start("one", PCM)
    await gateway.publish(answer["publish_url"], bytes(3200))
    stops = await asyncio.gather(*(gateway.post("/process/stream/one/stop", b"why") for _ in range(3)))
    assert {status for status, _, _ in stops} == {200}
    assert {json.loads(body)["status"] for _, body, _ in stops} == {"success"}
    assert world.heard(await gateway.follow(answer["data_url"]).ended()) == 3200
    status, _, _ = await gateway.post("/process/stream/one/stop")
    assert status == 200
    assert (await gateway.post("/process/stream/none/stop"))[0] == 404
    assert "error" not in (await gateway.json("/process/stream/one/status"))[1]
    await world.over(gateway)


async def test_stop_while_input_is_being_sent_loses_nothing_that_arrived(world):
    gateway = await world.pair(world.Sound())
    _, answer = await gateway.start("one", PCM)
    async with TricklePublisher(answer["publish_url"], "video/MP2T") as publisher:
        for _ in range(3):
            await publisher.publish(bytes(3200))
        writer = await publisher.next()
        await writer.write(bytes(1600))  # a segment that is never finished
        await gateway.received(11_200)
        await gateway.post("/process/stream/one/stop")
    assert world.heard(await gateway.follow(answer["data_url"]).ended()) == 11_200
    await world.over(gateway)


@pytest.mark.parametrize("steps", [0, 10])
async def test_a_stop_may_race_the_end_of_the_input(world, steps):
    gateway = await world.pair(world.Sound())
    _, answer = await gateway.start("one", PCM)
    await gateway.publish(answer["publish_url"], bytes(3200))
    ending = asyncio.ensure_future(gateway.end(answer["publish_url"]))
    for _ in range(steps):
        await asyncio.sleep(0.01)
    status, _, _ = await gateway.post("/process/stream/one/stop")
    assert status == 200
    assert world.heard(await gateway.follow(answer["data_url"]).ended()) == 3200
    await asyncio.wait({ending})
    if ending.exception() is None:
        await world.over(gateway)
    assert "error" not in (await gateway.json("/process/stream/one/status"))[1]
    await world.over(gateway)


async def test_silence_is_kept_alive(world, monkeypatch):
    monkeypatch.setattr(records, "COMMENT_EVERY_S", 0.05)
    gateway = await world.pair(world.Sound())
    _, answer = await gateway.start("one", PCM)
    reader = gateway.follow(answer["data_url"])
    await until(lambda: reader.comments > 3)
    await gateway.post("/process/stream/one/stop")
    await reader.ended()


async def test_a_stream_without_data_has_no_events(world):
    gateway = await world.pair(world.Sound())
    _, answer = await gateway.start("one", data=False)
    assert answer["data_url"] == ""
    async with gateway.http.get(f"{gateway.url}/process/stream/one/data") as events:
        assert events.status == 503
    async with gateway.http.get(f"{gateway.url}/process/stream/none/data") as events:
        assert events.status == 404
    assert (await gateway.post("/process/stream/one/stop"))[0] == 200
    assert "error" not in (await gateway.json("/process/stream/one/status"))[1]
    await world.over(gateway)


async def test_a_stream_of_data_alone(world):
    gateway = await world.pair(world.Sound())
    _, answer = await gateway.start("one", ingress=False)
    assert answer["publish_url"] == ""
    assert (await gateway.post("/process/stream/one/stop"))[0] == 200
    found = await gateway.follow(answer["data_url"]).ended()
    assert [record["type"] for record in found] == ["end"]
    await world.over(gateway)


@pytest.mark.parametrize("end", ["by its input", "by a stop"])
async def test_a_stream_can_be_started_again_at_once(world, end):
    """Its client has seen the end: that channels are kept for the last readers is no reason to turn it away."""
    gateway = await world.pair(world.Sound())
    for _ in range(3):
        status, answer = await gateway.start("one", PCM)
        assert status == 200, answer
        reader = gateway.follow(answer["data_url"])
        await gateway.publish(answer["publish_url"], bytes(3200))
        if end == "by a stop":
            await gateway.post("/process/stream/one/stop")
        else:
            await gateway.end(answer["publish_url"])
        assert world.heard(await reader.ended()) == 3200
    await world.over(gateway)


async def test_of_two_that_start_a_stopped_stream_again_one_gets_it(world):
    gateway = await world.pair(world.Sound())
    assert (await gateway.start("one", PCM))[0] == 200
    await gateway.post("/process/stream/one/stop")
    answers = await asyncio.gather(*(gateway.start("one", PCM) for _ in range(2)))
    assert sorted(status for status, _ in answers) == [200, 400]
    await gateway.post("/process/stream/one/stop")
    await world.over(gateway)


async def test_shutdown_with_readers_and_input_ends_promptly_with_the_last_words(world):
    orchestrator = await world.orchestrator(await world.serving(world.Sound()))
    async with AsyncExitStack() as stack:
        gateway = await world.gateway(orchestrator, stack=stack)
        _, answer = await gateway.start("one", PCM)
        readers = [gateway.follow(answer["data_url"]) for _ in range(3)]
        await gateway.publish(answer["publish_url"], bytes(3200))
        for reader in readers:
            await reader.connected.wait()
    for reader in readers:
        assert world.heard(await reader.ended()) == 3200
    await until(lambda: orchestrator.slots == 0)


async def test_streams_that_ended_are_forgotten_one_day_and_hold_no_media(world, monkeypatch):
    monkeypatch.setattr(gateway_streams, "MOST_ENDED", 1)
    gateway = await world.pair(world.Sound())
    for name in ("one", "two"):
        _, answer = await gateway.start(name, PCM)
        await gateway.publish(answer["publish_url"], bytes(100_000))
        await gateway.post(f"/process/stream/{name}/stop")
    trickle = gateway.running.trickle
    await until(lambda: trickle.memory.held == 0)
    assert (await gateway.json("/process/stream/one/status"))[1]["state"] == "ended"
    await gateway.start("three", PCM)
    assert [(await gateway.json(f"/process/stream/{name}/status"))[0] for name in ("one", "two")] == [404, 200]
    await gateway.post("/process/stream/three/stop")
