"""Streams whose orchestrator or container fails: tried elsewhere at the start, ended with an error after that."""

import asyncio
import json

import pytest

from tests.waiting import until
from whisper_byoc.network import gateway_streams
from whisper_byoc.trickle import LocalSubscriber, TricklePublisher, TrickleSubscriber

PCM = {"input": "pcm16"}


async def all_of(channel):
    return b"".join([await segment.read() async for segment in LocalSubscriber(channel, start=0)])


async def everything(url):
    """All bytes of a channel from its first segment."""
    found = b""
    async with TrickleSubscriber(url, start=0) as subscriber:
        async for segment in subscriber:
            found += await segment.read()
    return found


def first_and_other(workers):
    first = next(worker for worker in workers if worker.started)
    return first, next(worker for worker in workers if worker is not first)


def impatient(monkeypatch):
    options = gateway_streams.ClientOptions(patience_seconds=0.2, longest_pause=0.1, answer_seconds=1)
    monkeypatch.setattr(gateway_streams, "OPTIONS", options)


@pytest.mark.parametrize("said", [True, False])
async def test_an_orchestrator_that_dies_ends_the_stream_with_one_error(world, monkeypatch, said):
    impatient(monkeypatch)
    workers, gateway = await world.two_workers()
    _, answer = await gateway.start("one")
    first, other = first_and_other(workers)
    reader = gateway.follow(answer["data_url"])
    if said:
        timing = {"media_window_end_ms": 700}
        await first.say({"type": "transcript", "job_id": "one", "seq": 0, "text": "x", "timing": timing})
        await until(lambda: reader.events)
    await first.orchestrator.relay.close()
    *before, error, end = await reader.ended()
    assert [(record["type"], record["seq"]) for record in before] == [("transcript", 0)][: len(before)]
    assert len(before) == said
    assert (error["type"], error["seq"], end["type"], end["seq"]) == ("error", said, "end", said + 1)
    assert (end["audio_ms"], end["transcripts"], end["errors"]) == (700 * said, said, 1)
    assert not other.started, "it is not begun anew elsewhere"
    assert (await gateway.json("/process/stream/one/status"))[1]["error"] == error["error"]
    await gateway.settled()


@pytest.mark.parametrize("said", [True, False])
async def test_a_container_that_dies_ends_the_stream_with_one_error(world, said):
    worker, gateway = await world.worker_pair()
    _, answer = await gateway.start("one")
    reader = gateway.follow(answer["data_url"])
    if said:
        await worker.say({"type": "transcript", "seq": 0, "text": "x"})
        await until(lambda: reader.events)
    await worker.script.close()
    found = await reader.ended()
    assert [record["type"] for record in found] == ["transcript"] * said + ["error", "end"]
    assert "gone" in found[-2]["error"]
    await gateway.settled()
    await until(lambda: worker.orchestrator.slots == 0)


@pytest.mark.parametrize("how", ["nothing", "hangs", "no urls", "bad urls", "half"])
async def test_an_orchestrator_that_starts_but_never_serves(world, monkeypatch, how):
    """It is told to let go of the stream, which fails at its start if that is known then."""
    monkeypatch.setattr(gateway_streams, "LAST_S", 0.1)
    impatient(monkeypatch)
    stops = []

    async def post(wire):
        if wire.path == "/ai/stream/start":
            await wire.body()
            base = f"{script.url}/ai/trickle/one"
            if how == "bad urls":
                base = "nonsense://"
            kinds = {"X_Control_Url": base + "-control", "X_Events_Url": base + "-events", "X_Data_Url": base + "-data"}
            if how == "half":
                await wire.write(b"HTTP/1.1 200 OK\r\nContent-Le")
                wire.cut()
            await wire.answer(200, **({} if how == "no urls" else kinds))
        elif wire.path == "/ai/stream/stop":
            await wire.body()
            stops.append(wire.path)
            await wire.answer(200)
        elif how == "hangs":
            await asyncio.Event().wait()
        else:
            await wire.answer(404, b"404 page not found", Connection="close")
            wire.cut()

    script = await world.script(post)  # as go-livepeer: no list of capabilities
    gateway = await world.gateway(script)
    status, answer = await gateway.start("one", PCM)
    if how in ("no urls", "half"):
        assert status == 502
    else:
        records = await gateway.follow(answer["data_url"]).ended()
        assert [record["type"] for record in records] == ["error", "end"]
    await until(lambda: stops)
    await gateway.settled()


