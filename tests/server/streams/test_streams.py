"""BYOC streams as an orchestrator drives them: channels on a trickle server, start, media, data and events, stop."""

import asyncio
import json
import re
import subprocess
from types import SimpleNamespace

import pytest
from aiohttp import web

from audio import pcm
from audio.ffmpeg import ffmpeg_environment, ffmpeg_path
from audio.wav import read_wav
from tests.server.streams.conftest import KINDS
from tests.server.stubs import Sound
from tests.waiting import forever, until
from tests.wires import Relay
from whisper_byoc.aio import cancel
from whisper_byoc.errors import RequestRefused
from whisper_byoc.http import listening
from whisper_byoc.processors.base import PlainSession, Result
from whisper_byoc.processors.tint import GreenTintProcessor
from whisper_byoc.server.core.pipeline import Pipeline, Pipelines, PipelineState
from whisper_byoc.server.ingest import decoder
from whisper_byoc.server.streams import input as stream_input
from whisper_byoc.server.streams import output, stream, video
from whisper_byoc.server.streams.hosts import StreamHosts
from whisper_byoc.server.streams.routes import StreamTable
from whisper_byoc.speech.models import DEMO_NOTICE
from whisper_byoc.trickle.remote import ClientOptions
from whisper_byoc.trickle.subscriber import TrickleSubscriber


@pytest.fixture
async def speech(orchestrate, demo_processor):
    return await orchestrate({"whisper-demo": demo_processor})


@pytest.fixture
def sound_of(fixtures_dir):
    return lambda name: pcm.encode(read_wav((fixtures_dir / name).read_bytes()))


@pytest.fixture
def expected(texts):
    """Return a function that tells the words of a fixture."""
    return lambda name: words(texts[name]["text"])


def words(text):
    return re.sub(r"[^a-z ]", "", text.lower()).split()


def spoken(data):
    return [word for each in data for word in words(each.get("text", ""))]


def transport_stream(path, codec="aac", video=False):
    command = [ffmpeg_path(), "-loglevel", "error", "-i", str(path)]
    if video:
        command += ["-f", "lavfi", "-i", "testsrc=size=320x240:rate=30", "-shortest", "-map", "0:a", "-map", "1:v",
                    "-c:v", "libx264", "-preset", "ultrafast", "-g", "30"]  # fmt: skip
    command += ["-c:a", codec, "-ar", "48000", "-f", "mpegts", "pipe:1"]
    return subprocess.run(command, env=ffmpeg_environment(), stdout=subprocess.PIPE, check=True).stdout


def segments(data, size=188 * 200):
    return [data[at : at + size] for at in range(0, len(data), size)]


@pytest.mark.parametrize(("codec", "video"), [("aac", False), ("libopus", False), ("aac", True)])
async def test_speech_in_mpeg_ts_comes_back_as_its_words(speech, fixtures_dir, expected, codec, video):
    name = "demo-numbers.wav"
    ts = await asyncio.to_thread(transport_stream, fixtures_dir / name, codec, video)
    status, body = await speech.start("stream", speech.channels("stream"))
    assert status == 200, body
    assert (body["status"], body["request_id"]) == ("success", "stream")
    assert body["current_state"]["active_streams"] == 1
    data, reading = speech.follow("stream", "-data")
    events, listening = speech.follow("stream", "-events")
    async with speech.publisher("stream") as publisher:
        for segment in segments(ts):
            await publisher.publish(segment)
        status, body = await speech.stop("stream")
    assert (status, body["status"]) == (200, "success")
    # the last words and the end are there before the stop was answered: an orchestrator closes the channels now
    for kind in KINDS:
        speech.trickle.close("stream" + kind)
    await asyncio.gather(reading, listening)
    assert [each["seq"] for each in data] == list(range(len(data)))
    assert spoken(data) == expected(name)
    assert (data[-1]["type"], data[-1]["errors"]) == ("end", 0)
    kinds = [event["event"]["type"] for event in events]
    assert kinds[0] == "stream_started"
    assert kinds[-1] == "stream_stopped"
    queues = {event["event"]["type"]: event["queue_event_type"] for event in events}
    assert queues["runner_receive_first_ingest_segment"] == "stream_trace"
    assert queues["runner_send_first_processed_segment"] == "stream_trace"
    assert (queues["heartbeat"], queues["status"]) == ("stream_heartbeat", "ai_stream_status")
    assert (await speech.stop("stream"))[0] == 200  # up to three stops come
    _, health = await speech.api.json("/health")
    assert (health["status"], health["notices"]) == ("IDLE", [DEMO_NOTICE])


