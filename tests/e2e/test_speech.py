"""Sound that a person can play comes back as the words in it, through the real server, over real sockets."""

import asyncio
import itertools
import json
import re

import pytest

from audio import pcm
from audio.wav import read_wav
from tests.waiting import until
from whisper_byoc import TrickleClient
from whisper_byoc.processors.whisper import WhisperProcessor


@pytest.fixture
async def api(serving, demo_processor):
    return await serving({"whisper-demo": demo_processor})


def words(text):
    return re.sub(r"[^a-z ]", "", text.lower()).split()


def demo_files(texts):
    return [name for name, each in texts.items() if each["model"] in ("demo", "any")]


async def test_every_fixture_as_a_wav_segment(api, fixtures_dir, texts):
    for name in demo_files(texts):
        wav = (fixtures_dir / name).read_bytes()
        status, _, _ = await api.put(name, wav, headers={"Content-Type": "audio/wav"})
        assert status == 200, name
        status, body, headers = await api.get(name, "?wait=30")
        assert (status, headers["Content-Type"]) == (200, "text/plain; charset=utf-8")
        assert words(body.decode()) == words(texts[name]["text"]), name


async def test_every_fixture_as_pcm_frames(api, fixtures_dir, texts):
    async with TrickleClient(api.url) as client:
        for name in demo_files(texts):
            frame = pcm.encode(read_wav((fixtures_dir / name).read_bytes()))
            text = await client.process_frame(frame)
            assert words(text.decode()) == words(texts[name]["text"]), name


async def test_long_recording_live_in_odd_chunks(api, fixtures_dir, texts):
    data = pcm.encode(read_wav((fixtures_dir / "demo-long-40s.wav").read_bytes()))

    async def microphone():
        for at in range(0, len(data), 3333):
            yield data[at : at + 3333]

    async with TrickleClient(api.url) as client:
        records = [record async for record in client.stream(microphone())]
    *transcripts, end = records
    assert [each["seq"] for each in records] == list(range(len(records)))
    assert len(transcripts) > 1
    spoken = [word for each in transcripts for word in words(each["text"])]
    assert spoken == words(texts["demo-long-40s.wav"]["text"])
    edges = [(each["timing"]["media_window_start_ms"], each["timing"]["media_window_end_ms"]) for each in transcripts]
    assert end["audio_ms"] == len(data) // 32
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(edges))
    utterances = texts["demo-long-40s.wav"]["utterances"]
    assert [each["text"] for each in transcripts] == [each["text"] for each in utterances]
    for heard, truth in zip(transcripts, utterances, strict=True):
        assert heard["segments"][0]["start_ms"] == pytest.approx(truth["start"] * 1000, abs=300)
        assert heard["segments"][-1]["end_ms"] == pytest.approx(truth["end"] * 1000, abs=300)
    assert end == {
        "type": "end", "job_id": end["job_id"], "seq": len(transcripts),
        "audio_ms": end["audio_ms"], "speech_ms": end["speech_ms"], "transcripts": len(transcripts), "errors": 0,
    }  # fmt: skip
    first = transcripts[0]["segments"][0]
    assert first["id"] == f"{end['job_id']}-0-0"


async def test_two_clients_at_once(api, fixtures_dir, texts):
    async def one(name):
        wav = (fixtures_dir / name).read_bytes()
        async with TrickleClient(api.url) as client:
            records = [record async for record in client.stream(wav, content_type="audio/wav")]
        return [word for record in records for word in words(record.get("text", ""))]

    names = ["demo-hello-world.wav", "demo-stereo-48k.wav", "demo-numbers.wav", "demo-stop.wav"]
    assert await asyncio.gather(*map(one, names)) == [words(texts[name]["text"]) for name in names]


async def test_language_is_chosen_when_the_job_opens(api):
    status, body, _ = await api.put("job", bytes(320), query="?language=de")
    assert status == 400
    assert "English only" in body["error"]
    assert (await api.put("job", bytes(320), query="?language=en"))[0] == 200


async def test_odd_bytes_are_an_error_record_and_the_next_segment_works(api, fixtures_dir):
    await api.put("job", b"abc")
    status, body, _ = await api.get("job")
    assert status == 500
    assert "3 bytes is not whole 16-bit samples" in json.loads(body)["error"]
    await api.put("job", bytes(320))
    assert (await api.get("job"))[:2] == (200, b"")


async def test_client_that_vanishes_while_the_model_works(api, fixtures_dir, texts):
    frame = pcm.encode(read_wav((fixtures_dir / "demo-numbers.wav").read_bytes()))
    _, writer = await asyncio.open_connection("127.0.0.1", api.port)
    writer.write(b"PUT /live/gone/source HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(frame) + frame)
    await writer.drain()
    await until(lambda: api.table.queued)
    writer.transport.abort()
    assert words((await api.get("gone"))[1].decode()) == words(texts["demo-numbers.wav"]["text"])


async def test_health_leaves_loading_only_when_warm(serving):
    api = await serving({"whisper-demo": WhisperProcessor("demo")}, wait=False)
    assert (await api.json("/health"))[1]["status"] == "LOADING"
    status, body = await api.json("/readyz")
    assert status == 503
    assert "loading" in body["reasons"][0]
    # a segment that comes early waits for the model instead of failing
    early = asyncio.ensure_future(api.put("early", bytes(320)))
    await api.server.loaded()
    assert (await api.json("/health"))[1]["status"] in ("IDLE", "OK")
    assert (await api.json("/readyz"))[0] == 200
    assert (await early)[0] == 200
    assert (await api.get("early"))[0] == 200
    await until(lambda: not api.table.busy)
    assert (await api.json("/health"))[1]["status"] == "IDLE"


async def test_the_event_loop_stays_free_while_the_model_works(api, fixtures_dir):
    frame = pcm.encode(read_wav((fixtures_dir / "demo-long-40s.wav").read_bytes()))[: 28 * 32_000]
    async with TrickleClient(api.url) as client:
        working = asyncio.ensure_future(client.process_frame(frame))
        await until(lambda: api.table.queued)
        for _ in range(3):
            assert (await api.json("/health"))[1]["status"] == "OK"
            assert not working.done(), "an answer must not wait for the model"
        assert await working
