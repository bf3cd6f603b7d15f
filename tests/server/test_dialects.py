"""Other services' live dialects, each with its own public client; and recordings as home servers send them."""

import asyncio
import base64
import contextlib
import json

import aiohttp
import numpy as np
import openai
import pytest
import soxr
from deepgram import AsyncDeepgramClient
from deepgram.core.events import EventType
from deepgram.environment import DeepgramClientEnvironment

from audio import pcm

pytestmark = pytest.mark.filterwarnings("ignore:websockets:DeprecationWarning")  # Deepgram's client uses its old names

NUMBERS = "seven three nine zero five one"
TOKEN = "open sesame"


def at_24_khz(data):
    return pcm.encode(soxr.resample(pcm.decode(data), 16_000, 24_000).astype(np.float32))


# -- Deepgram


@contextlib.asynccontextmanager
async def listening(api, key="any", **options):
    base = api.url.replace("http", "ws")
    places = DeepgramClientEnvironment(base=api.url, production=base, agent=base, agent_rest=api.url)
    client = AsyncDeepgramClient(api_key=key, environment=places)
    async with client.listen.v1.connect(model="nova-3", encoding="linear16", sample_rate=16_000, **options) as socket:
        yield socket


async def messages(socket):
    found = []
    socket.on(EventType.MESSAGE, found.append)
    await asyncio.wait_for(socket.start_listening(), 30)
    return found


async def test_deepgrams_client_hears_words_with_their_times(demo, sound):
    async with listening(demo, interim_results="true", vad_events="true", utterance_end_ms=1000) as socket:
        await socket.send_media(sound("demo-numbers.wav"))
        await socket.send_close_stream()
        found = await messages(socket)
    kinds = [each.type for each in found]
    assert (kinds[0], kinds[-1]) == ("SpeechStarted", "Metadata")
    (final,) = [each for each in found if each.type == "Results" and each.is_final]
    best = final.channel.alternatives[0]
    assert best.transcript == NUMBERS
    assert [word.word for word in best.words] == NUMBERS.split()
    assert 0.3 < best.words[0].start < best.words[-1].end < 3.5
    assert 0 < best.confidence <= 1
    assert kinds.count("UtteranceEnd") == 1
    assert found[-1].duration == pytest.approx(len(sound("demo-numbers.wav")) / 32_000, abs=0.01)


@pytest.mark.parametrize(
    ("query", "part"),
    [
        ("encoding=linear17&sample_rate=16000", "encoding must be one of linear16"),
        ("encoding=linear16", "give sample_rate"),
        ("encoding=mulaw&sample_rate=fast", "'fast'"),
    ],
)
async def test_sound_that_deepgrams_client_does_not_describe_is_refused(demo, query, part):
    async with demo.http.get(f"{demo.url}/v1/listen?{query}") as answer:
        assert (answer.status, part in await answer.text()) == (400, True)


async def test_deepgrams_finalize_ends_an_utterance_that_goes_on(demo, sound):
    async with listening(demo) as socket:
        await socket.send_media(sound("demo-numbers.wav")[:64_000])
        await socket.send_keep_alive()
        await socket.send_finalize()
        first = await asyncio.wait_for(socket.recv(), 20)
        assert (first.is_final, first.from_finalize) == (True, True)
        assert NUMBERS.startswith(first.channel.alternatives[0].transcript[:5])
        await socket.send_close_stream()
        await messages(socket)


async def test_deepgrams_key_is_the_token(serving, demo_processor):
    api = await serving({"whisper-demo": demo_processor}, config={"token": TOKEN})
    async with listening(api, key=TOKEN) as socket:
        await socket.send_close_stream()
        assert [each.type for each in await messages(socket)] == ["Metadata"]
    with pytest.raises(Exception, match="401"):
        async with listening(api, key="wrong"):
            pass


# -- OpenAI's Realtime


@contextlib.asynccontextmanager
async def session(api, **options):
    client = openai.AsyncOpenAI(base_url=f"{api.url}/v1", api_key="any")
    async with client.realtime.connect(extra_query={"intent": "transcription"}, **options) as connection:
        created = await connection.recv()
        assert created.type == "session.created"
        assert created.session.audio.input.format.rate == 24_000
        yield connection
    await client.close()


async def update(connection, **audio_input):
    await connection.session.update(session={"type": "transcription", "audio": {"input": audio_input}})
    return await asyncio.wait_for(connection.recv(), 20)


