"""Children that live and die together; `tests/e2e/test_up.py` has them as `up` runs them."""

import asyncio
import os
import signal

import pytest

from whisper_byoc.cli.processes import Processes
from whisper_byoc.errors import StartError

SERVE = ("serve", "--pipeline", "passthrough", "--host", "127.0.0.1", "--port", "0")


async def test_a_child_that_does_not_end_is_killed_and_the_log_says_so():
    log = []
    async with Processes(lambda name, line: log.append((name, line)), 0.2) as processes:
        assert await processes.start("first", *SERVE) > 0
        (child,) = processes._children
        os.kill(child._process.pid, signal.SIGSTOP)
    assert log[-1] == ("first", "(killed: it had not ended within 0.2 s)")
    assert child._process.returncode == -signal.SIGKILL


async def test_a_command_that_ends_before_it_listens_is_told_with_its_last_words():
    async with Processes(lambda *_: None, 5) as processes:
        with pytest.raises(StartError, match=r"^the second ended with exit code 2: model not found: .*'nonsense'"):
            await processes.start("second", "serve", "--pipeline", "nonsense")


async def test_the_first_death_is_named_and_the_others_end():
    async with Processes(lambda *_: None, 10) as processes:
        for name in ("one", "two"):
            await processes.start(name, *SERVE)
        one, two = processes._children
        two.kill()
        with pytest.raises(StartError, match=r"^the two ended with signal SIGKILL: "):
            await asyncio.wait_for(processes.any_death(), 10)
        assert not one.ended.done()
    assert one._process.returncode == 0