async def test_raw_pcm_segments_and_several_streams_at_once(speech, sound_of, expected):
    names = ["demo-stop.wav", "demo-hello-world.wav", "demo-spelling.wav"]
    # an odd size: samples are cut in half
    each = (speech.through(name, segments(sound_of(name), 9999), {"input": "pcm16"}) for name in names)
    assert [spoken(data) for data in await asyncio.gather(*each)] == [expected(name) for name in names]


async def test_partial_text_on_the_data_channel(speech, sound_of, texts):
    name = "demo-numbers.wav"
    urls = speech.channels("live", ["", "-data"])
    assert (await speech.start("live", urls, {"input": "pcm16", "partials": True, "pause": 0.4}))[0] == 200
    data, reading = speech.follow("live", "-data")
    sound = sound_of(name)
    half = len(sound) // 4 * 2
    async with speech.publisher("live") as publisher:
        await publisher.publish(sound[:half])
        await until(lambda: any(not each["is_final"] for each in data))
        await publisher.publish(sound[half:])
        assert (await speech.stop("live"))[0] == 200
    speech.trickle.close("live-data")
    await reading
    shown = [each for each in data if each["type"] == "transcript"]
    assert [each["seq"] for each in shown] == list(range(len(shown)))
    assert " ".join(each["text"] for each in shown if each["is_final"]) == texts[name]["text"]
    assert all(each["stats"]["lag_ms"] >= 0 for each in shown)


async def test_parameters_of_live_text_that_cannot_be(speech):
    urls = speech.channels("no", [""])
    for params in (
        {"partials": "maybe"},
        {"pause": 9},
        {"longest": "x"},
        {"hotwords": 5},
        {"pause": 3, "longest": 3},
        {"data_format": "xml"},
        {"width": 3},
        {"width": 0, "height": 1},
    ):
        status, body = await speech.start("no", urls, {"input": "pcm16", **params})
        assert (status, body["status"]) == (400, "error")
        assert next(iter(params)) in body["message"]
    assert not speech.api.table.jobs


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


@pytest.mark.parametrize("how", ["by type", "by parameters"])
async def test_sound_of_another_kind_is_what_it_is_declared_to_be(speech, fixtures_dir, expected, how):
    name = "demo-numbers.wav"
    command = [
        ffmpeg_path(),
        "-loglevel",
        "error",
        "-i",
        fixtures_dir / name,
        "-ac",
        "2",
        "-ar",
        "48000",
        "-f",
        "f32le",
        "-",
    ]
    floats = await asyncio.to_thread(subprocess.check_output, command, env=ffmpeg_environment())
    kind, params = "audio/L16;rate=48000;channels=2;encoding=f32le", {}
    if how == "by parameters":
        kind, params = "video/MP2T", {"encoding": "f32le", "rate": 48000, "channels": 2}
    urls = speech.channels("cd", ["-data"])
    speech.trickle.create("cd", kind)
    assert (await speech.start("cd", {**urls, "subscribe_url": f"{speech.base}/ai/trickle/cd"}, params))[0] == 200
    data, reading = speech.follow("cd", "-data")
    async with speech.publisher("cd", kind) as publisher:
        for segment in segments(floats, 700_001):
            await publisher.publish(segment)
        assert (await speech.stop("cd"))[0] == 200
    speech.trickle.close("cd-data")
    await reading
    assert spoken(data) == expected(name)
    assert (data[-1]["type"], data[-1]["errors"]) == ("end", 0)


async def test_declared_sound_that_cannot_be(speech):
    status, body = await speech.start("no", speech.channels("no", [""]), {"input": "pcm16", "rate": 5})
    assert (status, "rate" in body["message"]) == (400, True)


async def test_a_channel_whose_type_cannot_be_is_an_error(orchestrate):
    world = await orchestrate()
    urls = world.channels("cd", ["-data"])
    world.trickle.create("cd", "audio/L16;rate=1")
    assert (await world.start("cd", {**urls, "subscribe_url": f"{world.base}/ai/trickle/cd"}))[0] == 200
    data, reading = world.follow("cd", "-data")
    async with world.publisher("cd", "audio/L16;rate=1") as publisher:
        await publisher.publish(bytes(3200))
        await until(lambda: not world.api.server.streams.streams)
    world.trickle.close("cd-data")
    await reading
    assert [each["type"] for each in data] == ["error", "end"]
    assert "rate must be a whole number from 8000" in data[0]["error"]


