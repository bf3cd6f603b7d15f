"""`/live/{job}/source` and `/output` over real sockets: the behaviour that docs/protocol.md promises."""

import asyncio

import pytest

from tests.server.stubs import Mirror, Upper


@pytest.fixture
async def api(serving):
    return await serving(Upper())


async def test_one_segment_comes_back(api):
    status, body, _ = await api.put("job", b"hello")
    assert (status, body) == (200, {"job_id": "job", "segments": 1, "bytes": 5})
    status, body, headers = await api.get("job")
    assert (status, body) == (200, b"HELLO")
    assert headers["Lp-Trickle-Seq"] == "0"
    assert headers["Content-Type"] == "text/plain; charset=utf-8"


async def test_results_come_in_order_and_once(api):
    for number in range(10):
        await api.put("job", b"n%d" % number)
    got = [await api.get("job") for _ in range(10)]
    assert [body for _, body, _ in got] == [b"N%d" % number for number in range(10)]
    assert [headers["Lp-Trickle-Seq"] for _, _, headers in got] == [str(number) for number in range(10)]
    assert (await api.get("job", "?wait=0"))[0] == 204


async def test_empty_body_is_a_keep_alive(api):
    assert (await api.put("job", b""))[1] == {"job_id": "job", "segments": 0, "bytes": 0}
    assert (await api.get("job", "?wait=0"))[0] == 204


async def test_reader_may_come_first(api):
    reading = asyncio.ensure_future(api.get("early", "?wait=10"))
    await api.json("/health")  # on another connection, so that the reader is there
    await api.put("early", b"x")
    assert (await reading)[1] == b"X"


async def test_unknown_job_is_404_after_the_wait(api):
    status, body, _ = await api.get("nobody", "?wait=0.05")
    assert status == 404
    assert b"nobody" in body


async def test_kept_result_can_be_read_again_without_being_consumed(api):
    await api.put("job", b"a")
    assert (await api.get("job", "?seq=0"))[1] == b"A"
    assert (await api.get("job"))[1] == b"A"
    assert (await api.get("job", "?seq=0"))[1] == b"A"
    assert (await api.get("job", "?seq=1&wait=0"))[0] == 204


async def test_forgotten_result_is_470_with_latest(serving):
    api = await serving(Upper(), kept_results=2)
    for _ in range(4):
        await api.put("job", b"x")
        await api.get("job")
    status, body, headers = await api.get("job", "?seq=0")
    assert status == 470, body
    assert headers["Lp-Trickle-Latest"] == "4"
    assert (await api.get("job", "?seq=3"))[1] == b"X"


async def test_end_of_input_then_closed(api):
    await api.put("job", b"x")
    assert await api.end("job") == 200
    assert (await api.get("job"))[1] == b"X"
    for _ in range(2):
        status, _, headers = await api.get("job")
        assert status == 204
        assert headers["Lp-Trickle-Closed"] == "terminated"


async def test_put_after_the_end_is_409(api):
    await api.put("job", b"x")
    await api.end("job")
    for chunked in (False, True):
        status, body, _ = await api.put("job", b"y", chunked=chunked)
        assert status == 409
        assert "has ended" in body["error"]
    assert [each["type"] for each in await api.records("job")] == ["result", "end"]
    await api.still_serves()


async def test_abandoned_job_is_gone(api):
    await api.put("job", b"x")
    async with api.http.delete(f"{api.url}/live/job") as answer:
        assert answer.status == 200
    assert (await api.get("job", "?wait=0"))[0] == 404
    async with api.http.delete(f"{api.url}/live/job") as answer:
        assert answer.status == 404


async def test_ndjson_records_carry_text_and_end(api):
    await api.put("job", b"a")
    await api.put("job", b"b")
    await api.end("job")
    assert await api.records("job") == [
        {"type": "result", "job_id": "job", "seq": 0, "text": "A"},
        {"type": "result", "job_id": "job", "seq": 1, "text": "B"},
        {"type": "end", "job_id": "job", "seq": 2, "results": 2, "errors": 0},
    ]


async def test_a_follower_sees_each_result_before_the_next_is_sent(api):
    headers = {"Accept": "text/event-stream"}
    await api.put("job", b"first")
    async with api.http.get(f"{api.url}/live/job/output", headers=headers) as answer:
        assert answer.content_type == "text/event-stream"
        assert await answer.content.readuntil(b"\n\n") == (
            b'id: 0\ndata: {"type":"result","job_id":"job","seq":0,"text":"FIRST"}\n\n'
        )
        await api.put("job", b"second")
        assert b"SECOND" in await answer.content.readuntil(b"\n\n")
        await api.end("job")
        assert b'"type":"end"' in await answer.content.readuntil(b"\n\n")
        assert await answer.content.read() == b""


