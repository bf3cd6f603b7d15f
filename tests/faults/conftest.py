"""Faults over real sockets, in processes: afterwards the next job works, and the process holds what it held before."""

import asyncio
import contextlib
import dataclasses
import os

import pytest

from benchmarks.held import settled
from whisper_byoc import TrickleClient
from whisper_byoc.errors import ServerRefused

POOL = min(32, os.cpu_count() + 4) + 4
"""Threads that may come to stay: asyncio's own pool, that of the decoders, and what BLAS starts."""
MEMORY_MB = 25
"""What malloc may keep of small things."""
GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "500000"}
"""Has malloc give every large thing back to the system when it is freed, so that what is kept shows."""


def pytest_addoption(parser):
    parser.addoption("--all-faults", action="store_true", help="tests of faults: in full numbers, not a part of them")


@pytest.fixture(scope="session")
def scaled(request):
    """Give a function that says how many of so many there are this time."""
    return lambda number: number if request.config.getoption("--all-faults") else number // 10


@pytest.fixture(scope="module")
def container(node):
    """A container that has worked already, and soon forgets."""
    options = ("--idle-timeout", "2", "--linger", "1", "--max-jobs", "2000")
    made = node(
        "serve", "--host", "127.0.0.1", "--stream-host", "127.0.0.1", "--port", "PORT", *options,
        "--pipeline", "passthrough", "--pipeline", "whisper-demo", watched=True, environment=GIVE_BACK,
    )  # fmt: skip
    made.start().ready()
    return made


@contextlib.asynccontextmanager
async def nothing_left(node, seconds=60, memory_mb=MEMORY_MB):
    """Within, a fault; afterwards a job works, and nothing of the fault is left."""
    await next_job_works(node)
    before, log = await asyncio.to_thread(node.held), len(node.text)
    yield
    async with asyncio.timeout(seconds):
        while not await next_job_works(node, refused=False):
            await asyncio.sleep(0.05)
    base = dataclasses.replace(before, threads=before.threads + POOL, memory_mb=before.memory_mb + memory_mb)
    after = await asyncio.to_thread(settled, node.held, base, seconds)
    assert not after.beyond(base), f"{after.beyond(base)}; its log: {node.text[log:][-3000:]}"
    for sign in ("Traceback", "never retrieved"):
        assert sign not in node.text[log:], node.text[log:]
    assert len(node.text) - log < 200_000


async def next_job_works(node, refused=True):
    """Do a job; return whether there was room for it, with `refused` raise where there is none."""
    async with asyncio.timeout(60), TrickleClient(node.url, pipeline="passthrough") as client:
        try:
            assert await client.process_frame(b"next") == b"next"
        except ServerRefused:
            if refused:
                raise
            return False
    return True
