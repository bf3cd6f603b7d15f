"""`/ai/stream/…`: channels, the container's side, and every way in which a stream can end. None leaves anything."""

import asyncio
import json

import pytest

from tests.waiting import until
from whisper_byoc.trickle import TricklePublisher, TrickleSubscriber

ALL = '{"enable_video_ingress":true,"enable_video_egress":true,"enable_data_output":true}'
URLS = {"subscribe_url": "", "publish_url": "-out", "control_url": "-control", "events_url": "-events",
        "data_url": "-data"}  # fmt: skip
HEADERS = {"X-Publish-Url": "", "X-Subscribe-Url": "-out", "X-Control-Url": "-control", "X-Events-Url": "-events",
           "X-Data-Url": "-data"}  # fmt: skip


class Gateway:
    """What a gateway does with streams."""

    def __init__(self, api, kit):
        self.api = api
        self.kit = kit

    async def post(self, what, stream="s1", data=b"{}", *, parameters="{}", timeout=10, content_type=None, **more):
        headers = self.kit.job(
            timeout=timeout, request=json.dumps({"stream_id": stream}), parameters=parameters, **more
        )
        headers |= {"Content-Type": content_type} if content_type else {}
        async with self.api.post(f"/ai/stream/{what}", data, headers=headers) as answer:
            return answer.status, await answer.read(), answer.headers

    async def start(self, stream="s1", body=b'{"params":null}', **options):
        return await self.post("start", stream, body, **options)

    def events(self, stream="s1"):
        """Collect the events from now on, until the channel is closed."""
        found = []

        async def run():
            async with TrickleSubscriber(f"{self.api.url}/ai/trickle/{stream}-events", start=0) as subscriber:
                async for segment in subscriber:
                    found.append(json.loads(await segment.read()))

        return found, asyncio.ensure_future(run())


@pytest.fixture
def gateway(orchestrate, kit):
    async def start(*containers, **options):
        return Gateway(await orchestrate(*containers, **options), kit)

    return start


@pytest.fixture
def worker(scripted):
    """Return a function that runs a container which answers `/stream/…` so, and keeps what it was sent."""

    async def start(**answers):
        async def answer(wire):
            action = wire.path.rsplit("/", 1)[1]
            body = await wire.body()
            script.got.append((action, wire.headers, body))
            found = answers.get(action, (200, b"{}"))
            if callable(found):
                await found(wire)
            else:
                await wire.answer(*found, Content_Type="application/json")

        script = await scripted(answer)
        script.got = []
        return script

    return start


async def test_a_stream_has_its_channels_on_both_sides(worker, gateway):
    container = await worker()
    world = await gateway(container)
    status, body, headers = await world.start(body=b'{"params":{"a":1},"more":2,"data_url":"mine"}', parameters=ALL)
    assert (status, body) == (200, b"")
    base = f"{world.api.url}/ai/trickle/s1"
    assert {name: headers[name] for name in HEADERS} == {name: base + end for name, end in HEADERS.items()}
    assert headers["Livepeer-Balance"] == "0"
    ((action, got, sent),) = container.got
    assert (action, got["x-stream-id"], got["content-type"]) == ("start", "s1", "application/json")
    expected = {name: base + end for name, end in URLS.items()}
    assert json.loads(sent) == {
        "gateway_request_id": "s1", **expected, "params": {"a": 1}, "more": 2, "data_url": "mine",
    }  # fmt: skip
    kinds = {name: channel.mime for name, channel in world.api.run.trickle.channels.items()}
    assert kinds == {
        "s1": "video/MP2T", "s1-out": "video/MP2T", "s1-data": "application/jsonl",
        "s1-control": "application/json", "s1-events": "application/json",
    }  # fmt: skip
    assert (await world.api.status())["streams"] == 1
    assert (await world.api.status())["jobs"] == 0
    await world.post("stop")
    await world.api.quiet()


async def test_a_trickle_host_for_containers_is_in_their_urls_only(worker, gateway):
    container = await worker()
    world = await gateway(container, trickle_host="inside:1234")
    _, _, headers = await world.start(parameters=ALL)
    assert headers["X-Data-Url"] == f"{world.api.url}/ai/trickle/s1-data"
    sent = json.loads(container.got[0][2])
    assert {sent[name] for name in URLS} == {f"http://inside:1234/ai/trickle/s1{end}" for end in URLS.values()}
    await world.post("stop")


@pytest.mark.parametrize(("status", "words"), [(400, "no such language"), (404, "gone"), (500, "broken"), (402, "pay")])
async def test_a_container_that_refuses_is_heard_and_nothing_is_left(worker, gateway, status, words):
    container = await worker(start=(status, json.dumps({"error": words}).encode()))
    world = await gateway(container, await worker(start=(200, b"")), capacity=1)
    world.api.pool.of("test")[1].capacity = 0
    got, body, headers = await world.start()
    assert (got, body) == (status, words.encode() + b"\n")
    assert "X-Control-Url" not in headers
    await world.api.quiet()


