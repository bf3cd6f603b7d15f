"""What a text must not be: invented, repeated without end, or the prompt itself. Works on any engine's numbers."""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["MAX_COMPRESSION", "MIN_LOGPROB", "Score", "is_echo", "token_cap", "without_loops"]

MAX_COMPRESSION = 2.4
"""Text that gzip shrinks further than this is repetitive (openai-whisper, `compression_ratio_threshold`)."""
MIN_LOGPROB = -1.0
"""Mean log-probability of a text's tokens below which it is a guess (openai-whisper, `logprob_threshold`)."""
MAX_NO_SPEECH = 0.6
"""Probability of no speech above which a guess is dropped (openai-whisper, `no_speech_threshold`)."""
TOKENS_PER_SECOND = 12
TOKENS_AT_LEAST = 16
LONGEST_TEXT = 224
"""Tokens of one window (openai-whisper, `n_text_ctx // 2`)."""
WORDS_PER_SECOND = 6.0
"""Nobody speaks faster for long: auctioneers reach 4 to 5."""
LONGEST_LOOP = 12
REPEATS = 4


@dataclass(frozen=True)
class Score:
    """How sure a model is of one segment of text."""

    logprob: float
    """Mean log-probability of its tokens."""
    no_speech: float
    """Probability that there is no speech."""
    compression: float
    """Ratio of its bytes before and after gzip."""

    @property
    def doubtful(self) -> bool:
        """Whether another try is worth its time."""
        return not self.invented and (self.repetitive or self.logprob < MIN_LOGPROB)

    @property
    def repetitive(self) -> bool:
        """Whether it says the same again and again."""
        return self.compression > MAX_COMPRESSION

    @property
    def invented(self) -> bool:
        """Whether it is text for sound that has none."""
        return self.no_speech > MAX_NO_SPEECH and self.logprob < MIN_LOGPROB


def token_cap(seconds: float) -> int:
    """Give the most tokens that so much speech can hold; a loop ends there."""
    return min(LONGEST_TEXT, TOKENS_AT_LEAST + int(TOKENS_PER_SECOND * seconds))


def without_loops(text: str, seconds: float) -> str:
    """Cut the repetitions out of a text that nobody can have spoken in so many seconds.

    A phrase of up to 12 words that stands there four times in a row or more is left once. Text at a speed that
    people speak at is left alone, whatever it repeats.
    """
    words = text.split()
    if len(words) <= WORDS_PER_SECOND * max(seconds, 0.5):
        return text
    kept: list[str] = []
    at = 0
    while at < len(words):
        size, repeats = loop_at(words, at)
        kept += words[at : at + size]
        at += size * repeats
    return " ".join(kept)


def loop_at(words: list[str], at: int) -> tuple[int, int]:
    """Give the length of the phrase at a position and how often it stands there in a row; (1, 1) for no loop."""
    for size in range(1, LONGEST_LOOP + 1):
        phrase, repeats = words[at : at + size], 1
        while words[at + repeats * size : at + (repeats + 1) * size] == phrase:
            repeats += 1
        if repeats >= REPEATS:
            return size, repeats
    return 1, 1


def is_echo(text: str, prompt: str) -> bool:
    """Whether a text is a piece of the prompt: three of its words in a row or all of two, and nothing else."""
    said, expected = plain(text), plain(prompt)
    return len(said) >= min(3, max(2, len(expected))) and f" {' '.join(said)} " in f" {' '.join(expected)} "


def plain(text: str) -> list[str]:
    """Words in lower case without punctuation."""
    return re.sub(r"[^\w' ]", " ", text.lower()).split()
