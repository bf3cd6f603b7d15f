"""Sound of any length to segments of text, window by window, as in openai-whisper's `transcribe`.

Nothing is carried over from one window to the next. Differences from openai-whisper: for a window with less than 27 s
of sound only that length is computed, it may be decoded without timestamps, and doubtful text is decoded again by
itself.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from whisper_byoc.speech.engine import SECONDS_PER_POSITION, DecodeOptions, IsCancelled, Pauses
from whisper_byoc.speech.fast.alignment import (
    FRAMES_PER_POSITION,
    SENTENCE_ENDS,
    TimedSegment,
    align_words,
    leave_pauses,
    token_places,
)
from whisper_byoc.speech.fast.batch import Sound
from whisper_byoc.speech.fast.decoding import Decoded, Steps, Wish, decode
from whisper_byoc.speech.fast.mel import FRAMES_PER_SECOND
from whisper_byoc.speech.fast.model import FastModel
from whisper_byoc.speech.fast.network import Network
from whisper_byoc.speech.fast.tokenizer import Tokenizer
from whisper_byoc.speech.hallucination import MAX_NO_SPEECH, MIN_LOGPROB, RETRY_TEMPERATURE, Score, is_prompt_echo
from whisper_byoc.speech.transcript import compression_ratio

WINDOW_SECONDS = 30.0
FRAMES = 3000
LONGEST_SHORT = 27.0
"""Seconds of sound below which a window is shortened."""
MARGIN = 1.0
"""Seconds by which a short window is longer than its sound; with half of that, words at the end are lost."""
SHORTEST = 3.0
TEMPERATURES = (0.2, 0.4, 0.6, 0.8, 1.0)
"""openai-whisper's and faster-whisper's."""
LOUD = 0.75
"""A frame less than 30 dB below the loudest is loud: 40 dB are 1 in a log-mel feature."""
SHORTEST_SPEECH = 2.0
"""Seconds of speech above which the length of a text is meaningful."""
THIN_TEXT = 4.0
"""UTF-8 bytes per second of speech that are too few; the slowest of 40 recordings has 9.6."""
LONGEST_UNHEARD = 0.8
"""Most seconds of speech outside the words of a complete text. Of loud sound, 75 complete texts leave at most 0.76,
those that lack words 0.89 or more."""
BEFORE_END = 0.6
AFTER_END = 0.2
"""Seconds around the point that the decoder attended to when writing the end of a word that belong to the word."""
SHORTEST_TOKEN = 0.05
"""Seconds; tokens closer together than this attend to nothing, as base's do at the beginning of some sound."""
MOST_PIECES = 8
"""Most parts in which sound of less than 27 s is decoded."""
SHORTEST_PAUSE = 0.15
"""Seconds; there may be nearly as much silence between the halves of a word."""
SHORTEST_SENTENCE = 1.5
"""Seconds; an earlier full stop is that of an abbreviation, or of a sentence that belongs with the next one."""


@dataclass(frozen=True)
class Attempt:
    """One way to decode a window."""

    full: bool = False
    """Whether to compute all 30 s."""
    temperature: float = 0.0


def attempts_at(*, full: bool, patient: bool) -> tuple[Attempt, ...]:
    """Return the ways to decode a window, to be tried in turn until a text is not doubtful.

    `full` leaves out the short window; `patient` samples at all of openai-whisper's temperatures instead of one, which
    takes up to ten times as long for some sound.
    """
    temperatures = TEMPERATURES if patient else (RETRY_TEMPERATURE,)
    first = [Attempt(full=True)] if full else [Attempt(), Attempt(full=True)]
    return (*first, *(Attempt(full=True, temperature=each) for each in temperatures))


@dataclass(frozen=True)
class Request:
    """What is wanted of the text."""

    options: DecodeOptions
    """With a language."""
    limit: int
    """Most tokens in a window."""
    timestamps: bool
    """Whether to split text at the model's timestamps, which sound of several windows needs; otherwise at sentences."""
    attempts: tuple[Attempt, ...]


@dataclass(frozen=True)
class Scored:
    """A segment, its text and how sure the model is of its window."""

    segment: TimedSegment
    text: str
    score: Score


