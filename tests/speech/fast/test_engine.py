"""The fast engine as the scheduler uses it: the demo model on the fixtures, and one that knows a hundred languages."""

import threading

import numpy as np
import pytest

from whisper_byoc.languages import LANGUAGES
from whisper_byoc.speech import models
from whisper_byoc.speech.capacity import try_out
from whisper_byoc.speech.engine import Cancelled, DecodeOptions
from whisper_byoc.speech.fast import model as fast
from whisper_byoc.speech.fast.engine import FastEngine
from whisper_byoc.speech.fast.network import Network
from whisper_byoc.speech.scheduler import Scheduler

pytestmark = pytest.mark.filterwarnings("ignore:unclosed file.*tiktoken:ResourceWarning")
RATE = 16_000


@pytest.fixture(scope="module")
def multilingual(small_weights):
    engine = FastEngine(fast.build(small_weights, models.DEMO_FILE))
    engine.use_threads(1)
    return engine


UTTERANCES = [
    *("demo-stop.wav", "demo-hello-world.wav", "demo-numbers.wav", "demo-colours-fast.wav", "demo-directions-slow.wav"),
    *("demo-spelling.wav", "demo-pipeline.wav", "demo-numbers-noise-15db.wav"),
]


@pytest.mark.parametrize("name", [*UTTERANCES, "demo-long-40s.wav", "silence-3s.wav"])
def test_the_text_of_the_fixtures(engine, sound, texts, name):
    found = engine.transcribe(sound(name), DecodeOptions()).result()
    assert (found.text, found.language) == (texts[name]["text"], "en")
    length = len(sound(name)) / RATE
    times = [time for segment in found.segments for time in (segment.start, segment.end)]
    assert times == sorted(times)
    assert all(0 <= time <= length for time in times)


@pytest.mark.parametrize("name", UTTERANCES)
def test_words_are_where_the_reference_finds_them(engine, reference_engine, sound, name):
    """It attends to all 30 s; here it is a short window in half precision, where the CPU has that."""
    mine = engine.transcribe(sound(name), DecodeOptions(words=True)).result()
    theirs = reference_engine.transcribe(sound(name), DecodeOptions(words=True)).result()
    one, other = ([word for segment in each.segments for word in segment.words] for each in (mine, theirs))
    assert [word.text for word in one] == [word.text for word in other]
    distances = [abs(a.start - b.start) for a, b in zip(one, other, strict=True)]
    distances += [abs(a.end - b.end) for a, b in zip(one, other, strict=True)]
    assert np.median(distances) <= 0.021


@pytest.mark.parametrize("name", UTTERANCES[:4])
def test_it_is_as_sure_as_the_reference(engine, reference_engine, sound, name):
    mine, theirs = (each.transcribe(sound(name), DecodeOptions()).result() for each in (engine, reference_engine))
    (one,), (other,) = ([segment.confidence for segment in each.segments] for each in (mine, theirs))
    assert one.avg_logprob == pytest.approx(other.avg_logprob, abs=0.1)
    assert one.no_speech_prob == pytest.approx(other.no_speech_prob, abs=0.1)
    assert (one.compression_ratio, one.temperature) == (pytest.approx(other.compression_ratio, abs=0.01), 0.0)
    for each in (engine, reference_engine):
        assert each.draft(sound(name), DecodeOptions()).result().confidence.avg_logprob < 0


@pytest.mark.parametrize("name", UTTERANCES)
def test_a_draft_has_the_words_and_about_where_they_were_heard(engine, sound, texts, name):
    (truth,) = texts[name]["utterances"]
    draft = engine.draft(sound(name), DecodeOptions()).result()
    assert (draft.text, draft.language) == (truth["text"], "en")
    ends = [word.end for word in draft.words]
    assert len(ends) == len(truth["text"].split())
    assert ends == sorted(ends)
    assert truth["start"] - 0.1 < ends[0]
    assert truth["end"] - 0.9 < ends[-1] < truth["end"] + 0.1


def test_a_draft_of_half_an_utterance_has_its_first_words(engine, sound):
    draft = engine.draft(sound("demo-numbers.wav")[: int(1.75 * RATE)], DecodeOptions()).result()
    assert draft.text.startswith("seven three")
    assert draft.words[-1].end <= 1.75


@pytest.mark.parametrize("samples", [1, 100, 159, 160, 1600, 31 * RATE])
def test_sound_of_any_length(engine, samples):
    silence = np.zeros(samples, np.float32)
    assert all(0 < word.end <= 30 for word in engine.draft(silence, DecodeOptions()).result().words)
    assert engine.transcribe(silence, DecodeOptions(words=True)).result().text == ""


def test_a_draft_shows_no_echo_of_the_prompt(engine, sound):
    assert engine.draft(sound("demo-hello-world.wav"), DecodeOptions(prompt="hello world")).result().words == ()


