"""Worker threads: order, parallel work, cancellation, errors, trouble."""

import asyncio
import threading

import numpy as np
import pytest

from whisper_byoc.speech import scheduler as module
from whisper_byoc.speech.engine import DecodeOptions
from whisper_byoc.speech.scheduler import Scheduler
from whisper_byoc.speech.transcript import Transcription

SOUND = np.ones(160, dtype=np.float32)


class Counting:
    """An engine that tells which thread it ran on, and that it never ran twice at once."""

    multilingual = True

    def __init__(self):
        self.lock = threading.Lock()

    def transcribe(self, samples, options):
        assert self.lock.acquire(blocking=False), "one engine used by two threads at once"
        try:
            if options.language == "fail":
                raise ValueError("broken weights")
            return Transcription(threading.current_thread().name, "en")
        finally:
            self.lock.release()

    def replica(self):
        return Counting()


@pytest.fixture
async def running():
    started = []

    async def start(engine, workers=1):
        scheduler = Scheduler(workers, threads=1)
        await scheduler.start(lambda: engine)
        started.append(scheduler)
        return scheduler

    yield start
    for scheduler in started:
        scheduler.stop()


async def test_every_piece_is_heard(running):
    scheduler = await running(Counting(), workers=2)
    heard = await asyncio.gather(*(scheduler.transcribe(SOUND, DecodeOptions()) for _ in range(200)))
    assert {each.transcription.text for each in heard} <= {"whisper-0", "whisper-1"}
    assert all(each.queue_ms >= 0 and each.inference_ms >= 0 for each in heard)


async def test_engine_error_reaches_the_caller_and_the_worker_lives(running):
    scheduler = await running(Counting())
    with pytest.raises(ValueError, match="broken weights"):
        await scheduler.transcribe(SOUND, DecodeOptions("fail"))
    assert (await scheduler.transcribe(SOUND, DecodeOptions())).transcription.text == "whisper-0"


async def test_load_error_reaches_the_caller():
    def load():
        raise OSError("no such model")

    with pytest.raises(OSError, match="no such model"):
        await Scheduler(1, 1).start(load)


async def test_warm_up_error_reaches_the_caller():
    class Broken(Counting):
        def transcribe(self, samples, options):
            raise ValueError("bad shapes")

    with pytest.raises(ValueError, match="bad shapes"):
        await Scheduler(1, 1).start(Broken)


class Blocking(Counting):
    """Blocks on every call after the warm-up until it is let go."""

    def __init__(self):
        super().__init__()
        self.go, self.calls, self.begun = threading.Event(), 0, threading.Event()

    def transcribe(self, samples, options):
        self.calls += 1
        if self.calls > 1:
            self.begun.set()
            assert self.go.wait(20)
        return Transcription("done", "en")


async def test_cancelled_work_leaves_the_queue(running):
    engine = Blocking()
    scheduler = await running(engine)
    first = asyncio.ensure_future(scheduler.transcribe(SOUND, DecodeOptions()))
    await asyncio.to_thread(engine.begun.wait, 10)
    second = asyncio.ensure_future(scheduler.transcribe(SOUND, DecodeOptions()))
    third = asyncio.ensure_future(scheduler.transcribe(SOUND, DecodeOptions()))
    await asyncio.sleep(0)
    second.cancel()
    engine.go.set()
    assert (await first).transcription.text == (await third).transcription.text == "done"
    assert engine.calls == 3  # the warm-up, the first and the third
    assert second.cancelled()


async def test_a_stuck_worker_is_reported(running, monkeypatch):
    engine = Blocking()
    scheduler = await running(engine)
    assert scheduler.trouble() is None
    work = asyncio.ensure_future(scheduler.transcribe(SOUND, DecodeOptions()))
    await asyncio.to_thread(engine.begun.wait, 10)
    assert scheduler.trouble() is None
    monkeypatch.setattr(module, "STUCK_SECONDS", 0.0)
    assert "whisper-0 has been at one segment" in scheduler.trouble()
    engine.go.set()
    await work
    while scheduler.trouble():  # the worker says goodbye to its work just after giving the result
        await asyncio.sleep(0.001)
