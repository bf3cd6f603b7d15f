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
from whisper_byoc.speech.engine import DecodeOptions, Draft, never
from whisper_byoc.speech.fast.engine import FastEngine
from whisper_byoc.speech.scheduler import Scheduler
from whisper_byoc.speech.transcript import Transcription

SOUND = np.zeros(16_000, np.float32)
HANGS = DecodeOptions(language="hangs")


class Hanging(OneAtATime):
    """An engine that hangs when it is told to; its replicas do so too."""

    waiting = 0

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
        pass


@pytest.fixture
async def hanging():
    """Give a scheduler with two workers, and its engine."""
    scheduler, engine = Scheduler(2, threads=1), Hanging()
    await scheduler.start(lambda: engine)
    yield scheduler, engine
    engine.go_on.set()
    await scheduler.stop()


async def test_workers_that_hang_are_replaced(hanging, monkeypatch):
    scheduler, engine = hanging
    work = [asyncio.ensure_future(scheduler.transcribe(SOUND, HANGS)) for _ in range(2)]
    await until(lambda: engine.waiting == 2)
    assert scheduler.trouble() is None
    threads = threading.active_count()
    with monkeypatch.context() as patch:
        patch.setattr(module, "STUCK_SECONDS", 0.0)
        assert "whisper-1 has been at one segment for 0 s" in scheduler.trouble()  # which /readyz answers with
    for each in work:
        with pytest.raises(ProcessorError, match="the worker hung, and another one took its place"):
            await each
    done = await asyncio.gather(*(scheduler.transcribe(SOUND, DecodeOptions()) for _ in range(10)))
    assert {each.value.text for each in done} == {"text"}
    assert scheduler.trouble() is None
    engine.go_on.set()  # what hung comes back, and goes: nobody waits for it any more
    await until(lambda: threading.active_count() <= threads)
    assert (await scheduler.transcribe(SOUND, DecodeOptions())).value.text == "text"


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
