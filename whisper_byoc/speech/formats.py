"""Transcript formats for people and their programs: plain text, JSON, and subtitles as SubRip and WebVTT."""

import itertools
import json
import math
import re
import textwrap
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Protocol

from whisper_byoc.speech.transcript import TextSegment, Transcription, Word

LINE_WIDTH = 42
"""Longest line, in columns (a full-width character takes two); and …"""
LINES = 2
"""… most lines of a cue: the rules of broadcasters and of Netflix's timed text guide for English."""
LINE_WIDTHS = (10, 200)
"""Smallest and largest width that may be requested."""
LEADING_VOWELS = re.compile("[\u0e40-\u0e44\u0ec0-\u0ec4]")
"""Thai and Lao vowel signs that are written before the consonant they are spoken after (Unicode,
Logical_Order_Exception)."""
JOINER = "\u200d"
VIRAMA = 9
"""Canonical combining class of the sign that joins two consonants in Indian scripts."""
SHORTEST_SECONDS = 0.8
"""A cue stays on screen for at least this long, unless the next one comes."""
BRIEFEST_SECONDS = 0.01
"""The end of a cue must be greater than its start (W3C WebVTT, section 4.1)."""


@dataclass(frozen=True)
class Cue:
    """What is shown from `start` to `end`, in seconds: one or two lines."""

    start: float
    end: float
    lines: tuple[str, ...]


class Form(Protocol):
    """One form of a transcript, written in parts: `start`, what `add` returns for each part, `end`."""

    start: str

    def add(self, part: Transcription) -> str:
        """Write the next piece of text, whose times are on the clock of the whole."""

    def end(self) -> str:
        """Write the rest."""


class Lines:
    """Plain text: one line per segment, as openai-whisper writes it."""

    start = ""

    def __init__(self, width: int = LINE_WIDTH) -> None:
        pass

    def add(self, part: Transcription) -> str:
        return "".join(f"{segment.text}\n" for segment in part.segments)

    def end(self) -> str:
        return ""


class Json:
    """One object with `segments`, which have `words` if there are any (times in seconds), `text` and `language`.

    The text of all parts is held until the end.
    """

    start = '{\n  "segments": ['

    def __init__(self, width: int = LINE_WIDTH) -> None:
        self._texts: list[str] = []
        self._languages: Counter[str] = Counter()
        self._segments = 0

    def add(self, part: Transcription) -> str:
        self._texts.append(part.text)
        self._languages[part.language] += len(part.text.encode())
        written = ""
        for segment in part.segments:
            entry = json.dumps({"id": self._segments, **in_seconds(segment)}, ensure_ascii=False, indent=2)
            written += ("," if self._segments else "") + textwrap.indent(f"\n{entry}", "    ")
            self._segments += 1
        return written

    def end(self) -> str:
        language = max(self._languages, key=self._languages.__getitem__, default="")
        rest = json.dumps({"text": " ".join(self._texts), "language": language}, ensure_ascii=False, indent=2)
        return ("\n  ]," if self._segments else "],") + rest.removeprefix("{") + "\n"


def in_seconds(segment: TextSegment) -> dict[str, Any]:
    """Return `start`, `end`, `text`, language and confidence of a segment, and its `words` if there are any."""
    return (
        {"start": round(segment.start, 3), "end": round(segment.end, 3), "text": segment.text}
        | ({"language": segment.language} if segment.language else {})
        | (segment.confidence.fields() if segment.confidence else {})
        | ({"words": [_word(word) for word in segment.words]} if segment.words else {})
    )


def _word(word: Word) -> dict[str, Any]:
    start, end = round(word.start, 3), round(word.end, 3)
    return {"word": word.text, "start": start, "end": end, "probability": word.probability}


class Subtitles:
    """Cues, each written as soon as nothing later can change it."""

    start = ""

    def __init__(self, width: int = LINE_WIDTH) -> None:
        self._cues = CueSplitter(width)

    def add(self, part: Transcription) -> str:
        return "".join(self.block(cue) for segment in part.segments for cue in self._cues.add(segment))

    def end(self) -> str:
        return "".join(map(self.block, self._cues.end()))

    def block(self, cue: Cue) -> str:
        raise NotImplementedError


class SubRip(Subtitles):
    """Numbered cues, hours always written, a comma before the milliseconds."""

    def __init__(self, width: int = LINE_WIDTH) -> None:
        super().__init__(width)
        self._numbers = itertools.count(1)

    def block(self, cue: Cue) -> str:
        return f"{next(self._numbers)}\n{_timed_lines(cue, ',')}"


class WebVtt(Subtitles):
    """A header line, a full stop before the milliseconds, `&` and `<` escaped (W3C WebVTT, section 4.1)."""

    start = "WEBVTT\n\n"

    def block(self, cue: Cue) -> str:
        return _timed_lines(cue, ".").replace("&", "&amp;").replace("<", "&lt;")  # neither occurs in a line of times


FORMS: Mapping[str, Callable[[int], Form]] = MappingProxyType(
    {"txt": Lines, "json": Json, "srt": SubRip, "vtt": WebVtt}
)
"""File name ending -> form; each takes the width of subtitle lines, in columns."""


def written(kind: str, transcription: Transcription, width: int = LINE_WIDTH) -> str:
    """Write a whole transcription in one of `FORMS`."""
    form = FORMS[kind](width)
    return form.start + form.add(transcription) + form.end()


