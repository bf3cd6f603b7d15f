"""What work costs a model's workers, from a trial at the start and then measurement; and how much live speech fits.

The trial does the work of an utterance of `UTTERANCE_SECONDS`, alone and in a full batch. At first a second of live
sound is assumed to cost something in between, `Costs.expected`, and only as many streams are accepted as keep the
workers busy enough to measure it: forty streams were measured to cost 1.2 to 1.7 times what the trial says
(benchmarks/streams.py).

What busy workers measure is the cost of live sound. From workers with little to do, only lower costs count: beam
search, continued sentences and passes for a single text then cost several times as much as the same stream does among
forty. A few streams that are mostly silent say nothing about a crowd that speaks.
"""

import math
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np

from audio.pcm import SAMPLE_RATE
from whisper_byoc.speech.engine import Engine, Inference

UTTERANCE_SECONDS = 5.0
UTTERANCE_TOKENS = 20
"""Four per second, as for English speech with tiny.en, including the passes that begin and end a text."""
TRIED_TOKENS = 3
"""Tokens of each text in the trial."""
LIVE_SHARE = 0.7
"""Share of the workers' time for live text; without the rest, utterances that end together would wait too long."""
DRAFT_SHARE = 0.6
"""Share of the workers' time for live text and drafts together: drafts get what live text leaves of it."""
BUSY_SHARE = 0.5
"""Share of the workers' time spent on live text above which measurements show its cost under load. Until it has been
reached once, no more is promised to live text."""
SHARE_SECONDS = 5.0
"""Shares of time cover about this many of the last seconds."""
COST_SECONDS = 20.0
"""The same for costs: several utterances of each stream."""
ENOUGH_SECONDS = 10.0
"""Least sound from which a cost is known."""
LATE_SECONDS = 1.0
"""If live text waits longer than this for a worker on average, too much was accepted."""
RECORDING_SHARE = 0.1
"""Share of the workers' time that recordings can count on, whatever else there is."""


class Kind(Enum):
    """What a piece of work is for, most urgent first."""

    LIVE = "live"
    RECORDING = "recording"
    DRAFT = "draft"


@dataclass(frozen=True)
class Costs:
    """What the trial found, in worker seconds."""

    window: float
    """Cost of encoding an utterance of `UTTERANCE_SECONDS`; for an engine without steps, all of its work."""
    token: float = 0.0
    """Cost of a decoder step for one text alone."""
    token_together: float = 0.0
    """The same for each text of a full batch."""

    @property
    def alone(self) -> float:
        """Cost of a second of speech, if it is the only work."""
        return (self.window + UTTERANCE_TOKENS * self.token) / UTTERANCE_SECONDS

    @property
    def together(self) -> float:
        """Cost of a second of speech, at best."""
        return (self.window + UTTERANCE_TOKENS * self.token_together) / UTTERANCE_SECONDS

    @property
    def expected(self) -> float:
        """For a second of speech among as much as fits: some passes are for one text, some for a full batch."""
        return (self.alone + self.together) / 2


def try_out(engine: Engine) -> Costs:
    """Measure what work costs, and have the engine do its first-inference setup; raises what the engine raises."""
    noise = np.random.default_rng(0).standard_normal(int(UTTERANCE_SECONDS * SAMPLE_RATE)) * 1e-3
    sound = noise.astype(np.float32)
    _step_seconds(engine, engine.rehearse(sound, TRIED_TOKENS))
    if engine.batch == 1:
        return Costs(sum(_step_seconds(engine, engine.rehearse(sound, UTTERANCE_TOKENS))))
    # the shortest of equal steps, as other programs may interfere; the first one includes the encoder
    first, *alone = _step_seconds(engine, engine.rehearse(sound, TRIED_TOKENS))
    first_together, *together = _step_seconds(engine, engine.rehearse(sound, TRIED_TOKENS, texts=engine.batch))
    token, tokens = min(alone), min(together)
    return Costs(max(min(first - token, first_together - tokens), 0.0), token, tokens / engine.batch)