async def test_raw_follow_gives_one_line_for_each_text(api):
    for segment in (b"ab", b" ", b"cd"):
        await api.put("job", segment)
    await api.end("job")
    status, body, headers = await api.get("job", "?follow=1")
    assert (status, body) == (200, b"AB\n \nCD\n")
    assert headers["Content-Type"].startswith("text/plain")


async def test_raw_follow_leaves_out_what_has_no_text_and_gives_bytes_back_to_back(serving):
    class Mute:
        content_type = "text/plain; charset=utf-8"

        async def process(self, frame):
            return b"" if frame == b"silence" else frame

    api = await serving({"mute": Mute(), "bytes": Mirror()})
    for segment in (b"ab", b"silence", b"cd"):
        for name in ("mute", "bytes"):
            await api.put(name, segment, query=f"?pipeline={name}")
    for name in ("mute", "bytes"):
        await api.end(name)
    assert (await api.get("mute", "?follow=1"))[1] == b"ab\ncd\n"
    assert (await api.get("bytes", "?follow=1"))[1] == b"baecnelisdc"


async def test_binary_records_are_base64(serving):
    class Invert:
        async def process(self, frame):
            return bytes(255 - each for each in frame)

    api = await serving(Invert())
    await api.put("job", b"\x00\xff")
    await api.end("job")
    assert (await api.records("job"))[0] == {"type": "result", "job_id": "job", "seq": 0, "size": 2, "data": "/wA="}


async def test_chunked_body_of_a_plain_processor_is_one_segment_and_ends_the_input(api):
    status, body, _ = await api.put("job", [b"ab", b"cd", b"ef"], chunked=True)
    assert (status, body["segments"], body["bytes"]) == (200, 1, 6)
    assert [each.get("text") for each in await api.records("job")] == ["ABCDEF", None]


async def test_more_keeps_the_input_open(api):
    await api.put("job", b"ab", chunked=True, query="?more=1")
    await api.put("job", b"cd", chunked=True)
    assert [each.get("text") for each in await api.records("job")] == ["AB", "CD", None]


@pytest.mark.parametrize("job", ["a%2Fb", "a/b", "x" * 129, "a%20b", "%C3%A9"])
async def test_bad_job_id_is_400(api, job):
    from yarl import URL

    for method, path in (("PUT", "source"), ("GET", "output"), ("DELETE", "source")):
        async with api.http.request(method, URL(f"{api.url}/live/{job}/{path}", encoded=True)) as answer:
            assert answer.status == 400, method
            assert "job id" in (await answer.json())["error"]
    await api.still_serves()


async def test_longest_job_id_is_fine(api):
    assert (await api.put("aA0._~-" + "x" * 121, b"x"))[0] == 200


@pytest.mark.parametrize("query", ["?wait=-1", "?wait=301", "?wait=soon", "?wait=nan", "?seq=x", "?seq=-1"])
async def test_bad_numbers_in_the_query_are_400(api, query):
    await api.put("job", b"x")
    assert (await api.get("job", query))[0] == 400


async def test_unknown_route_and_method_answer_json(api):
    assert (await api.json("/nothing/here"))[0] == 404
    async with api.http.post(f"{api.url}/live/job/source") as answer:
        assert answer.status == 405
        assert answer.headers["Allow"] == "DELETE,PUT"
        assert "error" in await answer.json()


async def test_pipelines_are_chosen_by_name(serving):
    api = await serving({"up": Upper(), "mirror": Mirror()})
    assert (await api.put("a", b"Ab", query="?pipeline=up"))[0] == 200
    assert (await api.put("b", b"Ab", query="?pipeline=mirror"))[0] == 200
    assert (await api.get("a"))[1] == b"AB"
    assert (await api.get("b"))[1] == b"bA"
    status, body, _ = await api.put("c", b"x", query="?pipeline=left")
    assert status == 404
    assert "model not found" in body["error"]
    assert "up, mirror" in body["error"]
    assert (await api.put("c", b"x"))[0] == 400
    assert (await api.put("a", b"x", query="?pipeline=mirror"))[0] == 409
