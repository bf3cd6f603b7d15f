"""Sound without speech, and no sound at all: an end that says so on every way in, and never an error."""

import io
import json

import aiohttp
import pytest

SILENCE = bytes(3 * 32_000)
NO_SPEECH, NO_SOUND = ["no speech was found in 3 s of sound"], ["no sound came"]
CASES = [(SILENCE, NO_SPEECH), (b"", NO_SOUND)]


@pytest.mark.parametrize(("data", "warnings"), CASES)
async def test_of_a_live_feed(demo, data, warnings):
    status, body, _ = await demo.put("job", [data] if data else [], chunked=True)
    assert (status, body.get("warnings")) == (200, None if data else ["nothing came: the body has no bytes"])
    (end,) = await demo.records("job")
    assert (end["type"], end["warnings"]) == ("end", warnings)
    assert (end["audio_ms"], end["speech_ms"], end["errors"]) == (len(data) // 32, 0, 0)


async def test_of_whole_segments(demo):
    await demo.put("job", SILENCE)
    await demo.end("job")
    record, end = await demo.records("job")
    assert (record["text"], end["warnings"]) == ("", NO_SPEECH)


@pytest.mark.parametrize(("data", "warnings"), CASES)
async def test_of_a_websocket(demo, data, warnings):
    async with demo.http.ws_connect(f"{demo.url}/transcribe") as ws:
        if data:
            await ws.send_bytes(data)
        await ws.send_str("eos")
        assert [json.loads(message.data) async for message in ws] == [{"text": "", "final": True, "warnings": warnings}]
    assert ws.close_code == 1000


@pytest.mark.parametrize(("data", "warnings"), CASES)
async def test_of_deepgrams_dialect(demo, data, warnings):
    async with demo.http.ws_connect(f"{demo.url}/v1/listen?encoding=linear16&sample_rate=16000") as ws:
        if data:
            await ws.send_bytes(data)
        await ws.send_str('{"type": "CloseStream"}')
        (end,) = [json.loads(message.data) async for message in ws]
    assert [each["message"] for each in end["warnings"]] == warnings


async def test_of_a_recording(demo):
    async with demo.http.post(f"{demo.url}/whisper-demo", data=io.BytesIO(SILENCE)) as answer:
        found = await answer.json()
        assert (found["text"], found["duration"], found["speech"], found["segments"]) == ("", 3.0, 0.0, [])
        assert found["warnings"] == json.loads(answer.headers["X-Metadata"])["warnings"] == NO_SPEECH
    for path in ("/v1/audio/transcriptions", "/audio-to-text", "/inference", "/asr?output=json"):
        form = aiohttp.FormData()
        name = "audio_file" if "asr" in path else "file"
        form.add_field(name, SILENCE, filename="a.pcm")
        async with demo.http.post(f"{demo.url}{path}", data=form) as answer:
            assert (answer.status, (await answer.json())["warnings"]) == (200, NO_SPEECH)


@pytest.mark.parametrize("path", ["/whisper-demo?format=sse", "/v1/audio/transcriptions"])
async def test_of_a_stream_of_events(demo, path):
    form = aiohttp.FormData({"stream": "true"} if "v1" in path else {})
    form.add_field("file", SILENCE, filename="a.pcm")
    async with demo.http.post(f"{demo.url}{path}", data=form) as answer:
        (end, done) = [line for line in (await answer.text()).splitlines() if line]
    assert (json.loads(end[6:])["warnings"], done) == (NO_SPEECH, "data: [DONE]")


async def test_where_there_is_speech_nothing_is_said(demo, numbers):
    async with demo.http.post(f"{demo.url}/whisper-demo", data=io.BytesIO(numbers)) as answer:
        found = await answer.json()
    assert "warnings" not in found
    assert 2 < found["speech"] < found["duration"]
