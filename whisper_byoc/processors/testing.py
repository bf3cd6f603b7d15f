"""For testing processors: the results that a session makes of frames, without a server."""

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from whisper_byoc.processors.base import JobInfo, Process, Processor, Result, as_processor, check_results, session_of


async def results_of(
    processor: Processor | Process, frames: Iterable[bytes], params: Mapping[str, Any] | None = None
) -> list[Result]:
    """Return the results of one job with these frames and parameters, from `initialize` to `shutdown`.

    Raises what the processor raises, and `ProcessorError` for results that the server would not accept.
    """
    made = as_processor(processor)
    await _call(made, "initialize")
    try:
        session = session_of(made, JobInfo("test", type(made).__name__, dict(params or {})))
        results = [result for frame in frames for result in check_results(await session.feed(frame))]
        return [*results, *check_results(await session.finish())]
    finally:
        await _call(made, "shutdown")


async def _call(processor: Processor, name: str) -> None:
    if (method := getattr(processor, name, None)) is not None and inspect.isawaitable(outcome := method()):
        await outcome
