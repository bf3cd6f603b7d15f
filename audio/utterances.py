"""Splits a live stream of PCM16 into utterances, each with a little sound around its words.

Whoever feeds it says for each chunk how probable it is that there is speech in it. The silence between utterances is
dropped. All positions are samples since the beginning of the stream, exact for any length.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from audio.pcm import SAMPLE_RATE, SAMPLE_WIDTH, FrameAligner
from audio.quiet import quietest_point

CHUNK = 512
"""Samples that are rated at a time, as by Silero VAD since its version 5: 32 ms at 16 kHz."""

SHORTEST_REST = 0.4
"""Seconds of speech behind a cut, at least: less is a stub, of which a model makes other words."""
SHORTEST_WORD = 0.15
STUB_SECONDS = 1.0
"""Less speech than a word at the end of a stream, so soon after an utterance, is a sound at that one's end."""

EndedBy = Literal["pause", "cut", "end", "open"]


class Chunker:
    """Cuts a stream of PCM16 into chunks, in whatever pieces it comes."""

    def __init__(self) -> None:
        self._aligner = FrameAligner(CHUNK * SAMPLE_WIDTH)
        self._bytes = 0

    @property
    def received(self) -> int:
        """Whole samples that have come in."""
        return self._bytes // SAMPLE_WIDTH

    @property
    def pending(self) -> int:
        """Bytes that wait for the second half of their sample: 0 or 1. After `finish`, what was cut off."""
        return self._bytes % SAMPLE_WIDTH

    def feed(self, data: bytes) -> NDArray[np.int16]:
        """Return the samples of the chunks that `data` completes, shape (n * CHUNK,)."""
        self._bytes += len(data)
        return np.frombuffer(self._aligner.feed(data), "<i2")

    def finish(self) -> NDArray[np.int16]:
        """Return what is left, less than a chunk. Half a sample is `pending`."""
        rest, self._aligner.rest = self._aligner.rest, b""
        return np.frombuffer(rest, "<i2", count=len(rest) // SAMPLE_WIDTH)


@dataclass(frozen=True)
class SplitterOptions:
    """When an utterance begins and ends. Times in seconds; ValueError for a combination that makes no sense."""

    pre_roll: float = 0.4
    """Sound that is kept from before the first chunk with speech: the model notices a soft consonant late."""
    pause: float = 0.5
    """Silence that ends an utterance. In a long one less is enough …"""
    shortest_pause: float = 0.2
    """… down to this: a breath between two words is a better place to cut than a word."""
    full_pause_until: float = 2.0
    """Length of an utterance up to which the whole `pause` is needed …"""
    shortest_pause_from: float = 6.0
    """… and from which the shortest one is enough; in between the pause shrinks evenly."""
    post_roll: float = 0.2
    """Silence that is kept behind the last word."""
    longest: float = 12.0
    """An utterance that goes on for this long is cut at the quietest point of its last third."""
    speech_threshold: float = 0.35
    """Probability from which a chunk counts as speech. In strong reverberation voices may be at 0.2 to 0.5; 24 of
    41 sounds without speech stay below 0.16. Silero's own threshold is 0.5 …"""
    silence_threshold: float = 0.2
    """… and below which it counts as silence within an utterance (as Silero has it, 0.15 less)."""
    min_speech_chunks: int = 2
    """Chunks of speech in a row that begin an utterance: a click is shorter."""

    def __post_init__(self) -> None:
        rules = {
            "pre_roll >= 0": self.pre_roll >= 0,
            "0 <= shortest_pause <= pause": 0 <= self.shortest_pause <= self.pause,
            "full_pause_until < shortest_pause_from": self.full_pause_until < self.shortest_pause_from,
            "post_roll >= 0": self.post_roll >= 0,
            "0 < silence_threshold <= speech_threshold <= 1": 0 < self.silence_threshold <= self.speech_threshold <= 1,
            "min_speech_chunks >= 1": self.min_speech_chunks >= 1,
        }
        if broken := [rule for rule, holds in rules.items() if not holds]:
            raise ValueError(f"{broken[0]} does not hold for {self}")
        shortest = max(1.0, 2 * (self.pre_roll + self.pause))
        if not shortest <= self.longest <= 30:
            raise ValueError(f"with a pause of {self.pause:g} s the longest utterance must be {shortest:g} to 30 s")


@dataclass(frozen=True)
class Utterance:
    """A stretch of speech."""

    number: int
    """Counts from 0 in one stream."""
    first: int
    """Position of its first sample."""
    samples: NDArray[np.int16]
    """Its sound, shape (n,)."""
    speech_start: int
    """Position of the first chunk with speech; of the first sample, if the utterance began with a cut in speech."""
    speech_end: int
    """Position behind the last chunk with speech."""
    ended_by: EndedBy
    """A pause, the length limit (`cut`), the end of the stream; `open`: it goes on."""
    pauses: tuple[tuple[int, int], ...] = ()
    """Where nobody speaks between `speech_start` and `speech_end`: begin and end, in order."""

    @property
    def end(self) -> int:
        """Position behind its last sample."""
        return self.first + len(self.samples)


class UtteranceSplitter:
    """Splits one stream into utterances. It holds at most the longest one in memory, whatever comes in."""

    def __init__(self, options: SplitterOptions | None = None) -> None:
        self.options = options or SplitterOptions()
        """May be replaced at any time."""
        self._buffer = np.empty(0, dtype=np.int16)
        self._base = 0  # position of the buffer's first sample
        self._kept = 0  # from which on it may still be wanted
        self._position = 0  # up to which chunks have been looked at
        self._speech_chunks = 0  # in a row, before an utterance begins
        self._first: int | None = None  # position of the open utterance
        self._speech_start = 0
        self._speech_end = 0
        self._pauses: list[tuple[int, int]] = []  # of the open utterance
        self._previous_end = 0  # position behind the last utterance: no sample belongs to two
        self._number = 0

    @property
    def silence(self) -> int:
        """Samples since the last chunk with speech, while an utterance is open."""
        return self._position - self._speech_end

    @property
    def pause(self) -> int:
        """Samples of silence that end the open utterance."""
        options, length = self.options, (self._speech_end - (self._first or 0)) / SAMPLE_RATE
        shrunk = (length - options.full_pause_until) / (options.shortest_pause_from - options.full_pause_until)
        shrunk = min(max(shrunk, 0.0), 1.0)
        return _to_samples(options.pause - shrunk * (options.pause - options.shortest_pause))

    @property
    def kept_silence(self) -> int:
        """Samples of silence that are kept at the end of the open utterance."""
        return min(self.pause, _to_samples(self.options.post_roll))

    def feed(self, samples: NDArray[np.int16], probabilities: Iterable[float]) -> list[Utterance]:
        """Take chunks, shape (n,), and the probability of speech in each; return the utterances that have ended.

        The last chunk of the stream may be a short one.
        """
        self._buffer = np.concatenate((self._buffer, samples))
        end = self._base + len(self._buffer)
        ended = []
        for probability in probabilities:
            ended += self._step(probability, min(self._position + CHUNK, end))
        self._forget()
        return ended

    def flush(self) -> list[Utterance]:
        """End the open utterance where it is: nothing has come for a while, and nothing may follow."""
        return [] if self._first is None else [self._end("end")]

    def finish(self) -> list[Utterance]:
        """End what is open at the end of the stream, be it but a word that has just begun, unless it is a stub."""
        if self._first is None and self._speech_chunks:
            self._begin()
        short = self._speech_end - self._speech_start < _to_samples(SHORTEST_WORD)
        follows = self._number and self._speech_start - self._previous_end < _to_samples(STUB_SECONDS)
        return [] if short and follows else self.flush()

    def open_utterance(self) -> Utterance | None:
        """Return the open utterance as it would be if it ended now; None while there is none."""
        return None if self._first is None else self._utterance(self._end_of_silence(), "open")

    def _step(self, probability: float, end: int) -> list[Utterance]:
        """Look at the chunk up to the position `end`."""
        start, self._position = self._position, end
        if self._first is None:
            self._wait_for_speech(probability, start)
            return []
        if probability >= self.options.silence_threshold:
            if self._speech_end < start:
                self._pauses.append((self._speech_end, start))
            self._speech_end = self._position
        elif self.silence >= self.pause:
            return [self._end("pause")]
        if self._position - self._first >= _to_samples(self.options.longest):
            return [self._cut()]
        return []

    def _wait_for_speech(self, probability: float, start: int) -> None:
        if probability < self.options.speech_threshold:
            self._speech_chunks, self._speech_start = 0, self._position
        else:
            if self._speech_chunks == 0:
                self._speech_start = start
            self._speech_chunks, self._speech_end = self._speech_chunks + 1, self._position
        if self._speech_chunks >= self.options.min_speech_chunks:
            self._begin()
        else:
            self._keep(self._speech_start - _to_samples(self.options.pre_roll))

    def _begin(self) -> None:
        self._speech_start = max(self._speech_start, self._previous_end)
        start = self._speech_start - _to_samples(self.options.pre_roll)
        self._first, self._speech_chunks = max(start, self._previous_end, self._kept), 0
        self._pauses = []

    def _cut(self) -> Utterance:
        """End the utterance at the quietest point of its last third, and begin the next one there."""
        assert self._first is not None
        search_from = self._first + (self._position - self._first) * 2 // 3
        search_to = max(self._position - self.pause - _to_samples(SHORTEST_REST), (search_from + self._position) // 2)
        point = search_from + quietest_point(self._slice(search_from, search_to))
        if point >= self._speech_end:  # no speech follows, so nothing goes on
            return self._end("cut")
        utterance = self._end("cut", point)
        self._first = self._speech_start = point
        self._pauses = [(max(begin, point), end) for begin, end in self._pauses if end > point]
        if self._pauses and self._pauses[0][0] == point:
            self._speech_start = self._pauses.pop(0)[1]
        return utterance

    def _end_of_silence(self) -> int:
        # never beyond what there is: the options may have changed since
        return min(self._position, self._speech_end + self.kept_silence)

    def _end(self, ended_by: EndedBy, position: int | None = None) -> Utterance:
        if position is None:
            position = self._end_of_silence()
        utterance = self._utterance(position, ended_by)
        self._number += 1
        self._previous_end, self._first = position, None
        pre_roll = self._position - _to_samples(self.options.pre_roll)
        self._keep(max(position, pre_roll) if ended_by == "pause" else position)
        return utterance

    def _utterance(self, end: int, ended_by: EndedBy) -> Utterance:
        assert self._first is not None
        samples = self._slice(self._first, end)
        speech_end = min(self._speech_end, end)
        pauses = [each for each in self._pauses if each[0] < end]
        if pauses and pauses[-1][1] >= speech_end:  # it is cut there
            speech_end = pauses.pop()[0]
        return Utterance(self._number, self._first, samples, self._speech_start, speech_end, ended_by, tuple(pauses))

    def _slice(self, start: int, end: int) -> NDArray[np.int16]:
        return self._buffer[start - self._base : end - self._base].copy()

    def _keep(self, position: int) -> None:
        """Note that no utterance will begin before `position`."""
        self._kept = max(self._kept, position)

    def _forget(self) -> None:
        self._buffer = self._buffer[self._kept - self._base :].copy()
        self._base = self._kept


def _to_samples(seconds: float) -> int:
    return int(seconds * SAMPLE_RATE)
