"""`/process/stream/…`: streams from their start to their last words, through gateway, orchestrator and container."""

import asyncio
import json
import subprocess
from contextlib import AsyncExitStack

import aiohttp
import numpy as np
import pytest

from audio.media import ffmpeg_environment, ffmpeg_path
from whisper_byoc.network.gateway import app as gateway_app
from whisper_byoc.network.gateway import link, records, session, streams
from whisper_byoc.processors.tint import GreenTintProcessor
from whisper_byoc.trickle import TricklePublisher, TrickleSubscriber

PCM = {"input": "pcm16"}
LONG = bytes(2 * 16_000 * 31)
"""More than the container waits for before it cuts."""
KEYS = {
    "stream_id", "whip_url", "whep_url", "rtmp_url", "rtmp_output_url", "update_url", "status_url", "data_url",
    "stop_url", "publish_url", "subscribe_url",
}  # fmt: skip


def ffmpeg(*arguments, data=None):
    command = [ffmpeg_path(), "-loglevel", "error", *arguments]
    return subprocess.run(
        command, env=ffmpeg_environment(), input=data, stdout=subprocess.PIPE, check=True, timeout=60
    ).stdout


def heard(found):
    return sum(int(record["text"].split()[0]) for record in found if record.get("text"))


async def over(world, gateway):
    """Nothing is left on any hop."""
    await gateway.settled()
    assert not gateway.running.streams._trickle.channels
    if hasattr(gateway, "orchestrator"):
        await world.until(lambda: gateway.orchestrator.slots == 0)
        await world.until(lambda: not gateway.api.server.streams.streams)
        assert (await gateway.json("/status"))[1]["streams"] == 0


# --- start


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
    await over(world, gateway)


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
    assert "running already" in answer


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"{", "no JSON"),
        (b"[]", "object"),
        (b"[" * 3000, "nested"),
        (b'{"stream_id": 7}', "strings"),
        (b'{"stream_id": "a/b"}', "a/b"),
        (b'{"stream_id": ".."}', "bad stream id"),
        (b'{"stream_id": "a-out"}', "another"),
        (b'{"params": "[1]"}', "params"),
        (b'{"params": 5}', "params"),
    ],
)
async def test_bad_bodies(world, body, words):
    gateway = await world.pair(world.Sound())
    status, answer, _ = await gateway.post("/process/stream/start", body, headers={"Livepeer": world.stream_header()})
    assert status == 400
    assert words in answer.decode()
    await over(world, gateway)


async def test_a_body_that_is_too_large_and_a_header_that_is_missing(world):
    gateway = await world.pair(world.Sound())
    headers = {"Livepeer": world.stream_header()}
    assert (await gateway.post("/process/stream/start", bytes((10 << 20) + 1), headers=headers))[0] == 413
    assert (await gateway.post("/process/stream/start", b"{}"))[0] == 400


async def test_a_refusal_of_the_container_is_in_the_start_answer(world):
    gateway = await world.pair(world.Pixels())
    status, answer = await gateway.start("one", {"width": 5})
    assert status == 400
    assert "width and height" in answer
    await over(world, gateway)
    assert (await gateway.start("one", {"width": 4, "height": 4}))[0] == 200


async def test_no_such_capability(world):
    gateway = await world.pair(world.Sound())
    status, answer = await gateway.start(capability="other")
    assert status == 400
    assert "'other'" in answer
    assert "test" in answer


async def test_no_more_streams_than_places_and_none_while_shutting_down(world):
    gateway = await world.pair(world.Sound(), jobs=2)
    for name in ("a", "b"):
        assert (await gateway.start(name))[0] == 200
    assert (await gateway.start("c"))[0] == 503
    await gateway.post("/process/stream/a/stop")
    gateway.running.context.draining = True
    assert (await gateway.start("c"))[0] == 503


async def test_the_public_address_is_in_the_urls(world):
    orchestrator = await world.orchestrator(await world.serving(world.Sound()))
    for public, base in (("gw.example:99", "http://gw.example:99"), ("https://gw.example", "https://gw.example")):
        gateway = await world.gateway(orchestrator, public_host=public)
        answer = (await gateway.start())[1]
        assert answer["status_url"] == f"{base}/process/stream/{answer['stream_id']}/status"
        assert answer["publish_url"].startswith(f"{base}/ai/trickle/")
        await gateway.post(f"/process/stream/{answer['stream_id']}/stop")


