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
    longest_lost: int = 0
    """The most words in a row that were lost."""

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
    # each cell: (errors, wrong, lost, extra, lost in a row up to here, most of those); a substitution is preferred to a
    # loss beside an extra word
    row = [(at, 0, 0, at, 0, 0) for at in range(len(heard) + 1)]
    for number, word in enumerate(said, 1):
        before, row = row, [(number, 0, number, 0, number, number)]
        for at, other in enumerate(heard, 1):
            errors, wrong, lost, extra, _, longest = before[at - 1]
            best = (errors + (word != other), wrong + (word != other), lost, extra, 0, longest)
            errors, wrong, lost, extra, run, longest = before[at]
            if errors + 1 < best[0]:
                best = (errors + 1, wrong, lost + 1, extra, run + 1, max(longest, run + 1))
            errors, wrong, lost, extra, _, longest = row[at - 1]
            if errors + 1 < best[0]:
                best = (errors + 1, wrong, lost, extra + 1, 0, longest)
            row.append(best)
    _, wrong, lost, extra, _, longest = row[-1]
    return Score(len(said), wrong, lost, extra, longest)


def total(scores: Iterable[Score]) -> Score:
    """Add counts up."""
    found = list(scores)
    return Score(
        sum(each.said for each in found),
        sum(each.wrong for each in found),
        sum(each.lost for each in found),
        sum(each.extra for each in found),
        max((each.longest_lost for each in found), default=0),
    )
