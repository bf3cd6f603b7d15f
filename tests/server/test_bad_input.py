"""What users and the network do wrong: a clear error, nothing lost, and the next job is served."""

import asyncio
import gzip
import io
import json
import struct

import aiohttp
import pytest
from aiohttp import web

from tests.conftest import pieces
from tests.server.stubs import Says, Sound, Upper, raw
from tests.waiting import forever, until
from whisper_byoc.processors.base import Result
from whisper_byoc.server.app import ROUTES


class Large:
    """Gives more than sockets hold, for a segment that takes no time on its way."""

    async def process(self, frame: bytes) -> bytes:
        return bytes(32 << 20)


class Gate:
    """Works until it is let go."""

    def __init__(self):
        self.open = asyncio.Event()
        self.begun = asyncio.Event()
        self.cancelled = 0

    async def process(self, frame: bytes) -> bytes:
        self.begun.set()
        try:
            await self.open.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return frame


@pytest.mark.parametrize("chunked", [False, True])
async def test_body_over_the_limit_is_413(serving, chunked):
    api = await serving(Upper(), segment_bytes=1000)
    status, body, _ = await api.put("job", b"x" * 1001, chunked=chunked)
    assert status == 413
    assert "1000 bytes" in body["error"]
    assert (await api.get("job", "?wait=0"))[0] in (204, 404)  # nothing of it was worked on
    assert (await api.put("job", b"x" * 1000))[0] == 200
    await api.still_serves()


async def test_a_length_that_lies_about_64_mib_is_refused_unread(serving):
    api = await serving(Upper())
    reader, writer = await raw(api, f"PUT /live/job/source HTTP/1.1\nHost: x\nContent-Length: {65 << 20}")
    assert b" 413 " in await asyncio.wait_for(reader.readline(), 5)
    writer.close()
    await api.still_serves()


async def test_client_that_vanishes_in_mid_segment_leaves_nothing(serving):
    api = await serving(Upper())
    _, writer = await raw(api, "PUT /live/job/source HTTP/1.1\nHost: x\nContent-Length: 100", b"half")
    await until(lambda: api.table.jobs and api.table.queued == 1)
    writer.transport.abort()
    await until(lambda: api.table.queued == 0)
    assert (await api.put("job", b"whole"))[0] == 200
    assert (await api.get("job"))[1] == b"WHOLE"


async def test_feed_that_breaks_is_worked_on_as_far_as_it_came(serving):
    api = await serving(Sound())
    _, writer = await raw(api, "PUT /live/job/source HTTP/1.1\nHost: x\nTransfer-Encoding: chunked", b"6\r\nabcdef\r\n")
    await until(lambda: api.table.busy)
    writer.close()
    assert (await api.get("job"))[1] == b"6 bytes"
    assert (await api.put("job", b"abcd", chunked=True))[0] == 200  # the client comes back and goes on
    assert [each["type"] for each in await api.records("job")] == ["result", "end"]


async def test_client_that_vanishes_before_reading_loses_nothing(serving):
    api = await serving(Upper())
    await api.put("job", b"kept")
    assert (await api.get("job"))[1] == b"KEPT"
    _, writer = await raw(api, "GET /live/job/output HTTP/1.1\nHost: x")
    job = api.table.get("job")
    await until(lambda: job.has_reader)
    writer.transport.abort()
    await until(lambda: not job.has_reader)
    await api.put("job", b"later")
    assert (await api.get("job"))[1] == b"LATER"


async def test_client_that_vanishes_while_the_model_works_finds_its_result_later(serving):
    gate = Gate()
    api = await serving(gate)
    _, writer = await raw(api, "PUT /live/job/source HTTP/1.1\nHost: x\nContent-Length: 4", b"work")
    await asyncio.wait_for(gate.begun.wait(), 5)
    writer.transport.abort()
    gate.open.set()
    assert (await api.get("job"))[1] == b"work"


async def test_second_reader_is_told_so_and_the_first_gets_the_result(serving):
    api = await serving(Upper())
    await api.put("job", b"")
    first = asyncio.ensure_future(api.get("job", "?wait=20"))
    await until(lambda: api.table.get("job").has_reader)
    status, body, _ = await api.get("job")
    assert status == 409
    assert "one reader at a time" in json.loads(body)["error"]
    await api.put("job", b"x")
    assert (await first)[1] == b"X"
    await api.still_serves()


