"""A queue with two lanes: what must be done, in order, and what may be done while nothing else waits."""

from __future__ import annotations

import threading
from collections import deque
from typing import Generic, TypeVar

__all__ = ["Lanes"]

T = TypeVar("T")


class Lanes(Generic[T]):
    """Used by any number of threads. An item of the second lane is taken only when the first lane is empty."""

    def __init__(self) -> None:
        self._first: deque[T] = deque()
        self._second: deque[T] = deque()
        self._changed = threading.Condition()
        self._idle = 0  # threads that wait in `get`
        self._closed = False

    def put(self, item: T, *, may_wait: bool = False) -> bool:
        """Add an item, to the second lane if it `may_wait`; False when the queue was closed."""
        with self._changed:
            if not self._closed:
                (self._second if may_wait else self._first).append(item)
                self._changed.notify()
            return not self._closed

    def get(self) -> T | None:
        """Wait for the next item; None when the queue was closed and the first lane is empty."""
        with self._changed:
            while not self._first and not self._second and not self._closed:
                self._idle += 1
                self._changed.wait()
                self._idle -= 1
            if self._first:
                return self._first.popleft()
            return None if self._closed else self._second.popleft()

    def take_back(self, item: T) -> None:
        """Forget an item that still waits; nothing for one that was taken."""
        with self._changed:
            for lane in (self._first, self._second):
                if item in lane:
                    lane.remove(item)

    @property
    def urgent(self) -> bool:
        """Whether an item of the first lane waits for which no thread is free."""
        with self._changed:
            return len(self._first) > self._idle

    def close(self) -> list[T]:
        """Let every thread go when the first lane is empty; give the items of the second one, which nobody gets."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            dropped, self._second = list(self._second), deque()
            return dropped

    def __len__(self) -> int:
        return len(self._first) + len(self._second)