async def until_completed(connection, number=1):
    found = []
    async with asyncio.timeout(30):
        while [each.type.endswith(".completed") for each in found].count(True) < number:
            found.append(await connection.recv())
            assert found[-1].type != "error", found[-1]
    return found


def completed(events):
    return [each.transcript for each in events if each.type.endswith("transcription.completed")]


async def append(connection, data, size=48_000):
    for at in range(0, len(data), size):
        await connection.input_audio_buffer.append(audio=base64.b64encode(data[at : at + size]).decode())


async def test_openais_client_follows_speech_that_the_server_cuts(demo, sound):
    async with session(demo) as connection:
        assert (
            await update(connection, transcription={"model": "gpt-4o-transcribe", "language": "en"})
        ).type == "session.updated"
        await append(connection, at_24_khz(sound("demo-numbers.wav") + bytes(32_000)))
        events = await until_completed(connection)
    kinds = [each.type for each in events]
    started, stopped = (kinds.index(f"input_audio_buffer.speech_{verb}") for verb in ("started", "stopped"))
    assert started < stopped < kinds.index("input_audio_buffer.committed") < len(kinds) - 1
    assert 300 < events[started].audio_start_ms < events[stopped].audio_end_ms < 3600
    assert completed(events) == [NUMBERS]
    assert "".join(each.delta for each in events if each.type.endswith(".delta")) == NUMBERS
    assert len({each.item_id for each in events if hasattr(each, "item_id")}) == 1


async def test_openais_client_commits_by_itself(demo, sound):
    async with session(demo) as connection:
        await update(connection, turn_detection=None, format={"type": "audio/pcmu"})
        for name in ("demo-yes.wav", "demo-stop.wav"):
            await append(connection, mu_law(sound(name)))
            await connection.input_audio_buffer.commit()
        await append(connection, mu_law(sound("demo-numbers.wav")))
        await connection.input_audio_buffer.clear()
        events = await until_completed(connection, 2)
        assert completed(events) == ["yes", "stop"]
        items = [each for each in events if each.type == "input_audio_buffer.committed"]
        assert [each.previous_item_id for each in items] == [None, items[0].item_id]
        await connection.input_audio_buffer.commit()
        assert "nothing in the buffer" in (await asyncio.wait_for(connection.recv(), 20)).error.message


def mu_law(data):
    at_8_khz = np.clip(soxr.resample(pcm.decode(data), 16_000, 8_000), -1, 1)
    magnitude = np.log1p(255 * np.abs(at_8_khz)) / np.log1p(255)
    codes = np.round(magnitude * 127).astype(np.uint8)
    return (~np.where(at_8_khz < 0, codes | 0x80, codes) & 0xFF).astype(np.uint8).tobytes()


@pytest.mark.parametrize(
    ("event", "words"),
    [
        ({"type": "response.create"}, "no event of a transcription session"),
        ({"type": "input_audio_buffer.append", "audio": "!"}, "base64"),
        ({"type": "input_audio_buffer.append"}, "base64"),
        ({"type": "session.update", "session": {"audio": 3}}, "object"),
        ({"type": "session.update", "session": {"audio": {"input": {"format": {"type": "audio/mp3"}}}}}, "format"),
        (
            {"type": "session.update", "session": {"audio": {"input": {"transcription": {"model": "none"}}}}},
            "whisper-demo",
        ),
        ({"type": "session.update", "session": {"audio": {"input": {"transcription": {"language": "de"}}}}}, "English"),
    ],
)
async def test_an_event_that_cannot_be_is_told_and_the_session_goes_on(demo, sound, event, words):
    async with demo.http.ws_connect(f"{demo.url}/v1/realtime?intent=transcription") as socket:
        assert (await socket.receive_json())["type"] == "session.created"
        await socket.send_json({**event, "event_id": "mine"})
        error = await socket.receive_json()
        assert (error["type"], error["error"]["event_id"]) == ("error", "mine")
        assert words in error["error"]["message"]
        await socket.send_json({"type": "input_audio_buffer.clear"})
        assert (await socket.receive_json())["type"] == "input_audio_buffer.cleared"


async def test_half_of_a_surrogate_pair_in_an_event_comes_back_as_a_question_mark(demo):
    async with demo.http.ws_connect(f"{demo.url}/v1/realtime?intent=transcription") as socket:
        await socket.receive_json()
        await socket.send_json({"type": "none", "event_id": "\ud800"})
        assert (await socket.receive_json())["error"]["event_id"] == "?"