class CueSplitter:
    """Splits segments into non-overlapping cues, in order of time."""

    def __init__(self, width: int = LINE_WIDTH) -> None:
        self._width = width
        self._end = 0.0
        self._short: Cue | None = None
        """The last cue, if it may stay on screen until the next one comes."""

    def add(self, segment: TextSegment) -> Iterator[Cue]:
        """Yield the cues that are final now."""
        for cue in _cues_of(segment, self._width):
            start = max(cue.start, self._end)
            self._end = max(cue.end, start + BRIEFEST_SECONDS)
            yield from self._before(start)
            found = Cue(start, self._end, cue.lines)
            if self._end - start < SHORTEST_SECONDS:
                self._short = found
            else:
                yield found

    def end(self) -> Iterator[Cue]:
        """Yield the last cue, if it was held back."""
        return self._before(math.inf)

    def _before(self, next_start: float) -> Iterator[Cue]:
        cue, self._short = self._short, None
        if cue:
            yield replace(cue, end=max(cue.end, min(cue.start + SHORTEST_SECONDS, next_start)))


def _cues_of(segment: TextSegment, width: int) -> Iterator[Cue]:
    """Split one segment where its lines are full; each cue has the times of its words, or its share of the whole."""
    lines = wrapped(cue_text(segment.text), width)
    spoken = [(word, _letters(word.text)) for word in segment.words]
    by_letter = [word for word, letters in spoken for _ in letters]
    exact = "".join(letters for _, letters in spoken) == _letters("".join(lines)) != ""
    total = sum(map(len, lines)) or 1
    characters = letters = 0  # in the cues so far
    for at in range(0, len(lines), LINES):
        block = lines[at : at + LINES]
        before, characters = characters, characters + sum(map(len, block))
        first, letters = letters, letters + len(_letters("".join(block)))
        if exact and letters > first:
            start, end = by_letter[first].start, by_letter[letters - 1].end
        else:
            start, end = (segment.start + (segment.end - segment.start) * each / total for each in (before, characters))
        yield Cue(start, max(start, end), tuple(block))


def _letters(text: str) -> str:
    return "".join(cue_text(text).split())


def wrapped(text: str, width: int) -> list[str]:
    """Wrap text to lines of at most `width` columns: between words, and within a word that is longer than a line.

    Within a word, and in scripts without spaces, no line begins with closing punctuation or a sign that belongs to the
    previous character, nor ends with opening punctuation or a vowel that belongs to the next character.
    """
    lines, line = [], ""
    for word in text.split():
        if line and columns(line) + 1 + columns(word) > width >= columns(word):
            lines.append(line)
            line = word
            continue
        line = f"{line} {word}".lstrip()
        while columns(line) > width:
            at = _break_at(line, width)
            lines.append(line[:at].rstrip())
            line = line[at:].lstrip()
    return [*lines, line] if line else lines


def columns(text: str) -> int:
    """Return how wide text is: a full-width character counts as two, a combining sign as none."""
    return sum(2 if unicodedata.east_asian_width(each) in "WF" else 1 for each in text if not _is_sign(each))


def _is_sign(character: str) -> bool:
    return unicodedata.category(character) in ("Mn", "Me", "Cf")


def _break_at(line: str, width: int) -> int:
    """Return the last place at which a line can be broken to fit, at least after one character."""
    fits = [at for at in range(1, len(line)) if columns(line[:at]) <= width and not _is_one_sign(line, at)]
    allowed = [at for at in fits if not _keeps_together(line[at - 1], line[at])]
    return (allowed or fits or [len(line)])[-1]


def _is_one_sign(text: str, at: int) -> bool:
    """Whether the characters before and after a place in a text make one sign."""
    before, behind = text[at - 1], text[at]
    parts = unicodedata.decomposition(behind).split()
    on_it = parts[1:] and parts[0] == "<compat>" and unicodedata.category(chr(int(parts[1], 16))) == "Mn"  # Thai am
    return bool(
        unicodedata.category(behind)[0] == "M" or _is_sign(behind) or on_it
        or before == JOINER or unicodedata.combining(before) == VIRAMA or LEADING_VOWELS.match(before)
    )  # fmt: skip


def _keeps_together(before: str, behind: str) -> bool:
    """Whether punctuation, or a Japanese repetition or length mark, belongs to its neighbour."""
    opening, closing = ("Ps", "Pi"), ("Pe", "Pf", "Po", "Lm")
    return unicodedata.category(before) in opening or unicodedata.category(behind) in closing


def _timed_lines(cue: Cue, mark: str) -> str:
    return f"{timestamp(cue.start, mark)} --> {timestamp(cue.end, mark)}\n" + "\n".join(cue.lines) + "\n\n"


def timestamp(seconds: float, mark: str) -> str:
    """Return `hh:mm:ss`, `mark`, milliseconds."""
    ms = round(max(0.0, seconds) * 1000)
    return f"{ms // 3_600_000:02}:{ms // 60_000 % 60:02}:{ms // 1000 % 60:02}{mark}{ms % 1000:03}"


def cue_text(text: str) -> str:
    """Return text that cannot break out of a cue: without arrows or line breaks."""
    return " ".join(re.sub("-{2,}>", "->", text).split())