async def test_text_fits_the_picture_where_sound_begins_late(speech, fixtures_dir):
    late = [
        "-f",
        "lavfi",
        "-i",
        "color=size=64x64:duration=9",
        "-itsoffset",
        "4",
        "-i",
        fixtures_dir / "demo-numbers.wav",
    ]
    opposite = ["-af", "pan=stereo|c0=c0|c1=-1*c0", "-c:v", "mpeg2video", "-c:a", "aac", "-ar", "48000"]
    command = [ffmpeg_path(), "-nostdin", "-loglevel", "error", *late, *opposite, "-f", "mpegts", "-"]
    ts = await asyncio.to_thread(subprocess.check_output, command, env=ffmpeg_environment())
    data = await speech.through("late", segments(ts))
    first, *_ = (each for each in data if each.get("text"))
    assert first["segments"][0]["start_ms"] == pytest.approx(4000 + 570, abs=200)
    assert spoken(data)[-2:] == ["five", "one"]


async def test_data_in_the_form_of_pytrickle_is_one_string_a_line(orchestrate):
    world = await orchestrate()
    data = await world.through("old", [bytes(640)], {"input": "pcm16", "data_format": "pytrickle"})
    assert all(isinstance(each, list) and len(each) == 1 for each in data)
    assert [json.loads(each[0])["type"] for each in data] == ["result", "end"]


@pytest.mark.parametrize("data_format", ["object", "pytrickle"])
async def test_records_too_long_for_a_line_are_shortened(orchestrate, data_format):
    class Talker(Sound):
        content_type = "application/octet-stream"

        def open_session(self, job):
            return self

        async def feed(self, frame):
            long = "'" + '"' * 20_000  # which is twice as long in JSON, and four times in pytrickle's form
            return [
                Result(b"", {"text": "t", "segments": [{"text": "s", "words": [{"word": long * 2}]}]}),
                Result(b"", {"text": "t", "segments": [{"text": long * 2}]}),
                Result(bytes(60_000)),
                Result(b"", {"text": "t", "segments": [{"text": "s", "words": [{"word": "w"}]}]}),
            ]

        async def finish(self):
            return []

        def summary(self):
            return {}

    world = await orchestrate(Talker())
    *records, _ = await world.through("long", [bytes(640)], {"input": "pcm16", "data_format": data_format})
    if data_format == "pytrickle":
        records = [json.loads(each[0]) for each in records]
    assert [each.get("shortened") for each in records] == [True, True, True, None]
    assert [each.get("segments") for each in records[:2]] == [[{"id": "long-0-0", "text": "s"}], None]
    assert (records[2]["size"], records[2].get("data")) == (60_000, None)
    assert records[3]["segments"][0]["words"] == [{"word": "w"}]


async def test_garbage_empty_and_truncated_segments_leave_the_rest_whole(speech, fixtures_dir, expected):
    name = "demo-hello-world.wav"
    ts = await asyncio.to_thread(transport_stream, fixtures_dir / name)
    garbage = [b"", b"this is no transport stream" * 500, b"", b"\x47" + bytes(100)]
    data = await speech.through("rough", garbage + segments(ts))
    assert spoken(data) == expected(name)
    assert data[-1]["type"] == "end"


