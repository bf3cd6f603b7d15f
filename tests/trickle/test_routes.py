"""Every row of go-livepeer's tables, over HTTP; what ours answers where go-livepeer has a defect is at the end."""

import asyncio
import json

import aiohttp
import pytest

from tests.waiting import until

BAD = ["-3", "-99999", "abc", "1.5", "%00", "0x10", "9223372036854775808", "1" * 400, "%D9%A1"]


async def chunks(*data):
    for each in data:
        yield each


# --- channels


async def test_create_and_delete(trickle):
    api = await trickle()
    for _ in range(2):  # also when it exists already
        status, body, _ = await api.post("ch", headers={"Expect-Content": "text/x-first"})
        assert (status, body) == (200, b"")
    assert api.server.channels["ch"].mime == "text/x-first"
    assert (await api.delete("ch"))[:2] == (200, b"")
    assert (await api.delete("ch"))[:2] == (400, b"Invalid stream\n")
    assert (await api.get("ch/0"))[:2] == (404, b"Stream not found\n")


async def test_create_without_autocreate(trickle):
    api = await trickle(autocreate=False)
    status, body, _ = await api.post("ch")
    assert (status, body) == (404, b"Stream not found\n")
    api.server.create("ch", "text/plain")
    assert (await api.post("ch"))[0] == 200


async def test_a_name_can_be_used_again_after_its_end(trickle):
    api = await trickle()
    await api.post("ch/0", b"first life")
    await api.delete("ch")
    await api.post("ch/0", b"second life", headers={"Content-Type": "text/new"})
    _, body, headers = await api.get("ch/0")
    assert (body, headers["Content-Type"]) == (b"second life", "text/new")


async def test_other_methods_are_refused(trickle):
    api = await trickle()
    await api.post("ch/0", b"x")
    for method in ("GET", "PUT", "HEAD", "PATCH"):
        assert (await api.request(method, "ch"))[0] == 405
    for method in ("PUT", "HEAD"):
        assert (await api.request(method, "ch/0"))[0] == 405


@pytest.mark.parametrize("path", ["/", "/ai/trickle/", "live", "/a/b/c/"])
async def test_base_path(trickle, path):
    api = await trickle(base_path=path)
    await api.post("ch/0", b"x")
    assert (await api.get("ch/0"))[1] == b"x"
    assert api.base.endswith(path if path != "live" else "/live/")


async def test_any_name_of_one_path_segment(trickle):
    api = await trickle()
    for name in ("a-b_c.d~e", "mid-events", "x" * 1000, "%C3%A9", "{braces}", "a%20b", "a:b@c!$&'()*+,;="):
        url = aiohttp.client.URL(f"{api.base}{name}/0", encoded=True)
        async with api.http.post(url, data=b"x") as answer:
            assert answer.status == 200
        async with api.http.get(url) as answer:
            assert await answer.read() == b"x"


# --- writing


async def test_post_stores_and_answers_with_the_index(trickle):
    api = await trickle()
    status, body, headers = await api.post("ch/0", b"data", headers={"Content-Type": "text/x-one"})
    assert (status, body, headers["Lp-Trickle-Seq"]) == (200, b"", "0")
    assert "Lp-Trickle-Closed" not in headers
    assert headers.get("Connection") != "close"
    for _ in range(2):
        status, body, headers = await api.get("ch/0")
        assert (status, body, headers["Content-Type"]) == (200, b"data", "text/x-one")


async def test_mime_type_is_fixed_at_creation(trickle):
    api = await trickle()
    await api.post("ch", headers={"Expect-Content": "application/jsonl"})
    await api.post("ch/0", b"{}", headers={"Content-Type": "video/MP2T"})
    assert (await api.get("ch/0"))[2]["Content-Type"] == "application/jsonl"


async def test_post_minus_one_learns_its_index(trickle):
    api = await trickle()
    assert [(await api.post("ch/-1", b"x"))[2]["Lp-Trickle-Seq"] for _ in range(7)] == [str(seq) for seq in range(7)]


