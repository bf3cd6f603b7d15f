"""OpenAI's own client against the running server, and what it does not send; and ai-runner's dialect."""

import asyncio
import io
import json
import subprocess

import aiohttp
import numpy as np
import pytest

from audio.ffmpeg import ffmpeg_environment, ffmpeg_path
from tests.server.stubs import Mirror, Says
from tests.wav import write_wav
from whisper_byoc.server.run import Server, ServerConfig

NUMBERS = "seven three nine zero five one"


@pytest.fixture(scope="session")
def openai():
    return pytest.importorskip("openai", reason="the package openai is not installed (pip install -e .[dev])")


@pytest.fixture
async def api(serving, demo_processor):
    return await serving({"whisper-demo": demo_processor, "mirror": Mirror()}, recording_bytes=500_000)


@pytest.fixture
async def client_of(openai):
    """Return a function that makes a client which does not try again."""
    clients = []

    def make(api, kind=openai.AsyncOpenAI):
        clients.append(kind(base_url=f"{api.url}/v1", api_key="any", max_retries=0, timeout=30))
        return clients[-1].audio

    yield make
    for client in clients:
        await client.close()


async def post(api, path="/v1/audio/transcriptions", file=b"RIFF", **fields):
    form = aiohttp.FormData(fields)
    if file is not None:
        form.add_field("file", io.BytesIO(file), filename="sound.wav")
    async with api.http.post(f"{api.url}{path}", data=form) as answer:
        return answer.status, await answer.text(), answer.headers


async def error_of(api, **fields):
    status, body, _ = await post(api, **fields)
    body = json.loads(body)
    assert list(body) == ["error"]
    assert list(body["error"]) == ["message", "type", "param", "code"]
    return status, body["error"]


@pytest.mark.parametrize(
    "model", ["whisper-1", "whisper-demo", "demo", "openai/whisper-demo", "Systran/faster-whisper-demo"]
)
async def test_the_client_gets_the_text(api, client_of, numbers, model):
    found = await client_of(api).transcriptions.create(model=model, file=io.BytesIO(numbers))
    assert found.text == NUMBERS
    assert (found.usage.type, found.usage.seconds) == ("duration", 4)


async def test_the_blocking_client(api, openai, numbers):
    def ask():
        with openai.OpenAI(base_url=f"{api.url}/v1", api_key="any", max_retries=0) as client:
            return client.audio.transcriptions.create(model="whisper-1", file=numbers, response_format="text")

    assert await asyncio.to_thread(ask) == f"{NUMBERS}\n"


@pytest.mark.parametrize("named", [True, False])
async def test_the_client_sends_media(api, client_of, fixtures_dir, tmp_path, named):
    path = tmp_path / "sound.m4a"
    command = [ffmpeg_path(), "-nostdin", "-loglevel", "error", "-i", fixtures_dir / "demo-numbers.wav", path]
    subprocess.run(command, check=True, env=ffmpeg_environment())
    file = path if named else path.read_bytes()  # goes out as `upload`, application/octet-stream
    assert (await client_of(api).transcriptions.create(model="whisper-1", file=file)).text == NUMBERS


@pytest.mark.parametrize(
    ("name", "beginning"),
    [("text", NUMBERS), ("srt", "1\n00:00:00,576 --> "), ("vtt", "WEBVTT\n\n00:00:00.576 --> ")],
)
async def test_formats_that_are_text(api, client_of, numbers, name, beginning):
    found = await client_of(api).transcriptions.create(model="whisper-1", file=numbers, response_format=name)
    assert found.startswith(beginning)
    assert NUMBERS in found


@pytest.mark.parametrize("name", ["srt", "vtt"])
async def test_lines_of_subtitles(api, client_of, numbers, name):
    found = await client_of(api).transcriptions.create(
        model="whisper-1", file=numbers, response_format=name, extra_body={"max_line_width": 12}
    )
    assert "seven three\nnine zero\n" in found


@pytest.mark.parametrize("granularities", [None, ["word"], ["word", "segment"]])
async def test_verbose_json(api, client_of, numbers, granularities):
    extra = {} if granularities is None else {"timestamp_granularities": granularities}
    found = await client_of(api).transcriptions.create(
        model="whisper-1", file=numbers, response_format="verbose_json", **extra
    )
    assert (found.text, found.language, found.duration, found.task) == (NUMBERS, "english", 3.672, "transcribe")
    assert (found.segments is None) == ("segment" not in (granularities or ["segment"]))
    assert (found.words is None) == ("word" not in (granularities or []))
    type(found).model_validate_json(found.to_json(), strict=True)  # the client itself looks at nothing
    for each in found.segments or ():
        assert (each.id, each.text, each.tokens, each.temperature, each.seek) == (0, NUMBERS, [], 0.0, 57)
        assert -1 < each.avg_logprob < 0 <= each.no_speech_prob < 0.6
        assert 0 <= each.start < each.end <= 3.672
        assert 0 < each.compression_ratio < 2.4
    if found.words is not None:
        assert [each.word for each in found.words] == NUMBERS.split()
        assert all(0 <= each.start <= each.end <= 3.672 for each in found.words)


