"""Records and subtitle forms."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whisper_byoc.speech.subtitles import clock
from whisper_byoc.speech.transcript import (
    FORMATS,
    TextSegment,
    Transcription,
    Word,
    from_records,
    join,
    partial_record,
    transcript_record,
)

HEARD = Transcription(
    "Hello there. General.", "en", (TextSegment(0.5, 2.0, "Hello there."), TextSegment(2.5, 3.25, "General."))
)


def test_record_is_on_the_jobs_clock():
    record = transcript_record(HEARD, first_sample=67_200, samples=50_400, queue_ms=1.6, inference_ms=180.2)
    assert record == {
        "type": "transcript",
        "is_final": True,
        "text": "Hello there. General.",
        "language": "en",
        "timing": {"media_window_start_ms": 4200, "media_window_end_ms": 7350},
        "segments": [
            {"start_ms": 4700, "end_ms": 6200, "text": "Hello there."},
            {"start_ms": 6700, "end_ms": 7350, "text": "General."},  # clamped to the sound there is
        ],
        "stats": {"audio_duration_ms": 3150, "queue_ms": 2, "inference_ms": 180},
    }


def test_times_stay_exact_over_hours():
    sample = 16_000 * 3600 * 5 + 1
    record = transcript_record(Transcription("", "en"), sample, 16_000, 0, 0)
    assert record["timing"] == {"media_window_start_ms": 18_000_000, "media_window_end_ms": 18_001_000}


def test_records_go_back_to_a_transcription():
    words = (Word(0.5, 1.0, "Hello", 0.75), Word(1.0, 2.0, "there.", 0.5))
    heard = Transcription("Hello there.", "fr", (TextSegment(0.5, 2.0, "Hello there.", words),))
    records = [
        transcript_record(heard, 0, 48_000, 0, 0),
        transcript_record(Transcription("", "fr"), 48_000, 16_000, 0, 0),
        {"type": "error", "error": "x"},
        transcript_record(heard, 64_000, 48_000, 0, 0),
    ]
    assert from_records(records) == join([heard, heard.shifted(4)], "en")
    assert from_records([]) == Transcription("", "en")


def test_txt():
    assert FORMATS["txt"](HEARD) == "Hello there.\nGeneral.\n"


def test_json():
    assert json.loads(FORMATS["json"](HEARD))["segments"][1] == {"id": 1, "start": 2.5, "end": 3.25, "text": "General."}


def test_srt():
    assert FORMATS["srt"](HEARD) == (
        "1\n00:00:00,500 --> 00:00:02,000\nHello there.\n\n2\n00:00:02,500 --> 00:00:03,300\nGeneral.\n\n"
    )


def test_vtt():
    assert FORMATS["vtt"](HEARD).startswith("WEBVTT\n\n00:00:00.500 --> 00:00:02.000\nHello there.\n\n")


def test_text_cannot_break_out_of_a_cue():
    nasty = Transcription("x", "en", (TextSegment(0, 1, "a --> b\n\n2\n00:00:09,000 --> x"),))
    for name in ("srt", "vtt"):
        assert FORMATS[name](nasty).count("-->") == 1


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "00:00:00,000"),
        (-1, "00:00:00,000"),
        (59.9996, "00:01:00,000"),
        (3661.5, "01:01:01,500"),
        (360_000, "100:00:00,000"),
    ],
)
def test_clock(seconds, text):
    assert clock(seconds, ",") == text


@given(st.floats(0, 1e6))
def test_clock_is_always_well_formed(seconds):
    assert re.fullmatch(r"\d{2,}:[0-5]\d:[0-5]\d\.\d{3}", clock(seconds, "."))


def test_join_skips_silence_and_keeps_times():
    parts = [HEARD, Transcription("", "en"), HEARD.shifted(10)]
    joined = join(parts, "en")
    assert joined.text == "Hello there. General. Hello there. General."
    assert [each.start for each in joined.segments] == [0.5, 2.5, 10.5, 12.5]
    assert join([], "de") == Transcription("", "de")


def test_within_keeps_all_times_inside_the_speech():
    words = (Word(0.0, 0.4, "a", 1.0), Word(0.4, 1.0, "b", 1.0), Word(1.0, 2.0, "c", 1.0))
    heard = Transcription("a b c", "en", (TextSegment(0.0, 2.0, "a b c", words), TextSegment(2.5, 3.0, "d")))
    kept = heard.within(0.5, 1.5)
    assert [(each.start, each.end) for each in kept.segments] == [(0.5, 1.5), (1.5, 1.5)]
    assert [(each.start, each.end) for each in kept.segments[0].words] == [(0.5, 0.5), (0.5, 1.0), (1.0, 1.5)]
    assert (kept.text, kept.segments[0].text, kept.segments[0].words[1].text) == ("a b c", "a b c", "b")
    assert heard.within(0.0, 3.0) == heard


times = st.floats(-1, 40, allow_nan=False)


@given(times, times, times, times)
def test_within_never_turns_a_time_round(start, end, low, high):
    start, end, low, high = *sorted((start, end)), *sorted((low, high))
    (segment,) = Transcription("x", "en", (TextSegment(start, end, "x"),)).within(low, high).segments
    assert low <= segment.start <= segment.end <= high


def test_a_partial_record_is_one_segment_of_the_sound_so_far():
    record = partial_record("so far", "en", 32_000, 16_000, 1.4, 2.6)
    assert record == {
        "type": "transcript",
        "is_final": False,
        "text": "so far",
        "language": "en",
        "timing": {"media_window_start_ms": 2000, "media_window_end_ms": 3000},
        "segments": [{"start_ms": 2000, "end_ms": 3000, "text": "so far"}],
        "stats": {"audio_duration_ms": 1000, "queue_ms": 1, "inference_ms": 3},
    }


def test_partial_records_are_not_in_the_whole_text():
    partial, final = partial_record("hel", "en", 0, 8000, 0, 0), transcript_record(HEARD, 0, 64_000, 0, 0)
    assert from_records([partial, final, partial]) == HEARD


def test_records_of_others_may_have_no_segments():
    assert from_records([{"type": "transcript", "text": "plain"}], "fr") == Transcription("plain", "fr")