async def test_a_client_who_goes_away_during_the_start_leaves_nothing(world):
    worker, gateway = await world.worker_pair()
    asked = asyncio.Event()

    async def slow(wire):
        if wire.path == "/stream/start":
            asked.set()
            await asyncio.sleep(0.3)
        await worker(wire)

    worker.script.answer = slow
    starting = asyncio.ensure_future(gateway.start("one"))
    await asyncio.wait_for(asked.wait(), 10)
    starting.cancel()
    await world.over(gateway)
    await until(lambda: worker.orchestrator.slots == 0)
    worker.script.answer = worker

    async def begins():
        return (await gateway.start("one"))[0] == 200

    await until(begins)  # the orchestrator may not have noticed yet
    await gateway.post("/process/stream/one/stop")


async def test_input_whose_connection_breaks_within_a_segment_is_heard_once(world):
    worker, gateway = await world.worker_pair(relayed=True)
    _, answer = await gateway.start("one", {"input": "pcm16"})
    channel = worker.orchestrator.run.trickle.get("one")
    hearing = asyncio.ensure_future(all_of(channel))  # not by the connections that break
    async with TricklePublisher(answer["publish_url"], "audio/L16") as publisher:
        async with await publisher.next() as segment:
            await segment.write(b"abc")  # in the middle of a sample
            await until(lambda: channel.next_write == 1)
            await worker.orchestrator.relay.close()
            await worker.orchestrator.relay.listen()
            await segment.write(b"defg")
        await publisher.publish(b"hi")
    await gateway.end(answer["publish_url"])
    assert await asyncio.wait_for(hearing, 20) == b"abcdefghi"
    await worker.say({"type": "end", "seq": 0})
    await gateway.follow(answer["data_url"]).ended()
    await gateway.settled()


@pytest.mark.parametrize(("params", "heard"), [({"input": "pcm16"}, b"abc\0abcdef"), ({}, b"abcabcdef")])
async def test_a_segment_that_its_client_breaks_off_in_mid_sample_does_not_shift_the_next(world, params, heard):
    worker, gateway = await world.worker_pair()
    _, answer = await gateway.start("one", params)
    hearing = asyncio.ensure_future(everything(worker.url("subscribe")))
    channel = gateway.running.trickle.get("one")
    async with TricklePublisher(answer["publish_url"], "audio/L16") as publisher:
        segment = await publisher.next()
        await segment.write(b"abc")
        await until(lambda: channel.next_write == 1)
        await segment.abort()
        await publisher.publish(b"abcdef")
    await gateway.end(answer["publish_url"])
    assert await asyncio.wait_for(hearing, 20) == heard
    await worker.say({"type": "end", "seq": 0})
    await gateway.follow(answer["data_url"]).ended()
    await gateway.settled()


async def test_text_that_was_gone_is_told_of(world):
    worker, gateway = await world.worker_pair()
    _, answer = await gateway.start("one")
    await worker.say({"type": "transcript", "seq": 0})
    reader = gateway.follow(answer["data_url"])
    await until(lambda: reader.events)
    channel = worker.orchestrator.run.trickle.get("one-data")
    for seq in range(1, 10):  # in one go: nobody can read them all
        segment = channel.for_write(channel.next_write)
        channel.begin(segment)
        segment.append(json.dumps({"type": "transcript", "seq": seq}).encode())
        channel.finish(segment)
    await worker.say({"type": "end", "seq": 10})
    found = await reader.ended()
    assert "gone before they could be read" in str(found)
    assert [record for record in found if record["type"] == "error"]
    await gateway.settled()


async def test_text_whose_rest_is_gone_after_an_outage_ends_the_stream_with_one_error(world):
    worker, gateway = await world.worker_pair(relayed=True)
    _, answer = await gateway.start("one")
    reader = gateway.follow(answer["data_url"])
    channel = worker.orchestrator.run.trickle.get("one-data")
    unfinished = channel.for_write(0)
    channel.begin(unfinished)
    unfinished.append(b'{"type": "transcript", "seq": 0}\n{"type": "tran')
    await until(lambda: reader.events)
    await worker.orchestrator.relay.close()
    for seq in range(1, 6):  # its place is taken meanwhile
        segment = channel.for_write(seq)
        channel.begin(segment)
        segment.append(json.dumps({"type": "transcript", "seq": seq}).encode())
        channel.finish(segment)
    await worker.orchestrator.relay.listen()
    found = await reader.ended()
    assert [record["type"] for record in found] == ["transcript", "error", "end"]
    assert "segment 0 broke off" in found[1]["error"]
    await gateway.settled()