@pytest.mark.parametrize("way", ["transcribe", "draft"])
def test_a_prompt_may_hold_what_whisper_has_a_token_of_its_own_for(engine, sound, way):
    options = DecodeOptions(prompt="go <|en|>", hotwords="Livepeer")
    assert getattr(engine, way)(sound("demo-stop.wav"), options).result().text == "stop"


@pytest.mark.parametrize("full_windows", [False, True])
@pytest.mark.parametrize("way", ["transcribe", "draft"])
def test_work_is_cancelled_wherever_it_is(model, sound, way, full_windows, monkeypatch):
    monkeypatch.setattr("whisper_byoc.speech.fast.network.POLL_MS", 50_000)
    engine, asked = FastEngine(model, full_windows=full_windows), 0
    engine.use_threads(1)

    def count():
        nonlocal asked
        asked += 1
        return asked > last

    last = 1_000_000
    whole = getattr(engine, way)(sound("demo-numbers.wav"), DecodeOptions(), count).result()
    assert asked >= 8
    for limit in range(asked):
        asked, last = 0, limit
        with pytest.raises(Cancelled):
            getattr(engine, way)(sound("demo-numbers.wav"), DecodeOptions(), count).result()
    asked, last = 0, 1_000_000
    assert getattr(engine, way)(sound("demo-numbers.wav"), DecodeOptions(), count).result() == whole


def test_the_encoder_itself_is_cancelled(engine, sound, monkeypatch):
    """However long it takes: asked before it begins and then while it runs."""
    monkeypatch.setattr("whisper_byoc.speech.fast.network.POLL_MS", 0)
    asked = iter([False, True])
    with pytest.raises(Cancelled):
        engine.transcribe(sound("demo-long-40s.wav"), DecodeOptions(), lambda: next(asked)).result()
    assert engine.transcribe(sound("demo-stop.wav"), DecodeOptions()).result().text == "stop"


def test_replicas_work_at_once(model, sound, texts):
    engines = [FastEngine(model)]
    engines += [engines[0].replica() for _ in range(2)]
    names, found = UTTERANCES * 2, {}

    def work(mine):
        engines[mine].use_threads(1)
        for at in range(mine, len(names), len(engines)):
            found[at] = engines[mine].transcribe(sound(names[at]), DecodeOptions()).result().text

    threads = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(len(engines))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(50)
    assert [found[at] for at in range(len(names))] == [texts[name]["text"] for name in names]


async def test_the_scheduler_runs_it(converted, sound, texts):
    scheduler = Scheduler(2, 1)
    engine = await scheduler.start(lambda: FastEngine(models.load_fast_model("demo", converted)))
    assert tuple(engine.languages) == ("en",)
    found = await scheduler.transcribe(sound("demo-stop.wav"), DecodeOptions())
    assert found.value.text == "stop"
    auto = await scheduler.transcribe(sound("demo-stop.wav"), DecodeOptions(None))
    assert (auto.value.text, auto.value.language, auto.value.pieces[0].chances) == ("stop", "en", {})
    await scheduler.stop()


def test_a_language_that_nobody_named_is_detected(multilingual, noise):
    (piece,) = multilingual.transcribe(noise, DecodeOptions(None)).result().pieces
    assert piece.language == max(piece.chances, key=piece.chances.get)
    assert 0 < piece.chances[piece.language] <= 1
    assert multilingual.draft(noise, DecodeOptions(None)).result().language == piece.language
    other = {"yi": 0.0}  # what was spoken before, very likely
    short = noise[: RATE // 4]
    assert multilingual.transcribe(short, DecodeOptions(None, spoken=other)).result().pieces[0].language == "yi"
    assert multilingual.languages == tuple(LANGUAGES)[: len(multilingual.languages)]
    assert len(multilingual.languages) > 98


@pytest.mark.parametrize("options", [DecodeOptions("ja", "translate"), DecodeOptions("de", words=True)])
def test_text_without_sense_does_no_harm(multilingual, noise, options):
    """Random weights write half characters, loops and timestamps."""
    found = multilingual.transcribe(noise, options).result()
    assert "\ufffd" not in found.text
    assert all("\ufffd" not in word.text for segment in found.segments for word in segment.words)
    assert "\ufffd" not in multilingual.draft(noise, options).result().text


def test_a_trial_decodes_so_many_tokens_for_so_many_texts(engine, monkeypatch):
    passes, decode = [], Network.decode

    def counted(self, asked):
        passes.extend(len(each.tokens) for each in asked.values())
        return decode(self, asked)

    monkeypatch.setattr(Network, "decode", counted)
    inference = engine.rehearse(np.zeros(RATE, np.float32), 3, texts=8)
    while not inference.done:
        engine.advance([inference])
    assert passes == [8, 8, 8]
    costs = try_out(engine)
    assert min(costs.window, costs.token, costs.token_together) > 0


def test_a_fresh_engine_computes_alike_with_other_threads(engine, model, sound):
    other = engine.fresh()
    replicas = [other, other.replica()]
    for each in replicas:
        each.use_threads(2)
    for each in (*replicas, engine):
        assert each.transcribe(sound("demo-stop.wav"), DecodeOptions()).result().text == "stop"
