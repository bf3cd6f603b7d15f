"""Programs as children: killed with what they started, reaped, without a pipe left open, however their owner leaves."""

import asyncio
import os
import signal
from pathlib import Path

import pytest

from tests.waiting import until
from whisper_byoc import process
from whisper_byoc.process import Program, output_of

FAMILY = ("sh", "-c", "sleep 600 & echo $! $$; wait")
"""Prints the process ids of its child and of itself."""


def runs(pid):
    """Whether a process runs; one that was adopted by init may stay a zombie where init does not reap."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def descriptors():
    return set(Path("/proc/self/fd").iterdir())


async def family(program):
    return [int(each) for each in (await program.stdout.readline()).split()]


async def gone(child, leader):
    await until(lambda: not runs(child) and not Path(f"/proc/{leader}").exists())  # the leader is reaped too


async def test_output_of_a_program():
    assert await output_of(("sh", "-c", "cat; echo out; echo err >&2; exit 3"), 20) == (3, "out\nerr\n")
    assert await output_of(("sh", "-c", "echo $WHO"), 20, {"WHO": "me"}) == (0, "me\n")


async def test_a_program_that_takes_too_long_is_killed():
    before = descriptors()
    with pytest.raises(TimeoutError):
        await output_of(("sleep", "600"), 0.05)
    await until(lambda: descriptors() == before)


@pytest.mark.parametrize("command", ["/nowhere/x", "/"])
async def test_a_program_that_cannot_be_started_leaves_no_pipe(command):
    before = descriptors()
    with pytest.raises(OSError, match=command):
        async with Program((command,)):
            pass
    assert descriptors() == before


async def test_leaving_kills_the_program_and_its_children():
    before = descriptors()
    async with Program(FAMILY) as program:
        child, leader = await family(program)
        assert os.getsid(leader) == leader  # out of reach of a terminal's Ctrl-C
    await gone(child, leader)
    assert program.returncode == -9
    await until(lambda: descriptors() == before)
    await program.close()


async def test_a_cancelled_owner_leaves_no_process():
    before, pids = descriptors(), []

    async def owner():
        async with Program(FAMILY) as program:
            pids.extend(await family(program))
            await program.wait()

    owning = asyncio.create_task(owner())
    await until(lambda: pids)
    owning.cancel()
    await asyncio.wait({owning})
    assert owning.cancelled()
    await gone(*pids)
    await until(lambda: descriptors() == before)


async def test_cancelling_its_end_does_not_undo_it():
    before = descriptors()
    program = Program(FAMILY)
    await program.start()
    pids = await family(program)
    closing = asyncio.create_task(program.close())
    asyncio.get_running_loop().call_soon(closing.cancel)
    await asyncio.wait({closing})
    assert closing.cancelled()
    await gone(*pids)
    await until(lambda: descriptors() == before)


async def test_output_that_nobody_reads_does_not_hold_up_its_end():
    async with Program(("cat", "/dev/zero")) as program:
        await program.stdout.readexactly(1)


async def test_the_end_of_the_program_is_not_that_of_its_output():
    async with Program(("sh", "-c", "sleep 600 & exit 5")) as program:
        assert await program.wait(20) == 5


async def test_a_process_that_left_the_session_cannot_hold_up_its_end(monkeypatch, caplog):
    monkeypatch.setattr(process, "CLOSE_SECONDS", 0.1)
    async with Program(("sh", "-c", "setsid sh -c 'echo $$; exec sleep 600' & wait")) as program:
        pid = int(await program.stdout.readline())
    os.kill(pid, signal.SIGKILL)
    assert "left its session" in caplog.text


async def test_the_last_of_stderr_is_kept():
    async with Program(("sh", "-c", "head -c 300000 /dev/zero >&2; echo >&2; echo why >&2; echo >&2")) as program:
        assert await program.wait(20) == 0
    assert program.last_error == "why"
    async with Program(("true",)) as program:
        await program.wait(20)
    assert program.last_error == ""


async def test_a_polite_end():
    async with Program(("sh", "-c", "trap 'exit 7' TERM; echo ok; while :; do sleep 0.01; done")) as program:
        await program.stdout.readline()
        with pytest.raises(TimeoutError):
            await program.wait(0)
        program.terminate()
        assert await program.wait(20) == 7
        program.terminate()