async def test_pages_of_other_origins(world, monkeypatch):
    monkeypatch.setenv(gateway_app.CORS, "1")
    gateway = await world.pair(world.Sound())
    async with gateway.http.options(f"{gateway.url}/process/stream/x/data") as answer:
        assert answer.status == 200
        assert answer.headers["Access-Control-Allow-Origin"] == "*"
    answer = (await gateway.start("one"))[1]
    async with gateway.http.get(answer["data_url"]) as events:
        assert events.headers["Access-Control-Allow-Origin"] == "*"
    async with gateway.http.get(f"{gateway.url}/process/stream/none/status") as missing:
        assert missing.status == 404
        assert missing.headers["Access-Control-Allow-Origin"] == "*"
    await gateway.post("/process/stream/one/stop")


# --- sound in, text out


@pytest.mark.filterwarnings("ignore:verify_ssl is deprecated", "ignore::ResourceWarning")  # pytrickle's
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("kind", ["ours", "pytrickle"])
async def test_pcm_comes_back_as_text_and_the_end_of_input_ends_the_stream(world, request, kind):
    gateway = await world.pair(world.Sound())
    _, answer = await gateway.start("one", PCM)
    early = gateway.follow(answer["data_url"])
    await early.connected.wait()  # headers come at once
    stream = gateway.running.streams._sessions["one"]
    chunks = [bytes(3200)] * 4
    if kind == "ours":
        await gateway.publish(answer["publish_url"], *chunks)
    else:
        pytrickle = request.getfixturevalue("pytrickle")
        publisher = pytrickle.Publisher(answer["publish_url"], "video/MP2T")
        for number, chunk in enumerate(chunks, 1):
            async with await publisher.next() as writer:
                await writer.write(chunk)
            await world.until(lambda number=number: stream.status()["ingest_metrics"]["bytes"] == 3200 * number)
        await publisher.close()
    assert stream.status()["ingest_metrics"] == {"segments": 4, "bytes": 12_800, "missed": 0}
    await gateway.end(answer["publish_url"])
    found = await early.ended()
    assert heard(found) == 12_800
    assert found[-1]["type"] == "end"
    assert [record["seq"] for record in found] == list(range(len(found)))
    late, again = gateway.follow(answer["data_url"]), gateway.follow(answer["data_url"], **{"Last-Event-ID": "0"})
    assert await late.ended() == found
    assert late.events == early.events
    assert await again.ended() == found[1:]
    assert (await gateway.json("/process/stream/one/status"))[1]["state"] == "ended"
    await over(world, gateway)


async def test_mpeg_ts_comes_back_as_text(world):
    gateway = await world.pair(world.Sound())
    ts = await asyncio.to_thread(
        ffmpeg, "-f", "lavfi", "-i", "sine=frequency=440:sample_rate=48000", "-t", "3", "-c:a", "aac", "-f", "mpegts",
        "pipe:1",
    )  # fmt: skip
    _, answer = await gateway.start("one")
    reader = gateway.follow(answer["data_url"])
    await gateway.publish(answer["publish_url"], *(ts[at : at + 188 * 50] for at in range(0, len(ts), 188 * 50)))
    await gateway.end(answer["publish_url"])
    assert abs(heard(await reader.ended()) / 32_000 - 3) < 0.3
    await over(world, gateway)


async def test_stop_says_the_last_words_before_it_answers_and_is_idempotent(world):
    gateway = await world.pair(world.Sound())
    _, answer = await gateway.start("one", PCM)
    await gateway.publish(answer["publish_url"], bytes(3200))
    stops = await asyncio.gather(*(gateway.post("/process/stream/one/stop", b"why") for _ in range(3)))
    assert {status for status, _, _ in stops} == {200}
    assert {json.loads(body)["status"] for _, body, _ in stops} == {"success"}
    assert gateway.running.streams._sessions["one"].records.ended
    assert heard(await gateway.follow(answer["data_url"]).ended()) == 3200
    status, _, _ = await gateway.post("/process/stream/one/stop")
    assert status == 200
    assert (await gateway.post("/process/stream/none/stop"))[0] == 404
    assert "error" not in (await gateway.json("/process/stream/one/status"))[1]
    await over(world, gateway)


