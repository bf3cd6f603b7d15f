"""Times and records."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whisper_byoc.speech.transcript import (
    Confidence,
    TextSegment,
    Transcription,
    TranscriptRecord,
    Word,
    from_records,
    join,
)

SURE = Confidence(-0.25, 0.0125, 1.125, 0.4)
HEARD = Transcription(
    "Hello there. General.", "en", (TextSegment(0.5, 2.0, "Hello there."), TextSegment(2.5, 3.25, "General."))
)


def test_record_is_on_the_jobs_clock():
    record = TranscriptRecord(HEARD, 67_200, 50_400, queue_ms=1.6, inference_ms=180.2, beam=5).fields()
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
        "stats": {"audio_duration_ms": 3150, "queue_ms": 2, "inference_ms": 180, "beam": 5},
    }


def test_times_stay_exact_over_hours():
    sample = 16_000 * 3600 * 5 + 1
    record = TranscriptRecord(Transcription("", "en"), sample, 16_000, 0, 0).fields()
    assert record["timing"] == {"media_window_start_ms": 18_000_000, "media_window_end_ms": 18_001_000}


def shifted(heard, seconds):
    """The same text on a clock that began earlier."""

    def later(part):
        return replace(part, start=part.start + seconds, end=part.end + seconds)

    segments = (replace(later(each), words=tuple(map(later, each.words))) for each in heard.segments)
    return replace(heard, segments=tuple(segments))


def test_records_go_back_to_a_transcription():
    words = (Word(0.5, 1.0, "Hello", 0.75), Word(1.0, 2.0, "there.", 0.5))
    heard = Transcription("Hello there.", "fr", (TextSegment(0.5, 2.0, "Hello there.", words, SURE),))
    records = [
        TranscriptRecord(heard, 0, 48_000, 0, 0).fields(),
        TranscriptRecord(Transcription("", "fr"), 48_000, 16_000, 0, 0).fields(),
        {"type": "error", "error": "x"},
        TranscriptRecord(heard, 64_000, 48_000, 0, 0).fields(),
    ]
    assert from_records(records) == join([heard, shifted(heard, 4)], "en")
    assert from_records([]) == Transcription("", "en")


def test_segments_say_how_sure_the_model_is():
    heard = Transcription("a", "en", (TextSegment(0.0, 1.0, "a", confidence=SURE), TextSegment(1.0, 2.0, "b")))
    first, second = TranscriptRecord(shifted(heard, 0), 0, 32_000, 0, 0).fields()["segments"]
    assert first == {
        "start_ms": 0,
        "end_ms": 1000,
        "text": "a",
        "avg_logprob": -0.25,
        "no_speech_prob": 0.0125,
        "compression_ratio": 1.125,
        "temperature": 0.4,
    }
    assert list(second) == ["start_ms", "end_ms", "text"]
    assert Confidence(-1 / 3, 1e-9, 1.0, 0.0).fields()["avg_logprob"] == -0.3333


def test_join_skips_silence_and_keeps_times():
    parts = [HEARD, Transcription("", "en"), shifted(HEARD, 10)]
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


def test_a_partial_record_says_so_and_how_late_it_is():
    partial = Transcription("so far", "en", (TextSegment(0.0, 1.0, "so far"),))
    record = TranscriptRecord(partial, 32_000, 16_000, 1.4, 2.6, lag_ms=3.4, is_final=False).fields()
    assert record == {
        "type": "transcript",
        "is_final": False,
        "text": "so far",
        "language": "en",
        "timing": {"media_window_start_ms": 2000, "media_window_end_ms": 3000},
        "segments": [{"start_ms": 2000, "end_ms": 3000, "text": "so far"}],
        "stats": {"audio_duration_ms": 1000, "queue_ms": 1, "inference_ms": 3, "lag_ms": 3},
    }


def test_partial_records_are_not_in_the_whole_text():
    partial = TranscriptRecord(Transcription("hel", "en"), 0, 8000, 0, 0, is_final=False).fields()
    final = TranscriptRecord(HEARD, 0, 64_000, 0, 0).fields()
    assert from_records([partial, final, partial]) == HEARD


def test_records_of_others_may_have_no_segments():
    assert from_records([{"type": "transcript", "text": "plain"}], "fr") == Transcription("plain", "fr")


@pytest.mark.parametrize("mark", [".", ",", "?", "...", "\u3002"])
def test_a_mark_at_the_beginning_goes_to_the_text_before(mark):
    word = Word(0.0, 1.0, "one", 0.9)
    parts = [
        Transcription("one", "en", (TextSegment(0.0, 1.0, "one", (word,)),)),
        Transcription(f"{mark} two", "en", (TextSegment(1.0, 2.0, f"{mark} two"),)),
        Transcription(mark, "en", (TextSegment(2.0, 2.0, mark),)),
    ]
    joined = join(parts, "en")
    assert joined.text == f"one{mark} two{mark}"
    assert [segment.text for segment in joined.segments] == [f"one{mark}", f"two{mark}"]
    assert joined.segments[0].words[0].text == f"one{mark}"


def test_what_only_looks_like_a_mark_stays():
    assert join([Transcription(".", "en"), Transcription(".5 percent", "en")], "en").text == ". .5 percent"
