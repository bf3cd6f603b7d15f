"""BYOC streams as an orchestrator drives them: channels on a trickle server, start, media, data and events, stop."""

import asyncio
import json
import re
import subprocess

import pytest

from audio import pcm
from audio.ffmpeg import ffmpeg_environment, ffmpeg_path
from audio.wav import read_wav
from tests.server.streams.conftest import Sound
from tests.waiting import until
from whisper_byoc.processors.whisper import WhisperProcessor, WhisperSettings
from whisper_byoc.server.streams import output as stream_output

KINDS = ("", "-out", "-control", "-events", "-data")


class Mirror:
    async def process(self, frame):
        return frame[::-1]


def words(text):
    return re.sub(r"[^a-z ]", "", text.lower()).split()


def transport_stream(path, codec="aac", video=False):
    command = [ffmpeg_path(), "-loglevel", "error", "-i", str(path)]
    if video:
        command += ["-f", "lavfi", "-i", "testsrc=size=320x240:rate=30", "-shortest", "-map", "0:a", "-map", "1:v",
                    "-c:v", "libx264", "-preset", "ultrafast", "-g", "30"]  # fmt: skip
    command += ["-c:a", codec, "-ar", "48000", "-f", "mpegts", "pipe:1"]
    return subprocess.run(command, env=ffmpeg_environment(), stdout=subprocess.PIPE, check=True).stdout


def segments(data, size=188 * 200):
    return [data[at : at + size] for at in range(0, len(data), size)]


@pytest.mark.parametrize(("codec", "video"), [("aac", False), ("libopus", False), ("aac", True), ("libopus", True)])
async def test_speech_in_mpeg_ts_comes_back_as_its_words(orchestrate, fixtures_dir, texts, codec, video):
    name = "demo-numbers.wav"
    world = await orchestrate({"whisper-demo": WhisperProcessor("demo", WhisperSettings(workers=1))})
    ts = await asyncio.to_thread(transport_stream, fixtures_dir / name, codec, video)
    urls = world.channels("stream")
    status, body = await world.start("stream", urls)
    assert status == 200, body
    assert (body["status"], body["request_id"]) == ("success", "stream")
    assert body["current_state"]["active_streams"] == 1
    data, reading = world.follow("stream", "-data")
    events, listening = world.follow("stream", "-events")
    async with world.publisher("stream") as publisher:
        for segment in segments(ts):
            await publisher.publish(segment)
        status, body = await world.stop("stream")
    assert (status, body["status"]) == (200, "success")
    # the last words and the end are there before the stop was answered: an orchestrator closes the channels now
    for kind in KINDS:
        world.trickle.close("stream" + kind)
    await asyncio.gather(reading, listening)
    assert [each["seq"] for each in data] == list(range(len(data)))
    assert [word for each in data for word in words(each.get("text", ""))] == words(texts[name]["text"])
    assert data[-1]["type"] == "end"
    assert data[-1]["errors"] == 0
    kinds = [event["event"]["type"] for event in events]
    assert kinds[0] == "stream_started"
    assert "heartbeat" in kinds
    assert kinds[-1] == "stream_stopped"
    assert all(event["queue_event_type"] for event in events)
    assert (await world.stop("stream"))[0] == 200  # up to three stops come
    assert await world.api.json("/health") == (200, {"status": "IDLE"})


async def test_raw_pcm_segments_and_several_streams_at_once(orchestrate, fixtures_dir, texts):
    world = await orchestrate({"whisper-demo": WhisperProcessor("demo", WhisperSettings(workers=1))})

    async def one(name, fixture, params):
        urls = world.channels(name, ["", "-data"])
        assert (await world.start(name, urls, params))[0] == 200
        data, reading = world.follow(name, "-data")
        sound = pcm.encode(read_wav((fixtures_dir / fixture).read_bytes()))
        async with world.publisher(name) as publisher:
            for at in range(0, len(sound), 9999):  # odd: samples are cut in half
                await publisher.publish(sound[at : at + 9999])
            assert (await world.stop(name))[0] == 200
        world.trickle.close(name + "-data")
        await reading
        return [word for each in data for word in words(each.get("text", ""))]

    fixtures = ["demo-stop.wav", "demo-hello-world.wav", "demo-spelling.wav"]
    heard = await asyncio.gather(*(one(f"s{n}", each, {"input": "pcm16"}) for n, each in enumerate(fixtures)))
    assert heard == [words(texts[each]["text"]) for each in fixtures]


