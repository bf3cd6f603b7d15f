"""A child process that does not outlive its parent: it ends when the pipe on its stdin does.

The kernel closes the parent's end whatever the parent dies of, SIGKILL included; this works on every Unix.
"""

from __future__ import annotations

import os
import signal
import threading
import time

__all__ = ["VARIABLE", "hold"]

VARIABLE = "WHISPER_BYOC_LIFELINE"
"""Set in the environment of a child whose stdin is such a pipe."""
GRACE_S = 5.0
"""A child that has lost its parent may clean up for so long."""


def hold() -> None:
    """Watch stdin if the parent asked for it, and end this process by SIGTERM when stdin ends."""
    if os.environ.pop(VARIABLE, ""):
        threading.Thread(target=watch, name="lifeline", daemon=True).start()


def watch() -> None:
    """Wait for the end of stdin, then for that of this process; the second signal spares nothing."""
    while os.read(0, 1024):
        pass
    for _ in range(2):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE_S)
    os.kill(os.getpid(), signal.SIGKILL)