async def test_second_feed_is_409_and_the_first_goes_on(serving):
    api = await serving(Sound())
    go_on = asyncio.Event()

    async def body():
        yield b"abcd"
        await go_on.wait()
        yield b"ef"

    async def feed():
        async with api.http.put(f"{api.url}/live/job/source", data=body()) as answer:
            return answer.status

    first = asyncio.ensure_future(feed())
    await until(lambda: api.table.busy)
    assert (await api.put("job", b"xx", chunked=True))[0] == 409
    go_on.set()
    assert await first == 200
    assert [each.get("text") for each in await api.records("job")] == ["6 bytes", None]


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda frame: 1 / 0, "ZeroDivisionError: division by zero"),
        (lambda frame: None, "must return bytes or a str, but it returned NoneType"),
        (lambda frame: 7, "must return bytes or a str, but it returned int"),
    ],
)
async def test_a_processor_that_fails_makes_one_error_record(serving, made, message):
    class Fails:
        async def process(self, frame):
            return frame if frame == b"good" else made(frame)

    api = await serving(Fails())
    for frame in (b"bad", b"good"):
        await api.put("job", frame)
    status, body, headers = await api.get("job")
    assert status == 500
    assert headers["Lp-Trickle-Seq"] == "0"
    error = json.loads(body)
    assert error["seq"] == 0
    assert message in error["error"]
    assert (await api.get("job"))[1] == b"good"
    await api.end("job")
    assert (await api.records("job"))[-1]["errors"] == 1


async def test_an_error_of_any_length_and_letters_is_one_that_every_reader_gets(serving):
    errors = [ValueError("x" * (1 << 20)), OSError("no file \udcff"), ValueError("fine")]

    api = await serving(Says(*errors, ""))
    for _ in range(3):
        await api.put("job", b"x")
    await api.end("job")
    said = [each.get("error") for each in await api.records("job")]
    assert len(said[0].encode()) < 8192
    assert said[0].startswith("the processor failed with ValueError: xxxx")
    assert said[1:] == [
        r"the processor failed with OSError: no file \udcff",
        "the processor failed with ValueError: fine",
        None,
    ]


async def test_a_processor_that_is_cancelled_from_within_is_not_said_to_be_slow(serving):
    class Cancelled:
        async def process(self, frame):
            inner = asyncio.ensure_future(forever())
            inner.cancel()
            await inner

    api = await serving(Cancelled())
    await api.put("job", b"x")
    status, body, _ = await api.get("job")
    assert status == 500
    assert "was cancelled: a task" in json.loads(body)["error"]


async def test_an_error_that_waits_for_room_when_the_job_is_stopped_counts_once(serving):
    api = await serving(Says("good", ValueError("no"), ""), kept_results=1)
    await api.put("job", b"x")
    await api.put("job", b"x")
    job = api.table.get("job")
    await until(lambda: job.results.next_seq == 1 and job.inbox.items == 1 and job.idle_seconds > 0.05)
    await job.stop("enough")
    records = await api.records("job")
    assert [each["type"] for each in records] == ["result", "error", "error", "end"]
    assert records[-1]["errors"] == 2


async def test_a_processor_that_sleeps_for_ever_is_left_behind(serving):
    gate = Gate()
    api = await serving(gate, segment_seconds=0.05)
    await api.put("job", b"x")
    status, body, _ = await api.get("job")
    assert status == 500
    assert "longer than the segment time limit of 0.05 s" in json.loads(body)["error"]
    assert gate.cancelled == 1
    gate.open.set()
    await api.put("job", b"y")
    assert (await api.get("job"))[1] == b"y"


async def test_a_processor_that_ignores_its_cancellation_is_left_behind_too(serving):
    let_go = asyncio.Event()

    class Stubborn:
        async def process(self, frame):
            while not let_go.is_set():
                try:
                    await let_go.wait()
                except asyncio.CancelledError:
                    continue
            return frame

    api = await serving(Stubborn(), segment_seconds=0.05)
    await api.put("job", b"x")
    assert (await api.get("job"))[0] == 500
    let_go.set()
    await api.put("job", b"y")
    assert (await api.get("job"))[1] == b"y"