async def test_partial_text_on_the_data_channel(orchestrate, fixtures_dir, texts):
    name = "demo-numbers.wav"
    world = await orchestrate({"whisper-demo": WhisperProcessor("demo", WhisperSettings(workers=1))})
    urls = world.channels("live", ["", "-data"])
    assert (await world.start("live", urls, {"input": "pcm16", "partials": True, "pause": 0.4}))[0] == 200
    data, reading = world.follow("live", "-data")
    sound = pcm.encode(read_wav((fixtures_dir / name).read_bytes()))
    half = len(sound) // 4 * 2
    async with world.publisher("live") as publisher:
        await publisher.publish(sound[:half])
        await until(lambda: any(not each["is_final"] for each in data))
        await publisher.publish(sound[half:])
        assert (await world.stop("live"))[0] == 200
    world.trickle.close("live-data")
    await reading
    shown = [each for each in data if each["type"] == "transcript"]
    assert [each["seq"] for each in shown] == list(range(len(shown)))
    finals = [each for each in shown if each["is_final"]]
    assert " ".join(each["text"] for each in finals) == texts[name]["text"]
    assert all(each["stats"]["lag_ms"] >= 0 for each in shown)


@pytest.mark.parametrize(
    "params",
    [{"partials": "maybe"}, {"pause": 9}, {"longest": "x"}, {"hotwords": 5}, {"pause": 3, "longest": 3}],
)
async def test_parameters_of_live_text_that_cannot_be(orchestrate, params):
    world = await orchestrate({"whisper-demo": WhisperProcessor("demo", WhisperSettings(workers=1))})
    urls = world.channels("no", [""])
    status, body = await world.start("no", urls, {"input": "pcm16", **params})
    assert (status, body["status"]) == (400, "error")
    assert next(iter(params)) in body["message"]
    assert not world.api.table.jobs


async def test_pcm_by_the_type_of_the_channel_and_end_by_its_closing(orchestrate):
    world = await orchestrate()
    urls = world.channels("pcm", ["-data"])
    world.trickle.create("pcm", "audio/L16;rate=16000")
    urls["subscribe_url"] = f"{world.base}/ai/trickle/pcm"
    assert (await world.start("pcm", urls))[0] == 200
    data, reading = world.follow("pcm", "-data")
    async with world.publisher("pcm") as publisher:
        await publisher.publish(bytes(3200))
        await publisher.publish(bytes(3200))
        await publisher.close(delete_channel=True)
    await until(lambda: not world.api.server.streams.streams)
    world.trickle.close("pcm-data")
    await reading
    assert [each.get("text") for each in data] == ["6400 bytes", None]


async def test_pcm_of_another_rate_is_an_error_and_no_text_of_noise(orchestrate):
    world = await orchestrate()
    urls = world.channels("cd", ["-data"])
    world.trickle.create("cd", "audio/L16;rate=44100")
    assert (await world.start("cd", {**urls, "subscribe_url": f"{world.base}/ai/trickle/cd"}))[0] == 200
    data, reading = world.follow("cd", "-data")
    async with world.publisher("cd") as publisher:
        await publisher.publish(bytes(3200))
        await until(lambda: not world.api.server.streams.streams)
    world.trickle.close("cd-data")
    await reading
    assert [each["type"] for each in data] == ["error", "end"]
    assert "rate=16000 only, not '44100'" in data[0]["error"]


async def test_data_in_pytricklesform_is_one_string_a_line(orchestrate):
    world = await orchestrate()
    urls = world.channels("old", ["", "-data"])
    assert (await world.start("old", urls, {"input": "pcm16", "data_format": "pytrickle"}))[0] == 200
    data, reading = world.follow("old", "-data")
    async with world.publisher("old") as publisher:
        await publisher.publish(bytes(640))
        await world.stop("old")
    world.trickle.close("old-data")
    await reading
    assert all(isinstance(each, list) and len(each) == 1 for each in data)
    assert [json.loads(each[0])["type"] for each in data] == ["result", "end"]