async def test_post_to_a_missing_channel(trickle):
    api = await trickle(autocreate=False)
    for path in ("ch/0", "ch/-2", "ch/abc"):
        status, body, headers = await api.post(path, b"x")
        assert (status, body, headers["Connection"]) == (404, b"Stream not found\n", "close")


async def test_empty_segment_is_legal_and_uses_its_index_up(trickle):
    api = await trickle()
    await api.post("ch")
    status, _, headers = await api.post("ch/0", b"")
    assert (status, headers["Lp-Trickle-Seq"], headers["Connection"]) == (200, "0", "close")
    assert (await api.get("ch/next"))[1] == b"1"


async def test_a_jump_ahead_is_allowed(trickle):
    api = await trickle()
    await api.post("ch/0", b"x")
    assert (await api.post("ch/1000", b"y"))[0] == 200
    assert (await api.get("ch/next"))[1] == b"1001"


async def test_two_posts_to_one_index_append(trickle):
    api = await trickle()
    two = await api.preconnect("ch/0")
    one = await api.preconnect("ch/0", data=b"one")
    await two.write(b"3\r\ntwo\r\n")
    await api.stored(0, 6)
    await one.write(b"0\r\n\r\n")
    assert (await one.head())[0] == "HTTP/1.1 200 OK"
    assert (await api.get("ch/0"))[1] == b"onetwo"
    await two.write(b"5\r\n late\r\n0\r\n\r\n")
    assert (await two.head())[0] == "HTTP/1.1 200 OK"
    assert (await api.get("ch/0"))[1] == b"onetwo late", "what comes after the end is for later readers"


async def test_reset_closes_what_is_below_and_leaves_what_is_above(trickle):
    api = await trickle()
    wires = {seq: await api.preconnect(f"ch/{seq}") for seq in (1, 2, 4)}
    segments = {seq: await api.slot_there(seq) for seq in wires}
    await api.post("ch/3", b"mine", headers={"Lp-Trickle-Reset": ""})
    assert not any(segment.closed for segment in segments.values()), "an empty value is none"
    await api.delete("ch/3")
    status, _, headers = await api.post("ch/8", b"mine", headers={"Lp-Trickle-Reset": "1"})
    assert (status, headers["Lp-Trickle-Seq"]) == (200, "8")
    assert all(segment.closed for segment in segments.values())
    for seq, wire in wires.items():
        head = await wire.head()
        assert {"HTTP/1.1 200 OK", f"Lp-Trickle-Seq: {seq}", "Connection: close"} <= set(head)
        assert not any("Closed" in line for line in head)
    above = await api.preconnect("ch/10")
    await api.slot_there(10)
    await api.post("ch/9", b"mine", headers={"Lp-Trickle-Reset": "1"})
    assert not api.slot(10).closed
    await above.silent()


# --- reading


async def test_headers_of_a_segment(trickle):
    api = await trickle()
    for seq in range(3):
        await api.post(f"ch/{seq}", b"x")
    _, _, headers = await api.get("ch/1")
    assert (headers["Lp-Trickle-Seq"], headers["Lp-Trickle-Latest"]) == ("1", "3")
    assert (await api.get("ch/-2"))[2]["Lp-Trickle-Seq"] == "2"


@pytest.mark.parametrize("path", ["0", "1", "-1", "-2"])
async def test_a_reader_may_come_before_the_first_segment(trickle, path):
    api = await trickle()
    await api.post("ch")
    reading = asyncio.create_task(api.get(f"ch/{path}"))
    seq = 1 if path == "1" else 0
    await api.slot_there(seq)
    await api.post(f"ch/{seq}", b"x")
    status, body, headers = await reading
    assert (status, body, headers["Lp-Trickle-Seq"]) == (200, b"x", str(seq))
    assert ("Lp-Trickle-Latest" in headers) == (path == "1"), "left out when it is the segment itself"


