"""The formats of a transcript for people and their programs: plain text, JSON, and subtitles as SubRip and WebVTT."""

import json
import math
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from whisper_byoc.speech.transcript import TextSegment, Transcription

LINE_CHARACTERS = 42
"""Longest line, and …"""
LINES = 2
"""… most lines of a cue: the rules of broadcasters and of Netflix's timed text guide for English."""
SHORTEST_SECONDS = 0.8
"""A cue stays on screen for this long, unless the next one comes."""
BRIEFEST_SECONDS = 0.01
"""The end of a cue must be greater than its start (W3C WebVTT, section 4.1)."""


@dataclass(frozen=True)
class Cue:
    """What is shown from `start` to `end`, in seconds: one or two lines."""

    start: float
    end: float
    lines: tuple[str, ...]


def to_txt(transcription: Transcription) -> str:
    """One line per segment, as openai-whisper writes it."""
    return "".join(f"{segment.text}\n" for segment in transcription.segments)


def to_json(transcription: Transcription) -> str:
    """One object with `text`, `language` and `segments` (times in seconds)."""
    segments = [
        {"id": number, "start": round(segment.start, 3), "end": round(segment.end, 3), "text": segment.text}
        | ({"language": segment.language} if segment.language else {})
        | (segment.confidence.fields() if segment.confidence else {})
        for number, segment in enumerate(transcription.segments)
    ]
    body = {"text": transcription.text, "language": transcription.language, "segments": segments}
    return json.dumps(body, ensure_ascii=False, indent=2) + "\n"


def to_srt(transcription: Transcription) -> str:
    """SubRip: numbered cues, hours always written, a comma before the milliseconds."""
    return "".join(f"{number}\n{_timed_lines(cue, ',')}" for number, cue in enumerate(cues(transcription.segments), 1))


def to_vtt(transcription: Transcription) -> str:
    """WebVTT: a header line, a full stop before the milliseconds, `&` and `<` escaped (W3C WebVTT, section 4.1)."""
    body = "".join(_timed_lines(cue, ".") for cue in cues(transcription.segments))
    return "WEBVTT\n\n" + body.replace("&", "&amp;").replace("<", "&lt;")  # neither is in a line of times


FORMATS: Mapping[str, Callable[[Transcription], str]] = MappingProxyType(
    {"txt": to_txt, "json": to_json, "srt": to_srt, "vtt": to_vtt}
)
"""Writers by the ending of the file name."""


def cues(segments: Iterable[TextSegment]) -> list[Cue]:
    """Split segments into cues that follow each other without overlap, in the order of their times."""
    found: list[Cue] = []
    for segment in segments:
        for cue in _cues_of(segment):
            start = max(cue.start, found[-1].end if found else 0.0)
            found.append(Cue(start, max(cue.end, start + BRIEFEST_SECONDS), cue.lines))
    for number, cue in enumerate(found):
        next_start = found[number + 1].start if number + 1 < len(found) else math.inf
        found[number] = replace(cue, end=max(cue.end, min(cue.start + SHORTEST_SECONDS, next_start)))
    return found


def _cues_of(segment: TextSegment) -> Iterator[Cue]:
    """Split one segment where its lines are full; each cue has the time of its words, or its share of the whole."""
    lines = textwrap.wrap(cue_text(segment.text), LINE_CHARACTERS, break_long_words=True, break_on_hyphens=False)
    words = [word for word in segment.words if cue_text(word.text)]
    exact = [cue_text(word.text) for word in words] == [word for line in lines for word in line.split()]
    seconds_per_character = (segment.end - segment.start) / (sum(map(len, lines)) or 1)
    characters = spoken = 0  # in the cues so far
    for at in range(0, len(lines), LINES):
        block = lines[at : at + LINES]
        before, characters = characters, characters + sum(map(len, block))
        first, spoken = spoken, spoken + sum(len(line.split()) for line in block)
        if exact:
            start, end = words[first].start, words[spoken - 1].end
        else:
            start = segment.start + seconds_per_character * before
            end = segment.start + seconds_per_character * characters
        yield Cue(start, max(start, end), tuple(block))


def _timed_lines(cue: Cue, mark: str) -> str:
    return f"{timestamp(cue.start, mark)} --> {timestamp(cue.end, mark)}\n" + "\n".join(cue.lines) + "\n\n"


def timestamp(seconds: float, mark: str) -> str:
    """Return `hh:mm:ss`, `mark`, milliseconds."""
    ms = round(max(0.0, seconds) * 1000)
    return f"{ms // 3_600_000:02}:{ms // 60_000 % 60:02}:{ms // 1000 % 60:02}{mark}{ms % 1000:03}"


def cue_text(text: str) -> str:
    """Return text that cannot break out of a cue: no arrow, no line breaks."""
    return " ".join(re.sub("-{2,}>", "->", text).split())
