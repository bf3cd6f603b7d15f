"""Work with a time limit, and work that outlives the request it came from and still has an owner."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, TypeVar

__all__ = ["Tasks", "ended", "within"]

log = logging.getLogger("whisper_byoc.network")

T = TypeVar("T")


async def within(seconds: float | None, work: Coroutine[Any, Any, T]) -> T:
    """Do the work within so many seconds; None is no limit.

    Raises `asyncio.TimeoutError`. Before Python 3.12 `asyncio.wait_for` forgets that its task was cancelled if the work
    is done in the same moment; a loop around it then goes on for ever.
    """
    task = asyncio.get_running_loop().create_task(work)
    try:
        await asyncio.wait({task}, timeout=seconds)
        if task.done():
            return task.result()
    finally:
        if not task.done():
            await ended(task)
    raise TimeoutError


async def ended(task: asyncio.Future[Any]) -> None:
    """Cancel a task that is not needed any more, and see its end; what it raises is of no interest."""
    task.cancel()
    await asyncio.wait({task})
    if not task.cancelled():
        task.exception()


class Tasks:
    """Tasks that run until they end, or until `close`."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._tasks)

    def start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run it in the background; what it raises goes into the log."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    async def close(self, grace_seconds: float = 0.0) -> None:
        """Wait `grace_seconds` for the tasks to end, then cancel those that are left."""
        if self._tasks and grace_seconds:
            await asyncio.wait(self._tasks, timeout=grace_seconds)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a background task failed", exc_info=error)