async def test_470_says_where_the_channel_is(trickle):
    api = await trickle()
    await api.post("ch")
    assert_470(await api.get("ch/2"), "2", "0")
    for seq in range(8):
        await api.post(f"ch/{seq}", b"x")
    assert_470(await api.get("ch/2"), "2", "8")
    assert_470(await api.get("ch/9"), "9", "8")
    assert_470(await api.get("ch/+09"), "9", "8")
    assert_470(await api.get("ch/9223372036854775806"), "9223372036854775806", "8")


def assert_470(answer, seq, latest):
    status, body, headers = answer
    assert (status, body) == (470, b"Entry not found")
    assert (headers["Lp-Trickle-Seq"], headers["Lp-Trickle-Latest"]) == (seq, latest)


async def test_five_segments_are_kept(trickle):
    api = await trickle()
    for seq in range(9):
        await api.post(f"ch/{seq}", b"%d" % seq)
    assert [(await api.get(f"ch/{seq}"))[0] for seq in range(9)] == [470] * 4 + [200] * 5
    await api.preconnect("ch/9")
    await api.slot_there(9)
    assert [(await api.get(f"ch/{seq}"))[0] for seq in range(9)] == [470] * 5 + [200] * 4


async def test_a_skipped_segment_is_empty_and_has_no_end_mark(trickle):
    api = await trickle()
    await api.post("ch")
    reading = asyncio.create_task(api.get("ch/0"))
    await api.slot_there(0)
    await api.post("ch/0", b"")
    status, body, headers = await reading
    assert (status, body) == (200, b"")
    assert (headers["Lp-Trickle-Seq"], headers["Lp-Trickle-Latest"]) == ("0", "1")
    assert "Lp-Trickle-Closed" not in headers


async def test_who_waits_when_the_channel_ends_is_told(trickle):
    api = await trickle(interim_seconds=0.01)
    await api.post("ch")
    reading = asyncio.create_task(api.get("ch/0"))
    await api.slot_there(0)
    writing = await api.preconnect("ch/0")
    assert await writing.head() == ["HTTP/1.1 100 Continue"]
    await api.delete("ch")
    status, body, headers = await reading
    assert (status, body, headers["Lp-Trickle-Closed"], headers["Lp-Trickle-Seq"]) == (200, b"", "terminated", "0")
    while (head := await writing.head()) == ["HTTP/1.1 100 Continue"]:
        pass
    assert {"HTTP/1.1 200 OK", "Lp-Trickle-Closed: terminated", "Lp-Trickle-Seq: 0", "Connection: close"} <= set(head)


@pytest.mark.parametrize("how", ["the channel ends", "the segment ends", "the upload breaks"])
async def test_a_reader_in_mid_segment_gets_a_plain_end(trickle, how):
    api = await trickle(resume_seconds=0.01)
    writing = await api.preconnect("ch/0", data=b"part")
    async with api.http.get(api.url() + "/0") as answer:
        assert await answer.content.readexactly(4) == b"part"
        if how == "the upload breaks":
            writing.cut()
        else:
            path = "ch" if how == "the channel ends" else "ch/0"
            assert (await api.delete(path))[:2] == (200, b"")
        assert await answer.content.read() == b""
        assert "Lp-Trickle-Closed" not in answer.headers


async def test_head_of_next(trickle):
    api = await trickle()
    await api.post("ch/0", b"x")
    status, body, headers = await api.request("HEAD", "ch/next")
    assert (status, body, headers["Lp-Trickle-Latest"]) == (200, b"", "1")
    assert (await api.request("HEAD", "no/next"))[0] == 404


async def test_next(trickle):
    api = await trickle()
    assert (await api.get("ch/next"))[0] == 404
    await api.post("ch")
    for latest in range(3):
        status, body, headers = await api.get("ch/next")
        assert (status, body, headers["Lp-Trickle-Latest"]) == (200, b"%d" % latest, str(latest))
        await api.post(f"ch/{latest}", b"x")


async def test_reading_a_missing_channel_creates_none(trickle):
    api = await trickle()
    for path in ("ch/0", "ch/-1", "ch/next", "ch/abc"):
        assert (await api.get(path))[:2] == (404, b"Stream not found\n")
    assert not api.server.channels


# --- closing segments