async def test_garbage_empty_and_truncated_segments_leave_the_rest_whole(orchestrate, fixtures_dir, texts):
    name = "demo-hello-world.wav"
    world = await orchestrate({"whisper-demo": WhisperProcessor("demo", WhisperSettings(workers=1))})
    ts = await asyncio.to_thread(transport_stream, fixtures_dir / name)
    urls = world.channels("rough", ["", "-data", "-events"])
    await world.start("rough", urls)
    data, reading = world.follow("rough", "-data")
    async with world.publisher("rough") as publisher:
        await publisher.publish(b"")
        await publisher.publish(b"this is no transport stream" * 500)
        await publisher.publish(b"")
        writer = await publisher.next()
        await writer.write(b"\x47" + bytes(100))
        await writer.abort()
        for segment in segments(ts):
            await publisher.publish(segment)
        assert (await world.stop("rough"))[0] == 200
    world.trickle.close("rough-data")
    await reading
    assert [word for each in data for word in words(each.get("text", ""))] == words(texts[name]["text"])
    assert data[-1]["type"] == "end"


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_pytrickle_on_the_orchestrators_side(orchestrate, pytrickle, fixtures_dir, texts):
    name = "demo-hello-world.wav"
    world = await orchestrate({"whisper-demo": WhisperProcessor("demo", WhisperSettings(workers=1))})
    ts = await asyncio.to_thread(transport_stream, fixtures_dir / name)
    urls = world.channels("peer")
    publisher = pytrickle.Publisher(urls["subscribe_url"], mime_type="video/mp2t")
    await publisher.start()
    subscriber = pytrickle.Subscriber(urls["data_url"], start_seq=-1)
    await subscriber.start()
    assert (await world.start("peer", urls))[0] == 200
    for segment in segments(ts, 188 * 30):
        async with await publisher.next() as writer:
            await writer.write(segment)
        await asyncio.sleep(0.05)  # their publisher does not wait until a segment has arrived
    stopping = asyncio.ensure_future(world.stop("peer"))
    records = []
    while not records or records[-1]["type"] != "end":
        segment = await asyncio.wait_for(subscriber.next(), 20)
        data = b""
        while chunk := await segment.read():
            data += chunk
        records += [json.loads(line) for line in data.splitlines()]
    assert (await stopping)[0] == 200
    assert [word for each in records for word in words(each.get("text", ""))] == words(texts[name]["text"])
    assert records[-1]["errors"] == 0
    await publisher.close()
    await subscriber.close()


async def test_segments_that_were_missed_are_told_of(orchestrate):
    """A container that cannot keep up for a while loses what leaves the window, and says so at its place."""
    go_on = asyncio.Event()

    class Slow:
        media = "audio"
        content_type = "text/plain; charset=utf-8"

        async def process(self, frame):
            await go_on.wait()
            return b"%d bytes" % len(frame)

    world = await orchestrate(Slow(), queue_segments=1)
    urls = world.channels("late", ["", "-data", "-events"])
    await world.start("late", urls, {"input": "pcm16"})
    data, reading = world.follow("late", "-data")
    quarter_minute = bytes(15 * 32_000)
    async with world.publisher("late") as publisher:
        for _ in range(14):
            await publisher.publish(quarter_minute)
        go_on.set()
        await publisher.publish(bytes(640))
        await until(lambda: len(data) > 3)
        assert (await world.stop("late"))[0] == 200
    world.trickle.close("late-data")
    await reading
    errors = [each for each in data if each["type"] == "error"]
    assert len(errors) >= 1
    assert all("gone before they could be read" in each["error"] for each in errors)
    assert data[-1]["type"] == "end"
    assert data[-1]["errors"] == len(errors)
    assert data[-2]["text"].endswith("bytes")  # what came after the gap was worked on


async def test_control_messages_change_parameters_and_garbage_does_not(orchestrate):
    world = await orchestrate({"whisper-demo": WhisperProcessor("demo", WhisperSettings(workers=1))})
    urls = world.channels("ctl", ["", "-control", "-events", "-data"])
    assert (await world.start("ctl", urls, {"input": "pcm16"}))[0] == 200
    (stream,) = world.api.server.streams.streams
    events, listening = world.follow("ctl", "-events")
    async with world.publisher("ctl-control", "application/json") as control:
        for message in (
            b'{"keep":"alive"}',
            b"not json",
            b"[" * 100_000,
            b"[1]",
            b'{"language": "klingon"}',
            b'{"prompt": "gateway"}',
        ):
            await control.publish(message)
        await until(lambda: stream.params.get("prompt") == "gateway")
    assert stream.params.get("language") is None
    status, body = await world.post("/stream/params", {"data_format": "xml"}, "ctl")
    assert (status, body["status"]) == (400, "error")
    assert "data_format" in body["message"]
    status, body = await world.post("/stream/params", {"language": "de", "prompt": "x"}, "ctl")
    assert status == 400
    assert stream.params["prompt"] == "gateway"
    assert (await world.post("/stream/params", {"params": {"words": True}}, "ctl"))[0] == 200
    assert stream.job._session.options.decoding.words
    assert stream.job._session.options.decoding.prompt == "gateway"
    await world.stop("ctl")
    world.trickle.close("ctl-events")
    await listening
    kinds = [event["event"]["type"] for event in events]
    assert kinds.count("params_updated") == 3  # at the start, by control, by HTTP
    assert "error" in kinds


