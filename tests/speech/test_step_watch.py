"""How long a thread is at a step, with a clock that the tests turn."""

import time

import pytest

from whisper_byoc.speech.step_watch import StepWatch


@pytest.fixture
def pass_time(monkeypatch):
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)

    def turn(seconds):
        nonlocal now
        now += seconds

    return turn


def looked_at(watch, pass_time, *pauses):
    for seconds in pauses:
        pass_time(seconds)
        watch.look()
    return watch.seconds


def test_a_step_exceeds_its_limit_after_so_many_seconds(pass_time):
    watch = StepWatch()
    watch.begin(2.0)
    assert looked_at(watch, pass_time, 0.5, 0.75) == 1.25
    assert (watch.exceeds(0.5), watch.exceeds()) == (True, False)
    looked_at(watch, pass_time, 1.0)
    assert watch.exceeds()


def test_every_step_begins_anew(pass_time):
    watch = StepWatch()
    for _ in range(5):
        watch.begin(2.0)
        assert looked_at(watch, pass_time, 1.0, 0.75) == 1.75
    assert not watch.exceeds()


def test_a_process_that_was_paused_did_not_hang(pass_time):
    watch = StepWatch()
    watch.begin(2.0)
    assert looked_at(watch, pass_time, 3600.0) == 1.0
    assert not watch.exceeds()


def test_who_has_nothing_to_do_does_not_hang(pass_time):
    watch = StepWatch()
    looked_at(watch, pass_time, *[1.0] * 100)
    assert not watch.exceeds(0.0)
    watch.begin(2.0)
    assert looked_at(watch, pass_time, 1.0) == 1.0
    watch.begin(None)
    looked_at(watch, pass_time, *[1.0] * 100)
    assert not watch.exceeds()
