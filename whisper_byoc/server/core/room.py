"""Flow control: a bound on how much may be under way at once."""

from __future__ import annotations

from whisper_byoc.aio import Changed

__all__ = ["Room"]


class Room:
    """Space for `max_items` things of `max_bytes` together. One thing always fits, however large."""

    def __init__(self, max_items: int, max_bytes: int) -> None:
        self._max_items = max_items
        self._max_bytes = max_bytes
        self._bytes = 0
        self._freed = Changed()
        self.closed = False
        self.items = 0

    async def take(self, size: int, timeout: float | None = None, *, items: int = 1) -> bool:
        """Wait for space and take it; False when `timeout` seconds went by, or the room was closed.

        With no `items`, only the bytes count: they go to a thing that is there.
        """
        await self._freed.until(lambda: self.closed or self._fits(size, items), timeout)
        if self.closed or not self._fits(size, items):
            return False
        self.take_now(size, items=items)
        return True

    def take_now(self, size: int, *, items: int = 1) -> None:
        """Take space that may not be there: for what has arrived already and must not be lost."""
        self.items += items
        self._bytes += size

    def give(self, size: int) -> None:
        """Give back what was taken for one thing."""
        self.items -= 1
        self._bytes -= size
        self._freed.notify()

    def close(self) -> None:
        """Turn away everybody who waits, and everybody who comes later."""
        self.closed = True
        self._freed.notify()

    def _fits(self, size: int, items: int) -> bool:
        if self.items == 0:
            return True
        return self.items + items <= self._max_items and self._bytes + size <= self._max_bytes
