"""The text of a stream: any reader, at any time, gets what is kept, in order, and hears of what is not."""

import asyncio
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whisper_byoc.network.gateway import records
from whisper_byoc.network.gateway.records import RecordLog


async def read(log, start=0):
    return [each async for each in log.read(start)]


def lines(log, start=0):
    return asyncio.run(read(log, start))


def line(**fields):
    return json.dumps(fields).encode()


def test_lines_are_numbered_and_come_back_as_they_are():
    log = RecordLog()
    given = [line(type="transcript", seq=7), b"plain text", b'{"a":  1}']
    for each in given:
        log.add(each + b"\n")
    log.close()
    assert lines(log) == list(enumerate(given))
    assert lines(log, 2) == [(2, given[2])]
    assert lines(log, 3) == []


@pytest.mark.parametrize("start", [4, 10**15])
def test_a_place_that_never_was_is_the_beginning(start):
    log = RecordLog()
    for number in range(3):
        log.add(line(n=number))
    log.close()
    assert [number for number, _ in lines(log, start)] == [0, 1, 2]


@pytest.mark.parametrize(
    "silence", [b"", b"  \n", b"[]", line(type="keepalive"), json.dumps([json.dumps({"type": "keepalive"})]).encode()]
)
def test_signs_of_life_are_not_kept(silence):
    log = RecordLog()
    log.add(silence)
    log.close()
    assert lines(log) == []
    assert not log.produced


@pytest.mark.parametrize(
    ("text", "produced", "ended"),
    [
        (line(type="transcript"), True, False),
        (line(type="error"), False, False),
        (line(type="end"), False, True),
        (json.dumps([json.dumps({"type": "end"})]).encode(), False, True),
        (json.dumps([json.dumps({"type": "transcript"}), json.dumps({"type": "end"})]).encode(), True, True),
        (json.dumps(["hello", "world"]).encode(), True, False),
        (json.dumps([{"type": "error"}]).encode(), False, False),
        (b"hello", True, False),
        (b"7", True, False),
        (b"[" * 100_000, True, False),
        (b'{"type": ["end"]}', True, False),
        (b"\xff\xfe", True, False),
    ],
)
def test_what_a_line_means(text, produced, ended):
    log = RecordLog()
    log.add(text)
    assert (log.produced, log.ended) == (produced, ended)
    assert len(log._lines) == 1


def test_nothing_comes_after_the_end():
    log = RecordLog()
    log.add(line(type="end", seq=0))
    log.add(line(type="transcript", seq=1))
    log.fail("j", "too late")
    assert len(lines(log)) == 1


def test_a_failure_is_numbered_and_counted_after_what_was_said():
    log = RecordLog()
    log.add(line(type="transcript", seq=0, is_final=False, timing={"media_window_end_ms": 100}))
    log.add(line(type="transcript", seq=1, is_final=True, timing={"media_window_end_ms": 250}))
    log.add(line(type="error", seq=2, error="x"))
    log.add(b"no record")
    log.fail("j", "it broke")
    log.close()
    error, end = (json.loads(each) for _, each in lines(log)[-2:])
    assert error == {"type": "error", "job_id": "j", "seq": 4, "error": "it broke"}
    assert end == {"type": "end", "job_id": "j", "seq": 5, "audio_ms": 250, "transcripts": 1, "errors": 2}


@pytest.mark.parametrize("seq", [True, "5", None, 1.5, [1]])
def test_a_number_that_is_none_does_not_break_the_numbering(seq):
    log = RecordLog()
    log.add(line(type="transcript", seq=seq, timing=seq))
    assert log.last_seq == 0
    log.fail("j", "\ud800 broke")
    assert log.ended


def test_lost_lines_are_told_of():
    log = RecordLog()
    log.add(line(type="transcript", seq=0))
    log.lost("j", 3)
    log.close()
    told = json.loads(lines(log)[1][1])
    assert (told["type"], told["seq"]) == ("error", 1)
    assert "3 segments" in told["error"]


def test_lost_input_is_told_of_and_the_containers_numbers_go_on():
    log = RecordLog()
    log.add(line(type="transcript", seq=0))
    log.unheard("j", 2)
    log.add(line(type="transcript", seq=1))
    log.fail("j", "gone")
    log.unheard("j", 1)
    told = [json.loads(text) for _, text in lines(log)]
    assert [each.get("seq") for each in told] == [0, None, 1, 2, 3]
    assert "2 segments of the input" in told[1]["error"]
    assert told[-1]["errors"] == 2


@pytest.mark.parametrize(("name", "bound"), [("MOST_LINES", 3), ("MOST_BYTES", 30)])
def test_a_reader_that_is_too_slow_hears_what_it_missed(monkeypatch, name, bound):
    monkeypatch.setattr(records, name, bound)
    log = RecordLog()
    for number in range(10):
        log.add(b"line %05d" % number)
    log.close()
    kept = bound if name == "MOST_LINES" else 3
    found = lines(log, 2)
    assert found[0][0] == 10 - kept - 1
    assert json.loads(found[0][1]) == {
        "type": "error", "error": f"{8 - kept} records were not read in time, and are gone",
    }  # fmt: skip
    assert found[1:] == [(number, b"line %05d" % number) for number in range(10 - kept, 10)]
    assert lines(log, found[0][0] + 1) == found[1:]  # it comes back with the number of what it was told


def test_one_line_is_always_kept(monkeypatch):
    monkeypatch.setattr(records, "MOST_BYTES", 10)
    log = RecordLog()
    log.add(b"x" * 100)
    log.close()
    assert lines(log) == [(0, b"x" * 100)]


async def test_readers_follow_at_their_own_pace(monkeypatch):
    monkeypatch.setattr(records, "KEEP_ALIVE_S", 0.02)
    log = RecordLog()
    early = log.read()
    assert await anext(early) is None  # a sign of life
    following = asyncio.ensure_future(anext(early))
    await asyncio.sleep(0)
    log.add(b"a")
    found = await following
    while found is None:
        found = await anext(early)
    assert found == (0, b"a")
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
    for _, text in lines(log):
        assert b"\r" not in text
        assert b"\n" not in text
        assert text.decode().strip() or True
    assert log.ended
