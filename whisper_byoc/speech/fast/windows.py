"""Sound of any length to segments of text, window by window, as openai-whisper's `transcribe` goes through it.

Nothing is carried over from one window to the next. What differs from openai-whisper: a window with less than 27 s of
sound is computed for its length only and may be decoded without timestamps, and doubtful text is decoded again alone.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from whisper_byoc.speech.engine import SECONDS_PER_POSITION, DecodeOptions, IsCancelled
from whisper_byoc.speech.fast.alignment import (
    FRAMES_PER_POSITION,
    SENTENCE_ENDS,
    TimedSegment,
    align_words,
    token_ends,
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
"""Seconds that a short window is longer than its sound; with half of it, words at the end are lost."""
SHORTEST = 3.0
TEMPERATURES = (0.2, 0.4, 0.6, 0.8, 1.0)
"""openai-whisper's and faster-whisper's."""
LOUD = 0.75
"""Loud is what is less than 30 dB below the loudest frame: 40 dB are 1 in a log-mel feature."""
SHORTEST_SPEECH = 2.0
"""Seconds of loud sound from which on the length of a text says something."""
THIN_TEXT = 4.0
"""Bytes of UTF-8 for a second of loud sound that are too few for speech; the slowest of 40 recordings has 9.6."""
LONGEST_UNHEARD = 0.8
"""Seconds of loud sound behind the last word of a text that is complete: of 75 texts, those that are leave 0.5 at most,
and those that lack words 1 and more."""
SHORTEST_HEARD = 1.0
"""Seconds that a text is about, at least, before what is behind it is decoded by itself."""
AFTER_WORD = 0.2
"""Seconds for which a word goes on behind what the decoder attended to when it wrote its end."""
SHORTEST_SENTENCE = 1.5
"""Seconds: a full stop sooner is that of an abbreviation, or of a sentence that belongs to the next one."""


@dataclass(frozen=True)
class Attempt:
    """One way to decode a window."""

    full: bool = False
    """Whether to compute all 30 s."""
    temperature: float = 0.0


def attempts_at(*, full: bool, patient: bool) -> tuple[Attempt, ...]:
    """Return the ways to decode a window, one after the other until a text is not doubtful.

    `full` leaves out the short window; `patient` draws at all of openai-whisper's temperatures instead of one, which
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
    """Most tokens of a window."""
    timestamps: bool
    """Whether to part text where the model marks times, which sound of several windows needs; else at sentences."""
    attempts: tuple[Attempt, ...]


@dataclass(frozen=True)
class Scored:
    """A segment, its text and how sure the model is of its window."""

    segment: TimedSegment
    text: str
    score: Score


class Windows:
    """The windows of one recording, encoded when they are needed; the last one is kept."""

    def __init__(
        self, network: Network, mel: NDArray[np.float32], is_cancelled: IsCancelled, margin: float = MARGIN
    ) -> None:
        """`mel` has the features of all of it, (mels, frames); `margin` is in seconds."""
        self._margin = margin
        self.frames = mel.shape[1]
        self._network = network
        self._mel = mel
        self._is_cancelled = is_cancelled
        self._last: tuple[tuple[int, float], Sound] | None = None

    def loud(self, begin: int, after: float = 0.0) -> float:
        """Return how many seconds of the window that begins at a frame are loud, of those behind `after` seconds."""
        peaks = self._mel[:, begin : begin + FRAMES].max(0)
        behind = peaks[round(after * FRAMES_PER_SECOND) :]
        return float((behind > peaks.max() - LOUD).sum()) / FRAMES_PER_SECOND

    def sound(self, begin: int, *, full: bool) -> Sound:
        """Return the window that begins at a frame, all 30 s of it or what its sound needs."""
        seconds = min(FRAMES, self.frames - begin) / FRAMES_PER_SECOND
        wanted = WINDOW_SECONDS if full or seconds >= LONGEST_SHORT else max(SHORTEST, seconds + self._margin)
        if self._last is None or self._last[0] != (begin, wanted):
            features = self._mel[:, begin : begin + FRAMES]
            self._last = (begin, wanted), self._network.encode(features, wanted, self._is_cancelled)
        return self._last[1]


