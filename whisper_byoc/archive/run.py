"""One run over an archive: hands recordings to workers, keeps what comes of them, and goes on without what fails."""

import asyncio
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable

from whisper_byoc.archive.sources import Source
from whisper_byoc.archive.worker import Hired, Outcome, Pool, WorkerDied
from whisper_byoc.errors import ByocError

MOST_DEATHS = 2
"""A recording at which so many workers have died is given up: it may have killed them."""
MOST_STARTS = 3
"""Workers in a row that died while they loaded the model; another one would, too."""
ROOM_SECONDS = 1800.0
"""Longest time without any worker: until a cluster has grown, or has got a new node."""
LOOK_SECONDS = 5.0
"""How often a pool is asked for how many workers there is room."""

Take = Callable[[Source, Outcome], None]
"""Keeps what came of a recording."""


async def transcribe(sources: Iterable[Source], pool: Pool, take: Take) -> None:
    """Have every source transcribed, the largest first so that none is left over at the end; `take` gets each once.

    Raises what `take` raises, `ByocError` where there are no workers, and why a model does not load.
    """
    run = _Run(sorted(sources, key=lambda each: -each.size), pool, take)
    try:
        await run.work()
    finally:
        await run.stop()


class _Run:
    def __init__(self, sources: Iterable[Source], pool: Pool, take: Take) -> None:
        self._waiting = deque(sources)
        self._left = len(self._waiting)
        self._pool = pool
        self._take = take
        self._slots: set[asyncio.Task[None]] = set()
        self._deaths: Counter[str] = Counter()
        self._failed_starts = 0
        self._busy = 0
        self._worked = time.monotonic()

    async def work(self) -> None:
        while self._left:
            while len(self._slots) < min(self._pool.size(), self._busy + len(self._waiting)):
                self._slots.add(asyncio.create_task(self._slot()))
            done, self._slots = await asyncio.wait(
                self._slots, timeout=LOOK_SECONDS, return_when=asyncio.FIRST_COMPLETED
            )
            for slot in done:
                slot.result()
            if self._busy:
                self._worked = time.monotonic()
            elif time.monotonic() - self._worked > ROOM_SECONDS:
                raise ByocError(f"there has been no worker for {ROOM_SECONDS:g} s; {self._left} recordings are left")

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
            if self._failed_starts >= MOST_STARTS:
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

    async def _one(self, worker: Hired, source: Source) -> None:
        try:
            outcome = await worker.transcribe(source.place)
        except WorkerDied as error:
            self._deaths[source.name] += error.blamed
            if self._deaths[source.name] < MOST_DEATHS:
                self._waiting.append(source)
            else:
                self._keep(source, Outcome(reason=f"{MOST_DEATHS} workers died at it; {error}"))
            raise
        self._keep(source, outcome)

    def _keep(self, source: Source, outcome: Outcome) -> None:
        self._left -= 1
        self._take(source, outcome)
