"""What work hangs on: when it is cut, whatever is done in its name is interrupted with one sentence."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from whisper_byoc.errors import PeerFailed

__all__ = ["Tether"]


class Tether:
    """Whole until `lose`, then lost for good."""

    def __init__(self) -> None:
        self.lost: str | None = None
        """Why it was cut."""
        self._on_loss: set[Callable[[], object]] = set()

    def lose(self, why: str) -> None:
        """Cut it, and tell in one sentence why."""
        self.lost = why
        for call in tuple(self._on_loss):
            call()

    def failure(self) -> PeerFailed:
        """Give the error for what hung on it."""
        return PeerFailed(self.lost or "it is gone")

    @contextmanager
    def watched(self, on_loss: Callable[[], object]) -> Iterator[None]:
        """Have `on_loss` called when it is cut within the context.

        Raises `PeerFailed` when it was cut before.
        """
        if self.lost is not None:
            raise self.failure()
        self._on_loss.add(on_loss)
        try:
            yield
        finally:
            self._on_loss.discard(on_loss)

    @contextmanager
    def alive(self) -> Iterator[None]:
        """Interrupt what this task does within the context when it is cut.

        Raises `PeerFailed` then.
        """
        task = asyncio.current_task()
        assert task is not None
        with self.watched(task.cancel):
            try:
                yield
            except asyncio.CancelledError:
                if self.lost is None or task.uncancel() > 0:
                    raise  # somebody else wants this task to end
                raise self.failure() from None