@pytest.mark.parametrize("signal", ["STOP", "KILL"])
@pytest.mark.parametrize("processor", [Sound, GreenTintProcessor], ids=["audio", "video"])
async def test_what_an_ffmpeg_takes_with_it_is_an_error_record_and_an_event(
    orchestrate, monkeypatch, signal, processor
):
    monkeypatch.setattr(decoder, "FLUSH_SECONDS", 0.3)
    for module, command in ((stream_input, "wav_from_feed"), (video, "frames_from_ts")):
        monkeypatch.setattr(module, command, lambda *_: ["sh", "-c", f"head -c 100 >/dev/null; kill -{signal} $$"])
    world = await orchestrate(processor())
    assert (await world.start("hit", world.channels("hit", ["", "-events"])))[0] == 200
    events, listening = world.follow("hit", "-events")
    async with world.publisher("hit") as publisher:
        await publisher.publish(bytes(50))
        assert (await world.stop("hit"))[0] == 200
    world.trickle.close("hit-events")
    await listening
    (error,) = world.errors("hit")
    assert ("ffmpeg hung" if signal == "STOP" else "ffmpeg ended with -9") in error
    assert [event["event"]["message"] for event in events if event["event"]["type"] == "error"] == [error]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_pytrickle_on_the_orchestrators_side(speech, pytrickle, fixtures_dir, expected):
    name = "demo-hello-world.wav"
    ts = await asyncio.to_thread(transport_stream, fixtures_dir / name)
    urls = speech.channels("peer")
    publisher = pytrickle.Publisher(urls["subscribe_url"], mime_type="video/mp2t")
    await publisher.start()
    subscriber = pytrickle.Subscriber(urls["data_url"], start_seq=-1)
    await subscriber.start()
    assert (await speech.start("peer", urls))[0] == 200
    async with TrickleSubscriber(urls["subscribe_url"], start=0) as arrived:
        for segment in segments(ts, 188 * 30):
            async with await publisher.next() as writer:
                await writer.write(segment)
            assert await (await anext(arrived)).read() == segment  # their publisher does not wait for it
    stopping = asyncio.ensure_future(speech.stop("peer"))
    records = []
    async with asyncio.timeout(20):
        while not records or records[-1]["type"] != "end":
            segment = await subscriber.next()
            data = b""
            while chunk := await segment.read():
                data += chunk
            records += [json.loads(line) for line in data.splitlines()]
    assert (await stopping)[0] == 200
    assert spoken(records) == expected(name)
    assert records[-1]["errors"] == 0
    await publisher.close()
    await subscriber.close()


async def test_segments_that_were_missed_are_told_of(orchestrate):
    """A container that cannot keep up for a while loses what leaves the window, and says so at its place."""
    go_on = asyncio.Event()

    class Slow(Sound):
        async def process(self, frame):
            await go_on.wait()
            return await super().process(frame)

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
    assert (data[-1]["type"], data[-1]["errors"]) == ("end", len(errors))
    assert data[-2]["text"].endswith("bytes")  # what came after the gap was worked on


async def test_control_messages_change_parameters_and_garbage_does_not(orchestrate):
    class Tunable(Sound):
        def open_session(self, job):
            self.params = dict(job.params)
            session = PlainSession(self)
            session.update = self.update
            return session

        def update(self, params):
            if params.get("language") == "klingon":
                raise RequestRefused(400, "no klingon")
            self.params |= params

    tunable = Tunable()
    world = await orchestrate(tunable)
    urls = world.channels("ctl", ["", "-control", "-events"])
    assert (await world.start("ctl", urls, {"input": "pcm16"}))[0] == 200
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
        await until(lambda: tunable.params == {"input": "pcm16", "prompt": "gateway"})
    for wrong, part in ({"data_format": "xml", "prompt": "x"}, "data_format"), ({"language": "klingon"}, "no klingon"):
        status, body = await world.post("/stream/params", wrong, "ctl")
        assert (status, body["status"]) == (400, "error")
        assert part in body["message"]
    assert (await world.post("/stream/params", {"params": {"words": True}}, "ctl"))[0] == 200
    assert tunable.params == {"input": "pcm16", "prompt": "gateway", "words": True}
    await world.stop("ctl")
    world.trickle.close("ctl-events")
    await listening
    kinds = [event["event"]["type"] for event in events]
    assert kinds.count("params_updated") == 3  # at the start, by control, by HTTP
    assert kinds.count("error") == 3  # [1] is no object, and passed over


@pytest.mark.parametrize("kind", ["-control", "-events", "-data", ""])
async def test_a_channel_closed_early_ends_the_stream_and_nothing_hangs(orchestrate, monkeypatch, kind):
    monkeypatch.setattr(output, "HEARTBEAT_EVERY_S", 0.05)
    monkeypatch.setattr(output, "KEEP_ALIVE_EVERY_S", 0.05)
    world = await orchestrate()
    urls = world.channels("cut", ["", "-control", "-events", "-data"])
    await world.start("cut", urls, {"input": "pcm16"})
    data, reading = world.follow("cut", "-data")
    events, listening = world.follow("cut", "-events")
    async with world.publisher("cut") as publisher:
        await publisher.publish(bytes(640))
        await until(lambda: data and events)
        world.trickle.close("cut" + kind)
        await until(lambda: not world.api.server.streams.streams)
    assert (await world.api.json("/health"))[1] == {"status": "IDLE"}
    assert (await world.stop("cut"))[0] == 200
    await cancel(reading, listening)


