"""The served processors: their names, their states, and how their code is called."""

import asyncio
import inspect
import itertools
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from enum import Enum
from typing import Any

from whisper_byoc.aio import Changed
from whisper_byoc.errors import ByocError, RequestRefused, StartError
from whisper_byoc.processors.base import Capacity, JobInfo, Media, Processor, Session, session_of
from whisper_byoc.server.core.exits import exits_contained

log = logging.getLogger(__name__)

ANSWER_SECONDS = 0.5
"""Longest wait for a processor's `trouble`; health checks allow one second."""
STUCK_SECONDS = 300.0
"""A call of a processor that takes this long is reported as stuck."""
SERVER_PARAMS = frozenset(
    {
        *("channels", "data_format", "encoding", "height", "input", "max_framerate"),
        *("model", "partials", "pipeline", "rate", "sentences", "width"),
    }
)
"""Parameters that the server itself reads from a query or a stream's start; no processor has to declare them."""


ANY_SPEECH = ("", "whisper-1")
"""`whisper-1` is what OpenAI clients send when they want any Whisper there is."""
SESSION_METHODS = ("feed", "finish", "summary")
LIVE_METHODS = ("feed_live", "when_ready", "ready", "flush", "end_feed", "close")


class PipelineState(Enum):
    LOADING = "loading"
    READY = "ready"
    FAILED = "failed"