async def test_stop_while_input_is_being_sent_loses_nothing_that_arrived(world):
    gateway = await world.pair(world.Sound())
    _, answer = await gateway.start("one", PCM)
    stream = gateway.running.streams._sessions["one"]
    async with TricklePublisher(answer["publish_url"], "video/MP2T") as publisher:
        for _ in range(3):
            await publisher.publish(bytes(3200))
        writer = await publisher.next()
        await writer.write(bytes(1600))  # a segment that is never finished
        await world.until(lambda: stream.status()["ingest_metrics"]["bytes"] == 11_200)
        await gateway.post("/process/stream/one/stop")
    assert heard(await gateway.follow(answer["data_url"]).ended()) == 11_200
    await over(world, gateway)


async def test_a_client_who_does_not_wait_for_the_stop_does_not_interrupt_it(world):
    gateway = await world.pair(world.Sound())
    _, answer = await gateway.start("one", PCM, ingress=False)
    stopping = asyncio.ensure_future(gateway.post("/process/stream/one/stop"))
    await world.until(lambda: gateway.running.streams._sessions["one"]._stopper)
    stopping.cancel()
    await gateway.follow(answer["data_url"]).ended()
    await over(world, gateway)


@pytest.mark.parametrize("steps", [0, 1, 3, 10, 30])
async def test_a_stop_may_race_the_end_of_the_input(world, steps):
    gateway = await world.pair(world.Sound())
    _, answer = await gateway.start("one", PCM)
    await gateway.publish(answer["publish_url"], bytes(3200))
    ending = asyncio.ensure_future(gateway.end(answer["publish_url"]))
    for _ in range(steps):
        await asyncio.sleep(0.01)
    status, _, _ = await gateway.post("/process/stream/one/stop")
    assert status == 200
    assert heard(await gateway.follow(answer["data_url"]).ended()) == 3200
    await asyncio.wait({ending})
    if ending.exception() is None:
        await over(world, gateway)
    assert "error" not in (await gateway.json("/process/stream/one/status"))[1]
    await over(world, gateway)


async def test_a_long_header_is_read(world):
    gateway = await world.pair(world.Sound())
    status, answer = await gateway.start("one", comment="x" * 20_000)
    assert status == 200, answer
    await gateway.post("/process/stream/one/stop")


async def test_silence_is_kept_alive(world, monkeypatch):
    monkeypatch.setattr(records, "KEEP_ALIVE_S", 0.05)
    gateway = await world.pair(world.Sound())
    _, answer = await gateway.start("one", PCM)
    reader = gateway.follow(answer["data_url"])
    await world.until(lambda: reader.comments > 3)
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
    await over(world, gateway)


async def test_a_stream_of_data_alone(world):
    gateway = await world.pair(world.Sound())
    _, answer = await gateway.start("one", ingress=False)
    assert answer["publish_url"] == ""
    assert (await gateway.post("/process/stream/one/stop"))[0] == 200
    found = await gateway.follow(answer["data_url"]).ended()
    assert [record["type"] for record in found] == ["end"]
    await over(world, gateway)


async def test_a_stream_can_be_started_again_under_its_name(world):
    gateway = await world.pair(world.Sound())
    for _ in range(2):
        status, answer = await gateway.start("one", PCM)
        assert status == 200, answer
        await gateway.publish(answer["publish_url"], bytes(3200))
        await gateway.end(answer["publish_url"])
        assert heard(await gateway.follow(answer["data_url"]).ended()) == 3200
        await over(world, gateway)


async def test_a_reader_that_does_not_read_is_cut_off(world):
    gateway = await world.pair(world.Sound(), stall_seconds=0.2)
    await gateway.start("one", PCM)
    stream = gateway.running.streams._sessions["one"]
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.running.port, limit=1000)
    writer.write(b"GET /process/stream/one/data HTTP/1.1\r\nHost: x\r\n\r\n")
    head = await reader.readuntil(b"\r\n\r\n")
    assert b"200" in head
    for number in range(30):
        stream.records.add(b'{"type":"x","n":%d,"pad":"%b"}' % (number, b"x" * 1_000_000))
        await asyncio.sleep(0.02)
    await asyncio.sleep(0.5)
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        while True:
            text = await reader.readexactly(65536)
            assert b"HTTP/1.1 500" not in text
    writer.close()
    await gateway.post("/process/stream/one/stop")
    await over(world, gateway)


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
        assert heard(await reader.ended()) == 3200
    await world.until(lambda: orchestrator.slots == 0)


# --- update and status


