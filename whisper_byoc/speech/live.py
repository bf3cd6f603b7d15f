"""The text of one live stream: partial while somebody speaks, final when an utterance has ended."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from audio.pcm import SAMPLE_RATE
from audio.utterances import SplitterOptions, Utterance, UtteranceSplitter
from whisper_byoc.speech.engine import DecodeOptions, Draft, Dropped
from whisper_byoc.speech.language import LanguageChoice
from whisper_byoc.speech.partials import POLICIES, Policy
from whisper_byoc.speech.scheduler import Timed
from whisper_byoc.speech.transcript import Transcription

__all__ = ["LiveOptions", "LiveText", "Model", "Update"]

log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True)
class LiveOptions:
    """How live text is made. Times in seconds."""

    partials: bool = False
    """Whether partial text is wanted."""
    policy: str = "attention"
    """Which words of a draft are shown (`partials.POLICIES`)."""
    first_after: float = 0.45
    """A first draft is made of so much sound from where speech began …"""
    every: float = 0.4
    """… and the next one when so much more has come, at the earliest; half of it while no word is shown yet."""
    listening: SplitterOptions = field(default_factory=SplitterOptions)


@dataclass(frozen=True)
class Update:
    """One piece of text of a stream."""

    utterance: Utterance
    final: bool
    heard: Timed[Transcription] | None = None
    """The text with its times from the utterance's first sample, if it is final and nothing went wrong."""
    partial: str = ""
    """The text that can be shown so far, if it is not final."""
    language: str = "en"
    error: Exception | None = None
    """Why there is no final text."""
    queue_ms: float = 0.0
    inference_ms: float = 0.0


class Model(Protocol):
    """What is asked of a model; `Scheduler` has it."""

    async def transcribe(self, samples: NDArray[np.float32], options: DecodeOptions) -> Timed[Transcription]:
        """Transcribe an utterance."""
        ...

    async def draft(self, samples: NDArray[np.float32], options: DecodeOptions) -> Timed[Draft]:
        """Draft an utterance that goes on."""
        ...

    async def language_of(self, samples: NDArray[np.float32]) -> tuple[str, float]:
        """Name the language."""
        ...