class Caller:
    """Calls a processor's functions and coroutine functions on its author's event loop; by default on the running one.

    All of the author's code runs there: none of it has to be thread-safe, and on its own loop it cannot block the
    server.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop | None = None) -> None:
        self._loop = loop
        self._numbers = itertools.count()
        self._since: dict[int, float] = {}

    async def __call__(self, function: Callable[..., Any], *arguments: Any) -> Any:
        work = self._run(function, arguments)
        if self._loop is None:
            return await work
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))

    async def _run(self, function: Callable[..., Any], arguments: Iterable[Any]) -> Any:
        number = next(self._numbers)
        self._since[number] = time.monotonic()
        try:
            with exits_contained():
                result = function(*arguments)
                return await result if inspect.isawaitable(result) else result
        finally:
            del self._since[number]

    def longest(self) -> float:
        """Return the age of the oldest unfinished call, in seconds; 0 if there is none."""
        now = time.monotonic()
        return now - min(list(self._since.values()), default=now)


class Pipeline:
    """One processor under the name that clients ask for. `loop` is the event loop that its code needs, if any."""

    def __init__(self, name: str, processor: Processor, loop: asyncio.AbstractEventLoop | None = None) -> None:
        self.name = name
        self.state = PipelineState.LOADING
        self.call = Caller(loop)
        self._processor = processor
        self._changed = Changed()

    @property
    def media(self) -> Media:
        return getattr(self._processor, "media", "bytes")

    @property
    def live(self) -> bool:
        """Whether its sessions take a live feed in pieces of any size (`LiveSession`)."""
        return bool(getattr(self._processor, "live", False))

    @property
    def content_type(self) -> str:
        return str(getattr(self._processor, "content_type", "application/octet-stream"))

    @property
    def notice(self) -> str:
        """What its users should know, in one sentence; empty if nothing."""
        notice = getattr(self._processor, "notice", "")
        return notice if isinstance(notice, str) else ""

    @property
    def capacity(self) -> Capacity | None:
        """How much work it can do in time; None when it does not say or is not ready."""
        ask = getattr(self._processor, "capacity", None)
        if not callable(ask) or self.state is not PipelineState.READY:
            return None
        try:
            found = ask()
        except Exception as error:
            log.warning("pipeline %s cannot tell its capacity: %s: %s", self.name, type(error).__name__, error)
            return None
        return found if isinstance(found, Capacity) else None

    @property
    def gives_text(self) -> bool:
        return self.content_type.startswith("text/")

    def unknown_params(self, names: Iterable[str]) -> list[str]:
        """Return the names that nobody reads; none if the processor has its own sessions and declares no names."""
        declared = getattr(self._processor, "params", None)
        if declared is None and hasattr(self._processor, "open_session"):
            return []
        return sorted(set(names) - SERVER_PARAMS - set(declared or ()))

    async def trouble(self) -> str | None:
        """Return one sentence if the processor says that it is broken or one call takes too long; else None."""
        if self.state is not PipelineState.READY:
            return None
        sentence: str | None = None
        try:
            if (ask := getattr(self._processor, "trouble", None)) is not None:
                async with asyncio.timeout(ANSWER_SECONDS):
                    sentence = await self.call(ask)
        except TimeoutError:
            log.debug("pipeline %s: its event loop is blocked", self.name)  # by a call that is long, or will be
        except Exception as error:
            return f"it cannot tell how it is: {type(error).__name__}: {error}"
        longest = self.call.longest()
        if sentence is None and longest > STUCK_SECONDS:
            return f"the processor has been working on one frame for {longest:.0f} s"
        return sentence

    async def start(self, timeout: float) -> None:
        """Initialize the processor.

        Raises `StartError` when it fails or takes longer than `timeout` seconds.
        """
        initialize, state = getattr(self._processor, "initialize", None), PipelineState.FAILED
        try:
            if initialize is not None:
                async with asyncio.timeout(timeout):
                    await self.call(initialize)
            state = PipelineState.READY
        except TimeoutError:
            raise StartError(f"pipeline {self.name} did not initialize within {timeout:.0f} s") from None
        except ByocError:
            raise
        except Exception as error:
            log.exception("pipeline %s failed to initialize", self.name)
            message = f"pipeline {self.name} failed to initialize: {type(error).__name__}: {error}"
            raise StartError(message) from error
        finally:
            self.state = state
            self._changed.notify()

    async def wait_ready(self, timeout: float) -> bool:
        """Wait until the pipeline is loaded; return False if loading failed or took longer than `timeout` seconds."""
        await self._changed.until(lambda: self.state is not PipelineState.LOADING, timeout)
        return self.state is PipelineState.READY

    async def open_session(self, job: JobInfo) -> Session:
        """Open this pipeline's side of a job.

        Raises whatever the processor raises, and `RequestRefused` (500) for a session that lacks a method.
        """
        session: Session = await self.call(session_of, self._processor, job)
        methods = (*SESSION_METHODS, *LIVE_METHODS) if self.live else SESSION_METHODS
        if missing := [name for name in methods if not callable(getattr(session, name, None))]:
            kind = type(session).__name__
            raise RequestRefused(500, f"pipeline {self.name}: its session, a {kind}, has no {', '.join(missing)}")
        return session

    async def stop(self, timeout: float) -> None:
        """Shut the processor down; only log errors, as nobody is left to act on them."""
        shutdown = getattr(self._processor, "shutdown", None)
        if shutdown is None:
            return
        try:
            async with asyncio.timeout(timeout):
                await self.call(shutdown)
        except TimeoutError:
            log.warning("pipeline %s did not shut down within %.0f s", self.name, timeout)
        except Exception:
            log.exception("pipeline %s failed to shut down", self.name)


class Pipelines:
    """The pipelines of one server, by the names that clients ask for.

    `capability`, the name by which orchestrators know this container, is another name for the first pipeline.
    """

    def __init__(self, pipelines: Iterable[Pipeline], capability: str = "") -> None:
        self._all = tuple(pipelines)
        self._named = {each.name: each for each in self._all}
        if capability:
            self._named.setdefault(capability, self.first)

    def __iter__(self) -> Iterator[Pipeline]:
        return iter(self._all)

    @property
    def first(self) -> Pipeline:
        return self._all[0]

    @property
    def names(self) -> list[str]:
        return [each.name for each in self._all]

    def status(self, *, busy: bool) -> str:
        """Return the overall state in pytrickle's words: ERROR, LOADING, OK (`busy`) or IDLE."""
        states = {pipeline.state for pipeline in self._all}
        if PipelineState.FAILED in states:
            return "ERROR"
        return "LOADING" if PipelineState.LOADING in states else "OK" if busy else "IDLE"

    def find(self, name: str) -> Pipeline | None:
        return self._named.get(name)

    @property
    def speech(self) -> list[Pipeline]:
        """The pipelines that turn sound into text."""
        return [each for each in self._all if each.media == "audio" and each.gives_text]

    def find_speech(self, name: str = "", others: tuple[str, ...] = ()) -> Pipeline:
        """Return a pipeline that turns sound into text, by its name or its model's; without a name, the first.

        The first also stands for a name that no pipeline has and that begins with one of `others`: another service's
        models. Raises `RequestRefused` (404), listing the names there are.
        """
        speech = self.speech
        if (name in ANY_SPEECH or (name.startswith(others) and self.find(name) is None)) and speech:
            return speech[0]
        model = name.removeprefix("openai/").removeprefix("Systran/faster-")  # Hugging Face's names for these weights
        for known in (name, model, f"whisper-{model}"):
            pipeline = self.find(known)
            if pipeline is not None and pipeline in speech:
                return pipeline
        wanted = repr(name[:100]) if name else "there is none for speech"
        names = ", ".join(each.name for each in speech) or "-"
        raise RequestRefused(
            404, f"model not found: {wanted}; this container's speech pipelines: {names}", param="model"
        )