class Worker:
    """A container by script: it answers what the test says, and writes to the channels what the test says."""

    def __init__(self, world):
        self.world = world
        self.started = []
        self.stops = 0
        self.refusal = None
        self.params = (200, b'{"said": "yes"}')
        self.on_stop = None
        self.stop_answer = b'{"bye": 1}'

    async def __call__(self, script, reader, writer, path, headers):
        if path in ("/readyz", "/health", "/version"):
            script.answer_json(writer, {"status": "IDLE"})
            return True
        body, path = await script.body(reader, headers), path.split("?")[0]
        if path == "/stream/start":
            if self.refusal:
                script.answer(writer, *self.refusal)
                return True
            self.started.append(json.loads(body))
        elif path == "/stream/stop":
            self.stops += 1
            if self.on_stop:
                await self.on_stop()
            script.answer(writer, 200, self.stop_answer, "application/json")
            return True
        elif path == "/stream/params":
            self.asked = body
            script.answer(writer, self.params[0], self.params[1], "application/json")
            return True
        script.answer(writer, 200, b"{}", "application/json")
        return True

    def url(self, kind, number=-1):
        return self.started[number][f"{kind}_url"]

    async def say(self, *messages, kind="data", number=-1):
        async with TricklePublisher(self.url(kind, number), "application/json", join=True) as publisher:
            for message in messages:
                data = message if isinstance(message, bytes) else json.dumps(message).encode() + b"\n"
                await publisher.publish(data)

    async def event(self, *events, number=-1):
        await self.say(*({"event": event} for event in events), kind="events", number=number)


async def worker_pair(world, relayed=False, **limits):
    worker = Worker(world)
    script = await world.script(worker)
    orchestrator = await world.orchestrator(urls=[script.url], relayed=relayed)
    gateway = await world.gateway(orchestrator, **limits)
    worker.script, worker.orchestrator = script, orchestrator
    return worker, gateway


async def test_an_update_is_relayed_and_answered_by_the_container(world):
    worker, gateway = await worker_pair(world)
    await gateway.start("one")
    headers = {"Livepeer": world.header(request={"stream_id": "one"})}
    path = "/process/stream/one/update"
    for status, body in ((200, b'{"said": "' + b"y" * 300_000 + b'"}'), (422, b'{"said": "no"}')):
        worker.params = status, body
        got, answer, back = await gateway.post(path, b'{"a": 1}', headers=headers)
        assert (got, answer, back["Content-Type"]) == (status, body, "application/json")
        assert worker.asked == b'{"a": 1}'
    worker.params = 200, b"{}"
    for odd in (b"[1]", b'{"params": 3}', b"{"):
        assert (await gateway.post(path, odd, headers=headers))[0] == 200
    assert (await gateway.post(path, b"{}"))[0] == 400  # go-livepeer wants its header
    assert (await gateway.post("/process/stream/none/update", b"{}", headers=headers))[0] == 404
    await gateway.post("/process/stream/one/stop")
    assert (await gateway.post(path, b"{}", headers=headers))[0] == 404


async def test_the_status_is_the_containers_and_does_not_vanish(world):
    worker, gateway = await worker_pair(world)
    await gateway.start("one")
    await worker.event({"type": "status", "fps": 7}, {"type": "error", "message": "a cable is loose"})
    await worker.say(b"not json", b"[]", b"7", b'{"event": []}', b"[" * 5000, kind="events")
    stream = gateway.running.streams._sessions["one"]
    await world.until(lambda: "error" in stream.status())
    status, told = await gateway.json("/process/stream/one/status")
    assert status == 200
    assert (told["fps"], told["state"], told["error"]) == (7, "running", "a cable is loose")
    assert told["orchestrator"] == worker.orchestrator.url
    assert told["ingest_metrics"] == {"segments": 0, "bytes": 0, "missed": 0}
    _, body, headers = await gateway.post("/process/stream/one/stop")
    assert body == b'{"bye": 1}'
    assert headers["Content-Type"].startswith("application/json")
    assert (await gateway.json("/process/stream/one/status"))[1]["state"] == "ended"
    assert (await gateway.json("/process/stream/none/status"))[0] == 404