async def test_a_container_that_dies_at_the_start_is_502_and_one_that_cannot_be_reached_is_passed_over(
    worker, gateway, unused_tcp_port
):
    async def cut(wire):
        wire.cut()

    dying = [await worker(start=cut) for _ in range(2)]
    world = await gateway(*dying)
    status, body, _ = await world.start()
    assert status == 502
    assert b"failed" in body
    assert sum(len(each.got) for each in dying) == 1
    await world.api.quiet()
    other = await gateway(await worker(), ask_seconds=60)
    await other.api.register(url=f"http://127.0.0.1:{unused_tcp_port}", capacity=1000)
    assert (await other.start())[0] == 200
    assert (await other.post("stop"))[0] == 200
    await other.api.quiet()


async def test_401_is_502_at_the_start_and_later(worker, gateway):
    world = await gateway(await worker(start=(401, b"who")))
    status, body, _ = await world.start()
    assert status == 502
    assert b"token" in body
    await world.api.quiet()
    other = await gateway(await worker(params=(401, b"who")))
    await other.start()
    assert (await other.post("update"))[0] == 502
    await other.post("stop")
    await other.api.quiet()


async def test_no_place_is_503_and_no_such_capability_404(worker, gateway, kit):
    world = await gateway(await worker(), capacity=1)
    assert (await world.start())[0] == 200
    status, body, headers = await world.start("s2")
    assert status == 503
    assert b"no capacity" in body
    assert "Retry-After" in headers
    async with world.api.post("/ai/stream/start", b"{}", headers=kit.job("none", id="s3")) as answer:
        assert answer.status == 404
    await world.post("stop")
    await world.api.quiet()


async def test_two_starts_at_once_give_one_stream(worker, gateway):
    refused = asyncio.Event()

    async def slowly(wire):
        await refused.wait()
        await wire.answer(200)

    container = await worker(start=slowly)
    world = await gateway(container)
    starts = [asyncio.ensure_future(world.start()) for _ in range(4)]
    await until(lambda: sum(each.done() for each in starts) == 3)
    refused.set()
    assert sorted(status for status, _, _ in await asyncio.gather(*starts)) == [200, 400, 400, 400]
    assert len(container.got) == 1
    await world.post("stop")
    await world.api.quiet()


async def test_a_channel_of_another_stream_is_not_taken_over(worker, gateway):
    world = await gateway(await worker())
    await world.start("a", parameters=ALL)
    status, body, _ = await world.start("a-data", parameters=ALL)
    assert status == 400
    assert b"in use" in body
    await world.post("stop", "a")
    await world.api.quiet()


@pytest.mark.parametrize("stream", ["", "a/b", "a b", "x" * 129, "ä"])
async def test_a_bad_stream_id_is_400(worker, gateway, stream):
    container = await worker()
    world = await gateway(container)
    assert (await world.start(stream))[0] == 400
    assert container.got == []


async def test_too_many_channels_leave_none(worker, gateway):
    world = await gateway(await worker())
    trickle = world.api.run.trickle
    trickle.limits = type(trickle.limits)(channels=3)
    status, _, _ = await world.start(parameters=ALL)
    assert status == 503
    await world.api.quiet()


# -- stop and update -------------------------------------------------------------------------------------


async def test_a_stop_goes_to_the_container_as_it_is_and_its_answer_comes_back(worker, gateway):
    container = await worker(stop=(207, b'{"last":"words"}'))
    world = await gateway(container)
    await world.start()
    status, body, headers = await world.post("stop", data=b"why not", content_type="text/x-reason")
    assert (status, body, headers["Content-Type"]) == (207, b'{"last":"words"}', "application/json")
    action, got, sent = container.got[1]
    assert (action, got["content-type"], got["x-stream-id"], sent) == ("stop", "text/x-reason", "s1", b"why not")
    await world.api.quiet()


async def test_stops_at_once_are_one_stop(worker, gateway):
    async def slowly(wire):
        await asyncio.sleep(0.1)
        await wire.answer(200, b"bye")

    container = await worker(stop=slowly)
    world = await gateway(container, linger_seconds=0.3)
    await world.start()
    answers = await asyncio.gather(*(world.post("stop") for _ in range(3)))
    assert [each[:2] for each in answers] == [(200, b"bye")] * 3
    assert (await world.post("stop"))[:2] == (200, b"bye")  # it lingers
    assert [each[0] for each in container.got] == ["start", "stop"]
    await world.api.quiet()
    status, body, _ = await world.post("stop")
    assert status == 404
    assert b"has ended" in body


async def test_a_stop_that_is_not_answered_ends_the_stream_all_the_same(worker, gateway):
    async def never(wire):
        await asyncio.Event().wait()

    world = await gateway(await worker(stop=never), stop_seconds=0.2)
    await world.start()
    assert (await world.post("stop"))[0] == 504
    await world.api.quiet()


