"""One run over an archive: hands recordings to workers, keeps what comes of them, and goes on without what fails."""

import asyncio
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from whisper_byoc.archive.sources import Source
from whisper_byoc.archive.worker import Hired, Outcome, Pool, WorkerDied
from whisper_byoc.errors import ByocError

MOST_DEATHS = 2
"""A recording at which so many workers have died is given up: it may have killed them."""
MOST_STARTS = 3
"""So many times as many workers as there is room for have died while they loaded the model: another one would, too."""
ROOM_SECONDS = 1800.0
"""Longest time without any worker: until a cluster has grown, or has got a new node."""
LOOK_SECONDS = 5.0
"""How often a pool is asked for how many workers there is room."""
SHARE_BYTES = 4 << 20
"""Smallest share of a recording that is worth a worker of its own: each hears all of it, to find the pauses."""

Take = Callable[[Source, Outcome], None]
"""Keeps what came of a recording."""


@dataclass(frozen=True)
class Task:
    """What a worker does at a time: a recording, or of a large one the share `number` of `count`."""

    source: Source
    number: int = 0
    count: int = 1

    @property
    def size(self) -> float:
        return self.source.size / self.count


def tasks_of(sources: Sequence[Source], workers: int) -> list[Task]:
    """Return what there is to do, the largest first: then no worker is at one long after the others have ended.

    A recording that is more than a worker's part of all is shared out.
    """
    fair = max(SHARE_BYTES, sum(each.size for each in sources) / workers)
    counts = {each: min(workers, max(1, int(each.size / fair + 0.5))) for each in sources}
    tasks = [Task(each, number, count) for each, count in counts.items() for number in range(count)]
    return sorted(tasks, key=lambda each: -each.size)


async def transcribe(sources: Sequence[Source], pool: Pool, take: Take, *, share: bool = True) -> None:
    """Have every source transcribed; `take` gets each once. `share`: recordings may be shared out among workers.

    Raises what `take` raises, `ByocError` where there are no workers, and why a model does not load.
    """
    run = _Run(tasks_of(sources, await pool.size() if share else 1), pool, take)
    try:
        await run.work()
    finally:
        await run.stop()


class _Run:
    def __init__(self, tasks: Iterable[Task], pool: Pool, take: Take) -> None:
        self._waiting = deque(tasks)
        self._left: dict[Source, list[Outcome | None]] = {each.source: [None] * each.count for each in self._waiting}
        self._pool = pool
        self._take = take
        self._slots: set[asyncio.Task[None]] = set()
        self._deaths: Counter[Task] = Counter()
        self._failed_starts = 0
        self._busy = 0
        self._worked = time.monotonic()

    async def work(self) -> None:
        while self._left:
            room = await self._pool.size()
            while len(self._slots) < min(room, self._busy + len(self._waiting)):
                self._slots.add(asyncio.create_task(self._slot()))
            done, self._slots = await asyncio.wait(
                self._slots, timeout=LOOK_SECONDS, return_when=asyncio.FIRST_COMPLETED
            )
            for slot in done:
                slot.result()
            if self._busy:
                self._worked = time.monotonic()
            elif time.monotonic() - self._worked > ROOM_SECONDS:
                raise ByocError(
                    f"there has been no worker for {ROOM_SECONDS:g} s; {len(self._left)} recordings are left"
                )

    async def stop(self) -> None:
        for slot in self._slots:
            slot.cancel()
        await asyncio.gather(*self._slots, return_exceptions=True)

    async def _slot(self) -> None:
        """Hire a worker, and give it one recording after the other."""
        try:
            worker = await self._pool.hire()
        except WorkerDied as error:
            self._failed_starts += 1
            if self._failed_starts >= MOST_STARTS * await self._pool.size():
                raise ByocError(f"workers end while they load the model: {error}") from None
            return
        self._failed_starts = 0
        self._busy += 1
        try:
            while self._waiting:
                await self._one(worker, self._waiting.popleft())
        except WorkerDied:
            pass  # `work` has another one hired
        finally:
            self._busy -= 1
            worker.dismiss()

    async def _one(self, worker: Hired, task: Task) -> None:
        if task.source not in self._left:  # another share of it has failed
            return
        try:
            outcome = await worker.transcribe(task.source.place, (task.number, task.count))
        except WorkerDied as error:
            self._deaths[task] += error.blamed
            if self._deaths[task] < MOST_DEATHS:
                self._waiting.append(task)
            else:
                self._keep(task, Outcome(reason=f"{MOST_DEATHS} workers died at it; {error}"))
            raise
        self._keep(task, outcome)

    def _keep(self, task: Task, outcome: Outcome) -> None:
        shares = self._left.get(task.source)
        if shares is None:
            return
        shares[task.number] = outcome
        if outcome.reason or None not in shares:
            del self._left[task.source]
            self._take(task.source, outcome if outcome.reason else joined([each for each in shares if each]))


def joined(shares: Sequence[Outcome]) -> Outcome:
    """Put the shares of one recording together."""
    records = [record for each in shares for record in each.records]
    records.sort(key=lambda record: int(record["timing"]["media_window_start_ms"]))
    return Outcome(shares[0].seconds, tuple(records))
