"""Worker threads, and what they are given: order, parallel work, cancellation, errors, trouble."""

import asyncio
import gc
import threading
import time
import weakref

import numpy as np
import pytest

from tests.engines import OneAtATime, at_once
from tests.waiting import until
from whisper_byoc.aio import cancel
from whisper_byoc.errors import ProcessorError
from whisper_byoc.speech import scheduler as module
from whisper_byoc.speech import workers
from whisper_byoc.speech.capacity import Kind
from whisper_byoc.speech.engine import Cancelled, DecodeOptions, Draft, DraftWord, Inference, never
from whisper_byoc.speech.scheduler import Scheduler
from whisper_byoc.speech.transcript import Transcription

SOUND = np.ones(160, dtype=np.float32)


class Counting(OneAtATime):
    """An engine that tells which thread it ran on, and that it never ran twice at once."""

    def __init__(self):
        self.lock = threading.Lock()

    @at_once
    def transcribe(self, samples, options, is_cancelled=never):
        assert self.lock.acquire(blocking=False), "one engine used by two threads at once"
        try:
            if options.language == "fail":
                raise ValueError("broken weights")
            return Transcription(threading.current_thread().name, "en")
        finally:
            self.lock.release()

    @at_once
    def draft(self, samples, options, is_cancelled=never):
        assert self.lock.acquire(blocking=False), "one engine used by two threads at once"
        try:
            return Draft((DraftWord(" so", 0.1), DraftWord(" far", 0.2)), "en")
        finally:
            self.lock.release()

    def replica(self):
        return Counting()

    def use_threads(self, number):
        self.threads = number, threading.current_thread().name


@pytest.fixture
async def running():
    started = []

    async def start(engine, workers=1):
        scheduler = Scheduler(workers, threads=1)
        await scheduler.start(lambda: engine)
        started.append(scheduler)
        return scheduler

    yield start
    await asyncio.gather(*(scheduler.stop() for scheduler in started))


async def test_every_piece_is_heard(running):
    scheduler = await running(Counting(), workers=2)
    heard = await asyncio.gather(*(scheduler.transcribe(SOUND, DecodeOptions()) for _ in range(200)))
    assert {each.value.text for each in heard} <= {"whisper-0", "whisper-1"}
    assert all(each.queue_ms >= 0 and each.inference_ms >= 0 for each in heard)


async def test_each_engine_is_told_its_threads_in_its_own_thread(running):
    engine = Counting()
    scheduler = Scheduler(1, threads=3)
    await scheduler.start(lambda: engine)
    await scheduler.stop()
    assert engine.threads == (3, "whisper-0")


async def test_engine_error_reaches_the_caller_and_the_worker_lives(running):
    scheduler = await running(Counting())
    with pytest.raises(ValueError, match="broken weights"):
        await scheduler.transcribe(SOUND, DecodeOptions("fail"))
    assert (await scheduler.transcribe(SOUND, DecodeOptions())).value.text == "whisper-0"


async def test_load_error_reaches_the_caller():
    def load():
        raise OSError("no such model")

    with pytest.raises(OSError, match="no such model"):
        await Scheduler(1, 1).start(load)


@pytest.mark.parametrize("during", ["loading", "trial"])
async def test_a_start_that_nobody_waits_for_ends_without_an_error(during):
    go, begun, scheduler = threading.Event(), threading.Event(), Scheduler(1, 1)

    def wait():
        begun.set()
        assert go.wait(20)

    class Slow(Counting):
        def use_threads(self, number):
            if during == "trial":
                wait()

    def load():
        if during == "loading":
            wait()
        return Slow()

    before = set(threading.enumerate())
    starting = asyncio.ensure_future(scheduler.start(load))
    assert await asyncio.to_thread(begun.wait, 20)
    ours = [each for each in set(threading.enumerate()) - before if each.name.startswith("whisper-")]
    await cancel(starting)
    go.set()
    await scheduler.stop()
    for each in ours:  # an error in a thread fails the test
        await asyncio.to_thread(each.join, 20)
    assert ours


async def test_an_error_of_the_trial_reaches_the_caller():
    class Broken(Counting):
        @at_once
        def rehearse(self, samples, tokens, texts=1):
            raise ValueError("bad shapes")

    with pytest.raises(ValueError, match="bad shapes"):
        await Scheduler(1, 1).start(Broken)


class Blocking(Counting):
    """Blocks on every call until it is let go."""

    def __init__(self):
        super().__init__()
        self.go, self.calls, self.begun = threading.Event(), 0, threading.Event()

    @at_once
    def transcribe(self, samples, options, is_cancelled=never):
        self.calls += 1
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
    await asyncio.wait({second})
    engine.go.set()
    assert (await first).value.text == (await third).value.text == "done"
    assert engine.calls == 2  # the first and the third
    assert second.cancelled()


