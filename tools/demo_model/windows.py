"""Windows to train on: utterances, pauses and noise laid out as Whisper's own transcribe() meets them."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from tools.demo_model.corpus import Corpus, Utterance

WINDOW_FRAMES = 3000
"""What a window has in stock use: 30 s in frames of 10 ms. Shorter ones train faster, and shortened audio contexts."""
SILENT = -10.0
"""log10 of the least mel power there is."""

SEEN_SHARE = 0.75
"""How much of a word must be within the window for it to be written."""

_EMPTY_SHARE = 0.08
_TINY_SHARE = 0.04  # clips of hardly more than one short word
_CUT_HEAD_SHARE = 0.08
_BORDER_FRAMES = 15  # speech that ends so close to the end of 30 s may go on after it

ONSET_CLASSES = 45
"""How far the next word's onset is, on a logarithmic scale; the last class is: there is none."""


@dataclass(frozen=True)
class Segment:
    """An utterance in a window."""

    words: list[int]
    spans: npt.NDArray[np.float64]
    """Shape (words, 2), in encoder positions of 20 ms from the start of the window's sound."""


@dataclass
class Window:
    """What is heard, and what is said in it. Positions are those of the encoder, 20 ms."""

    mel: npt.NDArray[np.float32]
    """log10 of the mel power without noise, shape (frames, 80)."""
    segments: list[Segment] = field(default_factory=list)
    resume: float | None = None
    """Where speech begins that the window's end cuts off: transcribe() is to go on from there."""
    end: int = 0
    """The frame at which the last utterance ends."""
    content: int = 0
    """How many frames are sound; padding follows."""
    offset: int = 0
    """The position of the encoder that the first frame is given: where in 30 s it claims to be."""
    noise: npt.NDArray[np.float32] | None = None
    """log10 of the mel power of what is added, shape (frames, 80)."""
    phonemes: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    words: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    """The label of each position: 0 is silence, k + 1 the word of index k."""
    power: list[float] = field(default_factory=list)
    """log10 of the mean power of each utterance."""

    def onsets(self) -> npt.NDArray[np.int64]:
        """Return for each position how far the next word's onset is, as one of ONSET_CLASSES."""
        positions = np.arange(len(self.mel) // 2)
        starts = np.sort([span[0] for segment in self.segments for span in segment.spans])
        if self.resume is not None:
            starts = np.append(starts, self.resume)
        starts = np.append(starts, np.inf)
        distance = starts[np.searchsorted(starts, positions, side="right")] - positions
        classes = np.minimum(5 * np.log2(1 + distance / 4), ONSET_CLASSES - 2)
        return np.where(np.isinf(distance), ONSET_CLASSES - 1, classes).astype(np.int64)

    def place(self, utterance: Utterance, start: int) -> npt.NDArray[np.float64]:
        """Add the utterance's sound and labels at a frame, as much of it as fits; return its words' spans."""
        mel = utterance.mel[: len(self.mel) - start]
        room = self.mel[start : start + len(mel)]
        np.maximum(room, mel, out=room)
        labels = utterance.phonemes[: len(mel) : 2]
        first = start // 2
        labels = labels[: len(self.phonemes) - first]
        self.phonemes[first : first + len(labels)] = labels
        spans = (utterance.spans + start) / 2
        for word, (a, b) in zip(utterance.words, spans, strict=True):
            self.words[int(a) : max(int(a) + 1, int(b))] = word + 1
        self.power.append(float(np.log10(np.power(10.0, mel).mean())))
        self.end = start + len(mel)
        return spans


class Composer:
    """Makes windows; everything random comes from the `rng` of each call."""

    def __init__(self, corpus: Corpus, noises: Sequence[npt.NDArray[np.float32]], *, warp: float = 0.12) -> None:
        """`noises` are log10 mel powers of shape (WINDOW_FRAMES, 80); `warp` is how far frequencies are stretched."""
        self._corpus = corpus
        self._noises = noises
        self._warp = warp

    def compose(self, frames: int, most: int, rng: random.Random, *, vary: bool = True) -> Window:
        """Return a window of that many frames with up to `most` segments, perhaps none.

        `vary` changes tempo and vocal tract of half of the utterances.
        """
        positions = frames // 2
        window = Window(
            mel=np.full((frames, 80), SILENT, np.float32),
            phonemes=np.zeros(positions, np.int64),
            words=np.zeros(positions, np.int64),
        )
        window.offset = _offset(positions, rng)
        kind = rng.random()
        if kind < _EMPTY_SHARE:
            window.content = frames if rng.random() < 0.3 else rng.randint(20, frames)
        elif kind < _EMPTY_SHARE + _TINY_SHARE:
            self._one_word(window, rng)
        else:
            self._speech(window, most, rng, vary=vary)
        self._add_noise(window, rng)
        return window

    def _one_word(self, window: Window, rng: random.Random) -> None:
        utterance = self._varied(self._corpus.draw(rng.randint(30, 60), rng), 60, rng)
        if utterance is not None:
            window.segments.append(Segment(utterance.words, window.place(utterance, rng.randint(0, 6))))
        window.content = min(len(window.mel), window.end + rng.randint(0, 8))

    def _speech(self, window: Window, most: int, rng: random.Random, *, vary: bool) -> None:
        frames = len(window.mel)
        kind = rng.random()
        count = 1 if kind < 0.2 else rng.randint(1 if kind < 0.5 else most // 2, most)
        start = _lead(frames, count, rng)
        for index in range(count):
            room = frames - start - 4
            longest = min(room, room if count == 1 else max(90, 1.2 * room / (count - index)))
            shortest = 0.5 * min(longest, 500) if rng.random() < 0.7 else 0.0  # speech teaches more than silence
            utterance = self._corpus.draw(longest, rng, shortest)
            if vary:
                utterance = self._varied(utterance, room, rng)
            if utterance is None:
                break
            if index == 0 and rng.random() < _CUT_HEAD_SHARE:
                utterance, start = _without_head(utterance, rng), 0
            if utterance.words:
                window.segments.append(Segment(utterance.words, window.place(utterance, start)))
            start = max(window.end, start) + _pause(frames - window.end, count - index, rng)
            if start > frames - 60:
                break
        window.content = frames if rng.random() < 0.35 else min(frames, window.end + rng.randint(2, 150))
        if rng.random() < (0.35 if window.offset + frames // 2 == WINDOW_FRAMES // 2 else 0.1):
            self._cut_off(window, start, rng)
        elif window.segments[1:] and _at_border(window, window.end):
            last = window.segments.pop()  # it might go on: hear it again, from its start
            window.resume = float(last.spans[0][0])
            window.content = frames

    def _cut_off(self, window: Window, start: int, rng: random.Random) -> None:
        """Let the window end in the middle of an utterance."""
        frames = len(window.mel)
        utterance = self._varied(self._corpus.draw(800, rng), 800, rng)
        if utterance is None or start >= frames - 20:
            return
        length = len(utterance.mel)
        start = max(start, frames - rng.randint(20, max(21, length - 1)))
        if start + length <= frames:
            return
        spans = window.place(utterance, start)
        window.content = frames
        if window.segments and _at_border(window, frames):
            if spans[0][0] < frames / 2 - 3:
                window.resume = float(spans[0][0])
            return
        seen = (frames / 2 - spans[:, 0]) >= SEEN_SHARE * (spans[:, 1] - spans[:, 0])
        words = [word for word, is_seen in zip(utterance.words, seen, strict=True) if is_seen]
        if words:
            window.segments.append(Segment(words, np.minimum(spans[seen], frames / 2)))

    def _varied(self, utterance: Utterance | None, longest: float, rng: random.Random) -> Utterance | None:
        """Return the utterance at another tempo, by another vocal tract, at another level."""
        if utterance is None:
            return None
        mel, phonemes, spans = utterance.mel, utterance.phonemes, utterance.spans
        if rng.random() < 0.35:
            frames = int(len(mel) * rng.uniform(0.85, 1.2))
            if frames <= longest:
                index = np.arange(frames) * len(mel) // frames
                spans = spans * (frames / len(mel))
                mel, phonemes = mel[index], phonemes[index]
        if rng.random() < 0.5:
            stretch = rng.uniform(1 - self._warp, 1 + self._warp)
            shift = rng.uniform(-20, 20) * self._warp
            band = np.clip(np.arange(80) * stretch + shift, 0, 78.999)
            low = band.astype(int)
            share = (band - low).astype(np.float32)
            mel = mel[:, low] * (1 - share) + mel[:, low + 1] * share
        return Utterance(utterance.words, spans, phonemes, mel + np.float32(rng.uniform(-0.5, 0.5)))

    def _add_noise(self, window: Window, rng: random.Random) -> None:
        if rng.random() > 0.75:
            return
        frames = len(window.mel)
        start = rng.randint(0, WINDOW_FRAMES - frames)
        sound = self._noises[rng.randrange(len(self._noises))][start : start + frames]
        if window.power:
            ratio = rng.uniform(3, 40) if rng.random() < 0.8 else rng.uniform(25, 55)  # dB
            level = float(np.mean(window.power)) - ratio / 10
        else:
            level = rng.uniform(-6.5, -1.0)
        window.noise = sound + np.float32(level - np.log10(np.power(10.0, sound).mean()))


def _offset(positions: int, rng: random.Random) -> int:
    """Return where a short window claims to be within 30 s, so that late positions are learned from short ones too."""
    latest = WINDOW_FRAMES // 2 - positions
    kind = rng.random()
    if kind < 0.5:
        return 0
    return latest if kind < 0.6 else rng.randint(0, latest)


def _lead(frames: int, count: int, rng: random.Random) -> int:
    """Return the frame at which the first utterance starts."""
    kind = rng.random()
    if count == 1 and kind < 0.2:
        return rng.randint(0, max(0, frames - 120))
    return rng.randint(0, 40) if kind < 0.75 else rng.randint(0, min(300, frames * 3 // 10))


def _pause(room: int, utterances_left: int, rng: random.Random) -> int:
    """Return the frames between two utterances: seldom so many that the others do not fit."""
    if rng.random() < 0.8:
        return rng.randint(35, 220) if room / utterances_left > 300 else rng.randint(35, 100)
    return rng.randint(60, 500) if rng.random() < 0.6 else rng.randint(60, max(60, min(1500, room - 100)))


def _at_border(window: Window, frame: int) -> bool:
    """Tell whether a frame is at the end of 30 s, where transcribe() would take another window."""
    to_end = WINDOW_FRAMES - 2 * window.offset - frame
    return to_end < _BORDER_FRAMES


def _without_head(utterance: Utterance, rng: random.Random) -> Utterance:
    """Return the utterance as a window hears it that starts in the middle of it; it may have no word left."""
    frames = len(utterance.mel)
    cut = rng.randint(frames // 10, frames * 2 // 3)
    spans = utterance.spans
    seen = (spans[:, 1] - cut) >= SEEN_SHARE * (spans[:, 1] - spans[:, 0])
    words = [word for word, is_seen in zip(utterance.words, seen, strict=True) if is_seen]
    return Utterance(words, np.maximum(spans[seen] - cut, 0), utterance.phonemes[cut:], utterance.mel[cut:])
