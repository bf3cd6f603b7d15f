"""Text with its times, and the `transcript` record that followers of a job receive."""

import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from dataclasses import fields as dataclass_fields
from typing import Any, Self

from audio.pcm import duration_ms

LEADING_MARK = re.compile(r"(?:[.,;:?!\u2026]+(?=\s|$)|[\u3001\u3002\uff01\uff0c\uff1a\uff1b\uff1f]+)\s*")
"""Punctuation that belongs at the end of the previous text: as in `, and` but not `.5`."""
FULL_STOP = re.compile(r"[.\u2026\u3002]+$")


@dataclass(frozen=True)
class Word:
    """One word; times are seconds from the beginning of the sound."""

    start: float
    end: float
    text: str
    probability: float


@dataclass(frozen=True)
class Confidence:
    """How sure the model was of a text: openai-whisper's numbers, under its names.

    They apply to all the text decoded in one go, of which a segment may be only a part.
    """

    avg_logprob: float
    """Mean log-probability of the tokens."""
    no_speech_prob: float
    """Probability that there is no speech."""
    compression_ratio: float
    """Bytes of the text before and after zlib."""
    temperature: float
    """Temperature at which tokens were sampled; 0 if the likeliest were taken."""

    def fields(self) -> dict[str, float]:
        """Return the JSON fields."""
        return {name: round(value, 4) for name, value in asdict(self).items()}

    @classmethod
    def read(cls, fields: Mapping[str, Any]) -> Self | None:
        """Read the JSON fields of a segment; None if any of them is missing."""
        names = [each.name for each in dataclass_fields(cls)]
        return cls(*(fields[name] for name in names)) if fields.keys() >= set(names) else None


@dataclass(frozen=True)
class TextSegment:
    """A stretch of speech; times are seconds from the beginning of the sound."""

    start: float
    end: float
    text: str
    words: tuple[Word, ...] = ()
    """Empty unless word times were asked for."""
    confidence: Confidence | None = None
    """None if the text was not written by one of our models."""
    language: str = ""
    """ISO 639-1 code; empty if not determined."""


@dataclass(frozen=True)
class LanguagePiece:
    """How probable each language is in a piece of sound; times are seconds from the beginning of all of it."""

    start: float
    end: float
    chances: Mapping[str, float]
    """Language -> probability, leaving out nearly impossible ones."""
    language: str = ""
    """The language decided on, considering the surrounding pieces."""


@dataclass(frozen=True)
class Transcription:
    """The text of one piece of sound."""

    text: str
    language: str
    """ISO 639-1 code; that of most of the text, if there are several."""
    segments: tuple[TextSegment, ...] = ()
    goes_on: bool = False
    """Whether it continues the previous text, which then has no full stop at its end."""
    is_open: bool = False
    """Whether a later text brings its final full stop or continues its sentence."""
    pieces: tuple[LanguagePiece, ...] = ()
    """The pieces from which the language was found; empty if it was known."""

    def within(self, start: float, end: float) -> Self:
        """Return the same text with all times clamped to `start` and `end`.

        openai-whisper lets its first segment begin with the sound and its last one end with it, silence included.
        """
        return self._with_times(lambda seconds: min(max(seconds, start), end))

    def shifted(self, seconds: float) -> Self:
        """Return the same text on a clock that began `seconds` earlier."""
        return self._with_times(lambda time: time + seconds)

    def without_stop(self) -> tuple[Self, str]:
        """Return the same text without the full stop at its end, and the stop; it may be empty."""
        stop = FULL_STOP.search(self.text)
        if stop is None:
            return self, ""
        return self._with_end(lambda text: text.removesuffix(stop[0]).rstrip()), stop[0]

    def ended_by(self, mark: str) -> Self:
        """Return the same text followed by a mark."""
        return self._with_end(lambda text: text + mark)

    def led_by(self, mark: str) -> Self:
        """Return the same text preceded by a mark that belongs to the previous text; the mark may be empty."""
        if not mark:
            return self
        first = tuple(replace(each, text=f"{mark} {each.text}".rstrip()) for each in self.segments[:1])
        return replace(self, text=f"{mark} {self.text}".rstrip(), segments=(*first, *self.segments[1:]))

    def without_start(self, length: int) -> Self:
        """Return the same text without its first `length` characters, which must lie within the first segment."""
        first = (replace(each, text=each.text[length:]) for each in self.segments[:1])
        return replace(
            self, text=self.text[length:], segments=(*(each for each in first if each.text), *self.segments[1:])
        )

    def _with_end(self, change: Callable[[str], str]) -> Self:
        """Return the same text, changed at its end, including the last segment and word."""
        segments = self.segments
        if segments:
            last = segments[-1]
            words = (*last.words[:-1], *(replace(each, text=change(each.text)) for each in last.words[-1:]))
            segments = (*segments[:-1], replace(last, text=change(last.text), words=words))
        return replace(self, text=change(self.text), segments=segments)

    def _with_times(self, change: Callable[[float], float]) -> Self:
        segments = (
            replace(
                segment,
                start=change(segment.start),
                end=change(segment.end),
                words=tuple(replace(word, start=change(word.start), end=change(word.end)) for word in segment.words),
            )
            for segment in self.segments
        )
        return replace(self, segments=tuple(segments))