class LiveText:
    """Listens to one stream. Calls never overlap; between them a draft or an early transcription may be at work.

    When somebody falls silent, the utterance is transcribed at once, while it is still being waited whether the
    silence is a pause or the end: if it is the end, the text is there already.
    """

    def __init__(
        self,
        model: Model,
        decoding: DecodeOptions,
        options: LiveOptions,
        splitter: UtteranceSplitter | None = None,
        tell: Callable[[], None] = lambda: None,
        language: LanguageChoice | None = None,
    ) -> None:
        """`tell` is called when a draft is done, so that `ready` can be asked for its text.

        `language` is what is known of the language already, where the stream is part of something longer.
        """
        self.options = options
        self._tell = tell
        self.splitter = splitter or UtteranceSplitter(options.listening)
        self._model = model
        self._decoding = decoding
        self._language = language or LanguageChoice(decoding.language)
        self._ended: deque[Utterance] = deque()
        self._found: list[Update] = []  # final text that waits for that of a later utterance
        self._behind = False
        self._listening: asyncio.Task[None] | None = None
        self._policy: Policy = POLICIES[options.policy]()
        self._drafted = 0  # position up to which the open utterance was drafted
        self._shown = ""
        self._drafting: tuple[Utterance, asyncio.Task[Timed[Draft]]] | None = None
        self._early: tuple[Utterance, asyncio.Task[Timed[Transcription]]] | None = None

    def update(self, decoding: DecodeOptions, options: LiveOptions, language: LanguageChoice | None = None) -> None:
        """Change options from now on."""
        if language is not None or decoding.language != self._decoding.language:
            self._language = language or LanguageChoice(decoding.language)
        self._decoding, self.options, self.splitter.options = decoding, options, options.listening
        if not options.partials:
            self._drop_draft()

    async def feed(self, data: bytes, *, behind: bool = False) -> list[Update]:
        """Take PCM16, and give the text that is ready; for a stream that is `behind`, nothing is done twice."""
        self._behind = behind
        await self._listen(lambda: self.splitter.feed(data))
        return [*await self._finals(), *self._partial()]

    def ready(self) -> list[Update]:
        """Give the text of a draft that is done, though no sound has come."""
        return self._partial() if self._listening is None or self._listening.done() else []

    async def lull(self) -> list[Update]:
        """Give the text of the utterance that is open: nothing has come for a while, and nothing may follow."""
        await self._listen(self.splitter.flush)
        return await self._finals()

    async def finish(self) -> list[Update]:
        """Give the text of what is left at the end of the stream."""
        await self._listen(self.splitter.finish)
        return await self._finals()

    def close(self) -> None:
        """Drop what is at work."""
        self._drop_draft()
        if self._early is not None:
            self._early[1].cancel()
        self._early = None

    async def _listen(self, listen: Callable[[], list[Utterance]]) -> None:
        """Have the splitter work in a thread; who is cancelled meanwhile cannot stop that, and the next one waits."""
        self._listening = spawn(self._listen_after(self._listening, listen))
        await asyncio.shield(self._listening)

    async def _listen_after(self, before: asyncio.Task[None] | None, listen: Callable[[], list[Utterance]]) -> None:
        if before is not None:
            await asyncio.wait({before})
        self._ended += await asyncio.to_thread(listen)

    async def _finals(self) -> list[Update]:
        """Give the text of all that has ended; who is cancelled meanwhile loses that of one utterance only."""
        while self._ended:
            self._forget_drafts()
            self._found.append(await self._final(self._ended.popleft()))
        found, self._found = self._found, []
        return found

    async def _final(self, utterance: Utterance) -> Update:
        """Transcribe an utterance that has ended, or take what was transcribed of it early."""
        early, self._early = self._early, None
        try:
            if early is not None and same(early[0], utterance):
                heard = await early[1]
            else:
                if early is not None:
                    early[1].cancel()
                heard = await self._transcribe(utterance)
        except Exception as error:  # one utterance has no text; the stream goes on
            return Update(utterance, True, error=error)
        return Update(utterance, True, heard, language=heard.value.language)

    async def _transcribe(self, utterance: Utterance) -> Timed[Transcription]:
        samples = floats(utterance)
        seconds = len(samples) / SAMPLE_RATE
        language = await self._language.choose(lambda: self._model.language_of(samples), utterance.number, seconds)
        return await self._model.transcribe(samples, replace(self._decoding, language=language))

    def _partial(self) -> list[Update]:
        """Collect a draft that is done, and begin what there is to begin."""
        current = self.splitter.open_utterance()
        if current is None or self._ended:  # the text of those comes first
            return []
        updates = self._collect(current)
        if self._early is not None and not same(self._early[0], current):  # more is being said
            self._early[1].cancel()
            self._early = None
        if self._behind:
            return updates
        if self.splitter.silence >= self.splitter.kept_silence:
            self._transcribe_early(current)
        elif self.options.partials:
            self._begin_draft(current)
        return updates

    def _collect(self, current: Utterance) -> list[Update]:
        if self._drafting is None or not self._drafting[1].done():
            return []
        (drafted, task), self._drafting = self._drafting, None
        if task.cancelled() or drafted.number != current.number:
            return []
        if isinstance(error := task.exception(), Dropped):
            self._drafted = 0  # as if it had not been begun
            return []
        if error:
            log.warning("a draft failed: %s", error)
            return []
        timed = task.result()
        text = self._policy.show(timed.value, len(drafted.samples) / SAMPLE_RATE)
        if not text or text == self._shown:
            return []
        self._shown = text
        return [Update(drafted, False, None, text, timed.value.language, None, timed.queue_ms, timed.inference_ms)]

    def _begin_draft(self, current: Utterance) -> None:
        """Draft the open utterance, one draft at a time: under load they come less often."""
        opening = self._samples(self.options.first_after)
        every = self.options.every if self._shown else self.options.every / 2
        due = max(current.speech_start + opening, self._drafted + self._samples(every))
        if self._drafting is not None or current.end < due:
            return
        options = replace(self._decoding, language=self._language.present)
        self._drafted = current.end
        task = spawn(self._model.draft(floats(current), options))
        task.add_done_callback(lambda done: done.cancelled() or self._tell())
        self._drafting = current, task

    def _transcribe_early(self, current: Utterance) -> None:
        """Transcribe the utterance as it will be if nothing more is said."""
        if self._early is None:
            self._early = current, spawn(self._transcribe(current))

    def _forget_drafts(self) -> None:
        """Begin anew for the next utterance."""
        self._drop_draft()
        self._policy, self._shown, self._drafted = POLICIES[self.options.policy](), "", 0

    def _drop_draft(self) -> None:
        if self._drafting is not None:
            self._drafting[1].cancel()
        self._drafting = None

    def _samples(self, seconds: float) -> int:
        return int(seconds * SAMPLE_RATE)


def spawn(work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    """Begin work that may be dropped; an error that nobody waits for any more is no news."""
    task = asyncio.get_running_loop().create_task(work)
    task.add_done_callback(lambda done: done.cancelled() or done.exception())
    return task


def same(one: Utterance, other: Utterance) -> bool:
    """Whether two utterances are the same sound."""
    return (one.first, one.end) == (other.first, other.end)


def floats(utterance: Utterance) -> NDArray[np.float32]:
    """Give an utterance's sound as float32 in [-1, 1)."""
    return utterance.samples.astype(np.float32) / np.float32(32768)
