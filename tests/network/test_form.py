"""However a peer's bytes are cut: only whole records pass, none is lost, and a failure is told in the same form."""

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whisper_byoc.errors import PeerFailed
from whisper_byoc.network import form as forms
from whisper_byoc.network.form import Raw, events, form_for, lines


def transcript(seq, text="hello", final=True, end_ms=1000):
    return {
        "type": "transcript", "job_id": "j", "seq": seq, "is_final": final, "text": text,
        "timing": {"media_window_start_ms": 0, "media_window_end_ms": end_ms},
    }  # fmt: skip


def written(form, record, spaces=False):
    text = json.dumps(record, ensure_ascii=False, separators=(", ", ": ") if spaces else (",", ":")).encode()
    return text + b"\n" if form == "lines" else b"id: %d\ndata: %b\n\n" % (record["seq"], text)


def read(form, data):
    parts = data.split(b"\n" if form == "lines" else b"\n\n")
    assert parts.pop() == b""
    return [json.loads(each[each.index(b"{") :]) for each in parts if b"{" in each]


MAKE = {"lines": lines, "events": events}
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
FORMS = st.sampled_from(sorted(MAKE))


@st.composite
def answers(draw):
    """A peer's whole answer, its records, and where it is cut."""
    form, spaces = draw(FORMS), draw(st.booleans())
    records, data = [], b""
    for seq in range(draw(st.integers(0, 5))):
        if form == "events" and draw(st.booleans()):
            data += b": keep-alive\n\n"
        kind = draw(st.sampled_from(["final", "partial", "error", "result"]))
        record = {
            "final": lambda seq: transcript(seq, draw(texts)),
            "partial": lambda seq: transcript(seq, draw(texts), final=False),
            "error": lambda seq: {"type": "error", "job_id": "j", "seq": seq, "error": draw(texts)},
            "result": lambda seq: {"type": "result", "job_id": "j", "seq": seq, "text": draw(texts)},
        }[kind](seq)
        records.append(record)
        data += written(form, record, spaces)
    end = {"type": "end", "job_id": "j", "seq": len(records), "audio_ms": 5000, "transcripts": 9, "errors": 0}
    last = written(form, end, spaces)
    cuts = sorted(draw(st.lists(st.integers(0, len(data + last)), max_size=12)))
    return form, records, end, data, last, cuts


def pieces(data, cuts):
    places = [0, *cuts, len(data)]
    return [data[a:b] for a, b in itertools.pairwise(places)]


@given(answers())
def test_any_cutting_gives_whole_records_and_all_bytes_with_the_end_held_back(answer):
    form, _, _, data, last, cuts = answer
    records, given = MAKE[form](), b""
    for piece in pieces(data + last, cuts):
        out = records.feed(piece)
        given += out
        assert given == b"" or given.endswith(b"\n" if form == "lines" else b"\n\n")
    assert given == data
    assert records.close() == last


@given(answers(), st.integers(0, 2000))
def test_a_failure_anywhere_ends_in_an_error_and_an_end_numbered_on(answer, at):
    form, _, end, data, last, cuts = answer
    at = min(at, len(data + last))
    records, given = MAKE[form](), b""
    for piece in pieces((data + last)[:at], [cut for cut in cuts if cut <= at]):
        given += records.feed(piece)
    passed = read(form, given)
    assert records.produced == bool(passed)
    tail = records.failed("fresh", "it broke: “so”\n")
    *before, error, closing = read(form, given + tail)
    assert before == passed
    job_id = "j" if passed or at == len(data + last) else "fresh"
    assert error == {"type": "error", "job_id": job_id, "seq": len(passed), "error": "it broke: “so”\n"}
    assert (closing["type"], closing["seq"], closing["job_id"]) == ("end", len(passed) + 1, job_id)
    if at == len(data + last):  # the peer's own count is known
        assert (closing["audio_ms"], closing["transcripts"], closing["errors"]) == (5000, 9, end["errors"] + 1)
    else:
        finals = sum(each["type"] == "transcript" and each["is_final"] for each in passed)
        assert closing["transcripts"] == finals
        assert closing["errors"] == sum(each["type"] == "error" for each in passed) + 1
    numbers = [each["seq"] for each in [*before, error, closing]]
    assert numbers == list(range(len(numbers)))


def test_the_end_of_the_sound_is_that_of_the_last_record():
    records = lines()
    records.feed(written("lines", transcript(0, end_ms=4321)))
    assert read("lines", records.failed("x", "gone"))[1]["audio_ms"] == 4321


def test_a_sentence_with_half_a_character_is_told_all_the_same():
    error, _ = read("lines", lines().failed("x", "broken \ud83d"))
    assert error["error"] == "broken ?"


def test_an_answer_without_an_end_record_is_not_whole():
    records = lines()
    records.feed(written("lines", transcript(0)))
    with pytest.raises(PeerFailed, match="without an end record"):
        records.close()


def test_an_end_record_in_another_order_is_one():
    records = events()
    last = b'data: {"job_id": "j", "type": "end", "seq": 0}\n\n'
    assert records.feed(last) == b""
    assert records.close() == last


@pytest.mark.parametrize("split", [True, False])
def test_nothing_comes_after_the_end(split):
    records, last = lines(), b'{"type":"end","seq":0}\n'
    later = b'{"type":"result","seq":1}\n{"type":"end","seq":2}\n'
    given = records.feed(last) + records.feed(later) if split else records.feed(last + later)
    assert (given, records.close()) == (b"", last)
    assert not records.produced


def test_a_comment_is_no_result_but_what_follows_it_is():
    records = events()
    assert records.feed(b": keep-alive\n\n") == b": keep-alive\n\n"
    assert not records.produced
    records.feed(b': keep-alive\n\nid: 0\ndata: {"type":"result","seq":0}\n\n')
    assert records.produced


def test_raw_bytes_pass_as_they_are_and_cannot_tell_of_an_error():
    raw = Raw()
    assert raw.feed(b"") == b""
    assert not raw.produced
    assert raw.feed(b": no comment") == b": no comment"
    assert raw.produced
    assert (raw.close(), raw.failed("j", "gone"), raw.content_type) == (b"", None, None)


def test_a_record_without_an_end_is_refused(monkeypatch):
    monkeypatch.setattr(forms, "LONGEST_RECORD", 1000)
    records = lines()
    records.feed(bytes(900))
    with pytest.raises(PeerFailed, match="1000 bytes"):
        records.feed(bytes(200))


@pytest.mark.parametrize(
    "record",
    ['{"seq":"7"}', '{"seq":true}', '{"seq":null}', "{", "{" * 100_000, '{"timing":[]}', '{"a":' + "9" * 5000 + "}",
     '{"seq":0,"timing":{"media_window_end_ms":1},"job_id":{}}'],
)  # fmt: skip
def test_hostile_records_do_not_keep_the_end_from_the_client(record):
    records = lines()
    records.feed(record.encode() + b"\n")
    error, end = read("lines", records.failed("j", "gone"))
    assert (error["type"], end["type"]) == ("error", "end")
    assert end["seq"] == error["seq"] + 1


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [("application/x-ndjson", "application/x-ndjson"), ("text/event-stream", "text/event-stream"),
     ("*/*", None), ("", None), ("text/plain", None),
     ("application/x-ndjson;q=0.5, text/event-stream", "text/event-stream")],
)  # fmt: skip
def test_the_form_is_what_the_reader_accepts(accept, content_type):
    assert form_for(accept).content_type == content_type
