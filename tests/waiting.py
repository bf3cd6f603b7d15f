"""For what another task, connection or process brings about, at a moment that a test cannot know."""

import asyncio
import inspect


async def until(condition, seconds=60.0):
    """Wait until it holds, which a coroutine may find out."""
    for _ in range(int(seconds / 0.005)):
        holds = condition()
        if await holds if inspect.isawaitable(holds) else holds:
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it did not happen")


async def forever():
    """Wait for what never happens: a peer, a source or a processor that hangs."""
    await asyncio.Event().wait()
