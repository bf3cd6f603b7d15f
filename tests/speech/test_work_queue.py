"""The queue between jobs and worker threads: what is urgent first, and nothing lost."""

import threading
from collections import Counter

import pytest

from whisper_byoc.speech.work_queue import TwoPriorityQueue


def thread(function, *arguments):
    started = threading.Thread(target=function, args=arguments, daemon=True)
    started.start()
    return started


def queue_of(items):
    """A queue of letters; capitals have high priority."""
    queue = TwoPriorityQueue()
    for item in items:
        assert queue.put(item, low=item.islower())
    return queue


def test_high_priority_first():
    queue = queue_of("abCDe")
    assert [queue.get() for _ in range(5)] == ["C", "D", "a", "b", "e"]


@pytest.mark.parametrize("low", [False, True])
def test_get_waits_for_either_priority(low):
    queue, got = TwoPriorityQueue(), []
    waiting = thread(lambda: got.append(queue.get()))
    waiting.join(0.02)
    assert waiting.is_alive()
    queue.put("late", low=low)
    waiting.join(10)
    assert got == ["late"]


def test_close_returns_low_priority_and_lets_high_priority_run_dry():
    queue = queue_of("aBcD")
    assert queue.close() == ["a", "c"]
    assert [queue.get() for _ in range(4)] == ["B", "D", None, None]
    assert not queue.put("E")
    assert not queue.put("e", low=True)
    assert queue.get() is None
    assert queue.close() == []


def test_close_wakes_every_thread_that_waits():
    queue, got = TwoPriorityQueue(), []
    waiting = [thread(lambda: got.append(queue.get())) for _ in range(4)]
    queue.close()
    for each in waiting:
        each.join(10)
    assert got == [None] * 4


def test_many_threads_lose_and_double_nothing():
    queue, got, guard = TwoPriorityQueue(), Counter(), threading.Lock()

    def take():
        while (item := queue.get()) is not None:
            with guard:
                got[item] += 1

    def give(first):
        for number in range(first, first + 500):
            queue.put(number, low=number % 3 == 0)

    takers = [thread(take) for _ in range(4)]
    givers = [thread(give, first) for first in range(0, 2000, 500)]
    for each in givers:
        each.join(20)
    left = queue.close()
    for each in takers:
        each.join(10)
    assert got + Counter(left) == Counter(range(2000))


def test_what_is_removed_is_never_returned():
    queue = queue_of("abCD")
    for item in ("a", "C", "gone long ago"):
        queue.remove(item)
    assert queue.overloaded()
    queue.remove("D")
    assert not queue.overloaded()
    assert queue.get() == "b"
    assert queue.close() == []