async def test_live_text_that_waits_for_a_worker_is_late(running, monkeypatch):
    engine = Blocking()
    scheduler = await running(engine)
    work = [asyncio.ensure_future(scheduler.transcribe(SOUND, DecodeOptions(), live=True)) for _ in range(2)]
    await asyncio.to_thread(engine.begun.wait, 10)
    assert not scheduler.late
    monkeypatch.setattr(module, "LATE_SECONDS", 0.0)
    assert scheduler.late
    engine.go.set()
    await asyncio.gather(*work)
    assert not scheduler.late


async def test_drafts_come_back(running):
    scheduler = await running(Counting())
    timed = await scheduler.draft(SOUND, DecodeOptions())
    assert (timed.value.text, timed.value.language) == ("so far", "en")
    assert timed.queue_ms >= 0
    assert timed.inference_ms >= 0


class Ordered(Blocking):
    """Remembers in which order it was asked."""

    def __init__(self):
        super().__init__()
        self.order = []

    @at_once
    def transcribe(self, samples, options, is_cancelled=never):
        self.order.append(options.prompt)
        return super().transcribe(samples, options).result()

    @at_once
    def draft(self, samples, options, is_cancelled=never):
        self.order.append(options.prompt)
        return Draft((), "en")


async def begun(running, engine):
    """A scheduler whose only worker is at work, until `engine.go` is set."""
    scheduler = await running(engine)
    first = asyncio.ensure_future(scheduler.transcribe(SOUND, DecodeOptions(prompt="first")))
    await asyncio.to_thread(engine.begun.wait, 10)
    engine.order.clear()
    return scheduler, first


def asked(scheduler, *names):
    """Ask for drafts (lower case) and transcriptions (upper case), in this order."""
    return [
        asyncio.ensure_future(
            (scheduler.draft if name.islower() else scheduler.transcribe)(SOUND, DecodeOptions(prompt=name))
        )
        for name in names
    ]


async def test_drafts_wait_for_every_transcription(running):
    engine = Ordered()
    scheduler, first = await begun(running, engine)
    rest = asked(scheduler, "a", "B", "c", "D", "E")
    await asyncio.sleep(0)
    engine.go.set()
    await asyncio.gather(first, *rest)
    assert engine.order == ["B", "D", "E", "a", "c"]


async def test_drafts_are_cancelled_at_the_stop_and_transcriptions_are_not(running):
    engine = Ordered()
    scheduler, first = await begun(running, engine)
    draft, transcription = asked(scheduler, "a", "B")
    await asyncio.sleep(0)
    stopping = asyncio.ensure_future(scheduler.stop())
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(draft, 10)
    engine.go.set()
    assert (await transcription).value.text == (await first).value.text == "done"
    assert engine.order == ["B"]
    for late in asked(scheduler, "a", "B"):
        with pytest.raises(ProcessorError, match="stopped"):
            await asyncio.wait_for(late, 10)
    await stopping


async def test_the_stop_waits_for_the_workers(running):
    class Remembering(Counting):
        def use_threads(self, number):
            self.worker = threading.current_thread()

    engine = Remembering()
    scheduler = await running(engine)
    assert engine.worker.is_alive()
    await scheduler.stop()
    assert not engine.worker.is_alive()


async def test_a_cancelled_draft_leaves_the_queue(running):
    engine = Ordered()
    scheduler, first = await begun(running, engine)
    assert scheduler.may_draft
    gone, kept = asked(scheduler, "a", "c")
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.wait({gone})
    assert not scheduler.may_draft  # the other one waits
    engine.go.set()
    await asyncio.gather(first, kept)
    assert engine.order == ["c"]
    assert scheduler.may_draft


async def test_a_draft_that_fails_tells_its_caller_and_the_worker_lives(running):
    class Broken(Counting):
        @at_once
        def draft(self, samples, options, is_cancelled=never):
            if options.prompt == "fail":
                raise ValueError("no draft")
            return super().draft(samples, options).result()

    scheduler = await running(Broken())
    with pytest.raises(ValueError, match="no draft"):
        await scheduler.draft(SOUND, DecodeOptions(prompt="fail"))
    assert (await scheduler.draft(SOUND, DecodeOptions())).value.text == "so far"


async def test_a_cancelled_draft_holds_no_sound_while_transcriptions_keep_every_worker_busy(running):
    engine = Ordered()
    scheduler, first = await begun(running, engine)
    samples = SOUND.copy()
    sound, draft = weakref.ref(samples), asyncio.ensure_future(scheduler.draft(samples, DecodeOptions(prompt="a")))
    del samples
    await asyncio.sleep(0)
    draft.cancel()
    await asyncio.wait({draft})
    del draft
    gc.collect()
    assert sound() is None
    engine.go.set()
    await first


