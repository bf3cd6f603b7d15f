"""The text of one live stream: partial while somebody speaks, final when an utterance has ended."""

import asyncio
import logging
import re
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, takewhile
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from audio import pcm
from audio.pcm import SAMPLE_RATE
from audio.utterances import CHUNK, Chunker, SplitterOptions, Utterance, UtteranceSplitter
from whisper_byoc.speech.engine import Cancelled, DecodeOptions, Draft, DraftWord, Samples
from whisper_byoc.speech.language import LanguageChoice
from whisper_byoc.speech.scheduler import Scheduler
from whisper_byoc.speech.sentence import Sentence
from whisper_byoc.speech.transcript import TextSegment, Transcription
from whisper_byoc.speech.workers import Timed

log = logging.getLogger(__name__)

T = TypeVar("T")

UNSTABLE_SECONDS = 1 / 3
"""A word that ends this close to the end of the sound may be half a word."""
UNSTABLE_END = re.compile(r"(?:\s*\S*-)?[.\u2026\u3002\s]*$")
"""In unfinished text: half a word, and the full stop or dots that the model puts where its sound ends."""


@dataclass(frozen=True)
class LiveOptions:
    """How live text is made. Times in seconds."""

    partials: bool = False
    """Whether partial text is wanted."""
    sentences: bool = True
    """Whether a sentence may span several utterances; otherwise the text of each stands alone."""
    policy: str = "attention"
    """Which words of a draft are shown: one of `POLICIES`."""
    first_draft_after: float = 0.45
    """Sound after the beginning of speech before the first draft is made."""
    draft_every: float = 0.4
    """Least sound between two drafts; half of that until a word is shown."""
    splitter: SplitterOptions = field(default_factory=SplitterOptions)
    together: int = 1
    """Utterances transcribed at once; with more than one it is a recording, and no text is made early."""
    share: tuple[int, int] = (0, 1)
    """Which utterances of a recording are transcribed: those whose number is the first, modulo the second."""

    @property
    def recording(self) -> bool:
        return self.together > 1


RECORDING = LiveOptions(
    splitter=SplitterOptions(
        pause=1.5, shortest_pause=0.2, full_pause_until=6.0, shortest_pause_from=24.0, post_roll=0.3, longest=26.5
    ),
    together=3,
)
"""Long utterances, in which the model has more context, but none that needs a window of 30 s."""


@dataclass(frozen=True)
class Update:
    """A new text of an utterance, or the reason why it has none."""

    utterance: Utterance
    """Its place in the stream; for a draft, as it was when the draft began."""
    is_final: bool
    result: Timed[Transcription] | None = None
    """The text, with its times from the utterance's first sample; None if there is an `error`."""
    error: Exception | None = None


class Voice(Protocol):
    """Finds speech in one stream: `speech.voice_activity.VoiceStream`."""

    def submit(self, chunks: NDArray[np.int16], tell: Callable[[Any], None]) -> None:
        """Have the next chunks rated, (n, CHUNK); `tell` gets their probabilities of speech, (n,), or an exception."""