async def test_two_starts_with_one_id(orchestrate):
    world = await orchestrate()
    urls = world.channels("same", ["", "-data"])
    assert (await world.start("same", urls, {"input": "pcm16"}))[0] == 200
    status, body = await world.start("same", urls, {"input": "pcm16"})
    assert status == 400
    assert "already running" in body["message"]
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
    class Mirror:
        async def process(self, frame):
            return frame[::-1]

    world = await orchestrate({"sound": Sound(), "mirror": Mirror()})
    for name, pipeline in (("a", "sound"), ("b", "mirror")):
        assert (await world.api.put(name, b"abcd", query=f"?pipeline={pipeline}"))[0] == 200
        status, body = await world.post(f"/stream/start?pipeline={pipeline}", {"gateway_request_id": name})
        assert status == 400
        assert "that is not a stream" in body["message"]
    assert (await world.api.get("a"))[1] == b"4 bytes"
    assert (await world.api.get("b"))[1] == b"dcba"
    status, body = await world.post("/stream/start?pipeline=mirror", {"gateway_request_id": "c"})
    assert (status, body["message"]) == (400, "pipeline mirror works on bytes, not on streams of media")
    await world.api.end("a")
    assert (await world.api.records("a"))[-1]["type"] == "end"
    assert (await world.post("/stream/start?pipeline=sound", {"gateway_request_id": "a"}))[0] == 200
    await world.stop("a")


async def test_no_place_for_another_stream_is_503(orchestrate):
    world = await orchestrate(jobs=1)
    assert (await world.start("one", world.channels("one", [""])))[0] == 200
    async with world.api.http.post(f"{world.api.url}/stream/start", json={"gateway_request_id": "two"}) as answer:
        assert (answer.status, (await answer.json())["status"]) == (503, "error")
        assert int(answer.headers["Retry-After"]) >= 1
    async with world.api.http.get(f"{world.api.url}/metrics") as answer:
        assert 'byoc_refusals_total{reason="jobs"} 1.0' in await answer.text()
    await world.stop("one")


async def test_a_start_that_cannot_be_is_400(orchestrate):
    world = await orchestrate()
    headers = {"Content-Type": "application/json"}
    for body, part in (
        (b"[" * 100_000, "not JSON"),
        (b"[]", "must be a JSON object"),
        (b"{}", "gateway_request_id must be a non-empty string"),
        (b'{"gateway_request_id": "x", "params": 1}', "params must be a JSON object, not int"),
        (b'{"gateway_request_id": "x", "data_url": 1}', "data_url must be a string, not 1"),
        (
            b'{"gateway_request_id": "x", "params": {"max_framerate": "\xc2\xb2"}}',
            "max_framerate must be a whole number",
        ),
        (b'{"gateway_request_id": "x", "params": {"pipeline": ["a"]}}', "pipeline must be a string, not list"),
    ):
        async with world.api.http.post(f"{world.api.url}/stream/start", data=body, headers=headers) as answer:
            assert answer.status == 400
            assert part in (await answer.json())["message"]
    assert not world.api.table.jobs


async def test_half_an_emoji_in_the_parameters_does_not_end_the_stream(orchestrate):
    world = await orchestrate()
    urls = world.channels("cut", ["", "-events", "-data"])
    events, listening = world.follow("cut", "-events")
    assert (await world.start("cut", urls, {"input": "pcm16", "note": "\ud83d"}))[0] == 200
    await until(lambda: any(each["event"]["type"] == "params_updated" for each in events))
    assert (await world.post("/stream/params", {"note": "\ud83d again"}, "cut"))[0] == 200
    await until(lambda: [each["event"].get("params", {}).get("note") for each in events].count("? again") == 1)
    (running,) = world.api.server.streams.streams
    assert not running.job.closing.is_set()
    assert (await world.post("/stream/start", {"gateway_request_id": "\ud83d"}))[0] == 200  # or in its name
    for each in world.api.server.streams.streams:
        await each.stop(1.0)
    world.trickle.close("cut-events")
    await listening