async def test_the_beta_form_of_a_session(demo, sound):
    headers = {"OpenAI-Beta": "realtime=v1"}
    async with demo.http.ws_connect(f"{demo.url}/v1/realtime?intent=transcription", headers=headers) as socket:
        assert (await socket.receive_json())["type"] == "transcription_session.created"
        wanted = {
            "input_audio_format": "pcm16",
            "turn_detection": None,
            "input_audio_transcription": {"model": "whisper-1"},
        }
        await socket.send_json({"type": "transcription_session.update", "session": wanted})
        updated = await socket.receive_json()
        assert updated["type"] == "transcription_session.updated"
        assert {name: updated["session"][name] for name in wanted} == wanted
        audio = base64.b64encode(at_24_khz(sound("demo-yes.wav"))).decode()
        await socket.send_json({"type": "input_audio_buffer.append", "audio": audio})
        await socket.send_json({"type": "input_audio_buffer.commit"})
        kinds = {}
        while "conversation.item.input_audio_transcription.completed" not in kinds:
            event = await asyncio.wait_for(socket.receive_json(), 20)
            kinds[event["type"]] = event
        assert kinds["conversation.item.input_audio_transcription.completed"]["transcript"] == "yes"


async def test_the_token_may_come_as_openais_browsers_send_it(serving, demo_processor):
    api = await serving({"whisper-demo": demo_processor}, config={"token": "sesame"})
    protocols = ["realtime", "openai-insecure-api-key.sesame"]
    async with api.http.ws_connect(f"{api.url}/v1/realtime", protocols=protocols) as socket:
        assert socket.protocol == "realtime"
    with pytest.raises(aiohttp.WSServerHandshakeError):
        await api.http.ws_connect(f"{api.url}/v1/realtime", protocols=["realtime"])


# -- recordings


@pytest.fixture
def form(demo):
    async def post(path, field, data, **fields):
        body = aiohttp.FormData(fields)
        body.add_field(field, data, filename="sound.wav")
        async with demo.http.post(demo.url + path, data=body) as answer:
            return answer.status, await answer.text()

    return post


async def test_bazarr_gets_subtitles_of_bare_pcm(form, sound):
    status, text = await form(
        "/asr?task=transcribe&language=en&output=srt&encode=false", "audio_file", sound("demo-numbers.wav")
    )
    assert status == 200
    assert text.startswith("1\n00:00:00,")
    assert NUMBERS in text


@pytest.mark.parametrize(
    ("output", "begins"), [("txt", NUMBERS), ("vtt", "WEBVTT"), ("tsv", "start\tend\ttext\n"), ("json", "{")]
)
async def test_the_outputs_of_asr(form, numbers, output, begins):
    status, text = await form(f"/asr?output={output}", "audio_file", numbers)
    assert status == 200
    assert text.startswith(begins)
    assert NUMBERS in text


async def test_bazarr_asks_for_the_language(form, sound):
    status, text = await form("/detect-language?encode=false", "audio_file", sound("demo-numbers.wav"))
    assert (status, json.loads(text)) == (200, {"detected_language": "english", "language_code": "en"})


async def test_whisper_cpps_inference(form, numbers):
    assert await form("/inference", "file", numbers) == (200, json.dumps({"text": NUMBERS}))
    status, text = await form("/inference", "file", numbers, response_format="srt")
    assert status == 200
    assert NUMBERS in text


# -- OpenAI's list of models, and the form of its errors


async def test_models_in_openais_form(demo):
    client = openai.AsyncOpenAI(base_url=f"{demo.url}/v1", api_key="any")
    assert [model.id async for model in client.models.list()] == ["whisper-demo"]
    assert (await client.models.retrieve("whisper-demo")).id == "whisper-demo"
    with pytest.raises(openai.NotFoundError, match="model not found"):
        await client.models.retrieve("whisper-none")
    await client.close()


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/v1/none", 404), ("DELETE", "/v1/models", 405), ("GET", "/v1/realtime?intent=other", 400)],
)
async def test_every_v1_route_has_errors_in_openais_form(demo, method, path, status):
    async with demo.http.request(method, demo.url + path) as answer:
        assert answer.status == status
        assert set((await answer.json())["error"]) == {"message", "type", "param", "code"}