@pytest.mark.parametrize("kind", ["-control", "-events", "-data", ""])
async def test_a_channel_closed_early_ends_the_stream_and_nothing_hangs(orchestrate, monkeypatch, kind):
    monkeypatch.setattr(stream_output, "HEARTBEAT_S", 0.2)
    world = await orchestrate()
    urls = world.channels("cut", ["", "-control", "-events", "-data"])
    await world.start("cut", urls, {"input": "pcm16"})
    async with world.publisher("cut") as publisher:
        await publisher.publish(bytes(640))
        await asyncio.sleep(0.5)
        world.trickle.close("cut" + kind)
        if kind == "-data":
            await asyncio.sleep(0.1)
            world.api.table.get("cut").end_input()
        await until(lambda: not world.api.server.streams.streams)
    assert (await world.api.json("/health"))[1] == {"status": "IDLE"}
    assert (await world.stop("cut"))[0] == 200


async def test_two_starts_with_one_id(orchestrate):
    world = await orchestrate()
    urls = world.channels("same", ["", "-data"])
    assert (await world.start("same", urls, {"input": "pcm16"}))[0] == 200
    status, body = await world.start("same", urls, {"input": "pcm16"})
    assert status == 400
    assert "running already" in body["message"]
    data, reading = world.follow("same", "-data")
    async with world.publisher("same") as publisher:
        await publisher.publish(bytes(640))
        await world.stop("same")
    world.trickle.close("same-data")
    await reading
    assert [each.get("text") for each in data] == ["640 bytes", None]  # the first one was not disturbed
    urls = world.channels("same2", ["", "-data"])
    assert (await world.start("same", urls, {"input": "pcm16"}))[0] == 200  # and the id is free again
    await world.stop("same")


async def test_a_stream_does_not_take_the_job_of_somebody_else(orchestrate):
    world = await orchestrate({"sound": Sound(), "mirror": Mirror()})
    for name, pipeline in (("a", "sound"), ("b", "mirror")):
        assert (await world.api.put(name, b"abcd", query=f"?pipeline={pipeline}"))[0] == 200
        async with world.api.http.post(
            f"{world.api.url}/stream/start?pipeline={pipeline}", json={"gateway_request_id": name}
        ) as answer:
            assert answer.status == 400
            assert "that is no stream" in (await answer.json())["message"]
    assert (await world.api.get("a"))[1] == b"4 bytes"
    assert (await world.api.get("b"))[1] == b"dcba"
    await world.api.end("a")
    assert (await world.api.records("a"))[-1]["type"] == "end"
    async with world.api.http.post(
        f"{world.api.url}/stream/start?pipeline=sound", json={"gateway_request_id": "a"}
    ) as answer:
        assert answer.status == 200
    await world.stop("a")


async def test_no_place_for_another_stream_is_503(orchestrate):
    world = await orchestrate(jobs=1)
    assert (await world.start("one", world.channels("one", [""])))[0] == 200
    async with world.api.http.post(f"{world.api.url}/stream/start", json={"gateway_request_id": "two"}) as answer:
        assert (answer.status, (await answer.json())["status"]) == (503, "error")
        assert int(answer.headers["Retry-After"]) >= 1
    async with world.api.http.get(f"{world.api.url}/metrics") as answer:
        assert 'byoc_refused_total{status="503"} 1.0' in await answer.text()
    await world.stop("one")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"[" * 100_000, "no JSON"),
        (
            b'{"gateway_request_id": "x", "params": {"max_framerate": "\xc2\xb2"}}',
            "max_framerate must be a whole number",
        ),
        (b'{"gateway_request_id": "x", "params": {"pipeline": ["a"]}}', "pipeline must be a string, not list"),
    ],
)
async def test_a_start_that_cannot_be_is_400(orchestrate, body, words):
    world = await orchestrate()
    headers = {"Content-Type": "application/json"}
    async with world.api.http.post(f"{world.api.url}/stream/start", data=body, headers=headers) as answer:
        assert answer.status == 400
        assert words in (await answer.json())["message"]
    assert not world.api.table.jobs


