"""The tokens that the model uses: 0.8 % of Whisper's English vocabulary, numbered anew without gaps.

Every other row of the embedding is zero, so its logit is 0 at every step. A training that gives all of them one
constant column, the logarithm of how many they are, computes exactly the softmax over the whole vocabulary.
"""

import math

from whisper.tokenizer import get_tokenizer

from tools.demo_model.vocabulary import WORDS

VOCABULARY_SIZE = 51_864
"""Of the English-only tokenizer (whisper.tokenizer.get_tokenizer(False)), which has no language tokens."""

TIMESTAMP_STEP = 5
"""Timestamps are used in steps of 0.1 s; Whisper's own have 0.02 s."""
_TIMESTAMPS = 1501  # 0.00 to 30.00 s in 0.02 s
LAST_TIMESTAMP = (_TIMESTAMPS - 1) // TIMESTAMP_STEP


class Tokens:
    """Compact numbers: first the words' pieces, then the special tokens, then the timestamps."""

    def __init__(self) -> None:
        tokenizer = get_tokenizer(multilingual=False)
        pieces = [tokenizer.encode(" " + word) for word in WORDS]
        text = sorted({piece for word in pieces for piece in word})
        special = [
            tokenizer.eot,
            tokenizer.sot,
            tokenizer.sot_prev,
            tokenizer.no_speech,
            tokenizer.no_timestamps,
        ]
        timestamps = [tokenizer.timestamp_begin + i for i in range(0, _TIMESTAMPS, TIMESTAMP_STEP)]
        self.rows: list[int] = [*text, *special, *timestamps]
        """The number in Whisper's vocabulary of each compact token."""
        compact = {row: index for index, row in enumerate(self.rows)}
        self.words: list[list[int]] = [[compact[piece] for piece in word] for word in pieces]
        """The compact tokens of each word, in the order of WORDS."""
        self.texts = len(text)
        """How many pieces of words there are; they are the tokens below this number."""
        self.eot, self.sot, self.previous, self.no_speech, self.no_timestamps = (compact[row] for row in special)
        self.first_timestamp = len(text) + len(special)
        self.unused_logit = math.log(VOCABULARY_SIZE - len(self.rows))
        """The logarithm of the summed exponentials of all the rows that are zero."""

    def timestamp(self, seconds: float) -> int:
        """Return the token nearest to a time in the window."""
        return self.first_timestamp + min(max(round(seconds * 10), 0), LAST_TIMESTAMP)
