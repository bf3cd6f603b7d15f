"""The queue with two lanes, used by real threads."""

import threading
import time
from collections import Counter

from whisper_byoc.speech.lanes import Lanes


def thread(function, *arguments):
    started = threading.Thread(target=function, args=arguments, daemon=True)
    started.start()
    return started


def test_the_first_lane_is_emptied_before_the_second():
    lanes = Lanes()
    for item in ("a", "b", "C", "D", "e"):
        assert lanes.put(item, may_wait=item.islower())
    assert len(lanes) == 5
    assert [lanes.get() for _ in range(5)] == ["C", "D", "a", "b", "e"]
    assert len(lanes) == 0


def test_get_waits_for_either_lane():
    for may_wait in (False, True):
        lanes, got = Lanes(), []
        waiting = thread(lambda lanes=lanes, got=got: got.append(lanes.get()))
        time.sleep(0.02)
        assert got == []
        lanes.put("late", may_wait=may_wait)
        waiting.join(10)
        assert got == ["late"]


def test_close_gives_the_second_lane_back_and_lets_the_first_run_dry():
    lanes = Lanes()
    for item in ("a", "B", "c", "D"):
        lanes.put(item, may_wait=item.islower())
    assert lanes.close() == ["a", "c"]
    assert [lanes.get() for _ in range(4)] == ["B", "D", None, None]
    assert not lanes.put("E")
    assert not lanes.put("e", may_wait=True)
    assert lanes.get() is None
    assert lanes.close() == []


def test_close_wakes_every_thread_that_waits():
    lanes, got = Lanes(), []
    waiting = [thread(lambda: got.append(lanes.get())) for _ in range(4)]
    lanes.close()
    for each in waiting:
        each.join(10)
    assert got == [None] * 4


def test_many_threads_lose_and_double_nothing():
    lanes, got, guard = Lanes(), Counter(), threading.Lock()

    def take():
        while (item := lanes.get()) is not None:
            with guard:
                got[item] += 1

    def give(first):
        for number in range(first, first + 500):
            lanes.put(number, may_wait=number % 3 == 0)

    takers = [thread(take) for _ in range(4)]
    givers = [thread(give, first) for first in range(0, 2000, 500)]
    for each in givers:
        each.join(20)
    while len(lanes):
        time.sleep(0.001)
    assert lanes.close() == []
    for each in takers:
        each.join(10)
    assert got == Counter(range(2000))


def test_what_is_taken_back_is_neither_given_nor_counted():
    lanes = Lanes()
    for item in ("a", "b", "C", "D"):
        lanes.put(item, may_wait=item.islower())
    for item in ("a", "C", "gone long ago"):
        lanes.take_back(item)
    assert len(lanes) == 2
    assert lanes.urgent
    lanes.take_back("D")
    assert not lanes.urgent
    assert lanes.get() == "b"