async def test_delete_segment_releases_a_preconnect(trickle):
    api = await trickle()
    writing = await api.preconnect("ch/0")
    await api.slot_there(0)
    await api.delete("ch/0")
    head = await writing.head()
    assert {"HTTP/1.1 200 OK", "Lp-Trickle-Seq: 0", "Connection: close"} <= set(head)
    async with asyncio.timeout(5):  # aiohttp would wait 10 s for the rest of the body
        assert await writing.rest() == b""
    assert (await api.get("ch/next"))[1] == b"1"


async def test_delete_segment_refusals(trickle):
    api = await trickle()
    assert (await api.delete("ch/0"))[:2] == (404, b"Stream not found\n")
    await api.post("ch")
    assert (await api.delete("ch/0"))[:2] == (400, b"Nonexistent segment\n")
    for path in ("ch/abc", "ch/-1", "ch/next"):
        assert (await api.delete(path))[:2] == (400, b"Invalid idx\n")


# --- change feed, sweep


async def test_changefeed(trickle):
    api = await trickle(changefeed=True)
    reading = asyncio.create_task(api.get("_changes/-1"))
    await api.slot_there(0, "_changes")
    for method in ("POST", "DELETE"):
        for path in ("_changes", "_changes/0"):
            assert (await api.request(method, path))[0] == 403, "nobody else writes to it"
    await api.post("one")
    assert json.loads((await reading)[1]) == {"added": ["one"]}
    await api.post("two/0", b"x")
    await api.delete("one")
    feed = [(await api.get(f"_changes/{seq}")) for seq in range(3)]
    assert [json.loads(body) for _, body, _ in feed] == [{"added": ["one"]}, {"added": ["two"]}, {"removed": ["one"]}]
    assert {headers["Content-Type"] for _, _, headers in feed} == {"application/json"}


async def test_changefeed_is_off_by_default(trickle):
    api = await trickle()
    await api.post("one")
    assert (await api.get("_changes/0"))[0] == 404


async def test_idle_channels_are_swept_by_the_servers_own_task(trickle):
    api = await trickle(idle_seconds=0.05, sweep_seconds=0.01)
    for name in ("gone", "_kept"):
        await api.post(name)
    await until(lambda: "gone" not in api.server.channels)
    assert "_kept" in api.server.channels


async def test_what_counts_as_activity(trickle):
    api = await trickle(idle_seconds=1000, sweep_seconds=1000)
    for name in ("created", "preconnected", "written", "emptied"):
        await api.post(name)
    long = await api.preconnect("long/0", data=b"x")
    for channel in api.server.channels.values():
        channel.active_at -= 2000
    await api.post("new")
    opened = await api.preconnect("preconnected/0")
    await api.slot_there(0, "preconnected")
    await api.post("written/0", b"x")
    await api.post("emptied/0", b"")
    await long.write(b"1\r\nx\r\n")
    await api.stored(0, 2, "long")
    api.server.sweep()
    assert set(api.server.channels) == {"new", "written", "emptied"}
    await opened.write(b"0\r\n\r\n")


# --- where go-livepeer has a defect


@pytest.mark.parametrize("seq", BAD)
async def test_hostile_indices(trickle, seq):
    api = await trickle()
    assert (await api.post("ch/abc", b"x"))[0] == 400
    assert not api.server.channels, "a bad index creates no channel"
    await api.post("ch")
    url = aiohttp.client.URL(f"{api.base}ch/{seq}", encoded=True)
    for method in ("GET", "POST", "DELETE"):
        async with api.http.request(method, url, data=b"x" if method == "POST" else None) as answer:
            assert (answer.status, await answer.read()) == (400, b"Invalid idx\n"), method
    assert (await api.post("ch/-2", b"x"))[0] == 400
    assert (await api.post("ch/0", b"x"))[0] == 200


async def test_a_finished_index_takes_nothing_more_and_says_so(trickle):
    api = await trickle()
    await api.post("ch/0", b"first")
    status, body, headers = await api.post("ch/0", b"second")
    assert (status, headers["Connection"]) == (409, "close")
    assert body == b"segment 0 takes nothing more; the next one is 1\n"
    assert (await api.get("ch/0"))[1] == b"first"