async def test_nobody_at_the_urls(orchestrate, unused_tcp_port):
    world = await orchestrate()
    gone = f"http://127.0.0.1:{unused_tcp_port}/x"
    urls = dict.fromkeys(("subscribe_url", "control_url", "events_url", "data_url"), gone)
    assert (await world.start("lost", urls))[0] == 200
    (running,) = world.api.server.streams.streams
    await running.stop(limit=0.1)
    assert running.over.done()
    await world.api.still_serves()


async def test_a_stream_survives_the_loss_of_its_orchestrator_for_a_while(orchestrate):
    world = await orchestrate()
    relay, passed = Relay(int(world.base.rpartition(":")[2])), bytearray()

    def keep(data, to_target):
        if not to_target:
            passed.extend(data)
        return data

    relay.after = keep
    await relay.listen()
    urls = {
        name: url.replace(world.base, f"http://127.0.0.1:{relay.port}")
        for name, url in world.channels("s", ["", "-data", "-events", "-control"]).items()
    }
    assert (await world.start("s", urls, {"input": "pcm16"}))[0] == 200
    data, reading = world.follow("s", "-data")
    async with world.publisher("s") as publisher:
        await publisher.publish(b"\1" * 640)
        await until(lambda: passed.count(1) == 640)
        await relay.close()
        await publisher.publish(b"\2" * 320)  # while nobody can read it
        await relay.listen()
        await publisher.publish(b"\3" * 640)
        await until(lambda: passed.count(3) >= 640)
        assert (await world.stop("s"))[0] == 200
    world.trickle.close("s-data")
    await reading
    assert [each.get("text") for each in data] == ["1600 bytes", None]
    await relay.close()


async def test_silence_sends_keep_alives_and_does_not_end_the_stream(orchestrate, monkeypatch):
    monkeypatch.setattr(output, "KEEP_ALIVE_EVERY_S", 0.05)
    monkeypatch.setattr(output, "HEARTBEAT_EVERY_S", 0.05)
    monkeypatch.setattr(stream, "TOUCH_S", 0.05)
    world = await orchestrate(idle_seconds=1.5)
    urls = world.channels("quiet", ["", "-data", "-events"])
    await world.start("quiet", urls, {"input": "pcm16"})
    data, reading = world.follow("quiet", "-data")
    events, listening = world.follow("quiet", "-events")
    await until(lambda: len(data) > 32 and len(events) > 32)  # longer than the idle limit
    assert {each["type"] for each in data} == {"keepalive"}
    async with world.publisher("quiet") as publisher:
        await publisher.publish(bytes(640))
        await world.stop("quiet")
    for kind in ("-data", "-events"):
        world.trickle.close("quiet" + kind)
    await asyncio.gather(reading, listening)
    assert [each["type"] for each in data if each["type"] != "keepalive"] == ["result", "end"]


async def test_events_that_the_channel_does_not_take_are_dropped(caplog):
    events = output.EventWriter("full", None, ClientOptions())
    for _ in range(output.MAX_EVENTS + 3):
        events.emit("error")
    assert caplog.text.count("events are dropped") == 1
    events.finish()
    async with asyncio.timeout(20):
        await events.run(lambda: None)


@pytest.mark.parametrize(
    ("states", "status"), [(["READY"], "IDLE"), (["READY", "LOADING"], "LOADING"), (["LOADING", "FAILED"], "ERROR")]
)
def test_the_state_of_the_server(states, status):
    pipelines = Pipelines(Pipeline(name, SimpleNamespace()) for name in states)
    for each in pipelines:
        each.state = PipelineState[each.name]
    state = StreamTable(SimpleNamespace(pipelines=pipelines), StreamHosts([], starters=False)).state()
    assert (state["status"], state["pipeline_ready"]) == (status, status == "IDLE")


async def test_nothing_is_written_before_a_reader_can_be_there(orchestrate, monkeypatch):
    monkeypatch.setattr(output, "FIRST_LINE_S", 0.3)
    world = await orchestrate()
    urls = world.channels("early", ["", "-data", "-events"])
    began = asyncio.get_running_loop().time()
    await world.start("early", urls, {"input": "pcm16"})
    events, listening = world.follow("early", "-events")
    await until(lambda: events)
    assert asyncio.get_running_loop().time() - began >= 0.3
    assert events[0]["event"]["type"] == "params_updated"
    await world.stop("early")
    await cancel(listening)


