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
WORD_SECONDS = 1 / 6
"""Nobody speaks faster for long: auctioneers reach 4 to 5 words a second."""
HAN_OR_KANA = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
HAN_OR_KANA_SECONDS = 1 / 12
"""The fastest Japanese has some 10 morae a second."""
SOUTH_EAST_ASIAN = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"
SOUTH_EAST_ASIAN_SECONDS = 1 / 24
"""Thai, Lao, Burmese and Khmer: up to 7 syllables a second, of three or four characters each."""
UNIT = re.compile(rf"([{HAN_OR_KANA}])\s*|([{SOUTH_EAST_ASIAN}])\s*|[^\s{HAN_OR_KANA}{SOUTH_EAST_ASIAN}]+\s*")
"""A word, or a character of a script that has no blanks between words; with the blanks that follow."""
LONGEST_LOOP = 30
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

    A phrase of up to 30 words (characters, where words have no blanks between them) that stands there four times in a
    row or more is left once. Text at a speed that people speak at is left alone, whatever it repeats.
    """
    units = list(UNIT.finditer(text))
    if sum(map(seconds_of, units)) <= max(seconds, 0.5):
        return text
    spoken = [unit[0].rstrip() for unit in units]
    kept: list[str] = []
    at = 0
    while at < len(units):
        size, repeats = loop_at(spoken, at)
        at += size * repeats
        kept += (unit[0] for unit in units[at - size : at])
    return "".join(kept).strip()


def seconds_of(unit: re.Match[str]) -> float:
    """Give the least time that anybody takes to say a word or character."""
    return HAN_OR_KANA_SECONDS if unit[1] else SOUTH_EAST_ASIAN_SECONDS if unit[2] else WORD_SECONDS


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
