"""The queue between those who have work for a model and its worker threads."""

import heapq
import itertools
import threading
import time
from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class TwoPriorityQueue(Generic[T]):
    """A queue between threads; a low-priority item is taken only when none of high priority is waiting."""

    def __init__(self, places: int = 0) -> None:
        """`places` is how many items all threads together can hold at once."""
        self._high: list[tuple[float, int, T]] = []  # a heap
        self._low: deque[T] = deque()
        self._numbers = itertools.count()
        self._changed = threading.Condition()
        self._closed = False
        self._waiting = 0  # threads
        self.places = places
        """Items that could be taken now."""

    def put(self, item: T, deadline: float = 0.0, *, low: bool = False) -> bool:
        """Add an item, of high priority by default; return False if the queue is closed."""
        with self._changed:
            if not self._closed:
                if low:
                    self._low.append(item)
                else:
                    heapq.heappush(self._high, (deadline, next(self._numbers), item))
                self._changed.notify()
            return not self._closed

    def get(self, *, wait: bool = True, low: bool = True) -> T | None:
        """Take an item: of high priority, the one with the oldest deadline; else, with `low`, one of low priority.

        Return None when there is none, or another thread waits for it; after a wait, only when the queue was closed.
        """
        with self._changed:
            while wait and not self._high and not self._low and not self._closed:
                self._waiting += 1
                self._changed.wait()
                self._waiting -= 1
            if (self._waiting and not wait) or not (self._high or (low and self._low)):
                return None
            self.places -= 1
            return heapq.heappop(self._high)[2] if self._high else self._low.popleft()

    def free(self) -> None:
        """Note that a taken item is done."""
        with self._changed:
            self.places += 1

    def remove(self, item: T) -> None:
        """Remove an item that is still waiting; does nothing if it has been taken."""
        with self._changed:
            self._high = [each for each in self._high if each[2] != item]
            heapq.heapify(self._high)
            if item in self._low:
                self._low.remove(item)

    @property
    def urgent(self) -> int:
        """How many items of high priority wait."""
        return len(self._high)

    @property
    def patient(self) -> int:
        """How many items of low priority wait."""
        return len(self._low)

    def overdue(self, seconds: float) -> bool:
        """Whether a high-priority item is waiting whose deadline was `seconds` ago or earlier."""
        with self._changed:
            return bool(self._high) and self._high[0][0] < time.monotonic() - seconds

    def overloaded(self) -> bool:
        """Whether a high-priority item is waiting for which there is no place."""
        with self._changed:
            return len(self._high) > self.places

    def close(self) -> list[T]:
        """Let every thread end once no high-priority item is left; return the low-priority items."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            dropped, self._low = list(self._low), deque()
            return dropped
