"""Word times from the decoder's attention to the sound, as in openai-whisper (`timing.py`)."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from whisper_byoc.speech.engine import SECONDS_PER_POSITION, Pauses
from whisper_byoc.speech.fast.batch import Pass, Sound
from whisper_byoc.speech.fast.decoding import Steps
from whisper_byoc.speech.fast.tokenizer import Tokenizer

FRAMES_PER_POSITION = 2
MEDIAN_WIDTH = 7
"""Positions that attention is smoothed over (openai-whisper, `medfilt_width`)."""
LONGEST_MEDIAN = 0.7
"""Seconds; bounds what counts as a word's usual length (openai-whisper, `add_word_timestamps`)."""
SENTENCE_ENDS = ".\u3002!\uff01?\uff1f"
OPENING = "\"'“¿([{-"
CLOSING = "\"'.\u3002,\uff0c!\uff01?\uff1f:\uff1a”)]}\u3001"
"""Punctuation that belongs to the next word, and to the previous one (openai-whisper, `transcribe`)."""

BEFORE_PAUSE = 0.1
"""A word that ends after a pause does not begin within this many seconds before it."""

Heads = Sequence[tuple[int, int]]
"""(layer, head) of the cross attention that follows the sound."""


@dataclass
class TimedWord:
    """One word; times are seconds from the beginning of the window, later of the sound."""

    text: str
    tokens: list[int]
    start: float
    end: float
    probability: float


@dataclass
class TimedSegment:
    """A stretch of text between two timestamps; `align_words` gives it its words, and their times."""

    start: float
    end: float
    tokens: list[int]
    words: list[TimedWord] = field(default_factory=list)


def attention(
    sound: Sound, queries: dict[int, NDArray[np.float32]], heads: Heads, positions: int
) -> NDArray[np.float32]:
    """Return how much each alignment head attends to the first positions of the window, (heads, tokens, positions)."""
    scores = []
    for layer, head in heads:
        query, key = queries[layer][head], sound.key(layer)[head, :positions]
        scores.append(query @ key.T * np.float32(query.shape[-1] ** -0.5))
    return _softmax(np.stack(scores))


def token_places(
    sound: Sound, queries: dict[int, NDArray[np.float32]], heads: Heads, positions: int
) -> NDArray[np.float64]:
    """Return for each token the time in the window, in seconds, most attended to when it is written, (tokens,)."""
    positions = max(1, min(positions, sound.positions))
    attended = attention(sound, queries, heads, positions).mean(0).argmax(-1)
    found: NDArray[np.float64] = (attended + 1) * SECONDS_PER_POSITION
    return found


def token_ends(sound: Sound, queries: dict[int, NDArray[np.float32]], heads: Heads, positions: int) -> list[float]:
    """Return when each token ends, in seconds of the window: its place, or that of one before it if that is later."""
    found: list[float] = np.maximum.accumulate(token_places(sound, queries, heads, positions)).tolist()
    return found