def transcribe(model: FastModel, windows: Windows, request: Request, is_cancelled: IsCancelled) -> Steps[list[Scored]]:
    """Return the segments of a recording in order. Raises `Cancelled`."""
    tokenizer, options = model.tokenizer, request.options
    start = tokenizer.start(options.language, options.task)
    prompt = tokenizer.prompt(options.initial_prompt)
    wish = Wish(start, request.limit, prompt, request.timestamps, beam=options.beam or 1)
    if not request.timestamps:
        wish = replace(wish, may_be_empty=True, guess=options.guess)
    begin, last_end = 0, 0.0
    found: list[Scored] = []
    while begin < windows.frames:
        offset, frames = begin / FRAMES_PER_SECOND, min(FRAMES, windows.frames - begin)
        decoded, sound = yield from _best(model, windows, begin, wish, request, is_cancelled)
        wish = replace(wish, prompt=())
        if decoded.no_speech > MAX_NO_SPEECH and decoded.logprob <= MIN_LOGPROB:
            begin += frames
            continue
        if wish.timestamps:
            segments, advance = parted(decoded.tokens, tokenizer, offset, frames)
        else:
            ends = token_ends(sound, decoded.queries, model.alignment_heads, frames // FRAMES_PER_POSITION)
            advance = min(frames, heard(windows, begin, last_word_end(decoded, ends, tokenizer)))
            segments = sentences(decoded, ends, tokenizer, options.language, offset, advance / FRAMES_PER_SECOND)
        if options.words:
            last_end = yield from align_words(
                sound, tokenizer, model.alignment_heads, segments,
                start=start, language=options.language, frames=frames, offset=offset, last_end=last_end,
            )  # fmt: skip
            words = [word for segment in segments for word in segment.words]
            if wish.timestamps and words and words[-1].end > offset and not ends_alone(decoded.tokens, tokenizer):
                advance = round(words[-1].end * FRAMES_PER_SECOND) - begin
        score = score_of(decoded, tokenizer)
        for segment in segments:
            text = tokenizer.decode([token for token in segment.tokens if token < tokenizer.eot])
            if text.strip() and segment.start != segment.end:
                found.append(Scored(segment, text, score))
        begin += advance
    return found


def heard(windows: Windows, begin: int, last_end: float) -> int:
    """Return how many frames of a window its text is about, whose last word ends at `last_end` seconds.

    That is all of them, unless there is so much loud sound behind the word that others are missing: tiny.en ends some
    texts in mid-speech, with good scores. What is behind is then a window of its own.
    """
    end = last_end + AFTER_WORD
    if last_end < SHORTEST_HEARD or windows.loud(begin, end) <= LONGEST_UNHEARD:
        return FRAMES
    return round(end * FRAMES_PER_SECOND)


def last_word_end(decoded: Decoded, ends: Sequence[float], tokenizer: Tokenizer) -> float:
    """Return when the last word of a text ends; the punctuation behind it may attend to anything."""
    for token, end in zip(reversed(decoded.tokens), reversed(ends[: len(decoded.tokens)]), strict=True):
        if any(map(str.isalnum, tokenizer.decode([token]))):
            return end
    return 0.0


def sentences(
    decoded: Decoded, ends: Sequence[float], tokenizer: Tokenizer, language: str | None, offset: float, length: float
) -> list[TimedSegment]:
    """Part a text without timestamps into sentences, timed by what the decoder attended to when it wrote their ends.

    `ends` are those of the tokens, in seconds of the window, which begins at `offset` and of which `length` are text.
    """
    pieces, groups = tokenizer.words(decoded.tokens, language)
    counts = list(itertools.accumulate(map(len, groups)))
    segments, first, start = [], 0, 0.0
    for at, (piece, following) in enumerate(itertools.pairwise(pieces)):
        if not (piece.strip() and piece.strip() in SENTENCE_ENDS and following.startswith(" ")):
            continue
        end = min(ends[counts[at] - 1], length)
        if end - start >= SHORTEST_SENTENCE:
            segments.append(TimedSegment(offset + start, offset + end, decoded.tokens[first : counts[at]]))
            first, start = counts[at], end
    return [*segments, TimedSegment(offset + start, offset + length, decoded.tokens[first:])]


def parted(tokens: Sequence[int], tokenizer: Tokenizer, offset: float, frames: int) -> tuple[list[TimedSegment], int]:
    """Part the text of a window where two timestamps meet; return also by how many frames to go on."""
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
    if alone:  # no speech behind the last timestamp
        return segments, frames
    return segments, (tokens[cuts[-1] - 1] - begin) * 2


def ends_alone(tokens: Sequence[int], tokenizer: Tokenizer) -> bool:
    """Whether a text ends with a single timestamp, behind which there is no more speech."""
    begin = tokenizer.timestamp_begin
    return len(tokens) > 1 and tokens[-1] >= begin > tokens[-2]


def score_of(decoded: Decoded, tokenizer: Tokenizer) -> Score:
    """Say how sure the model is of a text."""
    text = tokenizer.decode(decoded.tokens).strip()
    return Score(decoded.logprob, decoded.no_speech, compression_ratio(text), decoded.temperature)


def _best(
    model: FastModel, windows: Windows, begin: int, wish: Wish, request: Request, is_cancelled: IsCancelled
) -> Steps[tuple[Decoded, Sound]]:
    """Decode a window until a text is not doubtful, in at most as many attempts as there are."""
    tokenizer, context, prompt = model.tokenizer, model.dims.n_text_ctx, request.options.initial_prompt
    found: list[tuple[tuple[bool, bool, float], Decoded, Sound]] = []
    for attempt in request.attempts:
        sound = windows.sound(begin, full=attempt.full)
        if attempt.full and not attempt.temperature and found and found[-1][2] is sound:
            continue  # the first attempt had the whole window already
        wish = replace(wish, temperature=attempt.temperature, guess=() if found else wish.guess)
        decoded = yield from decode(sound, tokenizer, context, wish, is_cancelled)
        if wish.prompt and is_prompt_echo(tokenizer.decode(decoded.tokens), prompt):
            wish = replace(wish, prompt=())
            decoded = yield from decode(sound, tokenizer, context, wish, is_cancelled)
        score = score_of(decoded, tokenizer)
        doubtful = score.doubtful or (not decoded.ended and not score.invented)
        thin = is_thin(decoded, tokenizer, windows.loud(begin))
        found.append(((not doubtful, not thin, decoded.logprob), decoded, sound))
        whole = sound.positions == model.dims.n_audio_ctx
        if not doubtful and (not thin or whole):  # drawing tokens brings no words back
            break
    _, decoded, sound = max(found, key=lambda each: each[0])
    return decoded, sound


def is_thin(decoded: Decoded, tokenizer: Tokenizer, seconds: float) -> bool:
    """Whether a text is too short for so many seconds of loud sound, which the model takes for speech."""
    length = len(tokenizer.decode(decoded.tokens).strip().encode())
    return decoded.no_speech <= MAX_NO_SPEECH and seconds >= SHORTEST_SPEECH and length < THIN_TEXT * seconds
