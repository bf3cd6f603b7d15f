"""The speech processor with the demo model: sound in, words out, on the job's clock."""

import asyncio
import re

import numpy as np
import pytest

from audio import pcm
from audio.wav import read_wav
from whisper_byoc.errors import BadSegment, ModelError, RequestRefused, UnknownModel, UsageError
from whisper_byoc.processors.base import JobInfo
from whisper_byoc.processors.whisper import WhisperProcessor, WhisperSettings
from whisper_byoc.speech.engine import DecodeOptions


@pytest.fixture(scope="module")
def processor():
    made = WhisperProcessor("demo", WhisperSettings(workers=1))
    asyncio.run(made.initialize())
    yield made
    asyncio.run(made.shutdown())


@pytest.fixture
def sound(fixtures_dir):
    return lambda name: read_wav((fixtures_dir / name).read_bytes())


def words(text):
    return re.sub(r"[^a-z ]", "", text.lower()).split()


def job(**params):
    return JobInfo("job", "whisper-demo", params)


async def test_process_gives_the_words(processor, sound, texts):
    text = await processor.process(pcm.encode(sound("demo-hello-world.wav")))
    assert words(text.decode()) == texts["demo-hello-world.wav"]["text"].split()


async def test_session_keeps_the_clock(processor, sound):
    session = processor.open_session(job())
    hello = pcm.encode(sound("demo-hello-world.wav"))
    (first,) = await session.feed(hello)
    (second,) = await session.feed(hello)
    ms = len(hello) // 32
    assert first.record["timing"] == {"media_window_start_ms": 0, "media_window_end_ms": ms}
    assert second.record["timing"] == {"media_window_start_ms": ms, "media_window_end_ms": 2 * ms}
    assert second.record["segments"][0]["start_ms"] == first.record["segments"][0]["start_ms"] + ms
    assert first.body.decode() == first.record["text"]
    assert first.record["language"] == "en"
    assert first.record["stats"]["inference_ms"] > 0
    assert await session.finish() == []
    assert session.summary() == {"audio_ms": 2 * ms, "transcripts": 2}


async def test_digital_silence_never_reaches_the_model(processor, monkeypatch):
    async def fail(*_):
        raise AssertionError("the model was asked")

    monkeypatch.setattr(processor._scheduler, "transcribe", fail)
    session = processor.open_session(job())
    (result,) = await session.feed(bytes(32_000))
    assert (result.body, result.record["text"], result.record["segments"]) == (b"", "", [])
    assert result.record["timing"]["media_window_end_ms"] == 1000


async def test_empty_frame(processor):
    assert await processor.process(b"") == b""


@pytest.mark.parametrize("seconds", [0.05, 0.0001, 31.0, 45.0])
async def test_short_and_long_segments_work(processor, seconds):
    noise = np.random.default_rng(1).normal(0, 0.01, int(seconds * 16_000)).astype(np.float32)
    (result,) = await processor.open_session(job()).feed(pcm.encode(noise))
    assert result.record["type"] == "transcript"
    assert result.record["timing"]["media_window_end_ms"] == int(seconds * 16_000) // 16


async def test_more_than_30_s_goes_through_all_windows(processor, sound, texts):
    whole = sound("demo-long-40s.wav")
    heard = await processor.hear(whole, DecodeOptions())
    assert words(heard.transcription.text) == texts["demo-long-40s.wav"]["text"].split()
    assert heard.transcription.segments[-1].start >= 30
    assert heard.transcription.segments[-1].end <= len(whole) / 16_000


async def test_odd_number_of_bytes_is_an_error(processor):
    session = processor.open_session(job())
    with pytest.raises(BadSegment, match="segment of 3 bytes is not whole 16-bit samples"):
        await session.feed(b"abc")
    assert session.summary()["transcripts"] == 0


async def test_languages(processor):
    assert processor.options() == DecodeOptions("en")
    assert processor.options({"language": "en", "other": [1]}) == DecodeOptions("en")
    assert processor.options({"language": "auto"}) == DecodeOptions("en")  # the demo model knows English only
    with pytest.raises(UsageError, match="English only"):
        processor.options({"language": "de"})
    with pytest.raises(UsageError, match="unknown language 'klingon'"):
        processor.options({"language": "klingon"})
    with pytest.raises(RequestRefused) as caught:
        processor.open_session(job(language="xx"))
    assert caught.value.status == 400


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"language": 7}, "unknown language 7"),
        ({"language": ["en"]}, "unknown language"),
        ({"task": "sing"}, "unknown task 'sing'"),
        ({"task": "translate"}, "cannot translate"),
        ({"prompt": 5}, "prompt must be text"),
        ({"prompt": "x" * 1001}, "at most 1000 characters"),
        ({"words": "maybe"}, "words must be true or false"),
    ],
)
def test_parameters_that_cannot_be(processor, params, message):
    session = processor.open_session(job(prompt="gateway"))
    with pytest.raises(RequestRefused, match=message) as caught:
        session.update(params)
    assert caught.value.status == 400
    assert session._options == DecodeOptions("en", prompt="gateway")  # as before


async def test_update_counts_from_the_next_segment(processor, sound, texts):
    session = processor.open_session(job())
    frame = pcm.encode(sound("demo-numbers.wav"))
    (before,) = await session.feed(frame)
    session.update({"words": True})
    (after,) = await session.feed(frame)
    assert "words" not in before.record["segments"][0]
    heard = [word for segment in after.record["segments"] for word in segment["words"]]
    assert [word["text"] for word in heard] == texts["demo-numbers.wav"]["text"].split()
    ms = len(frame) // 32
    assert all(ms <= word["start_ms"] <= word["end_ms"] <= 2 * ms for word in heard)
    assert all(0 <= word["probability"] <= 1 for word in heard)


async def test_unknown_model_and_broken_file(tmp_path):
    with pytest.raises(UnknownModel, match="tiny"):
        await WhisperProcessor("enormous").initialize()
    broken = tmp_path / "broken.pt"
    broken.write_bytes(b"not a checkpoint")
    with pytest.raises(ModelError):
        await WhisperProcessor(str(broken)).initialize()


def test_sizes_follow_the_cpus(monkeypatch):
    from whisper_byoc.processors import whisper as module

    for cpus, expected in ((1, (1, 1)), (2, (1, 2)), (4, (1, 4)), (16, (4, 4))):
        monkeypatch.setattr(module, "available_cpus", lambda cpus=cpus: cpus)
        assert WhisperSettings().sizes() == expected
    assert WhisperSettings(workers=3, threads=1).sizes() == (3, 1)


async def test_two_workers_give_the_same_text(sound, texts):
    made = WhisperProcessor("demo", WhisperSettings(workers=2, threads=1))
    await made.initialize()
    names = ["demo-hello-world.wav", "demo-stop.wav", "demo-numbers.wav", "demo-yes.wav"] * 2
    heard = await asyncio.gather(*(made.process(pcm.encode(sound(name))) for name in names))
    await made.shutdown()
    assert [words(text.decode()) for text in heard] == [texts[name]["text"].split() for name in names]