def _step_seconds(engine: Engine, inference: Inference[None]) -> list[float]:
    found = []
    while not inference.done:
        began = time.perf_counter()
        engine.advance([inference])
        found.append(time.perf_counter() - began)
    inference.result()
    return found


class Decaying:
    """A sum that forgets: what was added `seconds` ago has shrunk to 1/e."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._value = 0.0
        self._at = time.monotonic()

    def add(self, amount: float) -> None:
        self._value, self._at = self.value + amount, time.monotonic()

    @property
    def value(self) -> float:
        return self._value * math.exp((self._at - time.monotonic()) / self._seconds)

    @property
    def rate(self) -> float:
        """Mean amount added per second."""
        return self.value / self._seconds


class Workload:
    """What workers do, and what it costs. Reported by their threads and their callers; may be read by any thread."""

    def __init__(self, costs: Sequence[Costs]) -> None:
        """`costs` are those that each worker's trial found."""
        self._workers = len(costs)
        self._lock = threading.Lock()
        self._busy = {kind: Decaying(SHARE_SECONDS) for kind in Kind}
        self._work = {kind: Decaying(COST_SECONDS) for kind in Kind}
        self._sound = {kind: Decaying(COST_SECONDS) for kind in Kind}
        self._expected = sum(each.expected for each in costs) / len(costs)
        self._cost = dict.fromkeys(Kind, self._expected)
        self._least = sum(each.together for each in costs) / len(costs)
        self._was_busy = False
        self._texts, self._waited, self._took = (Decaying(COST_SECONDS) for _ in range(3))

    def worked(self, seconds: float, weights: Mapping[Kind, float]) -> None:
        """Note that a worker was busy for `seconds`, with work of these kinds by `weights`."""
        whole = sum(weights.values())
        with self._lock:
            for kind, weight in weights.items():
                self._busy[kind].add(seconds * weight / whole)
                self._work[kind].add(seconds * weight / whole)

    def heard(self, kind: Kind, seconds: float) -> None:
        """Note that the text of `seconds` more of sound is complete; silence is sound."""
        with self._lock:
            self._sound[kind].add(seconds)
            sound = self._sound[kind].value
            if sound < ENOUGH_SECONDS:
                return
            cost = self._work[kind].value / sound
            self._cost[kind] = self._live_cost(cost) if kind is Kind.LIVE else cost

    def _live_cost(self, measured: float) -> float:
        if self.share(Kind.LIVE) >= BUSY_SHARE:
            self._was_busy = True
            return max(measured, self._least)
        few = self._sound[Kind.LIVE].rate < self.streams / 2
        return min(self._cost[Kind.LIVE], max(measured, self._expected if few else self._least))

    def answered(self, waited: float, took: float) -> None:
        """Note how many seconds a live text waited for its worker, and then took."""
        with self._lock:
            self._texts.add(1)
            self._waited.add(waited)
            self._took.add(took)

    def share(self, *kinds: Kind) -> float:
        """Return the share of the workers' time that these kinds took recently, from 0 to 1."""
        return sum(self._busy[kind].rate for kind in kinds) / self._workers

    def cost(self, kind: Kind) -> float:
        """Return what a second of sound costs, in worker seconds."""
        return self._cost[kind]

    @property
    def streams(self) -> int:
        """How many live streams fit."""
        share = LIVE_SHARE if self._was_busy else BUSY_SHARE
        return int(self._workers * share / max(self.cost(Kind.LIVE), 1e-6))

    @property
    def recording_rate(self) -> float:
        """How many seconds of recordings are done per second, alongside the current live speech."""
        free = self._workers * max(1.0 - self.share(Kind.LIVE), RECORDING_SHARE)
        return free / max(self.cost(Kind.RECORDING), 1e-6)

    @property
    def lag(self) -> float:
        """Mean seconds that live text recently waited and took; goes back to 0 when there is none."""
        return (self._waited.value + self._took.value) / max(self._texts.value, 1.0)

    @property
    def late(self) -> bool:
        """Whether live text has recently waited too long."""
        return self._waited.value > LATE_SECONDS * max(self._texts.value, 1.0)
