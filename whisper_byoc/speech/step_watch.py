"""Whether a thread hangs: how long it has been at one step of its work, as seen by its watchers."""

import threading
import time

LOOK_SECONDS = 1.0
"""Most of the time between two looks that counts: a process that was paused did not hang."""


class StepWatch:
    """Measures the steps of one thread. Any thread may call it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.begin(None)

    def begin(self, limit: float | None) -> None:
        """Begin a step that may take `limit` seconds; None means there is nothing to do."""
        with self._lock:
            self._limit, self._seconds, self._looked = limit, 0.0, time.monotonic()

    def look(self) -> None:
        """Count the time since the last look."""
        with self._lock:
            now = time.monotonic()
            self._seconds += min(now - self._looked, LOOK_SECONDS)
            self._looked = now

    @property
    def seconds(self) -> float:
        """How long it has been at its step, according to the looks so far."""
        return self._seconds

    def exceeds(self, share: float = 1.0) -> bool:
        """Whether its step has taken more than this share of its limit."""
        with self._lock:
            return self._limit is not None and self._seconds > share * self._limit
