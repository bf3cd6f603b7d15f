"""Text, JSON, and cues that can be read."""

import itertools
import json
import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whisper_byoc.speech.formats import (
    FORMS,
    LINE_WIDTH,
    LINES,
    CueSplitter,
    columns,
    cue_text,
    timestamp,
    wrapped,
    written,
)
from whisper_byoc.speech.transcript import Confidence, TextSegment, Transcription, Word

HEARD = Transcription(
    "Hello there. General.", "en", (TextSegment(0.5, 2.0, "Hello there."), TextSegment(2.5, 3.25, "General."))
)
times = st.floats(0, 20_000, allow_nan=False)
texts = st.lists(
    st.one_of(
        st.text("abcdefgh", min_size=1, max_size=12),
        st.sampled_from(
            ["-->", "--->", "<b>", "&amp;", "\u2028", "\n\n2", "今天很好" * 20, "x" * 100, "é" * 43, "--", ">"]
        ),
        st.text(min_size=1, max_size=8),
    ),
    max_size=40,
).map(" ".join)


@st.composite
def segments(draw, ordered=True):
    found = []
    for text in draw(st.lists(texts, max_size=6)):
        start = draw(times)
        end = start + draw(st.floats(0, 12))
        words = ()
        if draw(st.booleans()):
            spoken = text.split()
            step = (end - start) / (len(spoken) or 1)
            words = tuple(Word(start + n * step, start + (n + 1) * step, word, 0.5) for n, word in enumerate(spoken))
        found.append(TextSegment(start, end, text, words))
    return tuple(sorted(found, key=lambda each: each.start)) if ordered else tuple(found)


def cues(found, width=LINE_WIDTH):
    splitter = CueSplitter(width)
    return [*(cue for segment in found for cue in splitter.add(segment)), *splitter.end()]


def joined(parts):
    return "".join("".join(parts).split())


@given(segments(ordered=False), st.sampled_from([10, LINE_WIDTH, 200]))
def test_cues_fit_the_screen_follow_each_other_and_hold_every_word(given_segments, width):
    found = cues(given_segments, width)
    for cue in found:
        assert 1 <= len(cue.lines) <= LINES
        assert all(line and columns(line) <= width for line in cue.lines)
        assert round(cue.end * 1000) > round(cue.start * 1000)
    for before, after in itertools.pairwise(found):
        assert before.end <= after.start
    assert joined(line for cue in found for line in cue.lines) == joined(cue_text(each.text) for each in given_segments)


@given(segments())
def test_files_can_be_read_back(given_segments):
    heard = Transcription("", "en", given_segments)
    number = len(cues(given_segments))
    stamp = r"(\d{2,}:[0-5]\d:[0-5]\d)[.,](\d{3})"
    for form in ("srt", "vtt"):
        text = written(form, heard)
        assert len(re.findall(rf"^{stamp} --> {stamp}$", text, re.MULTILINE)) == text.count("-->") == number
        blocks = [block for block in text.removeprefix("WEBVTT\n\n").split("\n\n") if block]
        assert len(blocks) == number
    assert [int(block.split("\n")[0]) for block in written("srt", heard).split("\n\n") if block] == [
        *range(1, number + 1)
    ]


@pytest.mark.parametrize("kind", FORMS)
@given(given_segments=segments(), cuts=st.sets(st.integers(0, 6)))
def test_a_file_that_is_written_in_parts_is_the_same(kind, given_segments, cuts):
    def heard(found):
        return Transcription(" ".join(each.text for each in found), "en", tuple(found))

    ends = sorted({0, len(given_segments), *(cut for cut in cuts if cut < len(given_segments))})
    form = FORMS[kind](LINE_WIDTH)
    text = form.start
    for first, last in itertools.pairwise(ends):
        text += form.add(heard(given_segments[first:last]))
    whole = written(kind, heard(given_segments))
    text += form.end()
    if kind != "json":
        assert text == whole
    elif given_segments:
        assert json.loads(text) == json.loads(whole)


def test_a_cue_is_written_when_it_has_come_but_a_short_one_waits_for_the_next():
    form = FORMS["srt"](LINE_WIDTH)
    assert "long" in form.add(Transcription("long", "en", (TextSegment(0.0, 1.0, "long"),)))
    assert form.add(Transcription("short", "en", (TextSegment(2.0, 2.1, "short"),))) == ""
    assert "00:00:02,000 --> 00:00:02,500\nshort" in form.add(Transcription("x", "en", (TextSegment(2.5, 4.0, "x"),)))


def test_markup_is_text_in_webvtt():
    heard = Transcription("", "en", (TextSegment(0, 1, "R&D <b>bold</b> a ---> b"),))
    assert "R&amp;D &lt;b>bold&lt;/b> a -> b" in written("vtt", heard)


def test_cues_have_the_times_of_their_words():
    spoken = [f"word{n:02}" for n in range(20)]  # seven a line
    words = tuple(Word(10 + n + 0.25, 10 + n + 0.75, word, 1.0) for n, word in enumerate(spoken))
    found = cues([TextSegment(10.0, 31.0, " ".join(spoken), words)])
    assert [len(" ".join(cue.lines).split()) for cue in found] == [12, 8]
    assert [(cue.start, cue.end) for cue in found] == [(10.25, 21.75), (22.25, 29.75)]