async def test_a_publisher_that_begins_again_at_0_is_taken_when_nobody_else_writes(trickle):
    """As go-livepeer's and pytrickle's do, with the next POST open already."""
    api = await trickle()
    for seq in range(8):
        await api.post(f"ch/{seq}", b"x")
    other = await api.preconnect("ch/8")
    await api.slot_there(8)
    assert (await api.post("ch/0", b"too early"))[0] == 409
    other.cut()
    await until(lambda: api.server.channels["ch"].uploads == 0)
    opened = [await api.preconnect(f"ch/{seq}") for seq in range(2)]
    await api.slot_there(1)
    await opened[0].write(b"3\r\nnew\r\n0\r\n\r\n")
    assert (await opened[0].head())[0] == "HTTP/1.1 200 OK"
    assert (await api.get("ch/next"))[1] == b"1"
    assert (await api.get("ch/0"))[1] == b"new"
    assert (await api.get("ch/7"))[0] == 470


async def test_a_preconnect_that_breaks_leaves_its_index_free(trickle):
    api = await trickle()
    writing = await api.preconnect("ch/0")
    await api.slot_there(0)
    reading = asyncio.create_task(api.get("ch/0"))
    writing.cut()
    assert (await api.post("ch/0", b"the next one's"))[0] == 200
    assert (await reading)[1] == b"the next one's"


@pytest.mark.parametrize("closed", [False, True])
async def test_an_upload_that_broke_is_continued_by_the_next_one(trickle, closed):
    """As at go-livepeer's; a reader waits for it, but not for ever."""
    api = await trickle(resume_seconds=0.01 if closed else 600)
    writing = await api.preconnect("ch/0", data=b"part")
    reading = asyncio.create_task(api.get("ch/0"))
    writing.cut()
    await until(lambda: api.slot(0).broken)
    if closed:
        assert (await reading)[1] == b"part"
    writing = await api.preconnect("ch/0")
    await until(lambda: not api.slot(0).broken)
    writing.cut()  # one that breaks without a byte changes nothing
    await until(lambda: api.slot(0).broken)
    assert (await api.post("ch/0", b" and rest"))[0] == 200
    if not closed:
        assert (await reading)[1] == b"part and rest"
    assert (await api.get("ch/0"))[1] == b"part and rest"
    assert (await api.post("ch/0", b"more"))[0] == 409


async def test_the_next_segment_ends_one_whose_upload_broke(trickle):
    api = await trickle(resume_seconds=600)
    writing = await api.preconnect("ch/0", data=b"part")
    reading = asyncio.create_task(api.get("ch/0"))
    writing.cut()
    await until(lambda: api.slot(0).broken)
    await api.post("ch/1", b"next")
    assert (await reading)[1] == b"part"


async def test_garbage_between_chunks_is_not_stored_and_ends_with_its_connection(trickle):
    api = await trickle(resume_seconds=0.01)
    wire = await api.preconnect("ch/0", data=b"data")
    segment = api.slot(0)
    await wire.write(b"nonsense\r\n")
    wire.cut()
    await until(lambda: segment.closed)
    assert (await api.get("ch/0"))[1] == b"data"


async def test_segment_limit(trickle):
    api = await trickle(segment_bytes=1000)
    assert (await api.post("ch/0", bytes(1000)))[0] == 200
    status, body, headers = await api.post("ch/1", chunks(*[bytes(400)] * 3))
    assert (status, headers["Connection"]) == (413, "close")
    assert b"more than 1000 bytes" in body
    assert len((await api.get("ch/1"))[1]) <= 1000, "readers are not left waiting"
    assert (await api.post("ch/2", b"x"))[0] == 200


async def test_memory_limit_and_its_end(trickle):
    api = await trickle(total_bytes=5000)
    for seq in range(5):
        assert (await api.post(f"ch/{seq}", bytes(1000)))[0] == 200
    assert (await api.post("other/0", bytes(1000)))[0] == 503
    await api.delete("ch")
    assert api.server.memory.held == 0
    assert (await api.post("other/1", bytes(1000)))[0] == 200


