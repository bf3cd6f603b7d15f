"""`sys.exit` in a processor: an error of what was called, not the end of the server.

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
    """Raise `ProcessorError` where the code within asks for the end of the program; its tasks do so too.

    So for whatever else is no `Exception`, and nobody would catch, but for that by which asyncio ends tasks.
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
    """Let `exits_contained` reach the tasks that are made within it, on a loop without a task factory of its own."""
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