async def test_a_container_whose_text_has_no_end_record_ends_in_order(world):
    """As pytrickle's: its lines are what its author likes."""
    worker, gateway = await worker_pair(world)
    _, answer = await gateway.start("one")
    await worker.say(b'["{\\"text\\": \\"hello\\"}"]\n', b"[]\n", b"plain\rtext\n\nmore\n")
    reader = gateway.follow(answer["data_url"])
    await world.until(lambda: len(reader.events) == 3)
    assert (await gateway.post("/process/stream/one/stop"))[0] == 200
    await asyncio.wait_for(reader.task, 10)
    assert [each["data"] for each in reader.events[:-1]] == ['["{\\"text\\": \\"hello\\"}"]', "plain text", "more"]
    assert reader.events[-1]["event"] == "end"
    assert "error" not in (await gateway.json("/process/stream/one/status"))[1]
    await gateway.settled()


async def test_what_is_said_while_it_stops_is_there_before_the_answer(world):
    worker, gateway = await worker_pair(world)
    _, answer = await gateway.start("one")
    worker.on_stop = lambda: worker.say({"type": "last", "seq": 0}, {"type": "end", "seq": 1})
    await gateway.post("/process/stream/one/stop")
    assert [record["type"] for record in await gateway.follow(answer["data_url"]).ended()] == ["last", "end"]


async def test_a_container_that_stops_by_itself_is_no_failure(world):
    worker, gateway = await worker_pair(world)
    _, answer = await gateway.start("one", ingress=False, data=True)
    await worker.event({"type": "stream_stopped"})
    await gateway.follow(answer["data_url"]).ended()
    assert "error" not in (await gateway.json("/process/stream/one/status"))[1]
    assert len(worker.started) == 1
    await gateway.settled()


@pytest.mark.parametrize(("status", "got"), [(400, 400), (422, 422), (500, 500), (503, 503)])
async def test_the_words_of_a_refusal_come_through(world, status, got):
    worker, gateway = await worker_pair(world)
    worker.refusal = status, b'{"error": "I would rather not"}'
    code, answer = await gateway.start("one")
    assert (code, answer) == (got, "I would rather not\n")
    await gateway.settled()
    await world.until(lambda: worker.orchestrator.slots == 0)
    assert not worker.orchestrator.running.streams._streams


# --- failures


async def two_workers(world):
    pairs = []
    for _ in range(2):
        worker = Worker(world)
        script = await world.script(worker)
        orchestrator = await world.orchestrator(urls=[script.url], relayed=True)
        worker.script, worker.orchestrator = script, orchestrator
        pairs.append(worker)
    gateway = await world.gateway(*(worker.orchestrator for worker in pairs))
    return pairs, gateway


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


@pytest.mark.parametrize("input_ends", [False, True])
async def test_an_orchestrator_that_dies_before_a_result_is_replaced_and_all_input_replayed(
    world, monkeypatch, input_ends
):
    monkeypatch.setattr(link, "OPTIONS", link.ClientOptions(patience_seconds=0.2, longest_pause=0.1, answer_seconds=1))
    workers, gateway = await two_workers(world)
    _, answer = await gateway.start("one")
    first, other = first_and_other(workers)
    parts = [b"%d" % number * 1000 for number in range(4)]
    await gateway.publish(answer["publish_url"], *parts)
    await first.orchestrator.relay.close()
    if input_ends:
        await gateway.end(answer["publish_url"])
    await world.until(lambda: other.started)
    reading = asyncio.ensure_future(everything(other.url("subscribe")))
    if not input_ends:
        await gateway.end(answer["publish_url"])
    assert await asyncio.wait_for(reading, 10) == b"".join(parts)
    await other.say({"type": "transcript", "seq": 0, "text": "x"}, {"type": "end", "seq": 1})
    found = await gateway.follow(answer["data_url"]).ended()
    assert [record["type"] for record in found] == ["transcript", "end"]
    assert (await gateway.json("/process/stream/one/status"))[1]["orchestrator"] == other.orchestrator.url
    await gateway.settled()
    await world.until(lambda: other.orchestrator.slots == 0)