def compression_ratio(text: str) -> float:
    """Return the ratio of a text's bytes before and after zlib: openai-whisper's measure of repetition."""
    data = text.encode()
    return len(data) / len(zlib.compress(data))


def with_marks(parts: Iterable[Transcription]) -> list[Transcription]:
    """Append each mark that a part begins with, or consists of, to the previous text; leave out parts without text."""
    spoken: list[Transcription] = []
    for part in parts:
        if spoken:
            spoken[-1], part = with_mark(spoken[-1], part)
        if part.text:
            spoken.append(part)
    return spoken


def with_mark(before: Transcription, part: Transcription) -> tuple[Transcription, Transcription]:
    """Move the mark that a part begins with, or consists of, if any, to the end of the previous text."""
    mark = LEADING_MARK.match(part.text)
    return (before.ended_by(mark[0].rstrip()), part.without_start(mark.end())) if mark else (before, part)


def join(parts: Iterable[Transcription], language: str) -> Transcription:
    """Join the transcriptions of consecutive pieces; their times must already be on one clock.

    The language is that of most of the text, or `language` if there is none.
    A mark at the beginning of one, as live text may have, goes to the end of the previous text.
    """
    spoken = with_marks(parts)
    text = " ".join(part.text for part in spoken)
    sizes: Counter[str] = Counter()
    for part in spoken:
        sizes[part.language] += len(part.text.encode())
    segments = tuple(segment for part in spoken for segment in part.segments)
    return Transcription(text, max(sizes, key=sizes.__getitem__, default=language), segments)


@dataclass(frozen=True)
class TranscriptRecord:
    """The record of one piece of sound, on the clock of its job."""

    transcription: Transcription
    """Its times count from the beginning of the piece."""
    first_sample: int
    """Position of the piece on the job's clock, in samples."""
    samples: int
    """Length of the piece."""
    queue_ms: float
    inference_ms: float
    lag_ms: float | None = None
    """For live input: time from the arrival of the last sample."""
    is_final: bool = True
    beam: int | None = None
    """How many texts were followed at once to find this one."""

    def fields(self) -> dict[str, Any]:
        """Return the JSON fields without `job_id`, `seq` and segment ids. All times in whole milliseconds."""
        start_ms, end_ms = duration_ms(self.first_sample), duration_ms(self.first_sample + self.samples)

        def span(start: float, end: float) -> dict[str, int]:
            return {
                "start_ms": min(start_ms + round(start * 1000), end_ms),
                "end_ms": min(start_ms + round(end * 1000), end_ms),
            }

        def word_fields(word: Word) -> dict[str, Any]:
            return {**span(word.start, word.end), "text": word.text, "probability": round(word.probability, 3)}

        def segment_fields(segment: TextSegment) -> dict[str, Any]:
            words = {"words": [word_fields(word) for word in segment.words]} if segment.words else {}
            language = {"language": segment.language} if segment.language else {}
            confidence = segment.confidence.fields() if segment.confidence else {}
            return {**span(segment.start, segment.end), "text": segment.text, **language, **confidence, **words}

        stats = {
            "audio_duration_ms": end_ms - start_ms,
            "queue_ms": round(self.queue_ms),
            "inference_ms": round(self.inference_ms),
        }
        if self.beam is not None:
            stats["beam"] = self.beam
        return {
            "type": "transcript",
            "is_final": self.is_final,
            **({"is_open": True} if self.transcription.is_open else {}),
            "text": self.transcription.text,
            "language": self.transcription.language,
            "timing": {"media_window_start_ms": start_ms, "media_window_end_ms": end_ms},
            "segments": [segment_fields(segment) for segment in self.transcription.segments],
            "stats": stats if self.lag_ms is None else {**stats, "lag_ms": round(self.lag_ms)},
        }


def from_records(records: Iterable[Mapping[str, Any]], language: str = "en") -> Transcription:
    """Join the final `transcript` records of one job, given as their JSON fields, on the job's clock.

    `language` is that of a job without text.
    """
    final = [each for each in records if each["type"] == "transcript" and each.get("is_final", True)]
    parts = (
        Transcription(each["text"], each.get("language", language), tuple(map(_segment, each.get("segments", ()))))
        for each in final
    )
    return join(parts, language)


def _segment(fields: Mapping[str, Any]) -> TextSegment:
    words = tuple(
        Word(word["start_ms"] / 1000, word["end_ms"] / 1000, word["text"], word["probability"])
        for word in fields.get("words", ())
    )
    confidence = Confidence.read(fields)
    start, end = fields["start_ms"] / 1000, fields["end_ms"] / 1000
    return TextSegment(start, end, fields["text"], words, confidence, fields.get("language", ""))