async def test_a_full_queue_answers_503_and_loses_nothing(serving):
    gate = Gate()
    api = await serving(gate, queue_segments=2, admission_seconds=0.05)
    for number in range(2):
        assert (await api.put("job", b"%d" % number))[0] == 200
    status, body, headers = await api.put("job", b"2")
    assert status == 503
    assert "2 segments waiting" in body["error"]
    assert int(headers["Retry-After"]) >= 1
    gate.open.set()
    assert [(await api.get("job"))[1] for _ in range(2)] == [b"0", b"1"]
    assert (await api.put("job", b"2"))[0] == 200


async def test_unread_results_push_back_and_are_never_dropped(serving):
    api = await serving(Upper(), kept_results=2, queue_segments=2, admission_seconds=0.05)
    sent = 0
    while (await api.put("job", b"n%d" % sent))[0] == 200:
        sent += 1
    assert sent <= 2 + 2 + 1  # the ring, the queue, and no more than what was at work
    got = []
    for _ in range(sent):
        got.append((await api.get("job"))[1])
    assert got == [b"N%d" % number for number in range(sent)]


async def test_a_live_feed_is_not_read_faster_than_its_results(serving):
    api = await serving(Upper(), kept_results=1, queue_segments=1, idle_seconds=60)
    frames = 50
    feeding = asyncio.ensure_future(api.put("job", [b"abc"] * frames, chunked=True, query="?width=1&height=1"))
    await until(lambda: api.table.jobs)
    for _ in range(20):
        await api.json("/health")  # time in which more could be read
    assert not feeding.done()
    assert api.table.get("job").results.next_seq <= 2
    records = await api.records("job")
    assert len(records) == frames + 1
    assert (await feeding)[1]["segments"] == frames


async def test_one_job_too_many_is_503(serving):
    api = await serving(Upper(), jobs=2)
    assert [(await api.put(name, b"x"))[0] for name in ("a", "b", "c")] == [200, 200, 503]
    await api.end("a")
    assert (await api.put("c", b"x"))[0] == 200


async def test_ended_jobs_do_not_pile_up(serving):
    api = await serving(Upper(), jobs=3)
    for number in range(20):
        assert (await api.put(f"job{number}", b"x"))[0] == 200
        await api.end(f"job{number}")
        assert (await api.get(f"job{number}"))[1] == b"X"
    assert len(api.table.jobs) <= 6


async def test_an_idle_job_ends_with_an_error_for_each_unfinished_segment(serving):
    api = await serving(Upper(), kept_results=1, queue_segments=4, idle_seconds=1.0)
    await asyncio.gather(*(api.put("job", b"n%d" % number) for number in range(4)))
    await until(lambda: api.table.get("job").results.ended)
    records = await api.records("job")
    assert [each["seq"] for each in records] == list(range(len(records)))
    assert [each["type"] for each in records] == ["result", "error", "error", "error", "error", "end"]
    assert "idle" in records[-2]["error"]
    assert records[-1]["errors"] == 4


async def test_an_ended_job_is_forgotten(serving):
    api = await serving(Upper(), linger_seconds=0.05)
    await api.put("job", b"x")
    await api.end("job")
    await until(lambda: not api.table.jobs)
    assert (await api.get("job", "?wait=0"))[0] == 404


async def test_half_a_sample_at_the_end_of_a_feed_is_an_error_record(serving):
    api = await serving(Sound())
    status, body, _ = await api.put("job", [b"abc", b"d", b"e"], chunked=True)
    assert (status, body["bytes"]) == (200, 5)
    records = await api.records("job")
    assert [each["type"] for each in records] == ["result", "error", "end"]
    assert records[0]["text"] == "4 bytes"
    assert "one byte was left over" in records[1]["error"]


class Video(Upper):
    media = "video"


async def test_chunked_video_needs_its_size(serving):
    api = await serving(Video())
    for query in ("", "?width=2", *(f"?width={width}&height=2" for width in ("0", "x", "99999", "²"))):
        status, body, _ = await api.put("job", b"x", chunked=True, query=query)
        assert status == 400, query
        assert "?width=&height=" in body["error"]
    status, _, _ = await api.put("job", b"x", chunked=True, query="?width=16384&height=16384")
    assert status == 413


