"""How right a transcript is."""

import re
from collections.abc import Sequence
from typing import Any

from tools.demo_model.scenes import Recording


def words(text: str) -> list[str]:
    """Return the words of a transcript in lower case, without punctuation."""
    return re.findall(r"[a-z0-9']+", text.lower())


def word_errors(wanted: Sequence[str], heard: Sequence[str]) -> int:
    """Return how many words have to be put in, taken out or replaced to make `heard` what was `wanted`."""
    row = list(range(len(heard) + 1))
    for index, want in enumerate(wanted, 1):
        diagonal, row[0] = row[0], index
        for column, word in enumerate(heard, 1):
            diagonal, row[column] = row[column], min(row[column] + 1, row[column - 1] + 1, diagonal + (want != word))
    return row[-1]


def edge_errors(recording: Recording, segments: Sequence[dict[str, Any]]) -> tuple[list[float], list[float]]:
    """Return how far off the starts and the ends of segments are, in seconds, where a segment is one utterance.

    A window's only segment is left out of the starts, and so is a window's first one that starts after its first
    second: openai-whisper puts the one at the window's start, and the other one within that second.
    """
    starts, ends = [], []
    for index, segment in enumerate(segments):
        said = words(segment["text"])
        middle = (segment["start"] + segment["end"]) / 2
        matching = [
            each for each in recording.utterances if each.words == said and each.start - 2 < middle < each.end + 2
        ]
        if len(matching) != 1:
            continue
        (utterance,) = matching
        window = segment["seek"] / 100
        first = index == 0 or segments[index - 1]["seek"] != segment["seek"]
        if not first or (segment["start"] > window and utterance.start - window <= 1.0):
            starts.append(abs(segment["start"] - utterance.start))
        ends.append(abs(segment["end"] - utterance.end))
    return starts, ends