async def test_a_stream_of_events_and_numbered_segments(demo, client_of, fixtures_dir, texts):
    verbose = await client_of(demo).transcriptions.create(
        model="whisper-1", file=fixtures_dir / "demo-long-40s.wav", response_format="verbose_json"
    )
    assert [each.id for each in verbose.segments] == list(range(len(verbose.segments)))
    events = await client_of(demo).transcriptions.create(
        model="whisper-1", file=fixtures_dir / "demo-long-40s.wav", stream=True
    )
    *deltas, done = [event async for event in events]
    assert {each.type for each in deltas} == {"transcript.text.delta"}
    assert len(deltas) == 4
    assert done.type == "transcript.text.done"
    assert "".join(each.delta for each in deltas) == done.text == texts["demo-long-40s.wav"]["text"]


async def test_a_stream_keeps_to_its_lines(serving, client_of):
    said = '[DONE] "' + "\x01é語" * 9000
    api = await serving(Says(said))
    status, body, headers = await post(api, file=wav(320), stream="true")
    assert (status, headers["Content-Type"]) == (200, "text/event-stream")
    *events, done = [line.removeprefix("data: ") for line in body.splitlines() if line]
    assert done == "[DONE]"
    assert body.count("[DONE]") == 1
    assert max(len(line.encode()) for line in body.splitlines()) < 65536
    *deltas, last = map(json.loads, events)
    assert "".join(each["delta"] for each in deltas) == said
    assert "does not fit" in last["error"]["message"]  # as one line cannot hold the whole text again


async def test_a_stream_that_fails_is_an_error_for_the_client(serving, client_of, openai):
    api = await serving(Says("fine", ValueError("no such luck")))
    events = await client_of(api).transcriptions.create(model="whisper-1", file=wav(40 * 32000), stream=True)
    found = []
    with pytest.raises(openai.APIError, match="no such luck"):
        async for event in events:
            found.append(event.delta)
    assert found == ["fine"]