async def test_video_feed_is_cut_into_frames_and_the_rest_is_an_error(serving):
    api = await serving(Video())
    await api.put("job", [b"abcdefabc", b"defxyz"], chunked=True, query="?width=2&height=1")
    records = await api.records("job")
    assert [each.get("text") for each in records] == ["ABCDEF", "ABCDEF", None, None]
    assert "3 of 6 bytes (2x1 RGB24)" in records[2]["error"]


def wav(samples=b"\x01\x00" * 160, claimed=None):
    size = len(samples) if claimed is None else claimed
    head = b"RIFF" + struct.pack("<I", min(36 + size, 0xFFFFFFFF)) + b"WAVEfmt "
    return head + struct.pack("<IHHIIHH", 16, 1, 1, 16000, 32000, 2, 16) + b"data" + struct.pack("<I", size) + samples


@pytest.mark.parametrize("content_type", ["audio/wav", "application/octet-stream"])
async def test_wav_segment_is_read_as_wav(serving, content_type):
    api = await serving(Sound())
    assert (await api.put("job", wav(), headers={"Content-Type": content_type}))[0] == 200
    assert (await api.get("job"))[1] == b"320 bytes"


async def test_wav_feed_is_read_as_wav(serving):
    api = await serving(Sound())
    data = wav()
    parts = [data[:10], data[10:50], data[50:]]
    assert (await api.put("job", parts, chunked=True, headers={"Content-Type": "audio/wav"}))[0] == 200
    assert [each.get("text") for each in await api.records("job")] == ["320 bytes", None]


async def test_wav_that_claims_4_gb_goes_on_to_its_end(serving):
    api = await serving(Sound())
    assert (await api.put("job", wav(claimed=0xFFFFFFF0), headers={"Content-Type": "audio/wav"}))[0] == 200
    assert (await api.get("job"))[1] == b"320 bytes"


async def test_wav_feed_that_is_cut_off_gives_what_there_was_and_an_error(serving):
    api = await serving(Sound())
    data = wav(bytes(32_000))[:-10_000]
    assert (await api.put("job", [data], chunked=True, headers={"Content-Type": "audio/wav"}))[0] == 200
    records = await api.records("job")
    assert [each["type"] for each in records] == ["result", "error", "end"]
    assert records[0]["text"] == "22000 bytes"
    assert "32000 bytes of sound and 22000" in records[1]["error"]


async def test_wav_that_would_become_larger_than_a_segment_is_refused(serving):
    api = await serving(Sound(), segment_bytes=1000)
    data = wav(b"\x80" * 400)
    at_8_khz = data[:24] + struct.pack("<IIHH", 8000, 8000, 1, 8) + data[36:]
    status, body, _ = await api.put("job", at_8_khz, headers={"Content-Type": "audio/wav"})
    assert status == 400
    assert "800 samples" in body["error"]


async def test_a_reader_that_does_not_read_is_let_go(serving):
    api = await serving(Large(), idle_seconds=0.3, kept_bytes=1 << 30)
    _, writer = await raw(api, "GET /live/job/output?follow=1 HTTP/1.1\nHost: x")
    writer.transport.pause_reading()
    await api.put("job", b"x")
    await until(lambda: api.table.get("job").has_reader)
    await until(lambda: not api.table.get("job").has_reader)
    assert api.table.get("job").results.unread > 0
    writer.transport.abort()


async def test_a_reader_of_one_result_that_does_not_read_is_let_go_and_the_job_forgotten(serving):
    api = await serving(Large(), idle_seconds=0.3, linger_seconds=0.1)
    _, writer = await raw(api, "GET /live/job/output HTTP/1.1\nHost: x")
    writer.transport.pause_reading()
    await api.put("job", b"x", chunked=True)  # its end is the input's
    job = api.table.get("job")
    await until(lambda: job.results.ended and not job.has_reader)
    assert job.results.unread == 1  # it was not written whole
    await until(lambda: not api.table.jobs)
    writer.transport.abort()