class Windows:
    """The windows of one recording, encoded when needed; the last one is kept."""

    def __init__(
        self,
        network: Network,
        mel: NDArray[np.float32],
        is_cancelled: IsCancelled,
        margin: float = MARGIN,
        pauses: Pauses | None = None,
    ) -> None:
        """`mel` holds the features of the whole recording, (mels, frames); `margin` is in seconds."""
        self.pauses = pauses and [each for each in pauses if each[1] - each[0] >= SHORTEST_PAUSE]
        self._margin = margin
        self.frames = mel.shape[1]
        self._network = network
        self._mel = mel
        self._is_cancelled = is_cancelled
        self._last: tuple[tuple[int, int, float], Sound] | None = None

    def speech(self, begin: int, end: int) -> float:
        """Return how many seconds between two frames are not in a pause.

        If pauses are unknown, return how many are loud, compared with the loudest of the surrounding 30 s.
        """
        if self.pauses is not None:
            first, last = begin / FRAMES_PER_SECOND, end / FRAMES_PER_SECOND
            return last - first - sum(max(0.0, min(to, last) - max(since, first)) for since, to in self.pauses)
        peaks = self._mel[:, max(0, end - FRAMES) : begin + FRAMES].max(0)
        return float((self._mel[:, begin:end].max(0) > peaks.max() - LOUD).sum()) / FRAMES_PER_SECOND

    def sound(self, begin: int, end: int | None = None, *, full: bool) -> Sound:
        """Return the sound between two frames, 30 s at most, in a window of 30 s or as short as possible."""
        end = min(self.frames if end is None else end, begin + FRAMES)
        seconds = (end - begin) / FRAMES_PER_SECOND
        wanted = WINDOW_SECONDS if full or seconds >= LONGEST_SHORT else max(SHORTEST, seconds + self._margin)
        if self._last is None or self._last[0] != (begin, end, wanted):
            features = self._mel[:, begin:end]
            self._last = (begin, end, wanted), self._network.encode(features, wanted, self._is_cancelled)
        return self._last[1]


def transcribe(model: FastModel, windows: Windows, request: Request, is_cancelled: IsCancelled) -> Steps[list[Scored]]:
    """Return the segments of a recording in order. Raises `Cancelled`."""
    way = _seek if request.timestamps else _in_pieces
    return (yield from way(model, windows, request, is_cancelled))


def _seek(model: FastModel, windows: Windows, request: Request, is_cancelled: IsCancelled) -> Steps[list[Scored]]:
    """Continue after the last timestamp of each window, as openai-whisper does."""
    tokenizer, options = model.tokenizer, request.options
    wish = _wish(tokenizer, request)
    begin, last_end = 0, 0.0
    found: list[Scored] = []
    while begin < windows.frames:
        end = min(begin + FRAMES, windows.frames)
        offset = begin / FRAMES_PER_SECOND
        decoded, sound = yield from _best(model, windows, (begin, end), wish, request, is_cancelled)
        wish = replace(wish, prompt=())
        if _is_silence(decoded):
            begin = end
            continue
        segments, advance = parted(decoded.tokens, tokenizer, offset, end - begin)
        if options.words:
            last_end = yield from align_words(
                sound, tokenizer, model.alignment_heads, segments,
                start=wish.start, language=options.language, frames=end - begin, offset=offset, last_end=last_end,
            )  # fmt: skip
            words = [word for segment in segments for word in segment.words]
            if words and words[-1].end > offset and not ends_alone(decoded.tokens, tokenizer):
                advance = round(words[-1].end * FRAMES_PER_SECOND) - begin
        found += _scored(segments, decoded, tokenizer)
        begin += advance
    return found


