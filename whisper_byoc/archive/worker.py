"""One engine that makes text of whole recordings: in this process, in one of its own, or an actor of a Ray cluster."""

import asyncio
import itertools
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping
from contextlib import aclosing, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from audio.errors import AudioError
from audio.pcm import SAMPLE_RATE, SAMPLE_WIDTH
from whisper_byoc import __version__
from whisper_byoc.archive.sources import local_copy, shown
from whisper_byoc.errors import ByocError, UsageError
from whisper_byoc.processors.base import JobInfo, Share
from whisper_byoc.processors.whisper import WhisperProcessor, WhisperSettings


@dataclass(frozen=True)
class Recipe:
    """What a worker needs to know; it is sent to other processes and machines."""

    model: str
    settings: WhisperSettings
    params: Mapping[str, str]
    """Parameters of a job."""
    read: Callable[[Path], Iterator[bytes]]
    """Reads a file as blocks of PCM16, 16 kHz mono; raises `AudioError` or `UsageError`."""


@dataclass(frozen=True)
class Outcome:
    """What came of a recording."""

    seconds: float = 0.0
    """Of sound."""
    records: tuple[Mapping[str, Any], ...] = ()
    """The `transcript` records."""
    reason: str = ""
    """Why there is no text, or not all of it."""


class WorkerDied(ByocError):
    """The process of a worker has ended. `blamed`: perhaps through what it was given, not with its machine."""

    def __init__(self, message: str, *, blamed: bool = True) -> None:
        super().__init__(message)
        self.blamed = blamed


class Hired(Protocol):
    """A worker that has loaded its model."""

    async def transcribe(self, place: str, share: Share) -> Outcome:
        """Transcribe one recording, or a share of it. Raises `WorkerDied`."""

    def dismiss(self) -> None:
        """End it at once, whatever it does."""


class Pool(Protocol):
    """Where workers come from, within `async with`."""

    async def size(self) -> int:
        """Return how many workers there is room for now, at least 1. Raises `ByocError` where that cannot be known."""

    async def hire(self) -> Hired:
        """Start a worker; waits while there is no room. Raises `WorkerDied`, or why its model does not load."""


class Worker:
    """Has the engine. It does one recording at a time, whose utterances go through the engine together."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._processor = WhisperProcessor(recipe.model, recipe.settings)

    async def start(self) -> str:
        """Load the model, and return the release of this package."""
        await self._processor.initialize()
        self._processor.options(self._recipe.params)  # a value that cannot be is said before a file is read
        return __version__

    async def transcribe(self, place: str, share: Share = (0, 1)) -> Outcome:
        """Transcribe one recording, or a share of it; whatever is wrong with it is told in the outcome."""
        try:
            return await self._transcribe(place, share)
        except (AudioError, ByocError) as error:
            return Outcome(reason=str(error))
        except Exception as error:
            return Outcome(reason=f"this is a bug: {type(error).__name__}: {error}")

    async def _transcribe(self, place: str, share: Share) -> Outcome:
        copying = local_copy(place)
        path = await asyncio.to_thread(copying.__enter__)
        size = 0

        def counted() -> Iterator[bytes]:
            nonlocal size
            for block in self._recipe.read(path):
                size += len(block)
                yield block

        job = JobInfo(path.name, "transcribe", self._recipe.params, recording=True, share=share)
        try:
            async with aclosing(records_of(self._processor, counted(), job)) as found:
                records = [each async for each in found if each["type"] != "end"]
        except (AudioError, UsageError) as error:
            return Outcome(reason=str(error).replace(str(path), shown(place)))
        finally:
            await asyncio.to_thread(copying.__exit__, None, None, None)
        errors = [str(each["error"]) for each in records if each["type"] == "error"]
        return Outcome(size / (SAMPLE_RATE * SAMPLE_WIDTH), tuple(records), "; ".join(errors[:3]))


async def records_of(
    processor: WhisperProcessor, sound: Iterable[bytes], job: JobInfo
) -> AsyncGenerator[Mapping[str, Any], None]:
    """Transcribe blocks of PCM16 as the server does, and yield each record when its text is there.

    A stretch of speech without a text has a record of the type `error`. The last one is of the type `end`.
    """
    seq = itertools.count()
    with closing(processor.open_session(job)) as session:
        for block in itertools.chain(sound, (None,)):
            for result in await (session.finish() if block is None else session.feed_live(block, 0.0)):
                yield {"seq": next(seq), **(result.record or {"type": "error", "error": result.error})}
        yield {"type": "end", "seq": next(seq), **session.summary()}