async def test_an_orchestrator_that_dies_after_a_result_ends_the_stream_with_an_error(world, monkeypatch):
    monkeypatch.setattr(link, "OPTIONS", link.ClientOptions(patience_seconds=0.2, longest_pause=0.1, answer_seconds=1))
    workers, gateway = await two_workers(world)
    _, answer = await gateway.start("one")
    first, other = first_and_other(workers)
    timing = {"media_window_end_ms": 700}
    await first.say({"type": "transcript", "job_id": "one", "seq": 0, "text": "x", "timing": timing})
    reader = gateway.follow(answer["data_url"])
    await world.until(lambda: reader.events)
    await first.orchestrator.relay.close()
    found = await reader.ended()
    assert [(record["type"], record["seq"]) for record in found] == [("transcript", 0), ("error", 1), ("end", 2)]
    assert {name: found[-1][name] for name in ("audio_ms", "transcripts", "errors")} == {
        "audio_ms": 700, "transcripts": 1, "errors": 1,
    }  # fmt: skip
    assert not other.started
    assert (await gateway.json("/process/stream/one/status"))[1]["error"] == found[1]["error"]
    await gateway.settled()


async def test_a_container_that_dies_before_a_result_is_replaced_by_another_of_the_same_orchestrator(
    world, monkeypatch
):
    monkeypatch.setattr(session, "SETTLE_S", 0.7)
    workers = [Worker(world) for _ in range(2)]
    scripts = [await world.script(worker) for worker in workers]
    orchestrator = await world.orchestrator(urls=[script.url for script in scripts])
    gateway = await world.gateway(orchestrator)
    _, answer = await gateway.start("one", {"a": 1})
    first, other = first_and_other(workers)
    headers = {"Livepeer": world.header()}
    await gateway.post("/process/stream/one/update", b'{"b": 2}', headers=headers)
    await gateway.publish(answer["publish_url"], b"abc")
    await scripts[workers.index(first)].close()
    await world.until(lambda: other.started, 20)
    assert other.started[0]["params"] == {"a": 1, "b": 2}
    await gateway.end(answer["publish_url"])
    assert await asyncio.wait_for(everything(other.url("subscribe")), 10) == b"abc"
    await other.say({"type": "end", "seq": 0})
    await gateway.follow(answer["data_url"]).ended()
    await gateway.settled()
    await world.until(lambda: orchestrator.slots == 0)


async def test_a_container_that_dies_after_a_result_ends_the_stream_with_an_error(world):
    worker, gateway = await worker_pair(world)
    _, answer = await gateway.start("one")
    await worker.say({"type": "transcript", "seq": 0, "text": "x"})
    reader = gateway.follow(answer["data_url"])
    await world.until(lambda: reader.events)
    await worker.script.close()
    found = await reader.ended()
    assert [record["type"] for record in found] == ["transcript", "error", "end"]
    assert "gone" in found[1]["error"]
    await gateway.settled()
    await world.until(lambda: worker.orchestrator.slots == 0)


async def test_a_container_without_events_is_lost(world, monkeypatch):
    monkeypatch.setattr(link, "HEARTBEAT_S", 0.3)
    monkeypatch.setattr(link, "TICK_S", 0.05)
    monkeypatch.setattr(link, "LAST_S", 0.1)
    worker, gateway = await worker_pair(world)
    _, answer = await gateway.start("one")
    await worker.say({"type": "transcript", "seq": 0})
    found = await gateway.follow(answer["data_url"]).ended()
    assert "no event for 0.3 s" in found[-2]["error"]
    await gateway.settled()
    await world.until(lambda: worker.orchestrator.slots == 0)  # it was told
    assert worker.stops


@pytest.mark.parametrize("how", ["nothing", "hangs", "no urls", "bad urls", "half"])
async def test_an_orchestrator_that_starts_but_never_serves(world, monkeypatch, how):
    """Another one takes the stream, and the first is told to let go of it."""
    monkeypatch.setattr(link, "HEARTBEAT_S", 1.0)
    monkeypatch.setattr(link, "TICK_S", 0.05)
    monkeypatch.setattr(link, "LAST_S", 0.1)
    monkeypatch.setattr(link, "OPTIONS", link.ClientOptions(patience_seconds=0.3, longest_pause=0.1, answer_seconds=1))
    stops = []

    async def post(script, reader, writer, path, headers):
        if path == "/ai/stream/start":
            await script.body(reader, headers)
            base = f"{script.url}/ai/trickle/one"
            if how == "bad urls":
                base = "nonsense://"
            kinds = {"X_Control_Url": base + "-control", "X_Events_Url": base + "-events", "X_Data_Url": base + "-data"}
            if how == "half":
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Le")
                return False
            script.answer(writer, 200, **({} if how == "no urls" else kinds))
            return True
        if path == "/ai/stream/stop":
            await script.body(reader, headers)
            stops.append(path)
            script.answer(writer, 200)
            return True
        if how == "hangs":
            await asyncio.sleep(30)
        script.answer(writer, 404, b"404 page not found")
        return False

    script = await world.script(post, None, {"available_capacity": 99})  # as go-livepeer: no list of capabilities
    api = await world.serving(world.Sound())
    orchestrator = await world.orchestrator(api)
    gateway = await world.gateway(script, orchestrator)
    _, answer = await gateway.start("one", PCM)
    await gateway.publish(answer["publish_url"], bytes(3200))
    await gateway.end(answer["publish_url"])
    assert heard(await gateway.follow(answer["data_url"]).ended()) == 3200
    await gateway.settled()
    assert stops
    await world.until(lambda: orchestrator.slots == 0)