def wav(size):
    """A WAV file with so many bytes of silence."""
    return write_wav(np.zeros(size // 2, dtype=np.float32))


@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")  # by OpenAI, for its own service
async def test_translation_needs_a_multilingual_model(api, client_of, openai, numbers):
    with pytest.raises(openai.BadRequestError, match="cannot translate"):
        await client_of(api).translations.create(model="whisper-1", file=numbers)


@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")
async def test_translation(serving, client_of):
    api = await serving(Says("hello"))
    found = await client_of(api).translations.create(model="whisper-1", file=wav(320), response_format="verbose_json")
    assert (found.text, found.language) == ("hello", "english")


async def test_errors_as_the_client_knows_them(api, client_of, openai, numbers):
    create = client_of(api).transcriptions.create
    with pytest.raises(openai.NotFoundError, match="whisper-demo") as caught:
        await create(model="gpt-4o-transcribe", file=numbers)
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.NotFoundError):
        await create(model="mirror", file=numbers)
    with pytest.raises(openai.BadRequestError, match="English only"):
        await create(model="whisper-1", file=numbers, language="de")
    with pytest.raises(openai.BadRequestError, match="not media") as caught:
        await create(model="whisper-1", file=b"hello")
    assert caught.value.type == "invalid_request_error"
    assert (await create(model="whisper-1", file=numbers, prompt="one two three " * 4000)).text == NUMBERS


async def test_a_segment_that_fails_is_an_error_for_the_client(serving, client_of, openai):
    api = await serving(Says(ValueError("no such luck")))
    with pytest.raises(openai.UnprocessableEntityError, match="no such luck"):
        await client_of(api).transcriptions.create(model="whisper-1", file=wav(320))
    assert not api.table.jobs


async def test_busy_is_a_rate_limit(serving, client_of, openai):
    api = await serving(Says("done"), jobs=1)
    await api.put("live", bytes(320))  # takes the only place
    with pytest.raises(openai.RateLimitError) as caught:
        await client_of(api).transcriptions.create(model="whisper-1", file=wav(320))
    assert (caught.value.code, caught.value.type) == ("rate_limit_exceeded", "rate_limit_error")
    assert int(caught.value.response.headers["Retry-After"]) > 0


async def test_the_key_of_the_client_is_the_token(openai, numbers):
    config = ServerConfig("127.0.0.1", 0, token="secret")
    async with Server({"says": Says("hello")}, config) as server:
        await server.loaded()

        async def ask(key):
            url = f"http://127.0.0.1:{server.port}/v1"
            async with openai.AsyncOpenAI(base_url=url, api_key=key, max_retries=0) as client:
                return (await client.audio.transcriptions.create(model="whisper-1", file=wav(320))).text

        assert await ask("secret") == "hello"
        with pytest.raises(openai.AuthenticationError) as caught:
            await ask("wrong")
        assert caught.value.type == "authentication_error"
        assert "wants its token" in caught.value.body["message"]


@pytest.mark.parametrize(
    ("fields", "status", "param", "words"),
    [
        ({"file": None, "model": "whisper-1"}, 415, None, "multipart/form-data"),
        ({"file": b""}, 400, "file", "0 bytes"),
        ({"file": wav(0)}, 400, None, "no sound"),
        ({"response_format": "diarized_json"}, 400, "response_format", "json, text, srt, verbose_json, vtt"),
        ({"timestamp_granularities[]": "character"}, 400, "timestamp_granularities[]", "word or segment"),
        ({"temperature": "nan"}, 400, "temperature", "from 0 to 1"),
        ({"stream": "perhaps"}, 400, "stream", "true or false"),
        ({"stream": "true", "response_format": "srt"}, 400, "response_format", "stream"),
        ({"file": bytes(100_001)}, 413, None, "100000 bytes"),
    ],
)
async def test_fields_that_cannot_be(serving, fields, status, param, words):
    api = await serving(Says("never"), recording_bytes=100_000)
    found, error = await error_of(api, **fields)
    assert (found, error["param"]) == (status, param)
    assert words in error["message"]
    assert not api.table.jobs


async def test_fields_that_change_nothing(serving):
    api = await serving(Says("hello"))
    fields = {"temperature": "0.4", "chunking_strategy": "auto", "include[]": "logprobs", "model": ""}
    status, body, headers = await post(api, file=wav(32000), **fields)
    assert (status, json.loads(body)) == (200, {"text": "hello", "usage": {"type": "duration", "seconds": 1}})
    assert headers["X-Livepeer-Work-Units"] == "1"


async def test_a_body_that_is_no_form(serving):
    api = await serving(Says("hello"))
    headers = {"Content-Type": "application/json"}
    async with api.http.post(f"{api.url}/v1/audio/transcriptions", data=b"{}", headers=headers) as answer:
        assert (answer.status, (await answer.json())["error"]["type"]) == (415, "invalid_request_error")


async def test_a_route_that_is_none_is_no_missing_model(api):
    async with api.http.post(f"{api.url}/v1/chat/completions") as answer:
        assert (answer.status, (await answer.json())["error"]["code"]) == (404, None)


async def test_no_speech_here(serving):
    api = await serving({"mirror": Mirror()})
    status, error = await error_of(api, model="whisper-1")
    assert (status, error["code"]) == (404, "model_not_found")


async def audio_to_text(api, audio, path="/audio-to-text", **fields):
    form = aiohttp.FormData(fields)
    if audio is not None:
        form.add_field("audio", io.BytesIO(audio), filename="sound.wav")
    async with api.http.post(f"{api.url}{path}", data=form) as answer:
        return answer.status, json.loads(await answer.text()), answer.headers


@pytest.mark.parametrize("value", [None, "True", "1", "sentence"])
async def test_chunks_are_sentences_by_default(api, numbers, value):
    fields = {} if value is None else {"return_timestamps": value}
    status, body, headers = await audio_to_text(api, numbers, **fields)
    assert (status, headers["X-Livepeer-Work-Units"]) == (200, "4")
    assert body == {"text": NUMBERS, "chunks": [{"timestamp": [0.576, 3.168], "text": NUMBERS}]}


async def test_chunks_are_words_or_left_out(api, numbers):
    fields = {"return_timestamps": "word", "metadata": '{"duration": 3.6}'}
    _, body, _ = await audio_to_text(api, numbers, "/audio-to-text/", **fields)
    assert [each["text"] for each in body["chunks"]] == NUMBERS.split()
    times = [each["timestamp"] for each in body["chunks"]]
    assert times == sorted(times)
    assert all(0 <= start <= end <= 3.7 for start, end in times)
    _, body, _ = await audio_to_text(api, numbers, return_timestamps="false", model_id="openai/whisper-demo")
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
async def test_errors_of_audio_to_text(api, audio, fields, status, words):
    found, body, _ = await audio_to_text(api, audio, **fields)
    assert (found, list(body)) == (status, ["detail"])
    assert words in body["detail"]["msg"]
    assert not api.table.jobs


async def test_a_segment_that_fails_in_audio_to_text(serving):
    api = await serving(Says(ValueError("no such luck")))
    status, body, _ = await audio_to_text(api, wav(320))
    assert (status, "no such luck" in body["detail"]["msg"]) == (422, True)