async def test_events_that_are_refused_are_tried_again_with_pauses_and_one_line_in_the_log(monkeypatch, caplog):
    monkeypatch.setattr(output, "FIRST_LINE_S", 0.0)
    asked, taken = [], []

    async def channel(request):
        asked.append(request.path)
        if len(asked) < 6:
            return web.Response(status=403)
        taken.append(await request.json())
        return web.Response(headers={"Lp-Trickle-Seq": request.path[-1]})

    app = web.Application()
    app.router.add_post("/{path:.*}", channel)
    async with listening(app, "127.0.0.1", 0, keep_alive_seconds=60, shutdown_seconds=0) as port:
        monkeypatch.setattr(output, "FIRST_PAUSE_S", 0.01)
        events = output.EventWriter("id", f"http://127.0.0.1:{port}/events", ClientOptions(longest_pause=0.02))
        running = asyncio.ensure_future(events.run(lambda: None))
        events.emit("error", message="first")
        await until(lambda: taken)
        await cancel(running)
    assert taken[0]["event"]["message"] == "first"
    assert caplog.text.count("an event is not taken") == 1


@pytest.mark.parametrize("kind", ["events", "data"])
async def test_a_channel_that_is_given_up_ends_the_stream(orchestrate, monkeypatch, kind):
    async def refuse(request):
        return web.Response(status=403)

    monkeypatch.setattr(output, "LOST_S", 0.2)
    monkeypatch.setattr(output, "KEEP_ALIVE_EVERY_S", 0.05)
    world = await orchestrate()
    urls = world.channels("refused")
    app = web.Application()
    app.router.add_post("/{path:.*}", refuse)
    async with listening(app, "127.0.0.1", 0, keep_alive_seconds=60, shutdown_seconds=0) as port:
        urls[f"{kind}_url"] = f"http://127.0.0.1:{port}/channel"
        assert (await world.start("refused", urls))[0] == 200
        async with world.publisher("refused") as publisher:
            await publisher.publish(bytes(320))
            await until(lambda: not world.api.server.streams.streams)


class LateSubscriber(TrickleSubscriber):
    """Hands out segments so late as on a machine that is busy with something else."""

    async def __anext__(self):
        await asyncio.sleep(5 * stream_input.QUIET_S)
        return await super().__anext__()


class StuckSubscriber(TrickleSubscriber):
    async def __anext__(self):
        await forever()


async def test_a_stop_waits_for_what_was_written_before_it(orchestrate, monkeypatch):
    monkeypatch.setattr(stream_input, "QUIET_S", 0.02)
    monkeypatch.setattr(stream_input, "TrickleSubscriber", LateSubscriber)
    world = await orchestrate()
    data = await world.through("late", [bytes(3200)] * 3, {"input": "pcm16"})
    assert sum(int(each["text"].split()[0]) for each in data[:-1]) == 3 * 3200, data
    assert data[-1]["errors"] == 0


async def test_what_a_stream_came_too_late_for_is_an_error(orchestrate):
    world = await orchestrate()
    urls = world.channels("late", ["", "-data"])
    async with world.publisher("late") as publisher:
        for _ in range(7):
            await publisher.publish(bytes(3200))
        assert (await world.start("late", urls, {"input": "pcm16"}))[0] == 200
        data, reading = world.follow("late", "-data")
        assert (await world.stop("late"))[0] == 200
    world.trickle.close("late-data")
    await reading
    gone = int(data[0]["error"].removesuffix(" segments of the input were gone before they could be read"))
    assert gone in (2, 3)  # the open POST of the next segment may have a place in the window
    assert data[1]["text"] == f"{(7 - gone) * 3200} bytes"


async def test_what_was_written_before_a_stop_and_cannot_be_read_is_an_error(orchestrate, monkeypatch):
    monkeypatch.setattr(stream_input, "QUIET_S", 0.02)
    monkeypatch.setattr(stream_input, "STOP_READING_S", 0.02)
    monkeypatch.setattr(stream_input, "TrickleSubscriber", StuckSubscriber)
    world = await orchestrate()
    data = await world.through("late", [bytes(3200)] * 3, {"input": "pcm16"})
    errors = [each["error"] for each in data if each["type"] == "error"]
    assert errors == ["the stream was stopped, and 3 segments of its input could not be read in time"]
