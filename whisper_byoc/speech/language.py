"""Which language is spoken where: consecutive pieces of sound, between which a change of language has a price."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import groupby

import numpy as np

from audio.pcm import SAMPLE_RATE
from whisper_byoc.speech.engine import DecodeOptions, Samples, Scores
from whisper_byoc.speech.transcript import LanguagePiece, Transcription

SECONDS = 3.0
"""The log-probabilities of a piece count once per this many seconds of it."""
LEAST_PROBABILITY = 1e-4
"""Anything less counts as this: about short sound the model is far too sure."""
CHANGE = 3.5
"""Price of a change of language, as a log-probability: that of 1.2 s about which the model is quite sure.

With base, none of 226 beginnings of 40 English recordings is taken for another language after English (two are at a
price of 2); of 32 that are 2 s long, 28 are taken for English after German (23 at 4)."""
LONGEST_PIECE = 5.0
SHORTEST_PIECE = 1.5
"""Seconds; only the whole sound may be shorter."""
SHORTEST_PART = 5.0
"""Fewest seconds of sound that the encoder puts in one window, when there is more than one can hold."""
PAUSE_FRAMES = 30
"""Frames of 10 ms whose loudness is compared to find a pause."""
FRAME = SAMPLE_RATE // 100


def parted(samples: Samples, longest: float = LONGEST_PIECE, shortest: float = SHORTEST_PIECE) -> list[int]:
    """Return where to split sound at its quietest points: 0 and the ends of its pieces, in samples.

    `longest` and `shortest` are in seconds; pieces are between the two, unless that is impossible.
    """
    frames = len(samples) // FRAME
    energy = np.square(samples[: frames * FRAME].astype(np.float64)).reshape(frames, FRAME).sum(1)
    sums = np.concatenate((np.zeros(1), np.cumsum(energy)))
    loudness = sums[PAUSE_FRAMES:] - sums[:-PAUSE_FRAMES]  # of the pause around frame n, at n - PAUSE_FRAMES // 2
    margin = int(shortest * 100)
    points, waiting = [0, len(samples)], [(0, frames)]
    while waiting:
        first, last = waiting.pop()
        if last - first <= max(longest * 100, 2 * margin):
            continue
        begin = first + margin - PAUSE_FRAMES // 2
        quietest = first + margin + int(loudness[begin : last - margin - PAUSE_FRAMES // 2].argmin())
        points.append(quietest * FRAME)
        waiting += [(first, quietest), (quietest, last)]
    return sorted(points)


def piece_of(start: int, end: int, chances: Mapping[str, float]) -> LanguagePiece:
    """Make a piece of sound between two samples."""
    possible = {language: chance for language, chance in chances.items() if chance > LEAST_PROBABILITY}
    return LanguagePiece(start / SAMPLE_RATE, end / SAMPLE_RATE, possible)


def labelled(pieces: Sequence[LanguagePiece], before: Scores) -> tuple[tuple[LanguagePiece, ...], Scores]:
    """Return pieces with their likeliest languages, after speech with the scores `before`; and the scores after them.

    A Viterbi search, in which any language may follow any other at the same price.
    """
    known = {*before, *(language for piece in pieces for language in piece.chances)}
    scores = {language: before.get(language, -CHANGE if before else 0.0) for language in known}
    origins: list[dict[str, str]] = []  # for each piece, its language -> that of the piece before
    for piece in pieces:
        likeliest = max(scores, key=scores.__getitem__)
        changed = scores[likeliest] - CHANGE
        origins.append({each: each if score >= changed else likeliest for each, score in scores.items()})
        weight = (piece.end - piece.start) / SECONDS
        scores = {
            each: max(score, changed) + weight * math.log(max(piece.chances.get(each, 0.0), LEAST_PROBABILITY))
            for each, score in scores.items()
        }
    language = max(scores, key=scores.__getitem__)
    found: list[LanguagePiece] = []
    for piece, origin in zip(reversed(pieces), reversed(origins), strict=True):
        found.insert(0, replace(piece, language=language))
        language = origin[language]
    highest = max(scores.values())
    return tuple(found), {each: score - highest for each, score in scores.items() if score - highest > -CHANGE}


def runs(pieces: Iterable[LanguagePiece]) -> list[tuple[float, float, str]]:
    """Join neighbours of one language; return start, end (seconds) and language of each run."""
    groups = ([*group] for _, group in groupby(pieces, key=lambda piece: piece.language))
    return [(group[0].start, group[-1].end, group[0].language) for group in groups]


def likeliest(scores: Scores) -> str | None:
    """Return the language of the speech that has these scores; None if there was none."""
    return max(scores, key=scores.__getitem__, default=None)


class LanguageChoice:
    """The language of one stream; `fixed` is the one the client asked for, None for `auto`."""

    def __init__(self, fixed: str | None) -> None:
        self._fixed = fixed
        self._scores: Scores = {}

    @property
    def likely(self) -> str | None:
        """The language of the last speech; None before there is any."""
        return self._fixed or likeliest(self._scores)

    def asked(self, options: DecodeOptions) -> DecodeOptions:
        """Return options for the next sound."""
        return replace(options, language=self._fixed, spoken=self._scores)

    def agrees(self, found: Transcription) -> bool:
        """Whether text has the languages that it would have if requested now."""
        return not found.pieces or labelled(found.pieces, self._scores)[0] == found.pieces

    def heard(self, found: Transcription) -> None:
        """Note the text of the next sound. If there is none, no language was spoken."""
        if found.text and found.pieces:
            _, self._scores = labelled(found.pieces, self._scores)
