"""What the server requires of a processor, and the adapter for processors without sessions of their own.

A processor is any object with `async process(frame: bytes) -> bytes` (or `str`), or such a function. Everything else
is optional: `initialize` and `shutdown`, the attributes of `FrameProcessor`, `open_session` for memory between the
frames of one job, `params` with the names of the parameters that its sessions read (a warning then names any others),
`trouble` to tell the health routes what is wrong, `notice` with a sentence that its users should know, and `capacity`,
called in the server's thread, which returns at once a `Capacity` by which the server decides how much work to accept.
"""

import inspect
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, cast, runtime_checkable

from whisper_byoc.errors import ProcessorError

Media = Literal["audio", "video", "bytes"]
"""How a live feed is cut: at quiet points, by frame size, or not at all."""
Share = tuple[int, int]
"""The number of a share, from 0, and how many there are: (1, 3) is every third utterance, starting with the second."""


@dataclass(frozen=True)
class JobInfo:
    """What a session may know about its job."""

    job_id: str
    pipeline: str
    params: Mapping[str, Any] = field(default_factory=dict)
    """What the client asked for when it opened the job, such as `language`."""
    recording: bool = False
    """Whether its sound is fed as fast as it is accepted, with nobody waiting for the first words."""
    share: Share = (0, 1)
    """Which of a recording's utterances to transcribe, if the session divides sound into utterances."""


@dataclass(frozen=True)
class Capacity:
    """How much work a processor can do in time, by its current measurement; shown by `/health`."""

    live: int
    """How many live jobs it can do at once."""
    recording_rate: float
    """Seconds of recordings done per second, alongside the current live jobs."""
    late: bool
    """Whether live results wait so long that no more live jobs should be accepted, however many fit."""
    lag: float
    """Recent mean time, in seconds, from when a live result could have been begun to when it was ready."""
    cost: float
    """Worker seconds per second of live input."""
    load: float
    """Share of the workers' time that live work took recently, from 0 to 1."""
    workers: int
    threads: int
    """CPU threads of each worker."""


@dataclass(frozen=True)
class Result:
    """One outcome of a session: the exact bytes for readers, and the record for followers."""

    body: bytes
    record: Mapping[str, Any] | None = None
    """Fields of the JSON record (`type`, `text`, …) without `job_id` and `seq`; None: made from `body`."""
    partial: bool = False
    """Whether the next result replaces it. Only followers of records see it, and it may be left out."""
    error: str = ""
    """Why there is no result here: becomes an error record."""
    lag_ms: float | None = None
    """For live input: milliseconds since the arrival of the last sound that it covers."""


@runtime_checkable
class Processor(Protocol):
    """The one thing a processor must have."""

    async def process(self, frame: bytes) -> bytes | str:
        """Turn one frame or segment into its result."""


Process = Callable[[bytes], Coroutine[Any, Any, bytes | str]]
"""What a plain async function must be to serve as a processor."""


class FunctionProcessor:
    """A plain async function as a processor. If it is declared to return `str`, its results are sent as text."""

    def __init__(self, function: Process) -> None:
        self.process = function
        self.__name__ = function.__name__
        gives_text = inspect.get_annotations(function).get("return") in (str, "str")
        self.content_type = "text/plain; charset=utf-8" if gives_text else "application/octet-stream"


def as_processor(given: Processor | Process) -> Processor:
    """Return a processor as it is, and a plain async function as one."""
    return cast("Processor", FunctionProcessor(given) if inspect.iscoroutinefunction(given) else given)


class Session(Protocol):
    """One job's side of a processor. Calls never overlap.

    It may also have `update(params)`, which is called when the client changes parameters mid-stream and raises
    `UsageError` for impossible values.
    """

    async def feed(self, frame: bytes) -> list[Result]:
        """Take one segment, and return the results that are ready.

        Raises `SegmentError` when this segment cannot have a result.
        """

    async def finish(self) -> list[Result]:
        """Return what is still held back; called once, after the last `feed`."""

    def summary(self) -> Mapping[str, Any]:
        """Return fields for the job's `end` record; `warnings`, a list of sentences, are left out if it has errors."""


@runtime_checkable
class LiveSession(Protocol):
    """What a session has in addition if its processor has `live = True`."""

    async def feed_live(self, piece: bytes, arrived: float) -> list[Result]:
        """Take the next piece of a live feed, cut anywhere; `arrived` is event loop time."""

    def when_ready(self, callback: Callable[[], None]) -> None:
        """Call `callback` each time `ready` has something to return. Set once, before the first piece."""

    async def ready(self) -> list[Result]:
        """Return the results that are ready between two pieces."""

    async def flush(self) -> list[Result]:
        """Return the results of what has come so far: nothing has come for a while, but the feed goes on."""

    async def end_feed(self) -> list[Result]:
        """Return what is left of a live feed: a whole segment comes next."""

    def close(self) -> None:
        """Cancel the work in progress: its results are no longer wanted."""


class FrameProcessor:
    """A convenient base: everything optional has a default, `process` is yours to write."""

    media: Media = "bytes"
    content_type: str = "application/octet-stream"

    async def initialize(self) -> None:
        """Load what `process` needs; called once, before the first frame."""

    async def process(self, frame: bytes) -> bytes | str:
        """Turn one frame (never empty) into its result."""
        raise NotImplementedError(f"{type(self).__name__} must define: async def process(self, frame: bytes) -> bytes")

    async def shutdown(self) -> None:
        """Free what `initialize` took; called once, when the container stops."""


class PlainSession:
    """Adapts `process` to a session: one frame in, one result out, remembering only how many."""

    def __init__(self, processor: Processor) -> None:
        self._processor = processor
        self._results = 0

    async def feed(self, frame: bytes) -> list[Result]:
        body = await self._processor.process(frame)
        if isinstance(body, str):
            result = Result(body.encode("utf-8", "replace"), {"type": "result", "text": body})
        elif isinstance(body, (bytes, bytearray, memoryview)):
            result = Result(bytes(body))
        else:
            name = type(self._processor).__name__
            raise ProcessorError(f"{name}.process must return bytes or a str, but it returned {type(body).__name__}")
        self._results += 1
        return [result]

    async def finish(self) -> list[Result]:
        return []

    def summary(self) -> Mapping[str, Any]:
        return {"results": self._results}


def session_of(processor: Processor, job: JobInfo) -> Session:
    """Open the processor's own session for `job`, or the plain adapter if it has none.

    Raises `UsageError`, `BadSegment` or `RequestRefused` when the session does not accept `job.params`.
    """
    open_session = getattr(processor, "open_session", None)
    return cast("Session", open_session(job)) if open_session is not None else PlainSession(processor)


def check_results(results: object) -> list[Result]:
    """Return what a session returned; raise `ProcessorError` for anything but `Result`s of bytes and mappings."""
    if not isinstance(results, (list, tuple)):
        raise ProcessorError(f"the session must return a list of Result, but it returned {type(results).__name__}")
    for each in results:
        if not isinstance(each, Result):
            raise ProcessorError(f"the session must return a list of Result, but {type(each).__name__} is in it")
        if not isinstance(each.body, bytes):
            raise ProcessorError(f"the body of a Result must be bytes, but it is {type(each.body).__name__}")
        if not (each.record is None or isinstance(each.record, Mapping)):
            raise ProcessorError(f"the record of a Result must be a mapping, but it is {type(each.record).__name__}")
    return list(results)
