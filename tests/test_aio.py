"""Waiting, cancelling and owning tasks."""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import threading
from itertools import islice

import pytest

from tests.waiting import until
from whisper_byoc.aio import (
    Alarm,
    Changed,
    Tasks,
    backoff,
    cancel,
    every,
    first_of,
    in_daemon_thread,
    race,
    stop_listening,
    stop_on_signals,
)


async def test_changed_wakes_everyone_who_waits():
    changed, woken = Changed(), []

    async def wait(name):
        woken.append((name, await changed.wait()))

    waiters = [asyncio.create_task(wait(name)) for name in "ab"]
    await asyncio.sleep(0)
    changed.notify()
    await asyncio.gather(*waiters)
    assert sorted(woken) == [("a", True), ("b", True)]


async def test_a_wait_ends_with_its_time():
    changed = Changed()
    assert not await changed.wait(0.001)
    assert not await changed.until(lambda: False, 0.001)
    assert await changed.until(lambda: True, 0)


async def test_until_looks_again_at_every_change():
    changed, values = Changed(), []
    waiter = asyncio.create_task(changed.until(lambda: len(values) == 2, 30))
    for value in range(2):
        await asyncio.sleep(0)
        assert not waiter.done()
        values.append(value)
        changed.notify()
    assert await waiter


async def test_a_cancelled_wait_passes_the_cancellation_on_and_is_forgotten():
    changed = Changed()
    waiter = asyncio.create_task(changed.until(lambda: False))
    await asyncio.sleep(0)
    waiter.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiter
    changed.notify()


async def test_an_alarm_rings_once_and_only_for_the_last_time_that_it_was_set():
    rung = []
    alarm = Alarm(lambda: rung.append(True))
    alarm.set(0.01)
    alarm.set(3600)  # later
    await asyncio.sleep(0.05)
    assert rung == []
    alarm.set(0.01)  # sooner
    await until(lambda: rung)
    alarm.set(0.01)
    alarm.clear()
    await asyncio.sleep(0.05)
    assert rung == [True]
    alarm.set(0)
    await until(lambda: len(rung) == 2)


async def test_first_of_takes_no_result_and_cancels_nothing():
    forever = asyncio.get_running_loop().create_future()
    failed = asyncio.get_running_loop().create_future()
    failed.set_exception(ValueError("left to the owner"))
    assert await first_of(forever, failed)
    assert not await first_of(forever, timeout=0.001)
    assert not forever.done()
    with pytest.raises(ValueError, match="left to the owner"):
        failed.result()


async def test_race_returns_what_the_first_one_returned_and_cancels_the_rest():
    ended = []

    async def slow():
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("slow")

    async def quick():
        await asyncio.sleep(0)
        return "quick"

    assert await race(slow(), quick()) == "quick"
    assert ended == ["slow"]


async def test_race_raises_what_the_first_one_raised():
    async def fails():
        raise ValueError("first")

    with pytest.raises(ValueError, match="first"):
        await race(asyncio.Event().wait(), fails())


async def test_cancel_waits_until_tasks_have_cleaned_up_and_drops_their_errors():
    steps = []

    async def work():
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            steps.append("cleaned up")
            raise ValueError("nobody wants to know")

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    await cancel(task)
    assert steps == ["cleaned up"]
    await cancel()
    await cancel(task)


async def test_cancel_lets_the_callers_own_cancellation_through():
    async def stubborn():
        while True:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                if release.is_set():
                    raise

    release = asyncio.Event()
    task = asyncio.create_task(stubborn())
    await asyncio.sleep(0)
    caller = asyncio.create_task(cancel(task))
    await asyncio.sleep(0)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    release.set()
    await cancel(task)


async def test_background_tasks_are_owned_and_their_failures_logged(caplog):
    tasks, ended = Tasks(), []

    async def fails():
        raise ValueError("in the background")

    async def waits():
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("cancelled")

    failing, waiting = tasks.start(fails()), tasks.start(waits())
    await until(failing.done)
    await tasks.close(0.001)
    assert waiting.cancelled()
    assert ended == ["cancelled"]
    assert "in the background" in caplog.text


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_what_is_done_every_so_often_survives_its_failures(caplog, asynchronous):
    calls = []

    def action():
        calls.append(None)
        if len(calls) == 1:
            raise ValueError("the first time")

    async def async_action():
        action()

    task = asyncio.create_task(every(0.001, async_action if asynchronous else action, "the sweep"))
    await until(lambda: len(calls) >= 3)
    await cancel(task)
    assert [record.levelno for record in caplog.records if record.name == "whisper_byoc.aio"] == [logging.ERROR]
    assert "the sweep failed" in caplog.text


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_the_first_signal_stops_and_the_second_ends_the_process(number):
    before = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)}
    try:
        stop = stop_on_signals()
        os.kill(os.getpid(), number)
        async with asyncio.timeout(10):
            await stop.wait()
        assert {each: signal.getsignal(each) for each in before} == dict.fromkeys(before, signal.SIG_DFL)
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def test_pauses_double_up_to_the_longest_and_spread():
    for expected, pause in zip((1, 2, 4, 8, 16, 30, 30, 30), backoff(1.0, 30.0), strict=False):
        assert expected / 2 <= pause <= expected
    assert len({next(islice(backoff(1.0, 30.0), 5, None)) for _ in range(5)}) > 1


async def test_a_daemon_thread_returns_raises_and_can_be_left_alone():
    assert await in_daemon_thread(divmod, 7, 2) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        await in_daemon_thread(divmod, 7, 0)
    go_on, ended = threading.Event(), threading.Event()
    left = asyncio.create_task(in_daemon_thread(lambda: (go_on.wait(20), ended.set())))
    await asyncio.sleep(0)
    await cancel(left)
    go_on.set()
    await until(ended.is_set)


async def test_what_a_listener_has_accepted_is_told_to_its_protocol_before_it_closes():
    for turns in range(6):  # of the event loop since a client came: until it is accepted, has a transport, is known
        listener = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
        with socket.create_connection(listener.sockets[0].getsockname()) as connection:
            for _ in range(turns):
                await asyncio.sleep(0)
            await stop_listening(listener)
            assert not listener.is_serving()
            connection.setblocking(False)
            async with asyncio.timeout(20):
                with contextlib.suppress(ConnectionResetError):  # it was not accepted
                    assert await asyncio.get_running_loop().sock_recv(connection, 1) == b""