def align_words(
    sound: Sound,
    tokenizer: Tokenizer,
    heads: Heads,
    segments: list[TimedSegment],
    *,
    start: Sequence[int],
    language: str | None,
    frames: int,
    offset: float,
    last_end: float,
) -> Steps[float]:
    """Find the words of segments and their times, and set the segments' times accordingly.

    `start` holds the tokens that the text began with, `frames` is how many of the window's are sound, `offset` where
    the window begins in seconds. Segments' times count from the beginning of the sound. `last_end` is where the
    preceding speech ended; returns where the speech of these segments ends. openai-whisper, `add_word_timestamps`.
    """
    groups = [[token for token in segment.tokens if token < tokenizer.eot] for segment in segments]
    text = list(itertools.chain.from_iterable(groups))
    words = yield from _find_words(sound, tokenizer, heads, text, start, language, frames // FRAMES_PER_POSITION)
    lengths = [word.end - word.start for word in words if word.end != word.start]
    median = min(LONGEST_MEDIAN, float(np.median(lengths))) if lengths else 0.0
    if lengths:
        _shorten_at_sentence_ends(words, 2 * median)
    merge_punctuation(words)
    at = 0
    for segment, tokens in zip(segments, groups, strict=True):
        taken = 0
        while at < len(words) and taken < len(tokens):
            word = words[at]
            at, taken = at + 1, taken + len(word.tokens)
            if word.text:
                word.start, word.end = round(offset + word.start, 2), round(offset + word.end, 2)
                segment.words.append(word)
        if segment.words:
            _fit_segment(segment, last_end, median)
            last_end = segment.end
    return last_end


def leave_pauses(segments: Sequence[TimedSegment], pauses: Pauses) -> None:
    """Have words begin and end where somebody speaks, except those entirely within a pause."""
    for segment in segments:
        for word, (begin, end) in itertools.product(segment.words, pauses):
            if begin - BEFORE_PAUSE <= word.start < end < word.end:
                word.start = end
            elif word.start < begin < word.end <= end:
                word.end = begin
        if segment.words:
            segment.start, segment.end = segment.words[0].start, segment.words[-1].end


def _find_words(
    sound: Sound,
    tokenizer: Tokenizer,
    heads: Heads,
    text: list[int],
    start: Sequence[int],
    language: str | None,
    positions: int,
) -> Steps[list[TimedWord]]:
    """openai-whisper, `find_alignment`."""
    texts, groups = tokenizer.words([*text, tokenizer.eot], language)
    if not text or len(groups) <= 1:
        return []
    first = len(start)
    tokens = [*start, tokenizer.no_timestamps, *text, tokenizer.eot]
    step = yield Pass(sound, [tokens], range(first, first + len(text)))
    chances = _softmax(step.logits[0, :, : tokenizer.eot])[np.arange(len(text)), text]
    weights = attention(sound, {layer: query[0] for layer, query in step.queries.items()}, heads, positions)
    spread = weights.std(-2, keepdims=True)
    spread[spread == 0] = 1  # all tokens attend equally to a position: no information
    weights = median_filter((weights - weights.mean(-2, keepdims=True)) / spread, MEDIAN_WIDTH)
    rows, times = dtw(-weights.mean(0)[first:-1].astype(np.float64))
    jumps = np.diff(rows, prepend=-1).astype(bool)
    jump_times = times[jumps] * SECONDS_PER_POSITION
    bounds = np.cumsum([0, *(len(group) for group in groups[:-1])])
    return [
        TimedWord(word, group, float(jump_times[i]), float(jump_times[j]), float(chances[i:j].mean()))
        for word, group, i, j in zip(texts, groups, bounds, bounds[1:], strict=False)  # the last is the end token
    ]


def dtw(cost: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the cheapest path through a matrix (n, m) from its first to its last cell: each step's row and column.

    Dynamic time warping that breaks ties as openai-whisper does (`dtw_cpu`), computed along diagonals, whose cells do
    not depend on each other.
    """
    rows, columns = cost.shape
    # total[d, i] is the cell (i, d - i) of a matrix with a border of one
    total = np.full((rows + columns + 1, rows + 1), np.inf)
    trace = np.zeros((rows + columns + 1, rows + 1), np.int8)
    total[0, 0] = 0
    for d in range(2, rows + columns + 1):
        low, high = max(1, d - columns), min(rows, d - 1)
        diagonal, up, left = total[d - 2, low - 1 : high], total[d - 1, low - 1 : high], total[d - 1, low : high + 1]
        choice = np.where((diagonal < up) & (diagonal < left), 0, np.where((up < diagonal) & (up < left), 1, 2))
        best = np.choose(choice, (diagonal, up, left))
        i = np.arange(low, high + 1)
        total[d, low : high + 1] = best + cost[i - 1, d - i - 1]
        trace[d, low : high + 1] = choice
    path = []
    i, j = rows, columns
    while i > 0 or j > 0:
        path.append((i - 1, j - 1))
        step = 2 if i == 0 else 1 if j == 0 else trace[i + j, i]
        i, j = i - (step != 2), j - (step != 1)
    found = np.array(path[::-1], np.int64)
    return found[:, 0], found[:, 1]


def _shorten_at_sentence_ends(words: list[TimedWord], longest: float) -> None:
    for before, word in itertools.pairwise(words):
        if word.end - word.start > longest:
            if word.text in SENTENCE_ENDS:
                word.end = word.start + longest
            elif before.text in SENTENCE_ENDS:
                word.start = word.end - longest


def merge_punctuation(words: list[TimedWord]) -> None:
    """Join punctuation to the word that it belongs to, and leave an empty word in its place."""
    following = len(words) - 1
    for at in range(len(words) - 2, -1, -1):
        mark, word = words[at], words[following]
        if mark.text.startswith(" ") and mark.text.strip() in OPENING:
            word.text, word.tokens = mark.text + word.text, mark.tokens + word.tokens
            mark.text, mark.tokens = "", []
        else:
            following = at
    previous = 0
    for at in range(1, len(words)):
        word, mark = words[previous], words[at]
        if not word.text.endswith(" ") and mark.text in CLOSING:
            word.text, word.tokens = word.text + mark.text, word.tokens + mark.tokens
            mark.text, mark.tokens = "", []
        else:
            previous = at


def _fit_segment(segment: TimedSegment, last_end: float, median: float) -> None:
    """Shorten implausibly long words next to a pause; then make the segment begin and end with its words."""
    first, last, longest = segment.words[0], segment.words[-1], 2 * median
    second = segment.words[1] if len(segment.words) > 1 else None
    long_start = first.end - first.start > longest or (second is not None and second.end - first.start > 2 * longest)
    if first.end - last_end > 4 * median and long_start:
        if second is not None and second.end - second.start > longest:
            first.end = second.start = max(second.end / 2, second.end - longest)
        first.start = max(0.0, first.end - longest)
    if segment.start < first.end and segment.start - 0.5 > first.start:
        first.start = max(0.0, min(first.end - median, segment.start))
    else:
        segment.start = first.start
    if segment.end > last.start and segment.end + 0.5 < last.end:
        last.end = max(last.start + median, segment.end)
    else:
        segment.end = last.end


def median_filter(values: NDArray[np.float32], width: int) -> NDArray[np.float32]:
    """Smooth along the last axis, mirrored at both ends; sound too short for that is left unchanged."""
    half = width // 2
    if values.shape[-1] <= half:
        return values
    padded = np.pad(values, [(0, 0)] * (values.ndim - 1) + [(half, half)], mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(padded, width, axis=-1)
    found: NDArray[np.float32] = np.partition(windows, half, axis=-1)[..., half]
    return found


def _softmax(values: NDArray[np.float32]) -> NDArray[np.float32]:
    shares = np.exp(values - values.max(-1, keepdims=True))
    found: NDArray[np.float32] = shares / shares.sum(-1, keepdims=True)
    return found
