"""The names and numbers of the trickle protocol, as in go-livepeer 0.9.1 (package `trickle`)."""

import re
from typing import Final

from whisper_byoc.trickle.errors import BadSequence

# Headers
SEQ: Final = "Lp-Trickle-Seq"  # index of the segment that was served or written
LATEST: Final = "Lp-Trickle-Latest"  # the next write: index of the newest segment that was started, plus one
CLOSED: Final = "Lp-Trickle-Closed"  # the channel has ended; any value that is not empty counts
RESET: Final = "Lp-Trickle-Reset"  # on a POST, any value that is not empty: close every segment below this one
EXPECT_CONTENT: Final = "Expect-Content"  # on the creation of a channel: the MIME type of its segments
TERMINATED: Final = "terminated"

# Indices
NEXT: Final = -1  # GET or POST: the segment that is written next
CURRENT: Final = -2  # GET: the newest segment that was started, or 0

NOT_FOUND: Final = 470  # status: the channel exists, the segment does not
WINDOW: Final = 5  # segments that a channel keeps: index N is in slot N mod 5
CHANGES: Final = "_changes"  # the channel that reports which channels come and go

DECIMAL = re.compile(r"[+-]?[0-9]{1,19}")
LARGEST_SEQ = 2**63 - 1


def parse_seq(text: str) -> int:
    """Read an index as Go's `strconv.Atoi` does: a 64-bit decimal integer.

    Raises `BadSequence`.
    """
    if DECIMAL.fullmatch(text) and -LARGEST_SEQ <= (seq := int(text)) < LARGEST_SEQ:
        return seq
    raise BadSequence(f"{text[:40]!r} is not a segment index")