class Patient(Counting):
    """Works until it is cancelled, when the prompt is "long"."""

    def __init__(self):
        super().__init__()
        self.begun = threading.Event()

    def until_cancelled(self, is_cancelled):
        self.begun.set()
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            if is_cancelled():
                raise Cancelled
            time.sleep(0.002)
        raise AssertionError("never cancelled")

    @at_once
    def transcribe(self, samples, options, is_cancelled=never):
        return (
            self.until_cancelled(is_cancelled)
            if options.prompt == "long"
            else super().transcribe(samples, options).result()
        )

    @at_once
    def draft(self, samples, options, is_cancelled=never):
        return (
            self.until_cancelled(is_cancelled) if options.prompt == "long" else super().draft(samples, options).result()
        )


async def test_a_transcription_cancels_a_draft_where_no_worker_is_free(running):
    engine = Patient()
    scheduler = await running(engine)
    draft = asyncio.ensure_future(scheduler.draft(SOUND, DecodeOptions(prompt="long")))
    await asyncio.to_thread(engine.begun.wait, 10)
    assert (await asyncio.wait_for(scheduler.transcribe(SOUND, DecodeOptions()), 10)).value.text == "whisper-0"
    with pytest.raises(Cancelled):
        await draft


async def test_a_draft_goes_on_where_a_worker_is_free(running):
    engine = Patient()
    engine.replica = Counting
    scheduler = await running(engine, workers=2)
    while not engine.begun.is_set():  # the other engine, which may be quicker, gives its draft at once
        draft = asyncio.ensure_future(scheduler.draft(SOUND, DecodeOptions(prompt="long")))
        await until(lambda draft=draft: draft.done() or engine.begun.is_set())
    await scheduler.transcribe(SOUND, DecodeOptions())
    assert not draft.done()
    draft.cancel()


@pytest.mark.parametrize("way", ["transcribe", "draft"])
async def test_work_that_nobody_waits_for_is_cancelled(running, way):
    engine = Patient()
    scheduler = await running(engine)
    work = asyncio.ensure_future(getattr(scheduler, way)(SOUND, DecodeOptions(prompt="long")))
    await asyncio.to_thread(engine.begun.wait, 10)
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    assert (await asyncio.wait_for(scheduler.transcribe(SOUND, DecodeOptions()), 10)).value.text == "whisper-0"


class Stepping(OneAtATime):
    """Makes inferences of three steps, up to four at once; a step waits until the test allows it."""

    batch, beam, continues = 4, 5, True

    def __init__(self):
        self.steps, self.together, self.order = threading.Semaphore(0), [], []

    def replica(self):
        return Stepping()

    def use_threads(self, number):
        self.allow(100)  # for the trial

    def allow(self, number):
        for _ in range(number):
            self.steps.release()

    def advance(self, inferences):
        assert self.steps.acquire(timeout=20)
        self.together.append(len(inferences))
        super().advance(inferences)

    def inference(self, options, is_cancelled):
        def work():
            self.order.append(options.prompt)
            for step in range(2):
                if is_cancelled():
                    raise Cancelled
                yield step
            return Transcription(f"{options.prompt} {options.beam}", "en")

        return Inference(self, work())

    def transcribe(self, samples, options, is_cancelled=never):
        return self.inference(options, is_cancelled)

    draft = transcribe


@pytest.fixture
async def stepping(running):
    engine = Stepping()
    scheduler = await running(engine)
    while engine.steps.acquire(blocking=False):
        pass
    engine.together.clear()
    engine.order.clear()
    return scheduler, engine


async def test_work_that_comes_later_joins_what_is_going_on(stepping):
    scheduler, engine = stepping
    (first,) = asked(scheduler, "A")
    engine.allow(1)
    await until(lambda: engine.order == ["A"])
    rest = [
        asyncio.ensure_future(scheduler.transcribe(SOUND, DecodeOptions(prompt=name), live=True)) for name in "BCDE"
    ]
    await asyncio.sleep(0)
    engine.allow(20)
    texts = [each.value.text for each in await asyncio.gather(first, *rest)]
    assert texts == ["A 5", "B 2", "C 2", "D 2", "E 2"]  # only the first one had the machine to itself
    assert max(engine.together) == 4
    assert sum(engine.together) == 15


async def test_one_that_nobody_waits_for_leaves_the_others_alone(stepping):
    scheduler, engine = stepping
    kept, gone = asked(scheduler, "A", "B")
    engine.allow(1)
    await until(lambda: len(engine.order) == 2)
    gone.cancel()
    await asyncio.wait({gone})
    engine.allow(20)
    assert (await kept).value.text.startswith("A")
    assert await asyncio.wait_for(scheduler.transcribe(SOUND, DecodeOptions(prompt="C")), 10)