class LiveTranscriber:
    """Makes text from one stream. Calls must not overlap; between them, drafts and early transcriptions go on.

    Text may continue the previous sentence, if there is time for that (`speech.sentence`): then the full stop of an
    utterance leads the next text, or comes as an update of its own.

    An early transcription begins when the speaker pauses, before the pause is long enough to end the utterance. If the
    speaker does not go on, the final text is ready at once.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        decoding: DecodeOptions,
        options: LiveOptions,
        language: LanguageChoice,
        voice: Voice,
        on_draft: Callable[[], None] = lambda: None,
    ) -> None:
        """`on_draft` is called when a draft is done, so that `ready` has its text.

        `language` replaces the one in `decoding`, and may outlive this stream. `voice` is this stream's own.
        """
        self.options = options
        self._chunker = Chunker()
        self._splitter = UtteranceSplitter(options.splitter)
        self._voice = voice
        self._on_draft = on_draft
        self._scheduler = scheduler
        self._decoding = decoding
        self._language = language
        self._ended: deque[Utterance] = deque()
        self._going: deque[asyncio.Task[list[Update]]] = deque()  # finals in progress, in the order of the utterances
        self._finals: list[Update] = []  # made, but not yet returned
        self._sentence = Sentence()
        self._unheard = 0  # pieces that are being rated
        self._all_heard: asyncio.Future[None] | None = None  # what the current call waits for
        self._rating_error: Exception | None = None  # not yet raised
        self._behind = False
        self._policy: Policy = POLICIES[options.policy]()
        self._drafted_until = 0  # position in the stream
        self._shown = ""
        self._guess: tuple[int, ...] = ()  # the tokens of the last draft
        self._draft: tuple[Utterance, asyncio.Task[Timed[Draft]]] | None = None
        self._early: tuple[Utterance, asyncio.Task[Timed[Transcription]]] | None = None

    @property
    def received(self) -> int:
        """Whole samples that have come in."""
        return self._chunker.received

    @property
    def pending(self) -> int:
        """Bytes waiting for the second half of their sample: 0 or 1."""
        return self._chunker.pending

    def update(self, decoding: DecodeOptions, options: LiveOptions, language: LanguageChoice) -> None:
        """Change options from now on."""
        self._decoding, self.options, self._language = decoding, options, language
        self._splitter.options = options.splitter
        if not options.partials:
            self._drop_draft()

    async def feed(self, data: bytes, *, behind: bool = False) -> list[Update]:
        """Take PCM16, cut anywhere, and return the text that is ready.

        `behind` means that sound comes faster than it can be transcribed: then only final text is made.
        """
        self._behind = behind
        self._hear(self._chunker.feed(data))
        await self._heard()
        finals = await self._transcribe_ended(wait=not self.options.recording)
        return [*finals, *self._end_sentence(), *self._take_partials()]

    def ready(self) -> list[Update]:
        """Return the text of a finished draft, although no sound has come."""
        return [] if self._unheard else self._take_partials()

    async def flush(self) -> list[Update]:
        """End the open utterance and return its text: nothing has come for a while, and nothing may follow."""
        await self._heard()
        self._end(self._splitter.flush())
        return [*await self._transcribe_ended(), *self._end_sentence(at_once=True)]

    async def finish(self) -> list[Update]:
        """Return the text of the rest at the end of the stream."""
        self._hear(self._chunker.finish())
        await self._heard()
        self._end(self._splitter.finish())
        return [*await self._transcribe_ended(), *self._end_sentence(at_once=True)]

    def close(self) -> None:
        """Cancel all work in progress."""
        self._drop_draft()
        self._drop_early()
        for task in self._going:
            task.cancel()

    def _hear(self, samples: NDArray[np.int16]) -> None:
        """Have samples rated and then split, both even if the call waiting for them is cancelled."""
        if len(samples):
            whole = samples if len(samples) % CHUNK == 0 else np.pad(samples, (0, -len(samples) % CHUNK), "symmetric")
            self._voice.submit(whole.reshape(-1, CHUNK), lambda found: self._split(samples, found))
            self._unheard += 1

    def _split(self, samples: NDArray[np.int16], found: Sequence[float] | Exception) -> None:
        if isinstance(found, Exception):
            self._rating_error = found
            found = [0.0] * -(-len(samples) // CHUNK)  # time goes on
        self._end(self._splitter.feed(samples, found))
        self._unheard -= 1
        if not self._unheard and self._all_heard is not None and not self._all_heard.done():
            self._all_heard.set_result(None)

    def _end(self, utterances: Iterable[Utterance]) -> None:
        number, count = self.options.share
        self._ended += (each for each in utterances if each.number % count == number)

    async def _heard(self) -> None:
        """Wait until all samples have been rated and split; raise why some could not be rated."""
        if self._unheard:
            self._all_heard = asyncio.get_running_loop().create_future()
            await self._all_heard
        error, self._rating_error = self._rating_error, None
        if error is not None:
            raise error

    async def _transcribe_ended(self, *, wait: bool = True) -> list[Update]:
        """Return the text of ended utterances: of all, or only of those that keep others waiting or are done.

        Cancelling this loses the text of at most one.
        """
        while self._ended or self._going:
            while self._ended and len(self._going) < self.options.together:
                self._drop_draft()
                guess, self._guess = self._guess, ()
                self._policy, self._shown, self._drafted_until = POLICIES[self.options.policy](), "", 0
                self._going.append(_start_task(self._final(self._ended.popleft(), guess)))
            if not (wait or self._ended or self._going[0].done()):
                break
            self._finals += await self._in_their_language(await self._going.popleft())
        finals, self._finals = self._finals, []
        return finals

    async def _final(self, utterance: Utterance, guess: tuple[int, ...]) -> list[Update]:
        """Return the text of an utterance, behind the end of the sentence before if a long pause lies between them."""
        early = self._early
        try:
            if early is not None and _same_sound(early[0], utterance):
                self._early = None
                result = await early[1]
            else:
                self._drop_early()
                result = await self._transcribe(utterance, guess)
        except Exception as error:  # this utterance has no text; the stream goes on
            stop = self._end_sentence(at_once=True)
            self._sentence.lose()
            return [*stop, Update(utterance, True, error=error)]
        if self.options.recording:
            return [Update(utterance, True, result)]
        stop = self._end_sentence(utterance.speech_start)
        hold = utterance.ended_by != "end" and self._goes_on
        return [
            *stop,
            Update(utterance, True, replace(result, value=self._sentence.add(utterance, result.value, hold=hold))),
        ]

    @property
    def _goes_on(self) -> bool:
        options = self.options
        return options.sentences and not options.recording and self._scheduler.continues(self._decoding)

    def _end_sentence(self, position: int | None = None, *, at_once: bool = False) -> list[Update]:
        """Return the full stop that was held back, if the pause before a position, or until now, is long."""
        if position is None:
            current = self._splitter.open_utterance()
            position = self.received if current is None else current.speech_start
        found = self._sentence.end(None if at_once else position)
        return [] if found is None else [Update(found[0], True, Timed(found[1], 0.0, 0.0))]

    async def _in_their_language(self, updates: list[Update]) -> list[Update]:
        """Transcribe again what was begun too early to know the language of the previous utterance."""
        *_, (utterance, result) = ((each.utterance, each.result) for each in updates)
        if self.options.recording and result is not None and not self._language.agrees(result.value):
            updates = await self._final(utterance, ())
            result = updates[-1].result
        if result is not None:
            self._language.heard(result.value)
        return updates

    async def _transcribe(self, utterance: Utterance, guess: tuple[int, ...]) -> Timed[Transcription]:
        options = replace(self._language.asked(self._decoding), guess=guess, pauses=_pauses(utterance))
        if self._goes_on:
            options = replace(options, before=self._sentence.before(utterance, self._language.likely))
        return await self._scheduler.transcribe(_as_floats(utterance), options, live=not self.options.recording)

    def _take_partials(self) -> list[Update]:
        """Return the text of a finished draft, and start what can be started for the open utterance."""
        current = self._splitter.open_utterance()
        if current is None or self._ended:  # their text comes first
            return []
        updates = self._take_draft(current)
        if self._early is not None and not _same_sound(self._early[0], current):  # the speaker went on
            self._drop_early()
        if self._behind or self.options.recording:
            return updates
        if self._splitter.silence >= self._splitter.kept_silence:
            if self._early is None:
                self._early = current, _start_task(self._transcribe(current, self._guess))
        elif self.options.partials:
            self._start_draft(current)
        return updates

    def _take_draft(self, current: Utterance) -> list[Update]:
        if self._draft is None or not self._draft[1].done():
            return []
        (utterance, task), self._draft = self._draft, None
        if task.cancelled() or utterance.number != current.number:
            return []
        if isinstance(error := task.exception(), Cancelled):
            self._drafted_until = 0  # as if it had not been started
            return []
        if error:
            log.warning("a draft failed: %s", error)
            return []
        draft = task.result()
        self._guess = draft.value.tokens
        seconds = len(utterance.samples) / SAMPLE_RATE
        text = UNSTABLE_END.sub("", self._policy.stable_text(heard_well(draft.value, seconds)))
        if not text or text == self._shown:
            return []
        self._shown = text
        segment = TextSegment(0.0, seconds, text, confidence=draft.value.confidence)
        partial = Transcription(text, draft.value.language, (segment,))
        return [Update(utterance, False, Timed(partial, draft.queue_ms, draft.inference_ms))]

    def _start_draft(self, current: Utterance) -> None:
        """Draft the open utterance if it is due and the scheduler has time: under load there are fewer drafts."""
        every = self.options.draft_every if self._shown else self.options.draft_every / 2
        due = max(
            current.speech_start + int(self.options.first_draft_after * SAMPLE_RATE),
            self._drafted_until + int(every * SAMPLE_RATE),
        )
        if self._draft is not None or current.end < due or not self._scheduler.may_draft:
            return
        options = replace(self._language.asked(self._decoding), guess=self._guess)
        self._drafted_until = current.end
        task = _start_task(self._scheduler.draft(_as_floats(current), options))
        task.add_done_callback(lambda done: done.cancelled() or self._on_draft())
        self._draft = current, task

    def _drop_draft(self) -> None:
        if self._draft is not None:
            self._draft[1].cancel()
        self._draft = None

    def _drop_early(self) -> None:
        if self._early is not None:
            self._early[1].cancel()
        self._early = None


class Policy(Protocol):
    """Decides which words of the drafts of one utterance can be shown."""

    def stable_text(self, draft: Draft) -> str:
        """Return the words at the beginning of a draft that are unlikely to change."""


class Attention:
    """All words that were heard well (the idea of AlignAtt)."""

    def stable_text(self, draft: Draft) -> str:
        return draft.text


class Agreement:
    """Words with which the last two drafts begin alike (LocalAgreement-2)."""

    def __init__(self) -> None:
        self._previous: tuple[DraftWord, ...] = ()

    def stable_text(self, draft: Draft) -> str:
        pairs = zip(draft.words, self._previous, strict=False)
        stable = tuple(new for new, _ in takewhile(lambda pair: pair[0].text == pair[1].text, pairs))
        self._previous = draft.words
        return Draft(stable, draft.language).text


POLICIES: Mapping[str, type[Attention] | type[Agreement]] = {"attention": Attention, "agreement": Agreement}


def heard_well(draft: Draft, seconds: float) -> Draft:
    """Return the words of a draft, of `seconds` of sound, that the decoder attended to well before its end."""
    return replace(draft, words=tuple(takewhile(lambda word: word.end <= seconds - UNSTABLE_SECONDS, draft.words)))


def _start_task(work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    """Start work that may be dropped: asyncio must not complain that its error was never retrieved."""
    task = asyncio.get_running_loop().create_task(work)
    task.add_done_callback(lambda done: done.cancelled() or done.exception())
    return task


def _same_sound(one: Utterance, other: Utterance) -> bool:
    return (one.first, one.end) == (other.first, other.end)


def _pauses(utterance: Utterance) -> list[tuple[float, float]]:
    """Return where nobody speaks, including before and after the speech, in seconds of the utterance's sound."""
    edges = utterance.first, utterance.speech_start, *chain(*utterance.pauses), utterance.speech_end, utterance.end
    seconds = [(position - utterance.first) / SAMPLE_RATE for position in edges]
    return [*zip(seconds[::2], seconds[1::2], strict=True)]


def _as_floats(utterance: Utterance) -> Samples:
    return pcm.decode(utterance.samples.data)
