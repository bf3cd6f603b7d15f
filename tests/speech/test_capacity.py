"""What work costs, and how many live streams fit."""

import numpy as np
import pytest

from tests.engines import OneAtATime, at_once
from whisper_byoc.speech import capacity
from whisper_byoc.speech.capacity import Costs, Decaying, Kind, Workload, try_out
from whisper_byoc.speech.engine import Inference

COSTS = Costs(window=0.01, token=0.0045, token_together=0.0005)
"""A second of speech costs 20 ms alone, and 4 in a full batch: 35 or 175 streams. 58 are expected to fit, and 41 are
taken at first."""


class Clock:
    """The time, which passes when the test wants."""

    def __init__(self):
        self.now = 100.0

    def monotonic(self):
        return self.now

    perf_counter = monotonic


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(capacity, "time", made)
    return made


def test_a_sum_forgets(clock):
    decaying = Decaying(5.0)
    for _ in range(1000):
        clock.now += 0.1
        decaying.add(0.05)
    assert decaying.rate == pytest.approx(0.5, abs=0.02)
    clock.now += 5.0
    assert decaying.rate == pytest.approx(0.5 / np.e, abs=0.01)


class Timed(OneAtATime):
    """Takes 3 s for the encoder, 0.5 for a step of one text and 0.25 for each other; the first time, much longer."""

    def __init__(self, clock, batch):
        self.clock, self.batch, self.rehearsed = clock, batch, 0

    def rehearse(self, samples, tokens, texts=1):
        self.rehearsed += 1

        def work():
            self.clock.now += 3.0 + (60.0 if self.rehearsed == 1 else 0.0)
            for token in range(tokens):
                if token and self.batch > 1:
                    yield
                self.clock.now += 0.25 + 0.25 * texts

        return Inference(self, work())


def test_a_trial_in_steps_tells_the_encoder_from_the_decoder_alone_and_in_a_batch(clock):
    costs = try_out(Timed(clock, 4))
    assert costs == Costs(3.0, 0.5, 1.25 / 4)
    assert costs.alone == pytest.approx((3.0 + 20 * 0.5) / 5)
    assert costs.together == pytest.approx((3.0 + 20 * 1.25 / 4) / 5)


def test_a_trial_without_steps_is_the_time_of_an_utterance(clock):
    costs = try_out(Timed(clock, 1))
    assert costs.alone == costs.together == pytest.approx((3.0 + 20 * 0.5) / 5)


def test_what_the_trial_raises_is_raised():
    class Broken(OneAtATime):
        @at_once
        def rehearse(self, samples, tokens, texts=1):
            raise ValueError("bad shapes")

    with pytest.raises(ValueError, match="bad shapes"):
        try_out(Broken())


def talk(load, clock, streams, cost, seconds=200, kind=Kind.LIVE):
    """Let so many streams talk; each of their seconds costs a worker `cost` seconds."""
    for _ in range(seconds):
        clock.now += 1.0
        load.worked(streams * cost, {kind: 1})
        load.heard(kind, streams)


def test_at_first_the_trial_says_how_many_streams_fit(clock):
    assert Workload([COSTS]).streams == 41
    assert Workload([COSTS] * 3).streams == pytest.approx(125, abs=1)
    assert Workload([Costs(20.0)]).streams == 0


def test_a_busy_worker_shows_what_a_stream_costs(clock):
    load = Workload([COSTS])
    talk(load, clock, 20, 0.04)
    assert load.streams == pytest.approx(0.7 / 0.04, abs=1)
    assert load.share(Kind.LIVE) == pytest.approx(0.8, abs=0.1)
    talk(load, clock, 40, 0.015)
    assert load.streams == pytest.approx(0.7 / 0.015, abs=2)


def test_of_a_worker_with_little_to_do_only_good_news_count(clock):
    load = Workload([COSTS])
    talk(load, clock, 1, 0.17)  # with beam search and text that goes on
    assert load.streams == 41
    talk(load, clock, 40, 0.007)
    assert load.streams == pytest.approx(0.5 / 0.007, abs=1)


def test_as_many_as_are_expected_fit_when_it_is_measured_that_they_cost_that(clock):
    load = Workload([COSTS])
    talk(load, clock, 60, COSTS.expected)
    assert load.streams == pytest.approx(58, abs=1)
    clock.now += 1000.0
    assert load.streams == pytest.approx(58, abs=1)


def test_a_few_that_are_silent_say_nothing_of_a_crowd(clock):
    load = Workload([COSTS])
    talk(load, clock, 5, 0.0001)
    assert load.streams == 41


def test_a_slow_time_is_forgotten_when_it_is_over(clock):
    load = Workload([COSTS])
    talk(load, clock, 3, 0.3)
    assert load.streams == 2
    talk(load, clock, 1, 0.02)
    assert load.streams == pytest.approx(35, abs=1)
    talk(load, clock, 1, 0.0001)
    assert load.streams == 58


def test_silence_does_not_make_it_seem_that_speech_costs_nothing(clock):
    load = Workload([COSTS])
    talk(load, clock, 100, 0.0001)
    assert load.streams == pytest.approx(0.5 / 0.004, abs=1)


def test_a_few_seconds_of_sound_tell_nothing(clock):
    load = Workload([COSTS])
    load.worked(1.0, {Kind.LIVE: 1})
    load.heard(Kind.LIVE, 5.0)
    assert load.streams == 41


def test_drafts_are_not_what_live_text_costs(clock):
    load = Workload([COSTS])
    for _ in range(60):
        clock.now += 1.0
        load.worked(0.8, {Kind.LIVE: 1, Kind.DRAFT: 3})
        load.heard(Kind.LIVE, 40.0)
    assert load.cost(Kind.LIVE) == pytest.approx(0.005, rel=0.01)
    assert load.share(Kind.LIVE) == pytest.approx(0.2, abs=0.03)
    assert load.share(Kind.LIVE, Kind.DRAFT) == pytest.approx(0.8, abs=0.1)


def test_recordings_get_what_live_speech_leaves(clock):
    load = Workload([COSTS])
    assert load.recording_rate == pytest.approx(83, abs=1)
    talk(load, clock, 25, 0.02)
    assert load.recording_rate == pytest.approx(42, abs=7)
    talk(load, clock, 100, 0.02)
    assert load.recording_rate == pytest.approx(8, abs=1)  # a tenth is always theirs
    clock.now += 1000
    talk(load, clock, 80, 0.01, kind=Kind.RECORDING)
    assert load.recording_rate == pytest.approx(100, rel=0.05)


def test_text_that_waits_is_late_until_there_is_none_for_a_while(clock):
    load = Workload([COSTS])
    for _ in range(20):
        clock.now += 1.0
        load.answered(0.2, 0.5)
    assert (load.late, load.lag) == (False, pytest.approx(0.7, abs=0.01))
    for _ in range(60):
        clock.now += 1.0
        load.answered(3.0, 1.0)
    assert load.late
    assert load.lag == pytest.approx(4.0, abs=0.3)
    clock.now += 200.0
    assert (load.late, load.lag) == (False, pytest.approx(0.0, abs=0.01))