async def test_nobody_takes_it_up_again(world, monkeypatch):
    monkeypatch.setattr(link, "OPTIONS", link.ClientOptions(patience_seconds=0.2, longest_pause=0.1, answer_seconds=1))
    worker, gateway = await worker_pair(world, relayed=True)
    _, answer = await gateway.start("one")
    await worker.orchestrator.relay.close()
    found = await gateway.follow(answer["data_url"]).ended()
    assert [record["type"] for record in found] == ["error", "end"]
    assert "and then: no orchestrator has a place" in found[0]["error"]
    await gateway.settled()


async def test_a_stop_while_another_orchestrator_is_sought(world, monkeypatch):
    monkeypatch.setattr(link, "OPTIONS", link.ClientOptions(patience_seconds=0.2, longest_pause=0.1, answer_seconds=1))
    monkeypatch.setattr(session, "FLUSH_S", 0.3)
    monkeypatch.setattr(session, "LAST_WORDS_S", 0.3)
    workers, gateway = await two_workers(world)
    _, answer = await gateway.start("one")
    first, other = first_and_other(workers)
    asked = asyncio.Event()
    real = other.script.post

    async def slow(script, reader, writer, path, headers):
        if path.startswith("/stream/start"):
            asked.set()
            await asyncio.sleep(30)
        return await real(script, reader, writer, path, headers)

    other.script.post = slow
    await first.orchestrator.relay.close()
    await asyncio.wait_for(asked.wait(), 10)
    assert (await gateway.post("/process/stream/one/stop"))[0] == 200
    found = await gateway.follow(answer["data_url"]).ended()
    assert [record["type"] for record in found] == ["error", "end"]
    await gateway.settled()
    await world.until(lambda: other.orchestrator.slots == 0)


async def test_a_client_who_goes_away_during_the_start_leaves_nothing(world):
    worker, gateway = await worker_pair(world)
    real, asked = worker.script.post, asyncio.Event()

    async def slow(script, reader, writer, path, headers):
        if path.startswith("/stream/start"):
            asked.set()
            await asyncio.sleep(0.3)
        return await real(script, reader, writer, path, headers)

    worker.script.post = slow
    starting = asyncio.ensure_future(gateway.start("one"))
    await asyncio.wait_for(asked.wait(), 10)
    starting.cancel()
    await over(world, gateway)
    await world.until(lambda: worker.orchestrator.slots == 0)
    worker.script.post = real
    await world.until(lambda: not worker.orchestrator.running.streams._starting)
    assert (await gateway.start("one"))[0] == 200
    await gateway.post("/process/stream/one/stop")


async def test_text_that_was_gone_is_told_of(world):
    worker, gateway = await worker_pair(world)
    _, answer = await gateway.start("one")
    await worker.say({"type": "transcript", "seq": 0})
    reader = gateway.follow(answer["data_url"])
    await world.until(lambda: reader.events)
    channel = worker.orchestrator.running.streams._trickle.get("one-data")
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


async def test_a_go_livepeer_like_orchestrator(world):
    """It has no list of capabilities, another service address, and no routes of ours."""
    api = await world.serving(world.Sound())
    orchestrator = await world.orchestrator(api)

    async def nothing(script, reader, writer, path, headers):
        script.answer(writer, 404, b"404 page not found\n")

    script = await world.script(nothing, None, {"available_capacity": 2, "service_addr": orchestrator.url})
    gateway = await world.gateway(script)
    status, answer = await gateway.start("one", PCM)
    assert status == 200
    await gateway.publish(answer["publish_url"], bytes(3200))
    await gateway.end(answer["publish_url"])
    assert heard(await gateway.follow(answer["data_url"]).ended()) == 3200
    assert not script.asked
    await gateway.settled()


