"""`sys.exit` in a processor: an error of the call, not the end of the server.

asyncio ends the event loop, and with it the server, when a task raises `SystemExit` or `KeyboardInterrupt`.
"""

import asyncio
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from whisper_byoc.errors import ProcessorError

_contained: ContextVar[bool] = ContextVar("contained", default=False)


@contextmanager
def exits_contained() -> Iterator[None]:
    """Raise `ProcessorError` where the code within tries to end the program; so do the tasks it makes.

    The same for anything else that is not an `Exception`, which nobody would catch, except asyncio's cancellation.
    """
    token = _contained.set(True)
    try:
        yield
    except (SystemExit, KeyboardInterrupt) as error:
        raise ProcessorError(f"the processor tried to exit the program ({error!r})") from None
    except (Exception, asyncio.CancelledError, GeneratorExit):
        raise
    except BaseException as error:
        raise ProcessorError(f"the processor failed with {type(error).__name__}: {error}") from error
    finally:
        _contained.reset(token)


@contextmanager
def tasks_contained(loop: asyncio.AbstractEventLoop) -> Iterator[None]:
    """Extend `exits_contained` to the tasks made within it, on a loop that has no task factory of its own."""
    if loop.get_task_factory() is not None:
        yield
        return
    loop.set_task_factory(_make_task)
    try:
        yield
    finally:
        loop.set_task_factory(None)


def _make_task(loop: asyncio.AbstractEventLoop, work: Any, **options: Any) -> asyncio.Task[Any]:
    return asyncio.Task(_run(work) if _contained.get() else work, loop=loop, **options)


async def _run(work: Coroutine[Any, Any, Any]) -> Any:
    with exits_contained():
        return await work