def _in_pieces(model: FastModel, windows: Windows, request: Request, is_cancelled: IsCancelled) -> Steps[list[Scored]]:
    """Decode sound that fits a window, then any part that its text leaves out, unless that only repeats it.

    tiny.en ends some texts in mid-speech, and begins others there, with good scores.
    """
    tokenizer, options = model.tokenizer, request.options
    wish = _wish(tokenizer, request)
    waiting: list[tuple[int, int]] = [(0, windows.frames)] if windows.frames else []
    found: list[Scored] = []
    for number in range(MOST_PIECES):
        if not waiting:
            break
        begin, end = waiting.pop()
        decoded, sound = yield from _best(model, windows, (begin, end), wish, request, is_cancelled)
        wish = replace(wish, prompt=(), guess=())
        text = tokenizer.decode(decoded.tokens)
        said_before = is_prompt_echo(text, " ".join(each.text for each in found))
        if _is_silence(decoded) or said_before or (number and score_of(decoded, tokenizer).doubtful):
            continue
        places = token_places(sound, decoded.queries, model.alignment_heads, (end - begin) // FRAMES_PER_POSITION)
        places += begin / FRAMES_PER_SECOND
        ends = np.maximum.accumulate(places).tolist()
        segments, first, start = [], 0, begin
        for at, gap in [
            *(unheard(windows, (begin, end), decoded, places, tokenizer) if model.follows_sound else ()),
            (len(decoded.tokens), (end, end)),
        ]:
            span = start / FRAMES_PER_SECOND, gap[0] / FRAMES_PER_SECOND
            segments += sentences(
                decoded.tokens[first:at], ends[first:at], tokenizer, options.language, span, windows.pauses or ()
            )
            first, start = at, gap[1]
            waiting += [gap] if gap[0] < gap[1] else []
        if options.words:
            yield from align_words(
                sound, tokenizer, model.alignment_heads, segments, start=wish.start, language=options.language,
                frames=end - begin, offset=begin / FRAMES_PER_SECOND, last_end=begin / FRAMES_PER_SECOND,
            )  # fmt: skip
            leave_pauses(segments, windows.pauses or ())
        found += _scored(segments, decoded, tokenizer)
    return sorted(found, key=lambda each: each.segment.start)


def _wish(tokenizer: Tokenizer, request: Request) -> Wish:
    options = request.options
    start, prompt = tokenizer.start(options.language, options.task), tokenizer.prompt(options.context, options.glossary)
    wish = Wish(start, request.limit, prompt, request.timestamps, beam=options.beam or 1)
    return wish if request.timestamps else replace(wish, may_be_empty=True, guess=options.guess)


def _is_silence(decoded: Decoded) -> bool:
    return decoded.no_speech > MAX_NO_SPEECH and decoded.logprob <= MIN_LOGPROB


def _scored(segments: Sequence[TimedSegment], decoded: Decoded, tokenizer: Tokenizer) -> list[Scored]:
    score, found = score_of(decoded, tokenizer), []
    for segment in segments:
        text = tokenizer.decode([token for token in segment.tokens if token < tokenizer.eot])
        if text.strip() and segment.start != segment.end:
            found.append(Scored(segment, text, score))
    return found


def unheard(
    windows: Windows, piece: tuple[int, int], decoded: Decoded, places: NDArray[np.float64], tokenizer: Tokenizer
) -> list[tuple[int, tuple[int, int]]]:
    """Return the frames of speech that no word of a text covers, and before which token their text belongs.

    `places` are the tokens' in seconds. Punctuation may attend to anything, and does not count.
    """
    begin, end = piece
    words = [at for at, token in enumerate(decoded.tokens) if any(map(str.isalnum, tokenizer.decode([token])))]
    if not words or np.ptp(places[words]) < SHORTEST_TOKEN * (len(words) - 1):
        return []
    covered = np.zeros(end - begin + 2, bool)
    covered[[0, -1]] = True
    for at in words:
        spoken = np.array([places[at] - BEFORE_END, places[at] + AFTER_END]) * FRAMES_PER_SECOND - begin
        covered[slice(*spoken.round().astype(int).clip(0, end - begin) + 1)] = True
    edges = np.flatnonzero(np.diff(covered)) + begin
    starts = [at for at in words if tokenizer.decode([decoded.tokens[at]]).startswith(" ")]
    return [
        (next((at for at in starts if places[at] * FRAMES_PER_SECOND > start), len(decoded.tokens)), (start, stop))
        for start, stop in edges.reshape(-1, 2).tolist()
        if stop - start > LONGEST_UNHEARD * FRAMES_PER_SECOND and windows.speech(start, stop) > LONGEST_UNHEARD
    ]


def sentences(
    tokens: list[int],
    ends: Sequence[float],
    tokenizer: Tokenizer,
    language: str | None,
    span: tuple[float, float],
    pauses: Pauses = (),
) -> list[TimedSegment]:
    """Split a text without timestamps into sentences, timed by what the decoder attended to when writing their ends.

    `ends` are the ends of the tokens and `span` is that of the text, in seconds. A sentence begins after the pause
    before its first word.
    """
    pieces, groups = tokenizer.words(tokens, language)
    counts = list(itertools.accumulate(map(len, groups)))

    def begin(earliest: float, piece: int) -> float:
        latest, word = earliest + BEFORE_END, ends[counts[piece] - 1]
        return max([earliest, *(end for begin, end in pauses if begin < latest and end <= word and end < span[1])])

    segments, first, start = [], 0, begin(span[0], 0) if pieces else span[0]
    for at, (piece, following) in enumerate(itertools.pairwise(pieces)):
        if not (piece.strip() and piece.strip() in SENTENCE_ENDS and following.startswith(" ")):
            continue
        end = ends[counts[at] - 1]
        if start + SHORTEST_SENTENCE <= end < span[1]:
            segments.append(TimedSegment(start, end, tokens[first : counts[at]]))
            first, start = counts[at], begin(end, at + 1)
    return [*segments, TimedSegment(start, span[1], tokens[first:])]


def parted(tokens: Sequence[int], tokenizer: Tokenizer, offset: float, frames: int) -> tuple[list[TimedSegment], int]:
    """Split the text of a window where two timestamps meet; return also how many frames to advance."""
    begin = tokenizer.timestamp_begin
    cuts = [at for at in range(1, len(tokens)) if tokens[at - 1] >= begin and tokens[at] >= begin]
    alone = ends_alone(tokens, tokenizer)
    if not cuts:
        stamps = [token for token in tokens if token >= begin]
        length = frames / FRAMES_PER_SECOND
        if stamps and stamps[-1] != begin:
            length = (stamps[-1] - begin) * SECONDS_PER_POSITION
        return [TimedSegment(offset, offset + length, list(tokens))], frames
    if alone:
        cuts.append(len(tokens))
    segments = []
    for first, last in zip([0, *cuts], cuts, strict=False):
        part = list(tokens[first:last])
        start, end = ((stamp - begin) * SECONDS_PER_POSITION for stamp in (part[0], part[-1]))
        segments.append(TimedSegment(offset + start, offset + end, part))
    if alone:  # no speech after the last timestamp
        return segments, frames
    return segments, (tokens[cuts[-1] - 1] - begin) * 2


def ends_alone(tokens: Sequence[int], tokenizer: Tokenizer) -> bool:
    """Whether a text ends with a single timestamp, after which there is no more speech."""
    begin = tokenizer.timestamp_begin
    return len(tokens) > 1 and tokens[-1] >= begin > tokens[-2]


def score_of(decoded: Decoded, tokenizer: Tokenizer) -> Score:
    """Return how sure the model is of a text."""
    text = tokenizer.decode(decoded.tokens).strip()
    return Score(decoded.logprob, decoded.no_speech, compression_ratio(text), decoded.temperature)


def _best(
    model: FastModel,
    windows: Windows,
    piece: tuple[int, int],
    wish: Wish,
    request: Request,
    is_cancelled: IsCancelled,
) -> Steps[tuple[Decoded, Sound]]:
    """Decode the sound between two frames until a text is not doubtful, or all attempts have been made."""
    tokenizer, context, prompt = model.tokenizer, model.dims.n_text_ctx, request.options.initial_prompt
    found: list[tuple[tuple[bool, bool, float], Decoded, Sound]] = []
    for attempt in request.attempts:
        sound = windows.sound(*piece, full=attempt.full)
        if attempt.full and not attempt.temperature and found and found[-1][2] is sound:
            continue  # the first attempt had the whole window already
        wish = replace(wish, temperature=attempt.temperature, guess=() if found else wish.guess)
        decoded = yield from decode(sound, tokenizer, context, wish, is_cancelled)
        if wish.prompt and is_prompt_echo(tokenizer.decode(decoded.tokens), prompt):
            wish = replace(wish, prompt=())
            decoded = yield from decode(sound, tokenizer, context, wish, is_cancelled)
        score = score_of(decoded, tokenizer)
        doubtful = score.doubtful or (not decoded.ended and not score.invented)
        thin = is_thin(decoded, tokenizer, windows.speech(*piece))
        found.append(((not doubtful, not thin, decoded.logprob), decoded, sound))
        whole = sound.positions == model.dims.n_audio_ctx
        if not doubtful and (not thin or whole):  # sampling tokens brings no words back
            break
    _, decoded, sound = max(found, key=lambda each: each[0])
    return decoded, sound


def is_thin(decoded: Decoded, tokenizer: Tokenizer, seconds: float) -> bool:
    """Whether a text is too short for `seconds` of speech, provided the model agrees that it is speech."""
    length = len(tokenizer.decode(decoded.tokens).strip().encode())
    return decoded.no_speech <= MAX_NO_SPEECH and seconds >= SHORTEST_SPEECH and length < THIN_TEXT * seconds
