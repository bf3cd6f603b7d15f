"""ai-runner's dialect: its fields, its answer, its errors."""

import io
import json

import aiohttp
import pytest

NUMBERS = "seven three nine zero five one"


class Fails:
    media = "audio"
    content_type = "text/plain"

    async def process(self, frame):
        raise ValueError("no such luck")


@pytest.fixture
async def api(serving, demo_processor):
    return await serving({"whisper-demo": demo_processor}, segment_bytes=500_000)


@pytest.fixture(scope="session")
def numbers(fixtures_dir):
    return (fixtures_dir / "demo-numbers.wav").read_bytes()


async def post(api, audio, path="/audio-to-text", **fields):
    form = aiohttp.FormData(fields)
    if audio is not None:
        form.add_field("audio", io.BytesIO(audio), filename="sound.wav")
    async with api.http.post(f"{api.url}{path}", data=form) as answer:
        return answer.status, json.loads(await answer.text()), answer.headers


@pytest.mark.parametrize("value", [None, "true", "True", "1", "sentence"])
async def test_chunks_are_sentences_by_default(api, numbers, value):
    fields = {} if value is None else {"return_timestamps": value}
    status, body, headers = await post(api, numbers, **fields)
    assert (status, headers["X-Livepeer-Work-Units"]) == (200, "4")
    assert body == {"text": NUMBERS, "chunks": [{"timestamp": [0.0, 3.1], "text": NUMBERS}]}


async def test_chunks_are_words(api, numbers):
    _, body, _ = await post(
        api, numbers, return_timestamps="word", metadata='{"duration": 3.6}', path="/audio-to-text/"
    )
    assert [each["text"] for each in body["chunks"]] == NUMBERS.split()
    times = [each["timestamp"] for each in body["chunks"]]
    assert times == sorted(times)
    assert all(0 <= start <= end <= 3.7 for start, end in times)


async def test_no_chunks(api, numbers):
    model_id = "openai/whisper-demo"
    _, body, _ = await post(api, numbers, return_timestamps="false", model_id=model_id)
    assert body == {"text": NUMBERS, "chunks": []}


@pytest.mark.parametrize(
    ("audio", "fields", "status", "words"),
    [
        (None, {"model_id": ""}, 415, "multipart/form-data"),
        (b"", {}, 400, "0 bytes"),
        (b"hello", {}, 415, "not media"),
        (b"RIFF\x04\x00\x00\x00WAVE", {}, 415, ""),
        (bytes(500_001), {}, 413, "500000 bytes"),
        (b"RIFF", {"model_id": "openai/whisper-large-v3"}, 400, "whisper-demo"),
        (b"RIFF", {"return_timestamps": "perhaps"}, 400, "sentence"),
    ],
)
async def test_errors(api, audio, fields, status, words):
    found, body, _ = await post(api, audio, **fields)
    assert found == status
    assert list(body) == ["detail"]
    assert words in body["detail"]["msg"]
    assert not api.table.jobs


async def test_a_segment_that_fails(serving, numbers):
    api = await serving(Fails())
    status, body, _ = await post(api, numbers)
    assert status == 422
    assert "no such luck" in body["detail"]["msg"]
