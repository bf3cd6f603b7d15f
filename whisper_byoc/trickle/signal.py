"""Wake everyone who waits, and never anyone who has gone."""

from __future__ import annotations

import asyncio

__all__ = ["Signal"]


class Signal:
    """Something changed: look again. Unlike `asyncio.Condition` it needs no lock, and waking costs no task."""

    __slots__ = ("_waiters",)

    def __init__(self) -> None:
        self._waiters: set[asyncio.Future[None]] = set()

    def wake(self) -> None:
        """Wake all that wait now."""
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def wait(self, timeout: float | None = None) -> bool:
        """Wait for the next `wake`, up to `timeout` seconds; False when the time ran out."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.add(waiter)
        try:
            await asyncio.wait((waiter,), timeout=timeout)
        finally:
            self._waiters.discard(waiter)
        return waiter.done()
