"""A machine that has no descriptors, no room on the disk or another time than a moment ago."""

import asyncio
import subprocess
import time

import pytest

from audio.ffmpeg import ffmpeg_environment, ffmpeg_path
from benchmarks.soak_clients import Wire
from tests.faults.conftest import GIVE_BACK, nothing_left
from tests.waiting import until

DESCRIPTORS = 48


@pytest.fixture(scope="module")
def poor(node):
    """A container that may open few files."""
    made = node(
        "serve", "--host", "127.0.0.1", "--port", "PORT", "--idle-timeout", "2", "--linger", "1",
        "--pipeline", "passthrough", "--pipeline", "whisper-demo",
        watched=True, environment=GIVE_BACK, descriptors=DESCRIPTORS,
    )  # fmt: skip
    return made.start().ready()


async def test_connections_that_use_up_the_descriptors(poor):
    async with nothing_left(poor):
        wires = []
        for _ in range(2 * DESCRIPTORS):
            wires.append(await Wire.open(poor.url))
        await until(lambda: "no more are taken" in poor.text)
        for wire in wires:
            wire.reset()


async def test_programs_that_use_up_the_descriptors(poor, fixtures_dir):
    command = [ffmpeg_path(), "-loglevel", "error", "-i", fixtures_dir / "demo-yes.wav", "-f", "flac", "pipe:1"]
    flac = await asyncio.to_thread(subprocess.run, command, capture_output=True, check=True, env=ffmpeg_environment())
    async with nothing_left(poor):
        wires = []
        for number in range(11):  # each has a connection, and an ffmpeg with three pipes
            wire = await Wire.open(poor.url)
            await wire.head("PUT", f"/live/{number}/source?pipeline=whisper-demo", "Transfer-Encoding: chunked")
            await wire.chunk(flac.stdout[:6000])
            wires.append(wire)
        await until(lambda: "Too many open files" in poor.text, 5)
        for wire in wires:
            wire.reset()


async def test_clocks_that_jump(serving, monkeypatch):
    class Upper:
        async def process(self, frame):
            return frame.upper()

    api = await serving(Upper(), idle_seconds=60.0, linger_seconds=60.0)
    assert (await api.put("job", b"before"))[0] == 200
    real = time.time
    for jump in (86_400.0, -86_400.0 * 365):
        monkeypatch.setattr(time, "time", lambda jump=jump: real() + jump)
        assert (await api.put("job", b"after"))[0] == 200
        await until(lambda: api.table.get("job").results.unread)
        assert not api.table.get("job").results.ended
    await api.end("job")
    assert [each["type"] for each in await api.records("job")] == ["result"] * 3 + ["end"]
