"""Ports that stay free until a test uses them."""

import contextlib
import random
import socket

BELOW = 32_768
"""From here on the system gives ports to clients and to who asks for any (`ip_local_port_range` of Linux); many tests
side by side use most of them."""


def free_port():
    """Return a port on which nobody listens, and which nobody gets who does not name it."""
    chance = random.SystemRandom()  # not `random`, which has the same seed in processes side by side
    while True:
        port = chance.randrange(20_000, BELOW)
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port