@pytest.mark.parametrize("status", [200, 400, 500])
async def test_an_update_goes_to_the_container_and_its_answer_comes_back(worker, gateway, status):
    long = json.dumps({"text": "x" * 300_000}).encode()
    container = await worker(params=(status, long))
    world = await gateway(container)
    await world.start()
    got, body, headers = await world.post("update", data=b'{"language":"de"}')
    assert (got, body, headers["Content-Type"]) == (status, long, "application/json")
    action, sent, data = container.got[1]
    assert (action, sent["content-type"], data) == ("params", "application/json", b'{"language":"de"}')
    assert (await world.post("update", "other"))[0] == 404
    await world.post("stop")
    await world.api.quiet()


async def test_a_payment_is_thanked_for(gateway):
    world = await gateway()
    status, body, headers = await world.post("payment")
    assert (status, body, headers["Livepeer-Balance"]) == (200, b"", "0")


# -- ends that nobody asked for --------------------------------------------------------------------------


async def event(world, message):
    async with TricklePublisher(f"{world.api.url}/ai/trickle/s1-events", "application/json") as publisher:
        await publisher.publish(message)


async def test_a_stream_that_the_container_ends_by_itself_is_over(worker, gateway):
    container = await worker()
    world = await gateway(container)
    await world.start()
    for nonsense in (b"x", b"[]", b"[" * 50_000, b'{"event":7}', b'{"type":"status"}'):
        await event(world, nonsense)
    assert (await world.api.status())["streams"] == 1
    await event(world, b'{"event":{"type":"stream_stopped"},"queue_event_type":"x"}')
    await world.api.quiet()
    assert [each[0] for each in container.got] == ["start", "stop"]


async def test_a_container_that_dies_is_told_as_an_event_before_the_channels_close(worker, gateway):
    container = await worker()
    world = await gateway(container)
    await world.start(parameters=ALL)
    events, reading = world.events()
    await event(world, b'{"event":{"type":"status"}}')
    await until(lambda: events)
    await container.close()
    await asyncio.wait_for(reading, 10)
    _, lost = events
    assert (lost["event"]["type"], lost["event"]["stream_id"]) == ("stream_lost", "s1")
    assert container.url in lost["event"]["message"]
    await world.api.quiet()
    assert (await world.post("stop"))[0] == 404


async def test_a_container_without_events_is_taken_for_dead(worker, gateway):
    container = await worker()
    world = await gateway(container, events_seconds=0.3)
    await world.start()
    events, reading = world.events()
    await asyncio.wait_for(reading, 10)
    assert "should publish events" in events[-1]["event"]["message"]
    await world.api.quiet()
    assert container.got[-1][0] == "stop"


async def test_a_gateway_that_falls_silent_ends_the_stream(worker, gateway):
    container = await worker()
    world = await gateway(container, control_seconds=0.3)
    await world.start()
    events, reading = world.events()
    async with TricklePublisher(f"{world.api.url}/ai/trickle/s1-control", "application/json") as publisher:
        await publisher.publish(b'{"keep":"alive"}')
    await asyncio.wait_for(reading, 10)
    assert "gateway is gone" in events[-1]["event"]["message"]
    assert container.got[-1][0] == "stop"
    await world.api.quiet()


@pytest.mark.parametrize("kind", ["events", "control"])
async def test_whoever_deletes_a_channel_ends_the_stream(worker, gateway, kind):
    container = await worker()
    world = await gateway(container)
    await world.start()
    async with world.api.http.delete(f"{world.api.url}/ai/trickle/s1-{kind}") as answer:
        assert answer.status == 200
    await world.api.quiet()
    assert container.got[-1][0] == "stop"


async def test_a_gateway_that_hangs_up_during_the_start_leaves_nothing(worker, gateway):
    async def never(wire):
        await asyncio.Event().wait()

    container = await worker(start=never)
    world = await gateway(container)
    starting = asyncio.ensure_future(world.start())
    await until(lambda: container.got)
    starting.cancel()
    await world.api.quiet()


async def test_draining_stops_every_stream_and_takes_no_new_one(worker, gateway):
    container = await worker()
    world = await gateway(container)
    for name in ("a", "b"):
        assert (await world.start(name))[0] == 200
    await world.api.run.drain()
    assert [each[0] for each in container.got] == ["start", "start", "stop", "stop"]
    assert container.got[-1][2] == b"the orchestrator is shutting down"
    assert (await world.start("c"))[0] == 503
    await world.api.quiet()


async def test_a_stream_goes_on_while_its_container_has_unregistered(worker, gateway):
    container = await worker()
    world = await gateway()
    await world.api.register(url=container.url)
    await world.start()
    async with world.api.post("/capability/unregister", b"test") as answer:
        assert answer.status == 200
    status = await world.api.status()
    assert (status["jobs"], status["streams"]) == (0, 1)
    assert (await world.start("s2"))[0] == 404
    assert (await world.post("stop"))[0] == 200
    await world.api.quiet()
