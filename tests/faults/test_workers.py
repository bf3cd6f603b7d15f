"""Worker threads that die or hang: their work has an error, and the next is done."""

import asyncio
import threading

import numpy as np
import pytest

from audio import pcm
from audio.wav import read_wav
from tests.engines import OneAtATime, at_once
from tests.waiting import until
from whisper_byoc.errors import ProcessorError
from whisper_byoc.speech import scheduler as module
from whisper_byoc.speech import step_watch, workers
from whisper_byoc.speech.engine import DecodeOptions, Draft, Inference, never
from whisper_byoc.speech.fast.engine import FastEngine
from whisper_byoc.speech.scheduler import Scheduler
from whisper_byoc.speech.transcript import Transcription

SOUND = np.zeros(16_000, np.float32)
HANGS = DecodeOptions(language="hangs")


class Hanging(OneAtATime):
    """An engine that hangs when it is told to; its replicas do so too."""

    waiting = failing = 0

    def __init__(self, first=None):
        self.first = first or self
        self.go_on = threading.Event()

    @at_once
    def transcribe(self, samples, options, is_cancelled=never):
        if options.language == "hangs":
            self.first.waiting += 1
            self.first.go_on.wait(60)
        return Transcription("text", "en")

    @at_once
    def draft(self, samples, options, is_cancelled=never):
        return Draft((), "en")

    def replica(self):
        return Hanging(self.first)

    def use_threads(self, number):
        if self.first.failing:
            self.first.failing -= 1
            raise MemoryError

    def rehearse(self, samples, tokens, texts=1):
        def work():
            yield from ()
            self.first.go_on.wait(0.005)  # a second of sound costs a fifth of this

        return Inference(self, work())


@pytest.fixture
async def hanging(monkeypatch):
    """Give a scheduler with two workers, and its engine."""
    monkeypatch.setattr(module, "WATCH_SECONDS", 0.01)
    monkeypatch.setattr(workers, "HANG_SECONDS", 0.05)
    monkeypatch.setattr(step_watch, "LOOK_SECONDS", 0.01)
    scheduler, engine = Scheduler(2, threads=1), Hanging()
    await scheduler.start(lambda: engine)
    yield scheduler, engine
    engine.go_on.set()
    await scheduler.stop()


async def test_workers_that_hang_are_replaced(hanging):
    scheduler, engine = hanging
    threads = threading.active_count()
    work = [asyncio.ensure_future(scheduler.transcribe(SOUND, HANGS)) for _ in range(2)]
    await until(lambda: engine.waiting == 2)
    await until(lambda: "has been at one step of its work for" in (scheduler.trouble() or ""))  # /readyz tells
    assert not any(each.done() for each in work)
    for each in work:
        with pytest.raises(ProcessorError, match="the worker hung, and another one took its place"):
            await each
    done = await asyncio.gather(*(scheduler.transcribe(SOUND, DecodeOptions()) for _ in range(10)))
    assert {each.value.text for each in done} == {"text"}
    await until(lambda: scheduler.trouble() is None)
    engine.go_on.set()  # what hung comes back, and goes: nobody waits for it any more
    await until(lambda: threading.active_count() <= threads)
    assert (await scheduler.transcribe(SOUND, DecodeOptions())).value.text == "text"


async def test_a_worker_without_work_does_not_hang(hanging):
    scheduler, _ = hanging
    before = threading.enumerate()
    await scheduler.transcribe(SOUND, DecodeOptions())
    await asyncio.sleep(3 * workers.HANG_SECONDS)
    assert scheduler.trouble() is None
    assert threading.enumerate() == before


async def test_the_time_for_a_step_follows_from_what_its_sound_costs(hanging):
    scheduler, engine = hanging
    long = np.zeros(600 * 16_000, np.float32)
    for sound, hangs in ((long, False), (SOUND, True)):
        working = asyncio.ensure_future(scheduler.transcribe(sound, HANGS))
        await until(lambda: engine.waiting == 1)
        await asyncio.wait({working}, timeout=10 * workers.HANG_SECONDS)
        assert working.done() == hangs
        engine.go_on.set()
        await asyncio.wait({working})
        assert bool(working.exception()) == hangs
        engine.waiting = 0
        engine.go_on.clear()


async def test_a_replacement_that_cannot_begin_is_tried_again(hanging):
    scheduler, engine = hanging
    engine.failing = 2
    hung = asyncio.ensure_future(scheduler.transcribe(SOUND, HANGS))
    await until(lambda: "cannot begin: MemoryError" in (scheduler.trouble() or ""))
    with pytest.raises(ProcessorError, match="hung"):
        await hung
    await until(lambda: scheduler.trouble() is None)
    done = await asyncio.gather(*(scheduler.transcribe(SOUND, DecodeOptions()) for _ in range(10)))
    assert {each.value.text for each in done} == {"text"}


@pytest.mark.parametrize("error", [ValueError("no such tensor"), MemoryError(), SystemExit(3)])
async def test_an_engine_that_fails_as_a_whole_costs_its_segment_only(
    serving, demo_processor, fixtures_dir, monkeypatch, error
):
    api = await serving({"speech": demo_processor})
    advance, failing = FastEngine.advance, True

    def fails_once(engine, inferences):
        nonlocal failing
        if failing:
            failing = False
            raise error
        advance(engine, inferences)

    speech = pcm.encode(read_wav((fixtures_dir / "demo-stop.wav").read_bytes()))
    monkeypatch.setattr(FastEngine, "advance", fails_once)
    for job, errors in (("hit", 1), ("next", 0)):
        assert (await api.put(job, speech))[0] == 200
        await api.end(job)
        records = await api.records(job)
        assert records[-1]["errors"] == errors, records
    assert (await api.json("/readyz"))[0] == 200
