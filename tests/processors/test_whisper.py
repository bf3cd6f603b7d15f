"""The speech processor with the demo model: sound in, words out, on the job's clock."""

import asyncio
import gc
import re

import numpy as np
import pytest

from audio import pcm
from audio.wav import read_wav
from tests.engines import OneAtATime, at_once
from tests.waiting import until
from whisper_byoc.errors import BadParam, BadSegment, ModelError, UnknownModel, UsageError
from whisper_byoc.processors.base import JobInfo
from whisper_byoc.processors.whisper import WhisperProcessor, WhisperSettings
from whisper_byoc.processors.whisper_session import ArrivalTimes
from whisper_byoc.speech import models
from whisper_byoc.speech.capacity import Kind, Workload
from whisper_byoc.speech.engine import DecodeOptions, Draft
from whisper_byoc.speech.language import labelled
from whisper_byoc.speech.scheduler import Scheduler
from whisper_byoc.speech.transcript import LanguagePiece, Transcription


@pytest.fixture
def processor(demo_processor):
    return demo_processor


@pytest.fixture
def sound(fixtures_dir):
    return lambda name: read_wav((fixtures_dir / name).read_bytes())


def words(text):
    return re.sub(r"[^a-z ]", "", text.lower()).split()


def job(**params):
    return JobInfo("job", "whisper-demo", params)


async def test_shutdown_frees_the_model():
    def loaded():
        return {id(each) for each in gc.get_objects() if type(each).__name__ in ("FastEngine", "OpenAIEngine")}

    gc.collect()
    before = loaded()
    processor = WhisperProcessor("demo", WhisperSettings(workers=1))
    await processor.initialize()
    assert loaded() > before
    await processor.shutdown()
    await until(lambda: loaded() <= before)  # the worker ends when it sees that the queue is closed


@pytest.mark.parametrize(
    ("engine", "installed", "says"),
    [("openai", "fast", "--engine fast"), ("fast", "reference", "openvino"), ("auto", "", "openvino")],
)
async def test_an_engine_that_is_not_installed_is_one_sentence(monkeypatch, engine, installed, says):
    for name in ("fast", "reference"):
        monkeypatch.setattr(models, f"{name}_engine_installed", lambda there=name == installed: there)
    with pytest.raises(UsageError, match=says):
        await WhisperProcessor("demo", WhisperSettings(workers=1, engine=engine)).initialize()


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
    assert first.record["model"] == "demo"
    assert first.record["stats"]["inference_ms"] > 0
    assert -1 < first.record["segments"][0]["avg_logprob"] < 0
    assert await session.finish() == []
    speech_ms = sum(
        each["end_ms"] - each["start_ms"] for result in (first, second) for each in result.record["segments"]
    )
    assert session.summary() == {"audio_ms": 2 * ms, "speech_ms": speech_ms, "transcripts": 2}


async def failing(*_, **__):
    raise ValueError("broken weights")


async def test_digital_silence_never_reaches_the_model(processor, monkeypatch):
    monkeypatch.setattr(Scheduler, "transcribe", failing)
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
    heard = await processor.transcribe(whole, DecodeOptions())
    assert words(heard.value.text) == texts["demo-long-40s.wav"]["text"].split()
    assert heard.value.segments[-1].start >= 30  # where the second window begins
    assert heard.value.segments[-1].end <= len(whole) / 16_000


async def test_odd_number_of_bytes_is_an_error(processor):
    session = processor.open_session(job())
    with pytest.raises(BadSegment, match="segment of 3 bytes is not whole 16-bit samples"):
        await session.feed(b"abc")
    assert session.summary()["transcripts"] == 0


