"""What the decoder reads and is to write for a window, and where in the sound each token is."""

import random
from dataclasses import dataclass, field

from tools.demo_model import grammar
from tools.demo_model.corpus import UNKNOWN
from tools.demo_model.tokens import Tokens
from tools.demo_model.vocabulary import WORDS
from tools.demo_model.windows import Segment, Window

LATEST_FIRST_TIMESTAMP = 1.0
"""Seconds; whisper.decoding.DecodingOptions.max_initial_timestamp: the first timestamp is never later."""
PROMPT_TOKENS = 223
"""whisper.decoding keeps so many tokens of a prompt: n_text_ctx // 2 - 1."""

_WITHOUT_TIMESTAMPS_SHARE = 0.2
_WRONG_TEXT_SHARE, _WRONG_TIMESTAMP_SHARE = 0.04, 0.2
_REPEATED_SHARE = 0.3  # of the wrong texts: what was said before once more, or it would go on saying it

Span = tuple[float, float]
"""First and last position (20 ms) of what a token is about."""


@dataclass
class Sequence:
    """The decoder's side of a window; all lists are equally long."""

    read: list[int] = field(default_factory=list)
    """Compact tokens that the decoder is given."""
    write: list[int] = field(default_factory=list)
    """What it is to answer after each, UNKNOWN where that does not matter."""
    positions: list[int] = field(default_factory=list)
    ahead: list[Span | None] = field(default_factory=list)
    """Where the token to be written is heard."""
    behind: list[Span | None] = field(default_factory=list)
    """Where the token just read is heard."""


class Writer:
    """Turns windows into sequences; everything random comes from the `rng` of each call."""

    def __init__(self, tokens: Tokens, words: dict[str, int] | None = None) -> None:
        self._tokens = tokens
        self._indices = words or {word: index for index, word in enumerate(WORDS)}

    def write(self, window: Window, prompt_share: float, longest_prompt: int, rng: random.Random) -> Sequence:
        """Return the window's sequence, with a prompt of up to so many tokens at that share of windows."""
        timestamps = rng.random() >= _WITHOUT_TIMESTAMPS_SHARE
        said, spans = self._with_timestamps(window, rng) if timestamps else self._without_timestamps(window)
        start = [self._tokens.sot] if timestamps else [self._tokens.sot, self._tokens.no_timestamps]
        prompt = self._prompt(longest_prompt, rng) if rng.random() < prompt_share else []
        first = said[0] if timestamps else self._first_timestamp(window)
        answers = [self._tokens.no_speech if not window.segments else first]
        answers += said[1:] if timestamps else said
        before = [UNKNOWN] * len(prompt)
        nowhere: list[Span | None] = [None] * len(prompt)
        return Sequence(
            read=self._mistaken([*prompt, *start, *said[:-1]], len(prompt) + len(start), rng),
            write=[*before, *answers],
            positions=self._positions(len(prompt), len(start) + len(said) - 1, rng),
            ahead=[*nowhere, *([] if timestamps else [None]), *spans],
            behind=[*nowhere, *(None for _ in start), *spans[:-1]],
        )

    def _with_timestamps(self, window: Window, rng: random.Random) -> tuple[list[int], list[Span | None]]:
        if not window.segments:
            return [self._tokens.timestamp(rng.uniform(0, 1)), self._tokens.eot], [None, None]
        said: list[int] = []
        spans: list[Span | None] = []
        for segment in window.segments:
            start, end = float(segment.spans[0][0]), float(segment.spans[-1][1])
            said.append(self._first_timestamp(window) if not said else self._time(window, start))
            spans.append((start - 4, start + 8))
            self._say(segment, said, spans)
            said.append(self._time(window, end))
            spans.append((end - 6, end + 6))
        if window.resume is not None:
            said.append(self._time(window, window.resume))
            spans.append((window.resume - 4, window.resume + 8))
        return [*said, self._tokens.eot], [*spans, None]

    def _without_timestamps(self, window: Window) -> tuple[list[int], list[Span | None]]:
        said: list[int] = []
        spans: list[Span | None] = []
        for segment in window.segments:
            self._say(segment, said, spans)
        return [*said, self._tokens.eot], [*spans, None]

    def _say(self, segment: Segment, said: list[int], spans: list[Span | None]) -> None:
        for word, (start, end) in zip(segment.words, segment.spans, strict=True):
            for piece in self._tokens.words[word]:
                said.append(piece)
                spans.append((float(start), float(end)))

    def _time(self, window: Window, position: float) -> int:
        return self._tokens.timestamp((window.offset + position) / 50)

    def _first_timestamp(self, window: Window) -> int:
        if not window.segments:
            return UNKNOWN
        start = (window.offset + float(window.segments[0].spans[0][0])) / 50
        return self._tokens.timestamp(min(start, LATEST_FIRST_TIMESTAMP))

    def _prompt(self, longest: int, rng: random.Random) -> list[int]:
        """Return <|startofprev|> and text as transcribe() hands it on: earlier windows' segments with their times."""
        wanted = rng.randint(1, longest)
        with_times = rng.random() < 0.85  # without: an initial prompt of the user's
        tokens: list[int] = []
        time = rng.uniform(0, 1)
        while len(tokens) < wanted:
            words = [self._indices[word] for word in grammar.text(rng)]
            end = time + 0.45 * len(words) + rng.uniform(0, 0.3)
            if end > 30:  # another window
                time = rng.uniform(0, 1)
                continue
            spoken = [piece for word in words for piece in self._tokens.words[word]]
            if with_times:
                spoken = [self._tokens.timestamp(time), *spoken, self._tokens.timestamp(end)]
            tokens += spoken
            time = end + rng.uniform(0.3, 5.0)
        return [self._tokens.previous, *tokens[-min(PROMPT_TOKENS, longest) :]]

    def _mistaken(self, read: list[int], first: int, rng: random.Random) -> list[int]:
        """Put mistakes into what it has said before, such as it will make: it has to find its place all the same."""
        tokens = self._tokens
        for index in range(first, len(read)):
            if read[index] < tokens.texts:
                if rng.random() < _WRONG_TEXT_SHARE:
                    repeated = read[index - 1] < tokens.texts and rng.random() < _REPEATED_SHARE
                    read[index] = read[index - 1] if repeated else rng.randrange(tokens.texts)
            elif read[index] >= tokens.first_timestamp and rng.random() < _WRONG_TIMESTAMP_SHARE:
                moved = read[index] + rng.choice((-2, -1, 1, 2))
                read[index] = min(max(moved, tokens.first_timestamp), len(tokens.rows) - 1)
        return read

    @staticmethod
    def _positions(prompt: int, rest: int, rng: random.Random) -> list[int]:
        """Return where in the text context the tokens are; short prompts often pretend to be long ones."""
        longest = min(PROMPT_TOKENS + 1, 448 - rest)
        gap = rng.randint(0, longest - prompt) if 0 < prompt < longest and rng.random() < 0.4 else 0
        start = prompt + gap
        return [*range(gap, start), *range(start, start + rest)]
