"""Finds speech in all live streams of a process: one thread, and one model call for many chunks."""

import asyncio
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from audio.pcm import FULL_SCALE, SAMPLE_RATE
from audio.utterances import CHUNK, SplitterOptions
from whisper_byoc.aio import STOP_SECONDS
from whisper_byoc.errors import ProcessorError
from whisper_byoc.speech.step_watch import StepWatch

log = logging.getLogger(__name__)

CONTEXT = 64
"""Samples of the previous chunk that the model needs to see again."""
MEAN = 1024
"""The mean of this many samples up to and including each one is subtracted from it, a high-pass at some 10 Hz: a
constant offset is then neither a step at the beginning nor loud."""
STATE = 128
"""Size of the LSTM's hidden state, and of its cell."""

QUIET_PEAK = 0.1
"""Sound whose peaks stay below this fraction of full scale is amplified before it is rated …"""
PEAK_SECONDS = 0.5
"""A peak counts half as much after this time. A voice at 0.006 that follows one at 0.6 after 2 s is fully heard with
0.5 s, and not at all with 3 s; in 204 sounds without speech, no more speech is found."""
MAX_GAIN = 20.0
"""… by at most this factor. In a voice with peaks at 0.007 the model misses whole words; in noise that quiet it finds
no speech, however much it is amplified."""
PEAK_DECAY = 0.5 ** (CHUNK / SAMPLE_RATE / PEAK_SECONDS)
"""Decay of the peak from chunk to chunk."""

GATHER_SECONDS = 0.05
"""With several live streams, model calls begin this far apart, so that one call serves several streams. (An utterance
ends after 0.2 s of silence at least.)"""
CHUNKS_AT_ONCE = 512
"""Most chunks in one call, which then takes 5 ms."""
LOOK_CHUNKS = 32
"""One second, rated at a time while looking for speech."""
HANG_SECONDS = 10.0
"""A call that takes longer hangs."""

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Memory:
    """What the model remembers of B streams: float32, shape (B, 1, STATE) each; zeros at their beginning."""

    hidden: Floats
    cell: Floats


class Model(Protocol):
    """Rates the next T chunks of B streams: `speech.silero.Silero`."""

    def __call__(self, windows: Floats, memory: Memory) -> tuple[Floats, Memory]:
        """Take chunks after their contexts, (B, T, CONTEXT + CHUNK); return the probabilities of speech, (B, T)."""


