"""Words that were said against words that were heard."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

__all__ = ["Score", "compare", "normalised", "total", "words"]

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
DIGITS = {word: str(at) for at, word in enumerate(NUMBERS)} | {"oh": "0", "o": "0"}


@dataclass(frozen=True)
class Score:
    """Counts of words, after the cheapest alignment (Levenshtein)."""

    said: int = 0
    wrong: int = 0
    lost: int = 0
    extra: int = 0

    @property
    def error_rate(self) -> float:
        """Word error rate in percent."""
        return 100 * (self.wrong + self.lost + self.extra) / max(1, self.said)


def words(text: str) -> list[str]:
    """Words in lower case without punctuation."""
    return re.findall(r"[\w']+", text.lower())


def normalised(text: str, *, digits: bool = False) -> list[str]:
    """Words as openai-whisper's normaliser of English writes them, the way that papers count; imports torch.

    `eight` becomes `8`, `Mr.` `mister`, `colour` `color`. With `digits` every digit is a word of its own.
    """
    from whisper.normalizers import EnglishTextNormalizer

    found: list[str] = EnglishTextNormalizer()(text).split()
    if not digits:
        return found
    return [each for word in found for each in (word if word.isdecimal() else [DIGITS.get(word, word)])]


def compare(said: Sequence[str], heard: Sequence[str]) -> Score:
    """Align two lists of words and count."""
    # each cell: (errors, wrong, lost, extra); a substitution is preferred to a loss beside an extra word
    row = [(at, 0, 0, at) for at in range(len(heard) + 1)]
    for number, word in enumerate(said, 1):
        before, row = row, [(number, 0, number, 0)]
        for at, other in enumerate(heard, 1):
            errors, wrong, lost, extra = before[at - 1]
            best = (errors + (word != other), wrong + (word != other), lost, extra)
            errors, wrong, lost, extra = before[at]
            best = min(best, (errors + 1, wrong, lost + 1, extra), key=lambda cell: cell[0])
            errors, wrong, lost, extra = row[at - 1]
            row.append(min(best, (errors + 1, wrong, lost, extra + 1), key=lambda cell: cell[0]))
    _, wrong, lost, extra = row[-1]
    return Score(len(said), wrong, lost, extra)


def total(scores: Iterable[Score]) -> Score:
    """Add counts up."""
    found = list(scores)
    return Score(
        sum(each.said for each in found),
        sum(each.wrong for each in found),
        sum(each.lost for each in found),
        sum(each.extra for each in found),
    )