@pytest.mark.parametrize(
    ("query", "accept"), [("?follow=1", "*/*"), ("", "application/x-ndjson"), ("", "text/event-stream")]
)
async def test_followers_that_stop_reading_before_the_end_do_not_keep_their_jobs(serving, monkeypatch, query, accept):
    async def never(response, data=b"", whole=web.StreamResponse.write_eof):
        await (whole(response, data) if isinstance(response, web.Response) else asyncio.Event().wait())

    api = await serving(Upper(), jobs=2, idle_seconds=0.2, linger_seconds=0.1)
    monkeypatch.setattr(web.StreamResponse, "write_eof", never)  # as at a socket whose buffer is just full
    writers = []
    for name in ("a", "b"):
        await api.put(name, b"x")
        writers.append((await raw(api, f"GET /live/{name}/output{query} HTTP/1.1\nHost: x\nAccept: {accept}"))[1])
        await until(lambda name=name: api.table.get(name).results.unread == 0)
        await api.end(name)
    await until(lambda: not api.table.jobs)
    for writer in writers:
        writer.close()


async def test_a_keep_alive_that_is_not_read_lets_the_follower_go(serving, monkeypatch):
    async def never(*_):
        await forever()

    api = await serving(Upper(), idle_seconds=0.2, keep_alive_seconds=0.01)
    monkeypatch.setattr(web.StreamResponse, "write", never)
    await api.put("job")
    reader, writer = await raw(api, "GET /live/job/output HTTP/1.1\nHost: x\nAccept: text/event-stream")
    await asyncio.wait_for(reader.read(), 10)
    writer.close()


async def test_a_processor_whose_extras_fail_harms_nobody(serving):
    class Session:
        async def feed(self, frame):
            return []

        async def finish(self):
            raise ValueError("no tail")

        def summary(self):
            raise ValueError("no summary")

    class Odd(Upper):
        def open_session(self, job):
            return Session()

        def trouble(self):
            raise ValueError("no idea")

    api = await serving(Odd())
    await api.put("job", b"x")
    await api.end("job")
    records = await api.records("job")
    assert [each["type"] for each in records] == ["error", "end"]
    assert "no tail" in records[0]["error"]
    assert await api.json("/health") == (200, {"status": "ERROR"})
    status, body = await api.json("/readyz")
    assert status == 503
    assert "no idea" in body["reasons"][0]


NONSENSE = [
    (None, "a list of Result, but it returned NoneType"),
    (b"text", "a list of Result, but it returned bytes"),
    ([b"text"], "a list of Result, but bytes is in it"),
    ([Result("text")], "the body of a Result must be bytes, but it is str"),
    ([Result(b"x", {"n": b"x"})], "the record of a Result must be JSON: Object of type bytes"),
    (
        [Result(b"x", {"type": "transcript", "text": "a", "is_final": True, "n": {1}})],
        "must be JSON: Object of type set",
    ),
    ([Result(b"x", {"text": "\ud800"})], "must be JSON: 'utf-8' codec can't encode"),
    ([Result(b"x", "text")], "the record of a Result must be a mapping, but it is str"),
    ([Result(b"good"), None], "a list of Result, but NoneType is in it"),
]


class Given:
    """A processor whose session gives what it is told to."""

    def __init__(self, given, summary=None):
        self.given, self.told = given, summary or {}

    async def process(self, frame):
        raise AssertionError("there are sessions")

    def open_session(self, job):
        return self

    async def feed(self, frame):
        return self.given if frame == b"bad" else [Result(frame)]

    async def finish(self):
        return self.given

    def summary(self):
        return self.told


@pytest.mark.parametrize(("given", "message"), NONSENSE)
async def test_a_session_that_gives_nonsense_makes_error_records_and_the_job_goes_on(serving, given, message):
    api = await serving(Given(given))
    for frame in (b"bad", b"good"):
        await api.put("job", frame)
    await api.end("job")
    records = await api.records("job")
    assert [each["type"] for each in records] == ["error", "result", "error", "end"]
    assert message in records[0]["error"]
    assert message in records[2]["error"]
    assert records[-1]["errors"] == 2


@pytest.mark.parametrize(("live", "missing"), [(False, "feed, finish"), (True, "feed, finish, feed_live, when_ready")])
async def test_a_session_that_lacks_a_method_opens_no_job(serving, live, missing):
    class Lacks(Upper):
        def open_session(self, job):
            return self

        def summary(self):
            return {}

    processor = Lacks()
    processor.live = live
    api = await serving(processor)
    status, body, _ = await api.put("job", b"x")
    assert (status, f"its session, a Lacks, has no {missing}" in body["error"]) == (500, True)
    assert not api.table.jobs


