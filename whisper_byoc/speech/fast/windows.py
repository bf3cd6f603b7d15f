"""Sound of any length to segments of text, window by window, as openai-whisper's `transcribe` goes through it.

Greedy, with timestamps, nothing carried over from one window to the next. What differs from openai-whisper: a window
with less than 27 s of sound is computed for its length only, and text that looks wrong is decoded again by itself.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from whisper_byoc.speech.engine import SECONDS_PER_POSITION, IsCancelled
from whisper_byoc.speech.fast.alignment import Heads, TimedSegment, align_words
from whisper_byoc.speech.fast.decoding import Decoded, decode
from whisper_byoc.speech.fast.mel import FRAMES_PER_SECOND
from whisper_byoc.speech.fast.network import Network, Sound
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


@dataclass(frozen=True)
class Attempt:
    """One way to decode a window."""

    full: bool = False
    """Whether to compute all 30 s."""
    temperature: float = 0.0


SHORT_FIRST = (Attempt(), Attempt(full=True), Attempt(full=True, temperature=RETRY_TEMPERATURE))
FULL_ONLY = SHORT_FIRST[1:]


@dataclass(frozen=True)
class Request:
    """What is wanted of the text."""

    language: str
    task: str
    prompt: str
    """Stands before the first window; may be empty."""
    words: bool
    limit: int
    """Most tokens of a window."""
    attempts: tuple[Attempt, ...] = SHORT_FIRST


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

    def sound(self, begin: int, *, full: bool) -> Sound:
        """Return the window that begins at a frame, all 30 s of it or what its sound needs."""
        seconds = min(FRAMES, self.frames - begin) / FRAMES_PER_SECOND
        wanted = WINDOW_SECONDS if full or seconds >= LONGEST_SHORT else max(SHORTEST, seconds + self._margin)
        if self._last is None or self._last[0] != (begin, wanted):
            features = self._mel[:, begin : begin + FRAMES]
            self._last = (begin, wanted), self._network.encode(features, wanted, self._is_cancelled)
        return self._last[1]


def transcribe(
    network: Network,
    tokenizer: Tokenizer,
    heads: Heads,
    windows: Windows,
    request: Request,
    is_cancelled: IsCancelled,
) -> Iterator[Scored]:
    """Yield the segments of a recording in order. Raises `Cancelled`."""
    begin, last_end = 0, 0.0
    prompt = request.prompt
    while begin < windows.frames:
        offset, frames = begin / FRAMES_PER_SECOND, min(FRAMES, windows.frames - begin)
        decoded, sound = _best(network, tokenizer, windows, begin, replace(request, prompt=prompt), is_cancelled)
        prompt = ""
        if decoded.no_speech > MAX_NO_SPEECH and decoded.logprob <= MIN_LOGPROB:
            begin += frames
            continue
        segments, advance = parted(decoded.tokens, tokenizer, offset, frames)
        if request.words:
            start = tokenizer.start(request.language, request.task)
            last_end = align_words(
                network, sound, tokenizer, heads, segments,
                start=start, language=request.language, frames=frames, offset=offset, last_end=last_end,
            )  # fmt: skip
            words = [word for segment in segments for word in segment.words]
            if words and words[-1].end > offset and not ends_alone(decoded.tokens, tokenizer):
                advance = round(words[-1].end * FRAMES_PER_SECOND) - begin
        score = score_of(decoded, tokenizer)
        for segment in segments:
            text = tokenizer.decode([token for token in segment.tokens if token < tokenizer.eot])
            if text.strip() and segment.start != segment.end:
                yield Scored(segment, text, score)
        begin += advance


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
    return Score(decoded.logprob, decoded.no_speech, compression_ratio(text))


def _best(
    network: Network,
    tokenizer: Tokenizer,
    windows: Windows,
    begin: int,
    request: Request,
    is_cancelled: IsCancelled,
) -> tuple[Decoded, Sound]:
    """Decode a window until a text is not doubtful, in at most as many attempts as there are."""
    found: list[tuple[tuple[bool, float], Decoded, Sound]] = []
    prompt = request.prompt
    for attempt in request.attempts:
        sound = windows.sound(begin, full=attempt.full)
        if attempt.full and not attempt.temperature and found and found[-1][2] is sound:
            continue  # the first attempt had the whole window already
        decoded = _decode(network, tokenizer, sound, prompt, request, attempt, is_cancelled)
        if prompt and is_prompt_echo(tokenizer.decode(decoded.tokens), prompt):
            prompt = ""
            decoded = _decode(network, tokenizer, sound, prompt, request, attempt, is_cancelled)
        score = score_of(decoded, tokenizer)
        doubtful = score.doubtful or (not decoded.ended and not score.invented)
        found.append(((not doubtful, decoded.logprob), decoded, sound))
        if not doubtful:
            break
    _, decoded, sound = max(found, key=lambda each: each[0])
    return decoded, sound


def _decode(
    network: Network,
    tokenizer: Tokenizer,
    sound: Sound,
    prompt: str,
    request: Request,
    attempt: Attempt,
    is_cancelled: IsCancelled,
) -> Decoded:
    return decode(
        network,
        sound,
        tokenizer,
        tokenizer.start(request.language, request.task),
        prompt=tokenizer.encode(" " + prompt.strip()) if prompt else (),
        limit=request.limit,
        temperature=attempt.temperature,
        is_cancelled=is_cancelled,
    )