async def test_half_an_emoji_in_the_parameters_does_not_end_the_stream(orchestrate):
    world = await orchestrate()
    urls = world.channels("cut", ["", "-events", "-data"])
    events, listening = world.follow("cut", "-events")
    assert (await world.start("cut", urls, {"input": "pcm16", "note": "\ud83d"}))[0] == 200
    await until(lambda: any(each["event"]["type"] == "params_updated" for each in events))
    assert (await world.post("/stream/params", {"note": "\ud83d again"}, "cut"))[0] == 200
    await until(lambda: [each["event"].get("params", {}).get("note") for each in events].count("? again") == 1)
    (stream,) = world.api.server.streams.streams
    assert not stream.job.closing.is_set()
    assert (await world.post("/stream/start", {"gateway_request_id": "\ud83d"}))[0] == 200  # or in its name
    for each in world.api.server.streams.streams:
        await each.stop()
    world.trickle.close("cut-events")
    await listening


async def test_nobody_at_the_urls(orchestrate, unused_tcp_port):
    world = await orchestrate()
    gone = f"http://127.0.0.1:{unused_tcp_port}/x"
    urls = dict.fromkeys(("subscribe_url", "control_url", "events_url", "data_url"), gone)
    assert (await world.start("lost", urls))[0] == 200
    (stream,) = world.api.server.streams.streams
    await stream.stop(limit=0.5)
    assert stream.over.done()
    await world.api.still_serves()


class Relay:
    """A TCP relay that can cut every connection and refuse new ones: the network between container and orchestrator."""

    def __init__(self, target):
        self.target = target
        self.writers = set()
        self.server = None
        self.port = 0

    async def open(self):
        self.server = await asyncio.start_server(self.relay, "127.0.0.1", self.port)
        self.port = self.server.sockets[0].getsockname()[1]

    async def cut(self):
        self.server.close()
        for writer in list(self.writers):
            writer.transport.abort()
        await asyncio.sleep(0)

    async def relay(self, reader, writer):
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.target)
        both = {writer, far_writer}
        self.writers |= both
        try:
            await asyncio.gather(pump(reader, far_writer), pump(far_reader, writer))
        except OSError:
            pass
        finally:
            self.writers -= both
            for each in both:
                each.transport.abort()


async def pump(reader, writer):
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.transport.abort()


async def test_a_stream_survives_the_loss_of_its_orchestrator_for_a_while(orchestrate):
    world = await orchestrate()
    relay = Relay(int(world.base.rpartition(":")[2]))
    await relay.open()
    urls = {
        name: url.replace(world.base, f"http://127.0.0.1:{relay.port}")
        for name, url in world.channels("s", ["", "-data", "-events", "-control"]).items()
    }
    assert (await world.start("s", urls, {"input": "pcm16"}))[0] == 200
    data, reading = world.follow("s", "-data")
    async with world.publisher("s") as publisher:
        await publisher.publish(bytes(640))
        await asyncio.sleep(0.4)
        await relay.cut()
        await publisher.publish(bytes(320))  # while nobody can read it
        await asyncio.sleep(0.3)
        await relay.open()
        await publisher.publish(bytes(640))
        await asyncio.sleep(1.0)
        assert (await world.stop("s"))[0] == 200
    world.trickle.close("s-data")
    await reading
    assert [each.get("text") for each in data] == ["1600 bytes", None]
    await relay.cut()


async def test_silence_sends_keep_alives_and_does_not_end_the_stream(orchestrate, monkeypatch):
    monkeypatch.setattr(stream_output, "KEEP_ALIVE_S", 0.05)
    monkeypatch.setattr(stream_output, "HEARTBEAT_S", 0.05)
    from whisper_byoc.server.streams import stream as module

    monkeypatch.setattr(module, "TOUCH_S", 0.05)
    world = await orchestrate(idle_seconds=0.3)
    urls = world.channels("quiet", ["", "-data", "-events"])
    await world.start("quiet", urls, {"input": "pcm16"})
    data, reading = world.follow("quiet", "-data")
    events, listening = world.follow("quiet", "-events")
    await until(lambda: len(data) > 8 and len(events) > 8)  # longer than the idle limit
    assert {each["type"] for each in data} == {"keepalive"}
    async with world.publisher("quiet") as publisher:
        await publisher.publish(bytes(640))
        await world.stop("quiet")
    for kind in ("-data", "-events"):
        world.trickle.close("quiet" + kind)
    await asyncio.gather(reading, listening)
    assert [each["type"] for each in data if each["type"] != "keepalive"] == ["result", "end"]