async def test_a_summary_that_is_no_json_is_left_out(serving):
    api = await serving(Given([], {"n": b"x"}))
    await api.put("job", b"good")
    await api.end("job")
    assert (await api.records("job"))[-1] == {"type": "end", "job_id": "job", "seq": 1, "errors": 0}


async def test_a_feed_that_is_not_wav_after_all_is_400(serving):
    api = await serving(Sound())
    status, body, _ = await api.put("job", b"this is no wav" * 10, chunked=True, headers={"Content-Type": "audio/wav"})
    assert status == 400
    assert "RIFF" in body["error"]


@pytest.mark.parametrize("kind", ["audio/mpeg", "video/mp4"])
async def test_media_that_cannot_be_read_is_415(serving, kind):
    api = await serving(Sound())
    status, body, _ = await api.put("job", b"ID3", headers={"Content-Type": kind})
    assert status == 415
    assert "is not media that ffmpeg can read" in body["error"]


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize(
    ("kind", "query", "words"),
    [
        ("audio/L16;rate=440", "", "rate must be a whole number from 8000 to 192000, not 440"),
        ("audio/pcm; channels=two", "", "channels must be"),
        ("", "?encoding=opus", "encoding must be one of s16le"),
    ],
)
async def test_raw_sound_that_cannot_be_is_400_and_no_text_of_noise(serving, kind, query, words, chunked):
    api = await serving(Sound())
    status, body, _ = await api.put("job", bytes(640), chunked=chunked, headers={"Content-Type": kind}, query=query)
    assert (status, words in body["error"]) == (400, True)
    assert api.table.jobs == ()


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_packed_body_is_415_on_every_route_and_never_unpacked(serving, chunked):
    api = await serving(Upper())
    readers = [(route.method, route.path) for route in ROUTES if route.method in ("PUT", "POST", "DELETE")]
    assert len(readers) > 15
    for method, path in [*readers, ("POST", "/nowhere"), ("GET", "/health")]:
        url = api.url + path.replace("{job_id:.+}", "job").replace("{name}", "test")
        for encoding, data in [("gzip", gzip.compress(bytes(10_000))), ("deflate", b"not packed"), ("x, br", b"no")]:
            body = pieces(data) if chunked else io.BytesIO(data)
            async with api.http.request(method, url, data=body, headers={"Content-Encoding": encoding}) as answer:
                assert answer.status == 415, (method, path, encoding)
                assert repr(encoding) in await answer.text()
    assert api.table.jobs == ()


async def test_a_packed_body_without_the_token_is_401(serving):
    api = await serving(Upper(), config={"token": "secret"})
    status, _, _ = await api.put("job", b"not packed", headers={"Content-Encoding": "gzip"})
    assert status == 401  # and not what unpacking it comes to


async def test_a_body_that_is_packed_on_its_way_is_415(serving):
    api = await serving(Upper())
    head = "PUT /live/job/source HTTP/1.1\nHost: x\nTransfer-Encoding: gzip, chunked"
    reader, writer = await raw(api, head)
    writer.write(b"0\r\n\r\n")
    assert b" 415 " in await asyncio.wait_for(reader.readline(), 5)
    writer.close()


async def test_a_body_as_it_is_may_say_so(serving):
    api = await serving(Upper())
    assert (await api.put("job", b"hello", headers={"Content-Encoding": "identity"}))[0] == 200
    assert (await api.get("job"))[1] == b"HELLO"


async def test_raw_follow_breaks_off_at_an_error_and_keeps_it(serving):
    api = await serving({"test": Says("good", ValueError("no"), "")})
    for _ in range(2):
        await api.put("job", b"x")
    with pytest.raises(aiohttp.ClientPayloadError):
        await api.get("job", "?follow=1")
    assert (await api.get("job"))[0] == 500


async def test_garbage_on_the_socket_does_no_harm(serving):
    api = await serving(Upper())
    for bytes_in in (b"\x00\xff" * 100, b"PUT /live/x/source HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"):
        reader, writer = await asyncio.open_connection("127.0.0.1", api.port)
        writer.write(bytes_in)
        await asyncio.wait_for(reader.read(), 5)
        writer.close()
    await api.still_serves()