async def test_languages(processor):
    assert processor.options().decoding == DecodeOptions("en")
    assert processor.options({"language": "en", "other": [1]}).decoding == DecodeOptions("en")
    assert processor.options({"language": "auto"}).decoding == DecodeOptions("en")  # the demo model knows English only
    with pytest.raises(BadParam, match="English only"):
        processor.options({"language": "de"})
    with pytest.raises(BadParam, match="unknown language 'klingon'"):
        processor.options({"language": "klingon"})
    with pytest.raises(BadParam, match="unknown language 'xx-YY'") as caught:
        processor.open_session(job(language="xx-YY"))
    assert caught.value.name == "language"
    for tag in ("EN", "en-US", "en_GB", " English ", "AUTO"):
        assert processor.options({"language": tag}).decoding.language == "en"


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"language": 7}, "unknown language 7"),
        ({"language": ["en"]}, "unknown language"),
        ({"task": "sing"}, "task must be one of transcribe, translate, not 'sing'"),
        ({"task": "translate"}, "cannot translate"),
        ({"prompt": 5}, "prompt must be text"),
        ({"words": "maybe"}, "words must be true or false"),
        ({"hotwords": ["Livepeer"]}, "hotwords must be text"),
        ({"hotwords": "x" * 1001}, "at most 1000 characters"),
        ({"beam": 0}, "beam must be a whole number from 1 to 8, not 0"),
        ({"beam": "many"}, "beam must be a whole number, not 'many'"),
        ({"partials": "perhaps"}, "partials must be true or false, not 'perhaps'"),
        ({"partials": None}, "partials must be true or false"),
        ({"sentences": "perhaps"}, "sentences must be true or false, not 'perhaps'"),
        ({"pause": "soon"}, "pause must be a number from 0.2 to 3, not 'soon'"),
        ({"pause": 0.1}, "pause must be a number from 0.2"),
        ({"pause": True}, "pause must be a number from 0.2"),
        ({"pause": None}, "pause must be a number from 0.2"),
        ({"pause": "nan"}, "pause must be a number from 0.2"),
        ({"pause": 10**400}, "pause must be a number from 0.2"),
        ({"pause": [1]}, "pause must be a number from 0.2"),
        ({"longest": 2}, "longest must be a number from 3 to 28, not 2"),
        ({"longest": "inf"}, "longest must be a number from 3"),
        ({"pause": 3, "longest": 3}, "with a pause of 3 s the longest utterance must be 6.8 to 30 s"),
    ],
)
def test_parameters_that_cannot_be(processor, params, message):
    session = processor.open_session(job(prompt="gateway", pause="0.7"))
    before = session.options
    with pytest.raises(BadParam, match=message) as caught:
        session.update(params)
    assert caught.value.name in params
    assert session.options == before
    assert before.decoding == DecodeOptions("en", prompt="gateway")
    assert before.live.splitter.pause == 0.7


def test_parameters_as_a_query_and_as_json_have_them(processor):
    for params in (
        {
            "partials": "true",
            "pause": "0.3",
            "longest": "5",
            "hotwords": "Livepeer, Arbitrum",
            "prompt": "we met",
            "beam": "3",
            "sentences": "off",
        },
        {"partials": True, "pause": 0.3, "longest": 5, "hotwords": "Livepeer, Arbitrum", "prompt": "we met", "beam": 3}
        | {"sentences": False},
    ):
        options = processor.options(params)
        live = options.live
        assert (live.partials, live.splitter.pause, live.splitter.longest) == (True, 0.3, 5.0)
        assert options.decoding.beam == 3
        assert not live.sentences
        assert options.decoding.initial_prompt == "Glossary: Livepeer, Arbitrum. we met"
    assert not processor.options({}).live.partials
    assert processor.options({}).live.sentences
    kept = processor.options({"partials": "0"}, options)
    assert (kept.decoding, kept.live.partials, kept.live.splitter) == (options.decoding, False, live.splitter)


