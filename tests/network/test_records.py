"""Records of a feed and text of a stream: whole, in order, and a failure is told in the same form."""

import asyncio
import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whisper_byoc.errors import PeerFailed
from whisper_byoc.network import records
from whisper_byoc.network.records import RecordLog, record_stream


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


def lines():
    return record_stream("application/x-ndjson")


def events():
    return record_stream("text/event-stream")


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
    stream, given = MAKE[form](), b""
    for piece in pieces(data + last, cuts):
        out = stream.feed(piece)
        given += out
        assert given == b"" or given.endswith(b"\n" if form == "lines" else b"\n\n")
    assert given == data
    assert stream.finish() == last


@given(answers(), st.integers(0, 2000))
def test_a_failure_anywhere_ends_in_an_error_and_an_end_numbered_on(answer, at):
    form, _, _, data, last, cuts = answer
    at = min(at, len(data + last))
    stream, given = MAKE[form](), b""
    for piece in pieces((data + last)[:at], [cut for cut in cuts if cut <= at]):
        given += stream.feed(piece)
    passed = read(form, given)
    tail = stream.failure("fresh", "it broke: “so”\n")
    *before, error, closing = read(form, given + tail)
    assert before == passed
    job_id = "j" if passed else "fresh"
    assert error == {"type": "error", "job_id": job_id, "seq": len(passed), "error": "it broke: “so”\n"}
    assert (closing["type"], closing["seq"], closing["job_id"]) == ("end", len(passed) + 1, job_id)
    finals = sum(each["type"] == "transcript" and each["is_final"] for each in passed)
    assert closing["transcripts"] == finals
    assert closing["errors"] == sum(each["type"] == "error" for each in passed) + 1
    numbers = [each["seq"] for each in [*before, error, closing]]
    assert numbers == list(range(len(numbers)))


def test_a_sentence_with_half_a_character_is_told_all_the_same():
    error, _ = read("lines", lines().failure("x", "broken \ud83d"))
    assert error["error"] == "broken ?"


def test_an_answer_without_an_end_record_is_not_whole():
    stream = lines()
    stream.feed(written("lines", transcript(0)))
    with pytest.raises(PeerFailed, match="without an end record"):
        stream.finish()


def test_an_end_record_in_another_order_is_one():
    stream = events()
    last = b'data: {"job_id": "j", "type": "end", "seq": 0}\n\n'
    assert stream.feed(last) == b""
    assert stream.finish() == last


@pytest.mark.parametrize("split", [True, False])
def test_nothing_comes_after_the_end(split):
    stream, last = lines(), b'{"type":"end","seq":0}\n'
    later = b'{"type":"result","seq":1}\n{"type":"end","seq":2}\n'
    given = stream.feed(last) + stream.feed(later) if split else stream.feed(last + later)
    assert (given, stream.finish()) == (b"", last)


def test_a_record_of_media_counts_and_is_not_decoded():
    stream = lines()
    stream.feed(b'{"type":"result","data":"%b"}\n' % bytes(100_000))
    assert read("lines", stream.failure("x", "gone"))[0]["seq"] == 1


def test_a_record_without_an_end_is_refused(monkeypatch):
    monkeypatch.setattr(records, "LONGEST_RECORD", 1000)
    stream = lines()
    stream.feed(bytes(900))
    with pytest.raises(PeerFailed, match="1000 bytes"):
        stream.feed(bytes(200))


@pytest.mark.parametrize(
    "record",
    ['{"seq":"7"}', '{"seq":true}', '{"seq":null}', "{", "{" * 100_000, '{"timing":[]}', '{"a":' + "9" * 5000 + "}",
     '{"seq":0,"timing":{"media_window_end_ms":1},"job_id":{}}'],
)  # fmt: skip
def test_hostile_records_do_not_keep_the_end_from_the_client(record):
    stream = lines()
    stream.feed(record.encode() + b"\n")
    error, end = read("lines", stream.failure("j", "gone"))
    assert (error["type"], end["type"]) == ("error", "end")
    assert end["seq"] == error["seq"] + 1


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [("application/x-ndjson", "application/x-ndjson"), ("text/event-stream", "text/event-stream"),
     ("application/x-ndjson;q=0.5, text/event-stream", "text/event-stream")],
)  # fmt: skip
def test_the_form_is_what_the_reader_accepts(accept, content_type):
    assert record_stream(accept).content_type == content_type
    assert record_stream("*/*") is record_stream("") is record_stream("text/plain") is None


# -- the text of a stream --------------------------------------------------------------------------------


async def collect(log):
    return [each async for each in log.read()]


def kept(log):
    return asyncio.run(collect(log))


def line(**fields):
    return json.dumps(fields).encode()


def test_lines_come_back_as_they_are():
    log = RecordLog()
    given = [line(type="transcript", seq=7), b"plain text", b'{"a":  1}']
    for each in given:
        log.add(each + b"\n")
    log.close()
    assert kept(log) == given


