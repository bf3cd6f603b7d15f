"""The server's own life: how it starts, sweeps and stops."""

import asyncio
import contextlib

from tests.waiting import until
from whisper_byoc.trickle import TrickleLimits, TrickleServer


async def test_a_sweep_that_fails_is_not_the_last_one(caplog):
    class Failing(TrickleServer):
        sweeps = 0

        def sweep(self):
            self.sweeps += 1
            if self.sweeps == 1:
                raise RuntimeError("a defect")

    async with Failing(limits=TrickleLimits(sweep_seconds=0.001)) as server:
        await until(lambda: server.sweeps > 1)
    assert "a defect" in caplog.text


async def test_who_is_cancelled_while_the_server_stops_is_cancelled():
    server = TrickleServer()
    await server.start()
    server.create("ch")
    await asyncio.sleep(0)
    stopping = asyncio.create_task(server.stop())
    await asyncio.sleep(0)
    stopping.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await stopping
    assert stopping.cancelled()
    assert not server.channels