async def test_a_live_feed_and_whole_segments_share_one_clock(processor, sound, texts):
    session = processor.open_session(job())
    hello, numbers = (pcm.encode(sound(name)) for name in ("demo-hello-world.wav", "demo-numbers.wav"))
    (first,) = await session.feed(hello)
    live = [*await session.feed_live(numbers, 0.0), *await session.end_feed()]
    (last,) = await session.feed(hello)
    assert await session.finish() == []
    ms = len(hello) // 32
    (heard,) = live
    assert words(heard.record["text"]) == texts["demo-numbers.wav"]["text"].split()
    truth = texts["demo-numbers.wav"]["utterances"][0]
    assert heard.record["segments"][0]["start_ms"] == pytest.approx(ms + truth["start"] * 1000, abs=200)
    assert heard.record["segments"][-1]["end_ms"] == pytest.approx(ms + truth["end"] * 1000, abs=200)
    assert last.record["timing"]["media_window_start_ms"] == len(hello + numbers) // 32
    summary = session.summary()
    assert 0 < summary.pop("speech_ms") < summary["audio_ms"]
    assert summary == {"audio_ms": len(hello + numbers + hello) // 32, "transcripts": 3}
    assert first.record["text"] == last.record["text"]


async def test_a_sample_may_be_cut_in_half_between_pieces_but_not_at_the_end(processor, sound, texts):
    session = processor.open_session(job())
    data, found = pcm.encode(sound("demo-numbers.wav")) + b"\0", []
    for at in range(0, len(data), 3333):
        found += await session.feed_live(data[at : at + 3333], 0.0)
    found += await session.end_feed()
    assert [bool(each.error) for each in found] == [False, True]
    assert "one byte was left over" in found[1].error
    assert words(found[0].record["text"]) == texts["demo-numbers.wav"]["text"].split()
    assert session.summary()["audio_ms"] == len(data) // 32


async def test_silence_on_a_live_feed_gives_no_record(processor):
    session = processor.open_session(job(partials="true"))
    for n in range(5):
        assert await session.feed_live(bytes(32_000), float(n)) == []
    assert await session.finish() == []
    warnings = ["no speech was found in 5 s of sound"]
    assert session.summary() == {"audio_ms": 5000, "speech_ms": 0, "transcripts": 0, "warnings": warnings}


def test_times_of_arrival_are_kept_for_a_minute():
    times = ArrivalTimes()
    assert times.at(0) is None
    for second in range(1, 200):
        times.add(second * 16_000, float(second))
    assert len(times) == 61
    assert [times.at(position) for position in (0, 180 * 16_000, 180 * 16_000 + 1, 10**9)] == [139, 180, 181, 199]
    assert len(times) == 1


def test_tiny_pieces_keep_few_times_of_arrival():
    times = ArrivalTimes()
    for n in range(1, 601):
        times.add(n, float(n))
    assert len(times) <= 600 // 160 + 3
    assert times.at(600) == 600.0


async def test_the_lag_is_that_of_the_last_sound_of_the_text(processor, sound):
    loop = asyncio.get_running_loop()
    session = processor.open_session(job(partials="true"))
    data, found, began = pcm.encode(sound("demo-hello-world.wav")), [], loop.time() - 100
    for at in range(0, len(data), 3200):
        found += await session.feed_live(data[at : at + 3200], began + at / 32_000)
    found += await session.feed_live(bytes(32_000), began + len(data) / 32_000)
    finals = [each for each in found if not each.partial]
    assert len(finals) == 1
    spoken_at = began + finals[0].record["timing"]["media_window_end_ms"] / 1000
    for each in found:
        assert each.record["stats"]["lag_ms"] == round(each.lag_ms)
        assert each.record["segments"][0]["avg_logprob"] < 0
    assert finals[0].lag_ms == pytest.approx((loop.time() - spoken_at) * 1000, abs=1000)


async def test_an_utterance_without_text_is_an_error_that_says_where(processor, sound, monkeypatch):
    session = processor.open_session(job())
    monkeypatch.setattr(Scheduler, "transcribe", failing)
    found = [*await session.feed_live(pcm.encode(sound("demo-stop.wav")), 0.0), *await session.finish()]
    (result,) = found
    assert "ms of speech at" in result.error
    assert "broken weights" in result.error
    assert (result.record, session.summary()["transcripts"]) == (None, 0)


async def test_a_session_that_is_closed_leaves_no_task(processor, sound):
    before = asyncio.all_tasks()
    session = processor.open_session(job(partials=True))
    data = pcm.encode(sound("demo-numbers.wav"))
    for at in range(0, len(data), 6400):
        await session.feed_live(data[at : at + 6400], asyncio.get_running_loop().time())
    session.close()
    await until(lambda: asyncio.all_tasks() == before)


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


def test_with_many_cpus_more_is_tried_unless_it_was_said(monkeypatch):
    from whisper_byoc.processors import whisper as module

    for cpus, expected in ((1, []), (4, []), (6, [(3, 2)]), (16, [(8, 2), (2, 8)])):
        monkeypatch.setattr(module, "available_cpus", lambda cpus=cpus: cpus)
        assert WhisperSettings().other_sizes() == expected
        assert WhisperSettings(workers=2).other_sizes() == WhisperSettings(threads=2).other_sizes() == []


async def test_what_was_chosen_and_measured_is_told(caplog):
    caplog.set_level("INFO")
    made = WhisperProcessor("demo", WhisperSettings(workers=1, threads=1))
    await made.initialize()
    told = made.capacity()
    assert (told.workers, told.threads, told.late, told.lag, told.load) == (1, 1, False, 0.0, 0.0)
    assert told.cost > 0
    assert told.live == max(int(0.5 / told.cost), 1)
    assert told.recording_rate == pytest.approx(1 / told.cost)
    (line,) = (each for each in caplog.messages if each.startswith("model demo: "))
    assert re.search(r"workers: 1, threads of each: 1, CPUs: \d+; .* live streams that fit: \d+", line)
    await made.shutdown()


async def test_live_sound_is_counted_with_the_silence_in_it(processor, sound, monkeypatch):
    heard = []
    monkeypatch.setattr(Workload, "heard", lambda _, *told: heard.append(told))
    session = processor.open_session(job())
    speech = pcm.encode(sound("demo-numbers.wav"))
    for piece in (bytes(64_000), speech, bytes(64_000), speech, bytes(64_000)):
        await session.feed_live(piece, 0.0)
    await session.end_feed()
    assert {kind for kind, _ in heard} == {Kind.LIVE}
    total = 3 * 2.0 + 2 * len(speech) / 32_000
    assert total - 3.0 <= sum(seconds for _, seconds in heard) <= total
    assert processor.capacity().lag > 0
    assert processor.capacity().live == 1000  # as it was told, whatever is measured


async def test_two_workers_give_the_same_text(sound, texts):
    made = WhisperProcessor("demo", WhisperSettings(workers=2, threads=1))
    await made.initialize()
    names = ["demo-hello-world.wav", "demo-stop.wav", "demo-numbers.wav", "demo-yes.wav"] * 2
    heard = await asyncio.gather(*(made.process(pcm.encode(sound(name))) for name in names))
    await made.shutdown()
    assert [words(text.decode()) for text in heard] == [texts[name]["text"].split() for name in names]


class Polyglot(OneAtATime):
    """Stands in for a model of many languages, of which there is none here."""

    def __init__(self):
        self.spoken = []

    def replica(self):
        return self

    def use_threads(self, number):
        pass

    @at_once
    def transcribe(self, samples, options, is_cancelled=lambda: False):
        if options.language:
            return Transcription("ja", options.language)
        pieces, _ = labelled([LanguagePiece(0.0, len(samples) / 16_000, self.spoken.pop(0))], options.spoken)
        return Transcription("ja", pieces[0].language, pieces=pieces)

    @at_once
    def draft(self, samples, options, is_cancelled=lambda: False):
        return Draft((), "de")


async def test_auto_is_the_language_of_each_segment_with_regard_to_those_before(monkeypatch, sound):
    processor, engine = WhisperProcessor("demo", WhisperSettings(language="auto", workers=1)), Polyglot()
    monkeypatch.setattr(processor, "load_engine", lambda: engine)
    await processor.initialize()
    session = processor.open_session(job())
    speech = pcm.encode(sound("demo-numbers.wav"))
    engine.spoken = [{"de": 0.95}, {"cy": 0.3, "de": 0.1}, {"fr": 0.9}, {"cy": 0.3, "fr": 0.1}, {"fr": 0.9}]
    records = [(await session.feed(speech))[0].record for _ in range(3)]
    assert [each["language"] for each in records] == ["de", "de", "fr"]
    assert (await session.feed(bytes(32_000)))[0].record["language"] == "fr"  # silence is in no other one
    heard = [*await session.feed_live(speech, 0.0), *await session.end_feed()]
    assert {each.record["language"] for each in heard} == {"fr"}  # a live feed is of the same job
    session.update({"language": "fr"})
    (record,) = await session.feed(speech)
    assert record.record["language"] == "fr"
    await processor.shutdown()