@pytest.mark.parametrize(
    "silence", [b"", b"  \n", b"[]", line(type="keepalive"), json.dumps([json.dumps({"type": "keepalive"})]).encode()]
)
def test_signs_of_life_are_not_kept(silence):
    log = RecordLog()
    log.add(silence)
    log.close()
    assert kept(log) == []


@pytest.mark.parametrize(
    ("text", "ended"),
    [
        (line(type="transcript"), False), (line(type="error"), False), (line(type="end"), True),
        (json.dumps([json.dumps({"type": "end"})]).encode(), True),
        (json.dumps([json.dumps({"type": "transcript"}), json.dumps({"type": "end"})]).encode(), True),
        (json.dumps(["hello", "world"]).encode(), False), (json.dumps([{"type": "error"}]).encode(), False),
        (b"hello", False), (b"7", False), (b"[" * 100_000, False), (b'{"type": ["end"]}', False), (b"\xff\xfe", False),
    ],
)  # fmt: skip
def test_what_a_line_means(text, ended):
    log = RecordLog()
    log.add(text)
    assert log.ended == ended
    log.close()
    assert len(kept(log)) == 1


def test_nothing_comes_after_the_end_of_a_log():
    log = RecordLog()
    log.add(line(type="end", seq=0))
    log.add(line(type="transcript", seq=1))
    log.fail("j", "too late")
    assert len(kept(log)) == 1


def test_a_failure_is_numbered_and_counted_after_what_was_said():
    log = RecordLog()
    log.add(line(type="transcript", seq=0, is_final=False, timing={"media_window_end_ms": 100}))
    log.add(line(type="transcript", seq=1, is_final=True, timing={"media_window_end_ms": 250}))
    log.add(line(type="error", seq=2, error="x"))
    log.add(b"no record")
    log.fail("j", "it broke")
    log.close()
    error, end = (json.loads(each) for each in kept(log)[-2:])
    assert error == {"type": "error", "job_id": "j", "seq": 4, "error": "it broke"}
    assert end == {"type": "end", "job_id": "j", "seq": 5, "audio_ms": 250, "transcripts": 1, "errors": 2}


@pytest.mark.parametrize("seq", [True, "5", None, 1.5, [1]])
def test_a_number_that_is_none_does_not_break_the_numbering(seq):
    log = RecordLog()
    log.add(line(type="transcript", seq=seq, timing=seq))
    log.fail("j", "\ud800 broke")
    assert log.ended
    assert [json.loads(text)["seq"] for text in kept(log)[1:]] == [1, 2]


def test_what_was_missed_is_told_of_and_the_containers_numbers_go_on():
    log = RecordLog()
    log.add(line(type="transcript", seq=0))
    log.lost("j", "2 segments of the input were gone")
    log.add(line(type="transcript", seq=1))
    log.fail("j", "gone")
    log.lost("j", "too late")
    told = [json.loads(text) for text in kept(log)]
    assert [each.get("seq") for each in told] == [0, None, 1, 2, 3]
    assert "2 segments of the input" in told[1]["error"]
    assert told[-1]["errors"] == 2


async def test_a_reader_that_is_too_slow_hears_what_it_missed(monkeypatch):
    monkeypatch.setattr(records, "MOST_BYTES", 3 * (records.LINE_COST + 10))
    log = RecordLog()
    reader = log.read()
    for number in range(10):
        log.add(b"line %05d" % number)
        if number == 0:
            assert await anext(reader) == b"line 00000"
    log.close()
    told, *rest = [each async for each in reader]
    assert json.loads(told) == {"type": "error", "error": "6 records were not read in time, and are gone"}
    assert rest == await collect(log) == [b"line %05d" % number for number in range(7, 10)]


def test_one_line_is_always_kept(monkeypatch):
    monkeypatch.setattr(records, "MOST_BYTES", 10)
    log = RecordLog()
    log.add(b"x" * 100)
    log.close()
    assert kept(log) == [b"x" * 100]


async def test_readers_follow_at_their_own_pace(monkeypatch):
    monkeypatch.setattr(records, "COMMENT_EVERY_S", 0.02)
    log = RecordLog()
    early = log.read()
    assert await anext(early) is None  # a sign of life
    following = asyncio.ensure_future(anext(early))
    await asyncio.sleep(0)
    log.add(b"a")
    found = await following
    while found is None:
        found = await anext(early)
    assert found == b"a"
    log.close()
    with pytest.raises(StopAsyncIteration):
        await anext(early)


@given(st.lists(st.binary(max_size=60), max_size=20))
def test_hostile_lines_become_one_line_of_an_event_each(given_lines):
    log = RecordLog()
    for each in given_lines:
        log.add(each.replace(b"\n", b""))
    log.fail("j", "over")
    log.close()
    for text in kept(log):
        assert b"\r" not in text
        assert b"\n" not in text
        assert text.decode().strip() or True
    assert log.ended