# --- video


def frames(ts):
    raw = ffmpeg("-f", "mpegts", "-i", "pipe:0", "-pix_fmt", "rgb24", "-f", "rawvideo", "pipe:1", data=ts)
    return np.frombuffer(raw, np.uint8).reshape(-1, 120, 160, 3)


@pytest.mark.parametrize("data", [False, True])
async def test_video_through_a_tint_pipeline_comes_out_whole(world, data):
    gateway = await world.pair(GreenTintProcessor())
    ts = await asyncio.to_thread(
        ffmpeg, "-f", "lavfi", "-i", "color=0x406080:size=160x120:rate=30", "-t", "3", "-c:v", "libx264", "-preset",
        "ultrafast", "-g", "30", "-f", "mpegts", "pipe:1",
    )  # fmt: skip
    status, answer = await gateway.start("one", {"max_framerate": 30}, egress=True, data=data)
    assert status == 200, answer
    assert answer["subscribe_url"] == f"{gateway.url}/ai/trickle/one-out"
    found, reading = gateway.collect(answer["subscribe_url"])
    await gateway.publish(answer["publish_url"], *(ts[at : at + 18_800] for at in range(0, len(ts), 18_800)))
    await gateway.end(answer["publish_url"])
    await asyncio.wait_for(reading, 30)
    pictures = await asyncio.to_thread(frames, b"".join(found))
    assert abs(len(pictures) - 90) <= 2
    assert pictures[45].astype(int).mean((0, 1))[1] > 160
    await over(world, gateway)
    assert "error" not in (await gateway.json("/process/stream/one/status"))[1]


async def test_video_that_came_is_a_result(world):
    """A stream that has shown something is not begun anew."""
    worker, gateway = await worker_pair(world)
    _, answer = await gateway.start("one", egress=True, data=False)
    found, reading = gateway.collect(answer["subscribe_url"])
    await worker.say(b"picture", kind="publish")
    await world.until(lambda: found)
    await worker.script.close()
    await asyncio.wait_for(reading, 10)
    assert len(worker.started) == 1
    assert found == [b"picture"]
    await gateway.settled()
    assert "gone" in (await gateway.json("/process/stream/one/status"))[1]["error"]


async def test_the_end_of_video_is_not_begun_anew(world):
    worker, gateway = await worker_pair(world)
    await gateway.start("one", egress=True, data=False)
    await worker.event({"type": "stream_stopped"})
    await over(world, gateway)
    assert len(worker.started) == 1
    assert "error" not in (await gateway.json("/process/stream/one/status"))[1]


async def test_the_last_pictures_can_still_be_asked_for(world):
    worker, gateway = await worker_pair(world)
    _, answer = await gateway.start("one", egress=True)
    worker.on_stop = lambda: worker.say(b"a", b"b", b"c", kind="publish")
    found, reading = gateway.collect(answer["subscribe_url"])
    await gateway.post("/process/stream/one/stop")
    await asyncio.wait_for(reading, 10)
    assert found == [b"a", b"b", b"c"]
    await gateway.settled()


async def test_ended_streams_are_forgotten_after_a_while_and_hold_no_media(world, monkeypatch):
    gateway = await world.pair(world.Sound())
    _, answer = await gateway.start("one", PCM)
    await gateway.publish(answer["publish_url"], bytes(100_000))
    await gateway.post("/process/stream/one/stop")
    trickle = gateway.running.streams._trickle
    await world.until(lambda: trickle.memory.held == 0)
    assert (await gateway.json("/process/stream/one/status"))[1]["ingest_metrics"]["bytes"] == 100_000
    monkeypatch.setattr(streams, "KEPT_S", 0.0)
    assert (await gateway.json("/process/stream/one/status"))[0] == 404


async def test_an_http_client_that_only_starts_and_stops(world):
    """The plain bytes of a client written for go-livepeer."""
    gateway = await world.pair(world.Sound())
    async with aiohttp.ClientSession(headers={"Livepeer": world.stream_header()}) as http:
        async with http.post(
            f"{gateway.url}/process/stream/start", json={"stream_name": "x", "params": "{}"}
        ) as answer:
            assert answer.status == 200
            started = await answer.json()
        async with http.post(started["stop_url"]) as answer:
            assert answer.status == 200
    await over(world, gateway)