async def test_drafts_leave_half_of_the_places_to_transcriptions(stepping):
    scheduler, engine = stepping
    drafts = asked(scheduler, *"abcd")
    engine.allow(2)  # the second one in each step
    await until(lambda: len(engine.order) == 2)
    finals = asked(scheduler, "X", "Y")
    await asyncio.sleep(0)
    engine.allow(40)
    await asyncio.gather(*drafts, *finals)
    assert sorted(engine.order[2:4]) == ["X", "Y"]


async def test_live_speech_goes_before_recordings(stepping):
    scheduler, engine = stepping
    filling = asked(scheduler, *"ABCD")
    engine.allow(1)
    await until(lambda: len(engine.order) == 4)
    recording, live = (
        asyncio.ensure_future(scheduler.transcribe(SOUND, DecodeOptions(prompt=name), live=name == "live"))
        for name in ("recording", "live")
    )
    await asyncio.sleep(0)
    engine.allow(60)
    await asyncio.gather(*filling, recording, live)
    assert engine.order[4:] == ["live", "recording"]


async def test_a_beam_that_was_asked_for_is_kept(stepping):
    scheduler, engine = stepping
    engine.allow(60)
    beams = [(await scheduler.transcribe(SOUND, DecodeOptions(beam=beam))).beam for beam in (1, 3, None)]
    assert beams == [1, 3, 5]


async def test_a_busy_worker_follows_one_text(stepping, monkeypatch):
    scheduler, engine = stepping
    monkeypatch.setattr(workers, "BUSY_LOAD", -1.0)
    engine.allow(20)
    assert (await scheduler.transcribe(SOUND, DecodeOptions(), live=True)).beam == 1
    assert (await scheduler.transcribe(SOUND, DecodeOptions())).beam == 5  # only live speech makes recordings hurry


async def test_a_busy_worker_takes_no_text_before_unless_the_beam_was_asked_for(stepping):
    scheduler, _ = stepping
    assert scheduler.continues(DecodeOptions())
    scheduler.workload.worked(60.0, {Kind.LIVE: 1})
    assert not scheduler.continues(DecodeOptions())
    assert scheduler.continues(DecodeOptions(beam=5))


async def test_an_engine_that_takes_no_text_before_gets_none(running):
    assert not (await running(Counting())).continues(DecodeOptions(beam=5))


async def test_recordings_leave_live_text_its_beam_and_drafts_do_not(stepping):
    scheduler, engine = stepping
    engine.allow(20)
    scheduler.workload.worked(60.0, {Kind.RECORDING: 1})
    assert (await scheduler.transcribe(SOUND, DecodeOptions(), live=True)).beam == 5
    assert scheduler.may_draft
    scheduler.workload.worked(60.0, {Kind.DRAFT: 1})
    assert not scheduler.may_draft
    assert (await scheduler.transcribe(SOUND, DecodeOptions(), live=True)).beam == 1


class Sized(Counting):
    """An engine that takes longer with fewer threads."""

    made = 0

    def replica(self):
        Sized.made += 1
        return Sized()

    def use_threads(self, number):
        self.threads = number

    @at_once
    def rehearse(self, samples, tokens, texts=1):
        time.sleep(0.02 / self.threads)  # the trial measures time


async def test_the_number_of_workers_with_which_most_streams_fit_is_taken():
    before = set(threading.enumerate())
    scheduler = Scheduler(1, 1, [(1, 50), (1, 2)])
    await scheduler.start(Sized)
    assert scheduler.size == (1, 50)
    new = [each for each in threading.enumerate() if each not in before and each.name.startswith("whisper-")]
    assert len(new) == 1  # the others have ended
    assert (await scheduler.transcribe(SOUND, DecodeOptions())).value.text == "whisper-0"
    await scheduler.stop()


async def test_no_other_number_is_tried_when_there_is_no_time(monkeypatch):
    monkeypatch.setattr(module, "TRIAL_SECONDS", 0.0)
    Sized.made = 0
    scheduler = Scheduler(1, 1, [(1, 50)])
    await scheduler.start(Sized)
    assert (scheduler.size, Sized.made) == ((1, 1), 0)
    await scheduler.stop()


async def test_an_error_while_another_number_is_tried_reaches_the_caller():
    class Alone(Sized):
        @at_once
        def rehearse(self, samples, tokens, texts=1):
            if self.threads > 1:
                raise ValueError("no memory")

        def replica(self):
            return Alone()

    scheduler = Scheduler(1, 1, [(2, 2)])
    with pytest.raises(ValueError, match="no memory"):
        await scheduler.start(Alone)
    await scheduler.stop()