async def test_a_long_stream_holds_no_more_than_its_window(trickle):
    api = await trickle(total_bytes=6000)
    for seq in range(20):
        assert (await api.post(f"ch/{seq}", bytes(1000)))[0] == 200
    assert api.server.memory.held == 5000


async def test_channel_limit(trickle):
    api = await trickle(channels=2)
    assert [(await api.post(name))[0] for name in ("a", "b", "c", "a")] == [200, 200, 503, 200]
    assert (await api.post("d/0", b"x"))[0] == 503
    await api.delete("a")
    assert (await api.post("d/0", b"x"))[0] == 200


async def test_an_upload_that_lost_its_place_is_told(trickle):
    api = await trickle()
    writing = await api.preconnect("ch/0", data=b"part")
    await api.post("ch/5", b"takes the slot")
    await writing.write(b"4\r\nmore\r\n0\r\n\r\n")
    assert (await writing.head())[0] == "HTTP/1.1 409 Conflict"


async def test_an_upload_into_a_channel_that_ended_is_told(trickle):
    api = await trickle()
    writing = await api.preconnect("ch/0", data=b"part")
    await api.delete("ch")
    await writing.write(b"4\r\nmore\r\n")
    assert {"HTTP/1.1 200 OK", "Lp-Trickle-Closed: terminated"} <= set(await writing.head())


# --- peers that are slow, or gone


async def test_a_slow_reader_holds_up_nobody(trickle):
    api = await trickle()
    await api.post("ch")
    wire = await api.wire("GET ch/0")  # and reads nothing
    await api.slot_there(0)
    data = bytes(8 << 20)
    for seq in range(6):
        assert (await api.post(f"ch/{seq}", data))[0] == 200
    assert (await wire.head())[0] == "HTTP/1.1 200 OK"
    assert len(await read_chunked(wire)) == len(data), "although it has left the window"


async def read_chunked(wire):
    data = bytearray()
    while size := int(await wire.reader.readline(), 16):
        data += await wire.reader.readexactly(size)
        await wire.reader.readexactly(2)
    return data


async def test_a_reader_that_takes_nothing_is_cut_and_its_memory_freed(trickle):
    api = await trickle(stall_seconds=0.01, sweep_seconds=1000)
    await api.post("ch/0", bytes(32 << 20))
    wire = await api.wire("GET ch/0")
    await wire.head()  # and reads no further
    await api.delete("ch")
    assert api.server.memory.held == 32 << 20
    await until(lambda: api.server.sweep() or api.server.memory.held == 0)


async def test_a_writer_that_falls_silent_keeps_nothing_beyond_the_end_of_its_channel(trickle):
    """Its machine may be gone without a word, and the connection then lasts for hours."""
    api = await trickle(stall_seconds=0.01, sweep_seconds=1000)
    _, waiting = [await api.preconnect(path, data=b"hello") for path in ("ch/0", "other/0")]
    api.server.sweep()
    await api.delete("ch")
    await until(lambda: api.server.sweep() or api.server.memory.held == 5)
    await waiting.write(b"0\r\n\r\n")
    assert (await waiting.head())[0] == "HTTP/1.1 200 OK", "readers may still ask for what this one writes"


async def test_a_waiting_reader_that_has_gone_is_noticed(trickle):
    api = await trickle(probe_seconds=0.01)
    await api.post("ch")
    before = len(asyncio.all_tasks())
    wire = await api.wire("GET ch/0")
    await api.slot_there(0)
    wire.cut()
    await until(lambda: len(asyncio.all_tasks()) <= before)


async def test_a_server_stops_with_readers_and_writers_waiting(trickle):
    api = await trickle()
    await api.preconnect("ch/1")
    await api.slot_there(1)
    reading = asyncio.create_task(api.get("ch/0"))
    await api.slot_there(0)
    api.server.close_all()
    assert (await reading)[2]["Lp-Trickle-Closed"] == "terminated"
