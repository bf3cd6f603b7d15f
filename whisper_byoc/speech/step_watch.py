"""Whether a thread hangs: how long it has been at one step of its work, in the eyes of those who look at it."""

import threading
import time

LOOK_SECONDS = 1.0
"""Most that counts of the time between two looks: a process that was paused did not hang."""


class StepWatch:
    """Measures the steps of one thread. Any thread may call it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.begin(None)

    def begin(self, limit: float | None) -> None:
        """Begin a step that takes `limit` seconds at most; None: there is nothing to do."""
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
        """How long it has been at its step, as far as it was looked at."""
        return self._seconds

    def exceeds(self, share: float = 1.0) -> bool:
        """Whether its step has taken more than this share of its limit."""
        with self._lock:
            return self._limit is not None and self._seconds > share * self._limit