def test_words_that_are_not_those_of_the_lines_give_no_times():
    text = "y" * 60 + " z"
    words = tuple(Word(100.0 + n, 101.0 + n, word, 1.0) for n, word in enumerate(("one", "two", "three")))
    found = cues([TextSegment(10.0, 16.2, text, words)])
    assert found[0].start == 10.0
    assert found[-1].end == pytest.approx(16.2)


def test_without_word_times_a_cue_has_its_share_of_the_segment():
    text = " ".join(["abcdefghi"] * 16)  # four lines of 39 characters
    found = cues([TextSegment(0.0, 8.0, text)])
    assert [(cue.start, cue.end) for cue in found] == [(0.0, 4.0), (4.0, 8.0)]


def test_a_short_cue_stays_until_it_can_be_read_or_the_next_one_comes():
    found = cues([TextSegment(0.0, 0.2, "a"), TextSegment(0.5, 0.6, "b"), TextSegment(3.0, 3.0, "c")])
    assert [(cue.start, cue.end) for cue in found] == [(0.0, 0.5), (0.5, 1.3), (3.0, 3.8)]


def test_segments_that_overlap_wait_for_each_other():
    found = cues([TextSegment(0.0, 2.0, "a"), TextSegment(1.0, 1.5, "b")])
    assert [cue.start for cue in found] == [0.0, 2.0]


def test_nothing_said_is_an_empty_file():
    assert written("srt", Transcription("", "en")) == ""
    assert written("vtt", Transcription("", "en")) == "WEBVTT\n\n"


def test_txt():
    assert written("txt", HEARD) == "Hello there.\nGeneral.\n"


def test_json():
    assert json.loads(written("json", HEARD))["segments"][1] == {"id": 1, "start": 2.5, "end": 3.25, "text": "General."}
    sure = TextSegment(0.0, 1.0, "yes", confidence=Confidence(-0.5, 0.25, 1.5, 0.0))
    (segment,) = json.loads(written("json", Transcription("yes", "en", (sure,))))["segments"]
    assert [segment[name] for name in ("avg_logprob", "no_speech_prob", "compression_ratio")] == [-0.5, 0.25, 1.5]


def test_srt():
    assert written("srt", HEARD) == (
        "1\n00:00:00,500 --> 00:00:02,000\nHello there.\n\n2\n00:00:02,500 --> 00:00:03,300\nGeneral.\n\n"
    )


def test_vtt():
    assert written("vtt", HEARD).startswith("WEBVTT\n\n00:00:00.500 --> 00:00:02.000\nHello there.\n\n")


def test_text_cannot_break_out_of_a_cue():
    nasty = Transcription("x", "en", (TextSegment(0, 1, "a --> b\n\n2\n00:00:09,000 --> x"),))
    for name in ("srt", "vtt"):
        assert written(name, nasty).count("-->") == 1


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
def test_timestamp(seconds, text):
    assert timestamp(seconds, ",") == text


@given(st.floats(0, 1e6))
def test_timestamp_is_always_well_formed(seconds):
    assert re.fullmatch(r"\d{2,}:[0-5]\d:[0-5]\d\.\d{3}", timestamp(seconds, "."))


JAPANESE = (
    "これは非常に長い日本語の文章であり、字幕として表示されるときに適切な位置で改行されなければならないものです。"
)
THAI = "สวัสดีครับวันนี้เราจะมาพูดถึงเรื่องการถอดเสียงอัตโนมัติที่มีประโยชน์มากสำหรับทุกคนในทีมงานของเรา"
HINDI = "नमस्तेआजहमकृत्रिमबुद्धिमत्ताऔरस्वचालितप्रतिलेखनकेबारेमेंबातकरेंगेक्योंकियहबहुतउपयोगीहै"


@pytest.mark.parametrize("text", [JAPANESE, THAI, HINDI, "e\u0301" * 100, "👩\u200d👩\u200d👧" * 30, "『「注」』" * 20])
@pytest.mark.parametrize("width", [10, 17, LINE_WIDTH])
def test_scripts_without_spaces_are_broken_where_they_may_be(text, width):
    lines = wrapped(text, width)
    assert "".join(lines) == text
    for before, after in itertools.pairwise(lines):
        assert columns(before) <= width
        assert unicodedata.category(after[0])[0] not in "MC"
        assert after[0] not in "、。」』ำ"
        assert before[-1] not in "『「เแโใไ\u200d\u094d"


def test_full_width_characters_count_two():
    assert [columns(line) for line in wrapped("今日は" * 20, 42)] == [42, 42, 36]
    assert wrapped("第一章 これは非常に長い日本語の文章です", 20) == ["第一章 これは非常に", "長い日本語の文章です"]


def test_a_line_is_as_long_as_is_asked_for():
    heard = Transcription("", "en", (TextSegment(0, 4, "one two three four five six seven eight nine ten"),))
    assert "one two three four five six seven eight\nnine ten" in written("srt", heard)
    assert "one two three four\nfive six seven eight\n" in written("vtt", heard, 20)


def test_cues_of_words_that_are_single_characters_have_their_times():
    words = tuple(Word(float(at), at + 1.0, letter, 1.0) for at, letter in enumerate(JAPANESE))
    first, second = cues([TextSegment(0.0, 99.0, JAPANESE, words)])
    assert (first.start, first.end, second.start) == (0.0, second.start, float(len("".join(first.lines))))
    assert second.end == float(len(JAPANESE))
