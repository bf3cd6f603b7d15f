"""A live feed on its way to a session: pieces wait together, none is lost, partial results reach those who follow."""

import asyncio
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from audio import pcm
from audio.wav import read_wav
from tests.server.stubs import Listener, final, partial, raw
from tests.waiting import until
from whisper_byoc.errors import BadSegment
from whisper_byoc.processors.base import Result
from whisper_byoc.server.core.inbox import JOINED_BYTES, SMALL_BYTES, Inbox, QueuedPieces
from whisper_byoc.server.core.limits import Limits
from whisper_byoc.server.ingest.framing import AudioFraming

SECOND = 32_000


def numbered(size):
    """Bytes of which each stretch is another."""
    return b"".join(number.to_bytes(4, "little") for number in range(size // 4 + 1))[:size]


def cut(data, size):
    return [data[at : at + size] for at in range(0, len(data), size)]


async def test_pieces_that_wait_share_a_place_in_the_queue(serving):
    listener = Listener()
    listener.go.clear()
    api = await serving(listener, queue_segments=3)
    data = numbered(10 * SECOND)
    feeding = asyncio.ensure_future(api.put("job", cut(data, 999), chunked=True))
    await listener.begun.wait()
    job = api.table.get("job")
    status, body, _ = await feeding  # all of it has a place, though nothing was worked on
    assert (status, body["bytes"]) == (200, len(data))
    assert job.inbox.items <= 3
    listener.go.set()
    assert [each.get("text") for each in await api.records("job")] == [f"{len(data)} bytes", None]
    assert listener.heard == data
    assert listener.closed == 1
    assert len(listener.pieces) <= 2 * len(data) / SMALL_BYTES + 3  # no two neighbours fit into one
    assert listener.arrivals == sorted(listener.arrivals)


async def test_no_more_waits_than_the_queue_may_hold(serving):
    listener = Listener()
    listener.go.clear()
    api = await serving(listener, queue_segments=2, idle_seconds=60)
    data = numbered(60 * SECOND)
    feeding = asyncio.ensure_future(api.put("job", cut(data, 16_000), chunked=True))
    await listener.begun.wait()
    job = api.table.get("job")
    await until(lambda: job.inbox.items == 2 and job.inbox.bytes >= JOINED_BYTES - 16_000)
    await time_in_which_more_could_come(api)
    assert not feeding.done()
    assert job.inbox.bytes <= 2 * JOINED_BYTES
    listener.go.set()
    assert (await feeding)[0] == 200
    await api.records("job")
    assert listener.heard == data
    assert (job.inbox.items, job.inbox.bytes) == (0, 0)


DECLARED = "PUT /live/gone/source HTTP/1.1\nHost: x\nTransfer-Encoding: chunked\nContent-Type: audio/pcm"
FEED = "PUT /live/gone/source HTTP/1.1\nHost: x\nTransfer-Encoding: chunked"


def chunked(data, size):
    return b"".join(b"%x\r\n%b\r\n" % (len(each), each) for each in cut(data, size))


async def time_in_which_more_could_come(api):
    for _ in range(20):
        await api.json("/health")


@pytest.mark.parametrize("rudely", [False, True])
@pytest.mark.parametrize(("size", "chunk"), [(60_000, 60_000), (400_000, 10_000)])
async def test_a_client_that_vanishes_while_the_queue_is_full_loses_nothing_it_sent(serving, size, chunk, rudely):
    listener = Listener()
    listener.go.clear()
    api = await serving(listener, queue_bytes=20_000)  # room for one piece
    data = numbered(size)
    _, writer = await raw(api, FEED, chunked(data, chunk))
    await listener.begun.wait()
    await time_in_which_more_could_come(api)
    if rudely:
        writer.transport.abort()
    else:
        writer.close()
    await time_in_which_more_could_come(api)  # and then the end of the connection
    listener.go.set()
    job = api.table.get("gone")
    await until(lambda: not job.has_feed)
    assert not job.closing.is_set()  # it may come back
    assert await api.end("gone") == 200
    assert [each.get("text") for each in await api.records("gone")] == [f"{size} bytes", None]
    assert listener.heard == data


@pytest.mark.parametrize("wav", [False, True])
async def test_what_a_client_sent_right_before_it_went_is_heard(serving, fixtures_dir, wav):
    listener = Listener()
    api = await serving(listener)
    data = (fixtures_dir / "demo-stop.wav").read_bytes() if wav else numbered(32_000)
    _, writer = await raw(api, FEED, chunked(data[:1100], 1100))
    await until(lambda: listener.heard)
    writer.write(chunked(data[1100:], len(data)))
    writer.close()  # at once
    await until(lambda: not api.table.get("gone").has_feed)
    await api.end("gone")
    await api.records("gone")
    assert listener.heard == (pcm.encode(read_wav(data)) if wav else data)


async def test_a_feed_whose_client_goes_right_after_its_normal_end_has_ended(serving):
    listener = Listener()
    api = await serving(listener)
    _, writer = await raw(api, DECLARED, chunked(b"abcd", 4))
    await until(lambda: listener.heard)
    writer.write(chunked(b"efgh", 4) + b"0\r\n\r\n")
    writer.close()
    assert [each["type"] for each in await api.records("gone")] == ["transcript", "end"]
    assert listener.heard == b"abcdefgh"


async def test_small_pieces_become_one_with_the_newest_arrival():
    pieces = QueuedPieces([(b"ab", 1.0)], 2)
    for n in range(5000):
        pieces.add(b"c", 2.0 + n)
    assert sum(len(data) for data, _ in pieces.pieces) == pieces.reserved == 5002
    assert [len(data) for data, _ in pieces.pieces] == [SMALL_BYTES, 5002 - SMALL_BYTES]
    assert [arrived for _, arrived in pieces.pieces] == [2.0 + SMALL_BYTES - 3, 2.0 + 4999]


@given(st.lists(st.binary(max_size=40_000), max_size=5), st.booleans())
def test_a_live_feed_is_handed_on_in_whole_samples_however_it_came(chunks, complete):
    framing, data = AudioFraming(live=True), b"".join(chunks)
    given_on = [piece for chunk in chunks for piece in framing.feed(chunk)]
    assert all(piece and len(piece) % 2 == 0 for piece in given_on)
    rest = framing.finish(complete=complete)
    assert [isinstance(each, BadSegment) for each in rest] == [not complete] * (len(data) % 2)
    assert b"".join([*given_on, *(rest if complete else ())]) == (data if complete else data[: len(data) // 2 * 2])


async def talk(api, listener, *texts):
    """Feed a piece for each text, of which each is a partial one that the next replaces, but for those in capitals."""
    said = iter(texts)

    def answer(piece):
        text = next(said)
        return [final(text) if text.isupper() else partial(text)]

    listener.answer = answer
    for number in range(len(texts)):
        await api.put("job", bytes(SMALL_BYTES), chunked=True, query="?more=1")
        await until(lambda number=number: len(listener.pieces) > number)


@pytest.mark.parametrize(("query", "ended"), [("", True), ("?more=0", True), ("?more=1", False)])
async def test_a_feed_ends_the_input_unless_more_is_to_come(serving, query, ended):
    api = await serving(Listener())
    await api.put("job", bytes(640), chunked=True, query=query)
    assert api.table.get("job").closing.is_set() == ended


async def test_followers_of_records_see_partial_text(serving):
    listener = Listener()
    api = await serving(listener)
    await api.put("job")
    following = asyncio.ensure_future(api.records("job"))
    await until(lambda: api.table.get("job").has_reader)
    await talk(api, listener, "one", "one two", "ONE TWO")
    await api.end("job")
    records = await following
    assert [each["seq"] for each in records] == list(range(len(records)))
    assert [each.get("text") for each in records if each.get("is_final", True)] == ["ONE TWO", "9600 bytes", None]
    shown = [each["text"] for each in records if not each.get("is_final", True)]
    assert shown in (["one", "one two"], ["one"], ["one two"])
    assert records[0]["is_final"] is False


async def test_a_partial_text_that_is_ready_does_not_wait_for_the_next_piece(serving):
    listener = Listener(lambda piece: [] if piece else [partial("so far")])
    api = await serving(listener)
    await api.put("job", b"ab", chunked=True, query="?more=1")
    await until(lambda: listener.pieces)
    async with api.http.get(f"{api.url}/live/job/output", headers={"Accept": "application/x-ndjson"}) as output:
        listener.tell()
        record = json.loads(await output.content.readline())
    assert (record["text"], record["is_final"]) == ("so far", False)
    assert listener.pieces == [b"ab"]


async def test_without_a_reader_a_partial_gives_way_and_fills_nothing(serving):
    listener = Listener()
    api = await serving(listener, kept_results=3)
    await talk(api, listener, *["word"] * 20, "WORD", *["more"] * 20)
    assert api.table.get("job").results.next_seq == 2
    await api.end("job")
    records = await api.records("job")
    assert [(each["seq"], each.get("text")) for each in records] == [
        (0, "WORD"),
        (1, f"{41 * SMALL_BYTES} bytes"),
        (2, None),
    ]


async def test_readers_of_results_do_not_see_partial_text(serving):
    listener = Listener()
    api = await serving(listener)
    await talk(api, listener, "one")
    assert (await api.get("job", "?wait=0.05"))[:2] == (204, b"")
    await talk(api, listener, "two", "TWO")
    status, body, headers = await api.get("job")
    assert (status, body, headers["Lp-Trickle-Seq"]) == (200, b"TWO", "1")
    await talk(api, listener, "three", "THREE", "four")
    await api.end("job")
    assert (await api.get("job", "?follow=1"))[1] == b"THREE\n%d bytes\n" % (6 * SMALL_BYTES)


async def test_a_whole_segment_ends_the_feed_before_it_whatever_becomes_of_it(serving):
    listener = Listener()
    api = await serving(listener)
    await api.put("job", bytes(640), chunked=True, query="?more=1")
    await api.put("job", b"no")
    await api.put("job", bytes(320))
    await api.put("job", bytes(64), chunked=True)
    records = await api.records("job")
    texts = [each.get("text", each.get("error", "end")) for each in records]
    assert texts[0] == "last words"
    assert "no such segment" in texts[1]
    assert texts[2:] == ["segment of 320", "704 bytes", "end"]
    assert listener.calls == ["end_feed", "feed", "feed", "finish"]
    assert listener.job.params == {}


async def test_half_a_sample_is_carried_to_the_next_feed_unless_its_own_broke_off(serving):
    listener = Listener()
    api = await serving(listener)
    await api.put("job", b"abc", chunked=True, query="?more=1")
    await api.put("job", b"def", chunked=True, query="?more=1")
    _, writer = await raw(api, DECLARED.replace("gone", "job"), chunked(b"ghijk", 5))
    await until(lambda: listener.heard.endswith(b"ghij"))
    writer.transport.abort()
    await until(lambda: not api.table.get("job").has_feed)
    await api.put("job", b"mnop", chunked=True)
    records = await api.records("job")
    assert listener.heard == b"abcdefghijmnop"
    assert "in the middle of a 16-bit sample" in records[1]["error"]
    assert [each["type"] for each in records] == ["transcript", "error", "transcript", "end"]


async def test_a_feed_that_falls_silent_on_the_wire_ends_its_utterance_once(serving):
    listener = Listener()
    api = await serving(listener, flush_seconds=0.02, idle_seconds=0.5)
    await api.put("job", bytes(640), chunked=True, query="?more=1")
    assert (await api.get("job"))[1] == b"flush"
    await until(lambda: api.table.get("job").idle_seconds > 0.1)
    assert listener.calls == ["flush"]
    await api.put("job", bytes(640), chunked=True, query="?more=1")
    assert (await api.get("job"))[1] == b"flush"
    # and a flush does not keep the job from being idle
    assert (await api.records("job"))[-2]["error"].startswith("the job was idle for 0.5 s")


async def test_a_piece_that_comes_at_the_very_time_of_a_flush_comes_first():
    inbox = Inbox("job", Limits())
    asyncio.get_running_loop().call_soon(lambda: inbox.submit_now(b"ab", live=True))
    item = await inbox.next(0)  # both are due in the next turn of the loop, the piece first
    assert item.pieces[0][0] == b"ab"
    assert inbox.drain() == []


async def test_a_piece_that_fails_is_an_error_and_the_feed_goes_on(serving):
    def answer(piece):
        if piece[0] == 1:
            raise ValueError("no such luck")
        return [Result(b"", error="nothing was understood")] if piece[0] == 2 else [final("fine")]

    api = await serving(Listener(answer))
    for first in (b"\1", b"\2", b"\3"):
        await api.put("job", first + bytes(3199), chunked=True, query="?more=1")
    await api.end("job")
    records = await api.records("job")
    assert [each["type"] for each in records] == ["error", "error", "transcript", "transcript", "end"]
    assert "ValueError: no such luck" in records[0]["error"]
    assert records[1]["error"] == "nothing was understood"
    assert records[-1]["errors"] == 2
    async with api.http.get(f"{api.url}/metrics") as answer:
        assert 'byoc_errors_total{kind="processor",pipeline="test"} 1.0' in (
            lines := (await answer.text()).splitlines()
        )
    assert 'byoc_errors_total{kind="segment",pipeline="test"} 1.0' in lines


async def test_abandoning_a_job_tells_of_every_place_and_lets_the_session_go(serving):
    listener = Listener()
    listener.go.clear()
    api = await serving(listener)
    await api.put("job", bytes(640), chunked=True, query="?more=1")
    await listener.begun.wait()
    job = api.table.get("job")
    await api.put("job", bytes(640), chunked=True, query="?more=1")
    await api.put("job", bytes(320))
    await api.table.forget("job", "enough")
    assert (job.inbox.items, job.inbox.bytes, listener.closed) == (0, 0, 1)
    errors = [job.results.at(seq).error for seq in range(job.results.next_seq - 1)]
    assert errors == ["not processed: enough"] * 3 + ["enough"]


async def test_lag_is_measured_for_partial_and_final_text(serving):
    def answer(piece):
        return [final("x", lag_ms=40.0), Result(b"", {"type": "x"}, partial=True, lag_ms=3000.0)]

    api = await serving(Listener(answer))
    await api.put("job", bytes(640), chunked=True)
    await api.records("job")
    async with api.http.get(f"{api.url}/metrics") as answer:
        lines = (await answer.text()).splitlines()
    assert 'byoc_text_lag_seconds_bucket{kind="final",le="0.05",pipeline="test"} 1.0' in lines
    assert 'byoc_text_lag_seconds_sum{kind="partial",pipeline="test"} 3.0' in lines
    assert 'byoc_input_bytes_total{pipeline="test"} 640.0' in lines
    assert json.dumps(lines).count("byoc_segment_duration_seconds_count{") == 0  # pieces are no segments


async def test_a_session_whose_close_fails_still_ends(serving):
    listener = Listener()
    listener.close = lambda: 1 / 0
    api = await serving(listener)
    await api.put("job", bytes(640), chunked=True)
    assert (await api.records("job"))[-1]["type"] == "end"


@pytest.mark.parametrize("size", [1, 5, 4096])
async def test_a_feed_that_begins_like_a_wav_is_read_as_one(serving, fixtures_dir, size):
    data = (fixtures_dir / "demo-stereo-48k.wav").read_bytes()
    listener = Listener()
    api = await serving(listener)
    chunks = [*cut(data[: 5 * size], size), data[5 * size :]]
    assert (await api.put("a", chunks, chunked=True))[0] == 200
    await api.records("a")
    assert len(listener.heard) == len(pcm.encode(read_wav(data)))


async def test_a_feed_that_is_too_short_for_a_wav_is_pcm(serving):
    listener = Listener()
    api = await serving(listener)
    assert (await api.put("a", [b"RIF", b"F"], chunked=True))[0] == 200
    await api.records("a")
    assert listener.heard == b"RIFF"


@pytest.mark.parametrize(("live_seconds", "taken", "status"), [(60, 2 * SECOND, 200), (0.1, SECOND, 503)])
async def test_a_drain_waits_for_feeds_for_as_long_as_it_is_told(serving, live_seconds, taken, status):
    listener, go_on = Listener(), asyncio.Event()
    api = await serving(listener, drain_live_seconds=live_seconds)

    async def source():
        yield bytes(SECOND)
        await go_on.wait()
        yield bytes(SECOND)

    feeding = asyncio.ensure_future(api.http.put(f"{api.url}/live/job/source", data=source()))
    await listener.begun.wait()
    draining = asyncio.ensure_future(api.table.drain())
    await until(lambda: api.table.draining)
    assert (await api.put("other", bytes(640)))[0] == 503
    if status == 200:
        go_on.set()
    records = await api.records("job")
    await draining
    assert (records[-1]["type"], len(listener.heard)) == ("end", taken)
    async with await feeding as answer:
        assert answer.status == status