class VoiceActivity:
    """A thread that rates the chunks of all streams. It is started once and stopped once."""

    def __init__(self, load: Callable[[], Model]) -> None:
        self._load = load
        self._changed = threading.Condition()
        self._waiting: deque[_Request] = deque()
        self._stopped = False
        self._thread: threading.Thread | None = None
        self._batch: list[_Request] = []  # what the thread is working on
        self._steps = StepWatch()

    async def start(self) -> None:
        """Load the model in a thread, and begin. Raises what `load` raises."""
        model = await asyncio.to_thread(self._load)
        self._begin(lambda: model)

    async def stop(self) -> None:
        """End the thread; whoever still waits for it gets a `ProcessorError`."""
        with self._changed:
            self._stopped = True
            self._changed.notify()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join, STOP_SECONDS)

    def stream(self) -> "VoiceStream":
        """Begin a stream."""
        return VoiceStream(self._put)

    def trouble(self) -> str | None:
        """Return one sentence when its thread seems to hang, else None."""
        with self._changed:
            self._watch()
            seconds = self._steps.seconds if self._steps.exceeds(1 / 2) else None
        return f"the detection of speech has been at one piece of sound for {seconds:.0f} s" if seconds else None

    def _begin(self, load: Callable[[], Model]) -> None:
        self._steps = StepWatch()
        self._thread = threading.Thread(target=self._run, args=(load, self._steps), name="voice-activity", daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        """Replace a thread that hangs or has ended; the streams whose sound it had get an error."""
        self._steps.look()
        if self._steps.exceeds() and not self._stopped:
            log.error("the detection of speech hangs; another thread takes its place")
            lost, self._batch = self._batch, []
            self._begin(self._load)
            _fail(lost, ProcessorError("the detection of speech hung, and began again"))
            _answer(lost)

    def _put(self, request: "_Request") -> None:
        with self._changed:
            if self._stopped:
                raise _stopped()
            self._watch()
            self._waiting.append(request)
            self._changed.notify()

    def _run(self, load: Callable[[], Model], steps: StepWatch) -> None:
        served: set[VoiceStream] = set()
        began = -math.inf
        try:
            model = load()
            while self._wait():
                self._gather(served, began + GATHER_SECONDS - time.monotonic())
                began = time.monotonic()
                served = self._serve(model, steps)
        finally:
            steps.begin(HANG_SECONDS)  # a thread that has ended is replaced like one that hangs
        if not self._given_up:
            rest = list(self._waiting)
            _fail(rest, _stopped())
            _answer(rest)

    def _serve(self, model: Model, steps: StepWatch) -> "set[VoiceStream]":
        """Rate the oldest request of each stream; return the live streams."""
        batch = self._take()
        try:
            for _ in _rate(model, batch):
                if self._given_up:
                    return set()
                steps.begin(HANG_SECONDS)
        except Exception as error:
            _fail(batch, error)
        with self._changed:
            if self._given_up:
                return set()
            self._batch = []
        steps.begin(None)
        _answer(batch)
        return {each.stream for each in batch if not each.whole}

    @property
    def _given_up(self) -> bool:
        return self._thread is not threading.current_thread()

    def _wait(self) -> bool:
        """Wait for work; return False when stopped, or when another thread has replaced this one."""
        with self._changed:
            while not self._waiting and not self._stopped and not self._given_up:
                self._changed.wait()
            return not self._stopped and not self._given_up

    def _gather(self, served: "set[VoiceStream]", seconds: float) -> None:
        """Wait for the streams last `served` to ask again, along with others; stop waiting if whole sound is queued."""

        def done() -> bool:
            there = {each.stream for each in self._waiting}
            return self._stopped or there >= served or any(each.whole for each in self._waiting)

        with self._changed:
            self._changed.wait_for(done, max(0.0, seconds))

    def _take(self) -> "list[_Request]":
        taken: dict[VoiceStream, _Request] = {}
        with self._changed:
            for each in self._waiting:
                taken.setdefault(each.stream, each)
            self._waiting = deque(each for each in self._waiting if taken[each.stream] is not each)
            self._batch = list(taken.values())
            return self._batch


class VoiceStream:
    """One stream: what the model remembers of it, and how loud it was."""

    def __init__(self, put: Callable[["_Request"], None]) -> None:
        self._put = put
        self.past: NDArray[np.int16] | None = None
        self.peak = np.float32(0)
        self.hidden: Floats = np.zeros((1, STATE), np.float32)
        self.cell: Floats = np.zeros((1, STATE), np.float32)

    def submit(
        self, chunks: NDArray[np.int16], tell: Callable[[Floats | Exception], None], *, whole: bool = False
    ) -> None:
        """Have the next chunks rated: int16, shape (n, CHUNK). With `whole` they are all there is, so they do not wait.

        `tell` is called on the running loop with their probabilities of speech, shape (n,), or with what the model
        raised; once per call, in order. Raises `ProcessorError` when the service has been stopped.
        """
        self._put(_Request(self, chunks, asyncio.get_running_loop(), tell, whole))

    async def rate(self, chunks: NDArray[np.int16], *, whole: bool = False) -> Floats:
        """Have the next chunks rated; return their probabilities. Cancelling this skips no chunk."""
        told: asyncio.Future[Floats | Exception] = asyncio.get_running_loop().create_future()
        self.submit(chunks, lambda found: None if told.done() else told.set_result(found), whole=whole)
        if isinstance(found := await told, Exception):
            raise found
        return found

    async def has_speech(self, samples: NDArray[np.int16]) -> bool:
        """Rate a piece of sound, int16 (n,), up to its first chunk of speech; return whether there is one."""
        if not samples.any():
            return False
        chunks = np.pad(samples, (0, -len(samples) % CHUNK), "symmetric").reshape(-1, CHUNK)
        for at in range(0, len(chunks), LOOK_CHUNKS):
            found = await self.rate(chunks[at : at + LOOK_CHUNKS], whole=True)
            if found.max() >= SplitterOptions().speech_threshold:
                return True
        return False

    def without_offset(self, chunks: NDArray[np.int16]) -> Floats:
        """Return the last CONTEXT samples and the next chunks, (n, CHUNK), without their moving mean."""
        past = np.full(MEAN + CONTEXT, chunks[0, 0]) if self.past is None else self.past
        sound = np.concatenate([past, chunks.ravel()])
        self.past = sound[-len(past) :]
        sums = np.cumsum(sound, dtype=np.int64)
        means = (sums[MEAN:] - sums[:-MEAN]) / MEAN
        return (sound[MEAN:] - means).astype(np.float32)


@dataclass(eq=False)
class _Request:
    stream: VoiceStream
    chunks: NDArray[np.int16]
    loop: asyncio.AbstractEventLoop
    tell: Callable[[Floats | Exception], None]
    whole: bool
    found: list[Floats] = field(default_factory=list)
    done: int = 0
    error: Exception | None = None

    @property
    def left(self) -> int:
        return len(self.chunks) - self.done


def _rate(model: Model, requests: list[_Request]) -> Iterator[None]:
    """Rate as many chunks of every stream as the one with the fewest has; then go on with those that have more."""
    while requests := [each for each in requests if each.left]:
        yield
        fewest = min(each.left for each in requests)
        _rate_next(model, requests, min(fewest, max(1, CHUNKS_AT_ONCE // len(requests))))


def _rate_next(model: Model, requests: list[_Request], number: int) -> None:
    streams = [each.stream for each in requests]
    windows = np.empty((len(requests), number, CONTEXT + CHUNK), np.float32)
    for row, request in zip(windows, requests, strict=True):
        chunks = request.chunks[request.done : request.done + number]
        row[:] = sliding_window_view(request.stream.without_offset(chunks), CONTEXT + CHUNK)[::CHUNK]
        request.done += number
    _amplify(windows, streams)
    memory = Memory(np.stack([each.hidden for each in streams]), np.stack([each.cell for each in streams]))
    found, memory = model(windows, memory)
    for place, request in enumerate(requests):
        request.stream.hidden, request.stream.cell = memory.hidden[place], memory.cell[place]
        request.found.append(found[place])


def _amplify(windows: Floats, streams: list[VoiceStream]) -> None:
    """Scale samples from int16 range to [-1, 1), and amplify those of quiet streams to where the model is sure."""
    levels = np.abs(windows[:, :, CONTEXT:]).max(2) * np.float32(1 / FULL_SCALE)
    peak = np.array([each.peak for each in streams], np.float32)
    for chunk in range(levels.shape[1]):
        peak = np.maximum(levels[:, chunk], peak * np.float32(PEAK_DECAY))
        levels[:, chunk] = peak
    for stream, last in zip(streams, peak, strict=True):
        stream.peak = last
    gains = QUIET_PEAK / np.clip(levels, QUIET_PEAK / MAX_GAIN, QUIET_PEAK)
    windows *= (gains * np.float32(1 / FULL_SCALE))[:, :, None]


def _fail(requests: list[_Request], error: Exception) -> None:
    for each in requests:
        each.error = error


def _answer(requests: list[_Request]) -> None:
    for loop in {each.loop for each in requests}:
        with suppress(RuntimeError):  # the loop is closed: nobody waits
            loop.call_soon_threadsafe(_tell, [each for each in requests if each.loop is loop])


def _tell(requests: list[_Request]) -> None:
    for each in requests:
        try:
            each.tell(each.error or np.concatenate(each.found or [np.zeros(0, np.float32)]))
        except Exception:  # the others must be told all the same
            log.exception("voice activity: a stream failed to go on")


def _stopped() -> ProcessorError:
    return ProcessorError("the detection of speech has been stopped")
