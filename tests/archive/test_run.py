"""A run whose workers die as the tests want: nothing is lost, nothing is taken twice."""

import asyncio
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.waiting import forever, until
from whisper_byoc.archive import run
from whisper_byoc.archive.sources import Source
from whisper_byoc.archive.worker import Outcome, WorkerDied
from whisper_byoc.errors import ByocError


class ScriptedPool:
    """Workers that do what `act` does at each recording."""

    def __init__(self, act, size=2, hire=None):
        self._act, self._size, self._hire = act, size, hire
        self.hired = self.dismissed = 0

    async def size(self):
        return self._size

    async def hire(self):
        await asyncio.sleep(0)
        if self._hire:
            await self._hire()
        self.hired += 1
        return self

    async def transcribe(self, place, share):
        await asyncio.sleep(0)
        return await self._act(place)

    def dismiss(self):
        self.dismissed += 1


def sources(count):
    return [Source(f"{number}.wav", f"{number}.wav", number, "1") for number in range(count)]


async def taken_of(pool, count=5):
    taken = {}

    def take(source, outcome):
        assert source.place not in taken
        taken[source.place] = outcome

    await run.transcribe(sources(count), pool, take)
    assert pool.hired == pool.dismissed
    return taken


@given(st.lists(st.integers(0, 30), max_size=20), st.integers(1, 4))
async def test_workers_that_die_lose_nothing(deaths, size):
    """`deaths` are the calls at which one dies, with its machine."""
    calls = iter(range(10**6))

    async def act(place):
        if next(calls) in deaths:
            raise WorkerDied("gone", blamed=False)
        return Outcome(1.0)

    taken = await taken_of(ScriptedPool(act, size), 8)
    assert len(taken) == 8
    assert not any(each.reason for each in taken.values())


async def test_a_recording_that_kills_its_workers_is_given_up():
    tries = Counter()

    async def act(place):
        tries[place] += 1
        if place == "2.wav":
            raise WorkerDied("the worker's process ended with -11")
        return Outcome(1.0)

    taken = await taken_of(ScriptedPool(act))
    assert {place for place, each in taken.items() if each.reason} == {"2.wav"}
    assert "2 workers died at it" in taken["2.wav"].reason
    assert tries["2.wav"] == run.MOST_DEATHS


async def test_workers_that_never_start_end_the_run():
    async def hire():
        raise WorkerDied("no memory")

    with pytest.raises(ByocError, match="workers end while they load the model: no memory"):
        await taken_of(ScriptedPool(None, hire=hire))


async def test_without_any_worker_a_run_ends(monkeypatch):
    monkeypatch.setattr(run, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(run, "ROOM_SECONDS", 0.03)
    with pytest.raises(ByocError, match="no worker for"):
        await taken_of(ScriptedPool(None, hire=forever))


async def test_a_pool_that_grows_is_used(monkeypatch):
    monkeypatch.setattr(run, "LOOK_SECONDS", 0.01)
    go = asyncio.Event()

    async def act(place):
        await go.wait()
        return Outcome(1.0)

    pool = ScriptedPool(act, 1)
    running = asyncio.create_task(taken_of(pool))
    await until(lambda: pool.hired == 1)
    pool._size = 3
    await until(lambda: pool.hired == 3)
    go.set()
    assert len(await running) == 5


async def test_a_run_that_is_cancelled_dismisses_its_workers():
    async def act(place):
        await forever()

    pool = ScriptedPool(act)
    running = asyncio.create_task(taken_of(pool))
    await until(lambda: pool.hired == 2)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert pool.dismissed == 2


async def test_results_that_cannot_be_kept_end_the_run():
    async def act(place):
        return Outcome(1.0)

    def take(source, outcome):
        raise ByocError("cannot write: No space left on device")

    with pytest.raises(ByocError, match="No space"):
        await run.transcribe(sources(3), ScriptedPool(act), take)


async def test_shares_of_a_recording_are_taken_as_one(monkeypatch):
    monkeypatch.setattr(run, "SHARE_BYTES", 1)
    shares = []

    class Sharing(ScriptedPool):
        async def transcribe(self, place, share):
            shares.append((place, share))
            record = {"text": f"{share[0]}", "timing": {"media_window_start_ms": 1000 - share[0]}}
            return Outcome(1.0, (record,), "broken" if (place, share[0]) == ("bad", 1) else "")

    taken = {}
    large = [Source(place, place, 1000, "1") for place in ("bad", "good")]
    await run.transcribe(large, Sharing(None, 4), lambda source, outcome: taken.setdefault(source.place, outcome))
    assert {place for place, share in shares if share[1] == 2} == {"bad", "good"}
    assert [record["text"] for record in taken["good"].records] == ["1", "0"]
    assert taken["bad"].reason == "broken"
