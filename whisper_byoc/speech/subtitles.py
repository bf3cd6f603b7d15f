"""Subtitles: text cut into cues that can be read, as SubRip and as WebVTT."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from whisper_byoc.speech.transcript import TextSegment, Transcription

__all__ = ["Cue", "as_srt", "as_vtt", "clock", "cues"]

LINE_CHARACTERS = 42
"""Longest line, and …"""
LINES = 2
"""… most lines of a cue: the rules that broadcasters and Netflix's timed text guide have for English."""
SHORTEST_SECONDS = 0.8
"""A cue stays for so long, unless the next one comes."""
BRIEFEST_SECONDS = 0.01
"""A cue that ends when it begins is none (W3C WebVTT, section 4.1: its end is greater than its start)."""


@dataclass(frozen=True)
class Cue:
    """What is shown from `start` to `end`, in seconds: one or two lines."""

    start: float
    end: float
    lines: tuple[str, ...]


def cues(segments: Iterable[TextSegment]) -> list[Cue]:
    """Cut segments into cues that follow each other without overlap, in the order of their times."""
    found: list[Cue] = []
    for cue in (cue for segment in segments for cue in cut(segment)):
        start = max(cue.start, found[-1].end if found else 0.0)
        found.append(Cue(start, max(cue.end, start + BRIEFEST_SECONDS), cue.lines))
    followers = [cue.start for cue in found[1:]] + [float("inf")]
    return [
        Cue(cue.start, min(max(cue.end, cue.start + SHORTEST_SECONDS), max(follower, cue.end)), cue.lines)
        for cue, follower in zip(found, followers, strict=False)  # without cues there still is the infinite one
    ]


def cut(segment: TextSegment) -> Iterator[Cue]:
    """Cut one segment where its lines are full; each cue has the time of its words, or its share of the whole."""
    lines = textwrap.wrap(clean(segment.text), LINE_CHARACTERS, break_long_words=True, break_on_hyphens=False)
    blocks = [lines[at : at + LINES] for at in range(0, len(lines), LINES)]
    total = sum(len(line) for line in lines) or 1
    timed = [word for word in segment.words if clean(word.text)]
    exact = [clean(word.text) for word in timed] == [word for line in lines for word in line.split()]
    shown = words_before = 0
    for block in blocks:
        before, shown = shown, shown + sum(map(len, block))
        count = sum(len(line.split()) for line in block)
        if exact:
            start, end = timed[words_before].start, timed[words_before + count - 1].end
        else:
            length = segment.end - segment.start
            start, end = segment.start + length * before / total, segment.start + length * shown / total
        words_before += count
        yield Cue(start, max(start, end), tuple(block))


def as_srt(heard: Transcription) -> str:
    """SubRip: numbered cues, hours always written, a comma before the milliseconds."""
    return "".join(
        f"{number}\n{clock(cue.start, ',')} --> {clock(cue.end, ',')}\n" + "\n".join(cue.lines) + "\n\n"
        for number, cue in enumerate(cues(heard.segments), 1)
    )


def as_vtt(heard: Transcription) -> str:
    """WebVTT: a header line, a full stop before the milliseconds, `&` and `<` escaped (W3C WebVTT, section 4.1)."""
    body = "".join(
        f"{clock(cue.start, '.')} --> {clock(cue.end, '.')}\n" + "\n".join(map(escaped, cue.lines)) + "\n\n"
        for cue in cues(heard.segments)
    )
    return f"WEBVTT\n\n{body}"


def clock(seconds: float, mark: str) -> str:
    """Seconds as `hh:mm:ss`, `mark`, milliseconds."""
    ms = round(max(0.0, seconds) * 1000)
    return f"{ms // 3_600_000:02}:{ms // 60_000 % 60:02}:{ms // 1000 % 60:02}{mark}{ms % 1000:03}"


def clean(text: str) -> str:
    """Text that cannot break out of a cue: no arrow, no line breaks."""
    return " ".join(re.sub("-{2,}>", "->", text).split())


def escaped(line: str) -> str:
    """Text that WebVTT does not take for markup."""
    return line.replace("&", "&amp;").replace("<", "&lt;")
