"""Which tokens may come next: openai-whisper's decoding rules."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from whisper_byoc.speech.fast.batch import NEVER
from whisper_byoc.speech.fast.tokenizer import Tokenizer

LAST_FIRST_TIMESTAMP = 50
"""A text begins within the first second: 50 steps of 0.02 s (openai-whisper, `max_initial_timestamp`)."""


class Rules:
    """Masks logits (vocabulary,) in place, as openai-whisper's filters do."""

    def __init__(self, tokenizer: Tokenizer, *, timestamps: bool, may_be_empty: bool = False) -> None:
        """`may_be_empty` lets a text end before its first word, which openai-whisper's rules forbid."""
        self._tokenizer = tokenizer
        self._timestamps = timestamps
        self._suppressed = np.array(tokenizer.suppressed)
        self._blank = np.array([token for token in tokenizer.blank if not (may_be_empty and token == tokenizer.eot)])

    def apply(self, logits: NDArray[np.float32], written: Sequence[int]) -> None:
        """Forbid what cannot follow the tokens `written`."""
        if not written:
            logits[self._blank] = NEVER
        logits[self._suppressed] = NEVER
        if self._timestamps:
            self._apply_timestamps(logits, written)

    def _apply_timestamps(self, logits: NDArray[np.float32], written: Sequence[int]) -> None:
        """Timestamps come in pairs, never go back, and come when they are likelier than any word.

        openai-whisper, `ApplyTimestampRules`.
        """
        begin, eot = self._tokenizer.timestamp_begin, self._tokenizer.eot
        logits[self._tokenizer.no_timestamps] = NEVER
        last = bool(written) and written[-1] >= begin
        before_last = len(written) < 2 or written[-2] >= begin
        if last:
            if before_last:
                logits[begin:] = NEVER
            else:
                logits[:eot] = NEVER
        newest = next((token for token in reversed(written) if token >= begin), None)
        if newest is not None:  # a segment may begin where the last ended, but has a length
            logits[begin : newest if last and not before_last else newest + 1] = NEVER
        if not written:
            logits[:begin] = NEVER
            logits[begin + LAST_FIRST_TIMESTAMP + 1 :] = NEVER
        if log_sum_exp(logits[begin:]) > logits[:begin].max():
            logits[:begin] = NEVER


def log_sum_exp(values: NDArray[np.float32]) -> np.float32:
    """Return log(sum(exp(values))); -inf if all values are."""
    highest = values.max()
    if highest == NEVER:
        return NEVER
    found: np.float32 = np.log(np.exp(values - highest).sum()) + highest
    return found
