"""The first signal stops in order, the second one at once."""

import asyncio
import os
import signal

import pytest

from whisper_byoc.signals import stop_on_signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_the_first_signal_stops_and_the_second_has_its_usual_effect(number):
    loop = asyncio.get_running_loop()
    stop = stop_on_signals()
    os.kill(os.getpid(), number)
    await asyncio.wait_for(stop.wait(), 10)
    assert not loop.remove_signal_handler(signal.SIGTERM)
    assert not loop.remove_signal_handler(signal.SIGINT)
