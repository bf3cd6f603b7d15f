"""A live stream of PCM16 -> utterances: stretches of speech, from a little before their first word to their last.

Silence between them is dropped. All positions are samples since the beginning of the stream, exact for any length.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from audio.pcm import SAMPLE_RATE, SAMPLE_WIDTH
from audio.quiet import quietest_point
from audio.vad import CHUNK, SpeechDetector

__all__ = ["Listener", "ListenerOptions", "Utterance"]

Judge = Callable[[NDArray[np.int16]], float]
EndedBy = Literal["pause", "cut", "end", "open"]


@dataclass(frozen=True)
class ListenerOptions:
    """When speech begins and ends. Times in seconds; ValueError for what cannot be."""

    pre_roll: float = 0.4
    """Sound that is kept from before the first chunk with speech: the model notices a soft consonant late."""
    pause: float = 0.5
    """An utterance ends after so much silence, and after less when it is long …"""
    shortest_pause: float = 0.2
    """… down to this: a breath between two words is a better place to cut than a word."""
    patient_for: float = 2.0
    """Up to this length the whole `pause` is waited for …"""
    hurried_from: float = 6.0
    """… and from this length the shortest one is enough."""
    post_roll: float = 0.2
    """So much of the silence is kept: the end of the last word."""
    longest: float = 12.0
    """An utterance that goes on for so long is cut at the quietest point of its last third."""
    begins_at: float = 0.5
    """Probability from which a chunk counts as speech (Silero's own threshold) …"""
    goes_on_at: float = 0.35
    """… and while speech goes on (Silero: 0.15 less)."""
    chunks_to_begin: int = 2
    """Chunks of speech in a row that make an utterance: a click is shorter."""

    def __post_init__(self) -> None:
        if not self.pre_roll >= 0 or self.chunks_to_begin < 1:
            raise ValueError(f"a pre-roll of {self.pre_roll} s and {self.chunks_to_begin} chunks of speech cannot be")
        if not 0 < self.goes_on_at <= self.begins_at <= 1:
            raise ValueError(f"speech cannot begin at a probability of {self.begins_at} and end at {self.goes_on_at}")
        if not 0 <= self.shortest_pause <= self.pause or not self.post_roll >= 0:
            raise ValueError(f"a pause of {self.pause} s cannot be shorter than the shortest, {self.shortest_pause} s")
        if not self.patient_for < self.hurried_from:
            raise ValueError(f"patience cannot end at {self.patient_for} s and be gone at {self.hurried_from} s")
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
    """Position of the first chunk that had speech; of the first sample, if speech was cut there."""
    speech_end: int
    """Position behind the last chunk that had speech."""
    ended_by: EndedBy
    """A pause, the length limit, the end of the stream; `open`: it goes on."""

    @property
    def end(self) -> int:
        """Position behind its last sample."""
        return self.first + len(self.samples)


class Listener:
    """Finds the utterances of one stream. The memory held is that of the longest one, whatever comes in."""

    def __init__(self, options: ListenerOptions | None = None, judge: Judge | None = None) -> None:
        self.options = options or ListenerOptions()
        self.received = 0
        """Samples that have come in; half of one waits for its other byte."""
        self._judge = judge or SpeechDetector().judge
        self._half = b""
        self._buffer = np.empty(0, dtype=np.int16)
        self._base = 0  # position of the buffer's first sample
        self._judged = 0  # position up to which chunks have been judged
        self._run = 0  # chunks of speech in a row, before an utterance begins
        self._first: int | None = None  # position of the open utterance
        self._speech_start = 0
        self._speech_end = 0
        self._previous_end = 0  # position behind the last utterance: no sample belongs to two
        self._number = 0

    def feed(self, data: bytes) -> list[Utterance]:
        """Take PCM16 in pieces of any size, and give the utterances that have ended."""
        joined = self._half + data
        whole = len(joined) - len(joined) % SAMPLE_WIDTH
        self._half = joined[whole:]
        fresh = np.frombuffer(joined, dtype="<i2", count=whole // SAMPLE_WIDTH)
        self.received += len(fresh)
        ended = []
        for at in range(0, len(fresh), SAMPLE_RATE):  # a second at a time, so that old silence is dropped on the way
            self._buffer = np.concatenate((self._buffer, fresh[at : at + SAMPLE_RATE]))
            while self._judged + CHUNK <= self._base + len(self._buffer):
                ended += self._step(self._slice(self._judged, self._judged + CHUNK), CHUNK)
        return ended

    def lull(self) -> list[Utterance]:
        """End the open utterance where it is: nothing has come for so long that nothing may follow."""
        return [] if self._first is None else [self._take(min(self._judged, self._speech_end + self.kept), "end")]

    def finish(self) -> list[Utterance]:
        """Give what is left at the end of the stream. Half a sample is `pending`."""
        rest = self._slice(self._judged, self.received)
        ended = self._step(np.pad(rest, (0, CHUNK - len(rest))), len(rest)) if len(rest) else []
        if self._first is None and self._run:
            self._begin()
        if self._first is not None:
            ended.append(self._take(min(self.received, self._speech_end + self.kept), "end"))
        return ended

    @property
    def pending(self) -> int:
        """Bytes that wait for the second half of their sample: 0 or 1."""
        return len(self._half)

    @property
    def quiet(self) -> int:
        """Samples since the last chunk with speech, while an utterance is open."""
        return self._judged - self._speech_end

    @property
    def pause(self) -> int:
        """Samples of silence that end the open utterance."""
        options, length = self.options, (self._speech_end - (self._first or 0)) / SAMPLE_RATE
        hurry = (length - options.patient_for) / (options.hurried_from - options.patient_for)
        hurry = min(max(hurry, 0.0), 1.0)
        return self._samples(options.pause - hurry * (options.pause - options.shortest_pause))

    @property
    def kept(self) -> int:
        """Samples of silence that are kept at the end of the open utterance."""
        return min(self.pause, self._samples(self.options.post_roll))

    def current(self) -> Utterance | None:
        """Give the open utterance as it is now, silence at its end kept as `post_roll` says; None in silence."""
        if self._first is None:
            return None
        end = min(self._judged, self._speech_end + self.kept)
        return self._utterance(end, "open")

    def _step(self, chunk: NDArray[np.int16], length: int) -> list[Utterance]:
        """Judge one chunk, of which `length` samples are real."""
        probability = self._judge(chunk)
        start, self._judged = self._judged, self._judged + length
        if self._first is None:
            self._run = self._run + 1 if probability >= self.options.begins_at else 0
            if self._run <= 1:
                self._speech_start = start if self._run else self._judged
            if self._run:
                self._speech_end = self._judged
            if self._run >= self.options.chunks_to_begin:
                self._begin()
            else:
                self._forget(self._speech_start - self._samples(self.options.pre_roll))
            return []
        if probability >= self.options.goes_on_at:
            self._speech_end = self._judged
        elif self.quiet >= self.pause:
            # options may change while this runs in another thread: never beyond what there is
            return [self._take(min(self._judged, self._speech_end + self.kept), "pause")]
        if self._judged - self._first >= self._samples(self.options.longest):
            return [self._cut()]
        return []

    def _begin(self) -> None:
        self._speech_start = max(self._speech_start, self._previous_end)
        start = self._speech_start - self._samples(self.options.pre_roll)
        self._first, self._run = max(start, self._previous_end, self._base), 0

    def _cut(self) -> Utterance:
        """End the utterance at the quietest point of its last third, and begin the next one there."""
        assert self._first is not None
        search_from = self._first + (self._judged - self._first) * 2 // 3
        point = search_from + quietest_point(self._slice(search_from, self._judged))
        if point >= self._speech_end:  # nothing was said behind it, so nothing goes on
            return self._take(min(self._judged, self._speech_end + self.kept), "cut")
        utterance = self._take(point, "cut")
        self._first = self._speech_start = point
        return utterance

    def _utterance(self, end: int, ended_by: EndedBy) -> Utterance:
        assert self._first is not None
        samples = self._slice(self._first, end)
        speech_end = min(self._speech_end, end)
        return Utterance(self._number, self._first, samples, self._speech_start, speech_end, ended_by)

    def _take(self, end: int, ended_by: EndedBy) -> Utterance:
        """Close the open utterance at a position."""
        assert self._first is not None
        utterance = self._utterance(end, ended_by)
        self._number += 1
        self._previous_end, self._first = end, None
        self._forget(max(end, self._judged - self._samples(self.options.pre_roll)) if ended_by == "pause" else end)
        return utterance

    def _slice(self, start: int, end: int) -> NDArray[np.int16]:
        return self._buffer[start - self._base : end - self._base].copy()

    def _forget(self, position: int) -> None:
        """Drop the samples before a position."""
        if position > self._base:
            self._buffer = self._buffer[position - self._base :].copy()
            self._base = position

    def _samples(self, seconds: float) -> int:
        return int(seconds * SAMPLE_RATE)
