"""What a model heard, and the forms in which people want it: record, txt, json, srt, vtt."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from audio.pcm import SAMPLE_RATE
from whisper_byoc.speech.subtitles import as_srt, as_vtt

__all__ = [
    "FORMATS",
    "TextSegment",
    "Transcription",
    "Word",
    "from_records",
    "join",
    "partial_record",
    "transcript_record",
]


@dataclass(frozen=True)
class Word:
    """One word; times are seconds from the beginning of the sound."""

    start: float
    end: float
    text: str
    probability: float


@dataclass(frozen=True)
class TextSegment:
    """A stretch of speech; times are seconds from the beginning of the sound."""

    start: float
    end: float
    text: str
    words: tuple[Word, ...] = ()
    """Empty unless the times of words were asked for."""


@dataclass(frozen=True)
class Transcription:
    """The text of one piece of sound."""

    text: str
    language: str
    segments: tuple[TextSegment, ...] = ()

    def within(self, start: float, end: float) -> Transcription:
        """Give the same text with its times kept between two seconds, outside of which it is silent.

        openai-whisper lets its first segment begin with the sound, and its last one end with it.
        """

        def at(seconds: float) -> float:
            return min(max(seconds, start), end)

        kept = (
            replace(
                each,
                start=at(each.start),
                end=at(each.end),
                words=tuple(replace(word, start=at(word.start), end=at(word.end)) for word in each.words),
            )
            for each in self.segments
        )
        return replace(self, segments=tuple(kept))

    def shifted(self, seconds: float) -> Transcription:
        """Give the same text on a clock that began `seconds` earlier."""
        moved = (
            TextSegment(
                each.start + seconds,
                each.end + seconds,
                each.text,
                tuple(
                    Word(word.start + seconds, word.end + seconds, word.text, word.probability) for word in each.words
                ),
            )
            for each in self.segments
        )
        return Transcription(self.text, self.language, tuple(moved))


def join(parts: Iterable[Transcription], language: str) -> Transcription:
    """Put the transcriptions of consecutive pieces together; their times must be on one clock already."""
    heard = [part for part in parts if part.text]
    text = " ".join(part.text for part in heard)
    segments = tuple(segment for part in heard for segment in part.segments)
    return Transcription(text, heard[0].language if heard else language, segments)


def from_records(records: Iterable[Mapping[str, Any]], language: str = "en") -> Transcription:
    """Put the `transcript` records of one job back together, on the job's clock."""
    heard = [each for each in records if each["type"] == "transcript" and each["text"] and each.get("is_final", True)]
    segments = tuple(
        TextSegment(
            each["start_ms"] / 1000,
            each["end_ms"] / 1000,
            each["text"],
            tuple(
                Word(word["start_ms"] / 1000, word["end_ms"] / 1000, word["text"], word["probability"])
                for word in each.get("words", ())
            ),
        )
        for record in heard
        for each in record.get("segments", ())
    )
    text = " ".join(record["text"] for record in heard)
    return Transcription(text, heard[0].get("language", language) if heard else language, segments)


def transcript_record(
    heard: Transcription, first_sample: int, samples: int, queue_ms: float, inference_ms: float
) -> dict[str, Any]:
    """Build the fields of a `transcript` record, without `job_id`, `seq` and segment ids.

    `first_sample` and `samples` say, on the job's clock, which sound this is; times come out in milliseconds.
    """
    start_ms, end_ms = to_ms(first_sample), to_ms(first_sample + samples)

    def span(start: float, end: float) -> dict[str, int]:
        return {
            "start_ms": min(start_ms + round(start * 1000), end_ms),
            "end_ms": min(start_ms + round(end * 1000), end_ms),
        }

    def word_fields(word: Word) -> dict[str, Any]:
        return {**span(word.start, word.end), "text": word.text, "probability": round(word.probability, 3)}

    return {
        "type": "transcript",
        "is_final": True,
        "text": heard.text,
        "language": heard.language,
        "timing": {"media_window_start_ms": start_ms, "media_window_end_ms": end_ms},
        "segments": [
            {**span(segment.start, segment.end), "text": segment.text}
            | ({"words": [word_fields(word) for word in segment.words]} if segment.words else {})
            for segment in heard.segments
        ],
        "stats": {
            "audio_duration_ms": end_ms - start_ms,
            "queue_ms": round(queue_ms),
            "inference_ms": round(inference_ms),
        },
    }


def partial_record(
    text: str, language: str, first_sample: int, samples: int, queue_ms: float, inference_ms: float
) -> dict[str, Any]:
    """Build the fields of a record of text that is not final: one segment over the whole sound so far."""
    heard = Transcription(text, language, (TextSegment(0.0, samples / SAMPLE_RATE, text),))
    return {**transcript_record(heard, first_sample, samples, queue_ms, inference_ms), "is_final": False}


def to_ms(samples: int) -> int:
    """Samples at 16 kHz to whole milliseconds."""
    return samples * 1000 // SAMPLE_RATE


def as_txt(heard: Transcription) -> str:
    """One line per segment, as openai-whisper writes it."""
    return "".join(f"{segment.text}\n" for segment in heard.segments)


def as_json(heard: Transcription) -> str:
    """One object with `text`, `language` and `segments` (times in seconds)."""
    segments = [
        {"id": number, "start": round(segment.start, 3), "end": round(segment.end, 3), "text": segment.text}
        for number, segment in enumerate(heard.segments)
    ]
    body = {"text": heard.text, "language": heard.language, "segments": segments}
    return json.dumps(body, ensure_ascii=False, indent=2) + "\n"


FORMATS: Mapping[str, Callable[[Transcription], str]] = MappingProxyType(
    {"txt": as_txt, "json": as_json, "srt": as_srt, "vtt": as_vtt}
)
"""File name ending -> writer."""
