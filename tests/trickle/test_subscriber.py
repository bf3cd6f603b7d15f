"""The subscriber gives every segment once and in order, says what it missed, and ends only when the channel does."""

import asyncio

import pytest

from tests.waiting import until
from whisper_byoc.trickle import (
    ChannelNotFound,
    Refused,
    SegmentBroken,
    SegmentTooLarge,
    TrickleError,
    TrickleSubscriber,
    Unreachable,
)


async def read_all(subscriber):
    return [(segment.seq, segment.missed, await segment.read()) async for segment in subscriber]


def reply(status="200 OK", *headers, body=b""):
    """Make an answer with a length."""
    head = "\r\n".join([f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers, "", ""])
    return head.encode() + body


def seq_reply(seq, body, *headers):
    return reply("200 OK", f"Lp-Trickle-Seq: {seq}", *headers, body=body)


END = reply("200 OK", "Lp-Trickle-Closed: terminated")
NOT_THERE = reply("404 Not Found")


@pytest.fixture
def answering(scripted, quick):
    """Give a function that serves these answers one after the other, and a subscriber to them."""

    async def start(*answers, first=0, **options):
        async def answer(number, method, seq, wire, headers):
            assert method == "GET"
            each = answers[number] if number < len(answers) else END
            if callable(each):
                return await each(seq, wire)
            await wire.write(each)
            return False

        script = await scripted(answer)
        return script, TrickleSubscriber(script.url, first, options=quick(**options))

    return start


async def silent(seq, wire):
    await wire.reader.read()


# --- against a real server


async def test_everything_in_order(trickle):
    api = await trickle()
    await api.post("ch")
    subscriber = await api.subscriber(start=0)
    reading = asyncio.create_task(read_all(subscriber))
    for seq in range(12):
        await api.slot_there(seq)
        await api.post(f"ch/{seq}", b"%d" % seq)
    await api.slot_there(12)
    await api.delete("ch")
    assert await reading == [(seq, 0, b"%d" % seq) for seq in range(12)]


@pytest.mark.parametrize(("start", "first"), [(-2, 2), (-1, 3), (0, 0), (1, 1), (3, 3)])
async def test_where_to_begin(trickle, start, first):
    api = await trickle()
    for seq in range(3):
        await api.post(f"ch/{seq}", b"%d" % seq)
    subscriber = await api.subscriber(start=start)
    reading = asyncio.create_task(anext(subscriber))
    if first == 3:
        await api.slot_there(3)
        await api.post("ch/3", b"3")
    segment = await reading
    assert (segment.seq, segment.missed, await segment.read()) == (first, 0, b"%d" % first)


@pytest.mark.parametrize("start", [-2, -1])
async def test_beginning_before_the_first_segment(trickle, start):
    api = await trickle()
    await api.post("ch")
    subscriber = await api.subscriber(start=start, refresh_seconds=0.01)
    reading = asyncio.create_task(anext(subscriber))
    await api.slot_there(0)
    await asyncio.sleep(0.05)
    for seq in range(4):
        await api.post(f"ch/{seq}", b"%d" % seq)
    assert (await reading).seq == 0, "asking again passes over nothing"


async def test_bytes_come_while_the_segment_is_open(trickle):
    api = await trickle()
    publisher = await api.publisher(create=True)
    subscriber = await api.subscriber(start=0)
    async with await publisher.next() as writing:
        await writing.write(b"one")
        segment = await anext(subscriber)
        chunks = segment.__aiter__()
        assert await anext(chunks) == b"one"
        await writing.write(b"two")
        assert await anext(chunks) == b"two"
    with pytest.raises(StopAsyncIteration):
        await anext(chunks)
    assert segment.content_type == "text/plain"


async def test_silence_for_many_refreshes(trickle):
    api = await trickle()
    await api.post("ch")
    subscriber = await api.subscriber(start=0, refresh_seconds=0.005, patience_seconds=0.005, answer_seconds=0.02)
    reading = asyncio.create_task(read_all(subscriber))
    for seq in range(3):
        await asyncio.sleep(0.05)
        await api.post(f"ch/{seq}", b"%d" % seq)
    await api.slot_there(3)
    await api.delete("ch")
    assert await reading == [(seq, 0, b"%d" % seq) for seq in range(3)]


async def test_falling_behind_tells_how_much_was_missed_and_takes_the_oldest_there_is(trickle):
    api = await trickle()
    for seq in range(20):
        await api.post(f"ch/{seq}", b"%d" % seq)
    subscriber = await api.subscriber(start=2)
    segment = await anext(subscriber)
    assert (segment.seq, segment.missed) == (15, 13)
    assert await segment.read() == b"15"
    segment = await anext(subscriber)
    assert (segment.seq, segment.missed) == (16, 0)


async def test_empty_segments_are_passed_over(trickle):
    api = await trickle()
    await api.post("ch")
    subscriber = await api.subscriber(start=0)
    reading = asyncio.create_task(read_all(subscriber))
    for seq, data in enumerate([b"", b"1", b"", b"", b"4", b""]):
        await api.slot_there(seq)
        await api.post(f"ch/{seq}", data)
    await api.slot_there(6)
    await api.delete("ch")
    assert await reading == [(1, 0, b"1"), (4, 0, b"4")]


async def test_indices_that_the_publisher_skips(trickle):
    api = await trickle()
    await api.post("ch/0", b"0")
    subscriber = await api.subscriber(start=0)
    assert (await anext(subscriber)).seq == 0
    await api.slot_there(1)
    for seq in (7, 8):  # as after a reset, or another publisher; 1 is evicted only by 6, 11, …
        await api.post(f"ch/{seq}", b"%d" % seq)
    await api.delete("ch/1")
    segment = await anext(subscriber)
    assert (segment.seq, await segment.read()) == (7, b"7")


async def test_what_was_not_read_is_given_up(trickle):
    api = await trickle()
    await api.post("ch/0", bytes(4 << 20))
    await api.post("ch/1", b"next")
    subscriber = await api.subscriber(start=0)
    first = await anext(subscriber)
    second = await anext(subscriber)
    assert [data async for data in first] == []
    assert await second.read() == b"next"


async def test_a_limit_for_reading_at_once(trickle):
    api = await trickle()
    await api.post("ch/0", bytes(5000))
    await api.post("ch/1", b"next")
    subscriber = await api.subscriber(start=0)
    with pytest.raises(SegmentTooLarge, match="more than 100 bytes"):
        await (await anext(subscriber)).read(100)
    assert await (await anext(subscriber)).read(100) == b"next"


async def test_who_stops_waiting_can_come_back(trickle):
    api = await trickle()
    await api.post("ch")
    subscriber = await api.subscriber(start=0)
    for _ in range(3):
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(anext(subscriber), 0.02)
    await api.post("ch/0", b"x")
    assert await (await anext(subscriber)).read() == b"x"


async def test_closing_ends_the_iteration(trickle):
    api = await trickle()
    await api.post("ch")
    subscriber = await api.subscriber(start=0)
    reading = asyncio.create_task(read_all(subscriber))
    await api.slot_there(0)
    await subscriber.close()
    await subscriber.close()
    assert await reading == []
    with pytest.raises(StopAsyncIteration):
        await anext(subscriber)


async def test_it_must_be_open():
    with pytest.raises(TrickleError, match="not open"):
        await anext(TrickleSubscriber("http://127.0.0.1:1/ch"))


@pytest.mark.parametrize("start", [0, -1, -2])
async def test_a_channel_that_never_was(trickle, start):
    api = await trickle()
    subscriber = await api.subscriber(start=start)
    with pytest.raises(ChannelNotFound, match="no channel at http"):
        await anext(subscriber)


@pytest.mark.parametrize("start", [0, -2])
async def test_a_channel_that_comes_later(trickle, start):
    api = await trickle()
    subscriber = await api.subscriber(start=start, absent_seconds=10)
    reading = asyncio.create_task(anext(subscriber))
    await asyncio.sleep(0.03)
    await api.post("ch/0", b"x")
    assert await (await reading).read() == b"x"


# --- against scripted servers


async def test_any_number_of_interim_answers(answering):
    async def patient(seq, wire):
        for _ in range(200):
            await wire.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        await wire.write(b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n")
        await wire.write(seq_reply(0, b"data"))

    _, subscriber = await answering(patient)
    async with subscriber:
        assert await read_all(subscriber) == [(0, 0, b"data")]


async def test_early_waits_for_the_same_index(answering):
    early = reply("470 Entry not found", "Lp-Trickle-Latest: 4", "Lp-Trickle-Seq: 5", body=b"Entry not found")
    script, subscriber = await answering(early, early, early, seq_reply(5, b"x"), first=5)
    async with subscriber:
        assert await read_all(subscriber) == [(5, 0, b"x")]
    assert script.asked[:4] == [("GET", "5")] * 4


async def test_behind_jumps_to_what_may_still_be_there_and_not_further_than_latest(answering):
    def behind(latest):
        return reply("470 x", f"Lp-Trickle-Latest: {latest}", body=b"Entry not found")

    script, subscriber = await answering(*[behind(10)] * 4, seq_reply(8, b"x"), first=2)
    async with subscriber:
        assert await read_all(subscriber) == [(8, 6, b"x")]
    assert [seq for _, seq in script.asked[:5]] == ["2", "5", "6", "7", "8"]


@pytest.mark.parametrize(
    "headers", [[], ["Lp-Trickle-Latest: x"], ["Lp-Trickle-Latest: -5"], ["Lp-Trickle-Latest: " + "9" * 40]]
)
async def test_470_without_a_use(answering, headers):
    _, subscriber = await answering(reply("470 x", *headers), seq_reply(0, b"x"))
    async with subscriber:
        assert await read_all(subscriber) == [(0, 0, b"x")]


@pytest.mark.parametrize("end", [END, NOT_THERE, reply("200 OK", "Lp-Trickle-Closed: yes", body=b"Entry not found")])
async def test_three_ways_to_end(answering, end):
    _, subscriber = await answering(seq_reply(0, b"x"), end)
    async with subscriber:
        assert await read_all(subscriber) == [(0, 0, b"x")]
        with pytest.raises(StopAsyncIteration):
            await anext(subscriber)
    _, subscriber = await answering(END)
    async with subscriber:
        assert await read_all(subscriber) == [], "the end is no error even at the start"


async def test_who_has_an_empty_segment_for_every_index_is_not_flooded(scripted, quick):
    async def answer(number, method, seq, wire, headers):
        await wire.write(reply())
        return False

    script = await scripted(answer)
    async with TrickleSubscriber(script.url, 0, options=quick(early_seconds=5.0)) as subscriber:
        reading = asyncio.create_task(anext(subscriber))
        await until(lambda: len(script.asked) > 5)
        await asyncio.sleep(0.1)
    assert len(script.asked) < 20
    with pytest.raises(StopAsyncIteration):
        await reading


async def test_skipped_segments_of_an_older_server(answering):
    skipped = reply("470 x", "Lp-Trickle-Seq: 1", "Lp-Trickle-Latest: 2")
    _, subscriber = await answering(seq_reply(0, b"0"), skipped, seq_reply(2, b"2"))
    async with subscriber:
        assert [seq for seq, _, _ in await read_all(subscriber)] == [0, 2]


@pytest.mark.parametrize(("start", "asked"), [(-1, "7"), (-2, "6")])
async def test_the_start_is_made_an_index_first(answering, start, asked):
    following = reply("200 OK", "Lp-Trickle-Latest: 7", body=b"7")
    script, subscriber = await answering(following, seq_reply(asked, b"x"), first=start)
    async with subscriber:
        assert (await anext(subscriber)).seq == int(asked)
    assert script.asked[:2] == [("GET", "next"), ("GET", asked)]


@pytest.mark.parametrize("start", [-1, -2])
async def test_a_server_without_next(answering, start):
    no_next = reply("400 Bad Request", body=b"Invalid idx\n")
    script, subscriber = await answering(no_next, seq_reply(41, b"x"), seq_reply(42, b"y"), first=start)
    async with subscriber:
        assert await read_all(subscriber) == [(41, 0, b"x"), (42, 0, b"y")]
    assert script.asked[:3] == [("GET", "next"), ("GET", str(start)), ("GET", "42")]


async def test_an_answer_without_its_index(answering):
    _, subscriber = await answering(reply("400 x"), reply("200 OK", body=b"x"), first=-1)
    async with subscriber:
        with pytest.raises(Refused, match="without Lp-Trickle-Seq"):
            await anext(subscriber)


async def test_heads_that_come_before_the_first_byte(answering):
    async def early_head(seq, wire):
        await wire.send("HTTP/1.1 200 OK", "Lp-Trickle-Seq: 0", "Transfer-Encoding: chunked")
        await asyncio.sleep(0.02)
        await wire.write(b"1\r\nx\r\n0\r\n\r\n")

    _, subscriber = await answering(early_head)
    async with subscriber:
        assert await read_all(subscriber) == [(0, 0, b"x")]


async def test_asking_again_after_silence(answering):
    script, subscriber = await answering(silent, silent, silent, seq_reply(0, b"x"), refresh_seconds=0.02)
    async with subscriber:
        assert await read_all(subscriber) == [(0, 0, b"x")]
    assert script.asked[:4] == [("GET", "0")] * 4


def broken_after(size, data, headers=()):
    """Announce all of `data`, send `size` bytes of it, and break."""

    async def answer(seq, wire):
        await wire.send("HTTP/1.1 200 OK", f"Lp-Trickle-Seq: {seq}", f"Content-Length: {len(data)}", *headers)
        await wire.write(data[:size])
        return True

    return answer


def by_index(script):
    """Answer each index by its own list of answers, the last one again and again."""

    async def answer(number, method, seq, wire, headers):
        answers = script.get(seq, [END])
        each = answers.pop(0) if len(answers) > 1 else answers[0]
        if callable(each):
            return await each(seq, wire)
        await wire.write(each)
        return False

    return answer


async def test_a_segment_that_breaks_off_is_taken_up_where_it_broke(scripted, quick):
    data = b"0123456789"
    first = [
        broken_after(1, data),
        broken_after(4, data),
        broken_after(2, data),
        broken_after(7, data),
        seq_reply(0, data),
    ]
    script = await scripted(by_index({"0": first, "1": [seq_reply(1, b"next")]}))
    async with TrickleSubscriber(script.url, 0, options=quick()) as subscriber:
        assert await read_all(subscriber) == [(0, 0, data), (1, 0, b"next")]


@pytest.mark.parametrize(
    "later",
    [
        reply("470 x", "Lp-Trickle-Latest: 9"),
        NOT_THERE,
        END,
        seq_reply(0, b"012"),
        seq_reply(0, b""),
        broken_after(5, b"0123456789"),
    ],
)
async def test_a_segment_that_cannot_be_had_to_its_end_is_an_error_and_the_next_comes(scripted, quick, later):
    script = await scripted(by_index({"0": [broken_after(5, b"0123456789"), later], "1": [seq_reply(1, b"next")]}))
    async with TrickleSubscriber(script.url, 0, options=quick()) as subscriber:
        segment = await anext(subscriber)
        with pytest.raises(SegmentBroken, match="segment 0 broke off after 5 bytes") as broken:
            await segment.read()
        assert broken.value.seq == 0
        assert await (await anext(subscriber)).read() == b"next"


async def test_a_segment_that_stalls_is_asked_for_again(scripted, quick):
    async def stalling(seq, wire):
        await wire.send("HTTP/1.1 200 OK", "Lp-Trickle-Seq: 0", "Content-Length: 6")
        await wire.write(b"abc")
        await wire.reader.read()

    script = await scripted(by_index({"0": [stalling, seq_reply(0, b"abcdef")]}))
    async with TrickleSubscriber(script.url, 0, options=quick(stall_seconds=0.05)) as subscriber:
        assert await read_all(subscriber) == [(0, 0, b"abcdef")]


async def test_5xx_is_tried_again_and_again_up_to_its_patience(answering):
    trouble = reply("503 Service Unavailable")
    _, subscriber = await answering(trouble, trouble, trouble, seq_reply(0, b"x"), longest_pause=0.01)
    async with subscriber:
        assert await read_all(subscriber) == [(0, 0, b"x")]
    _, subscriber = await answering(*[trouble] * 500, patience_seconds=0.02, longest_pause=0.01)
    async with subscriber:
        with pytest.raises(Unreachable, match="503"):
            await anext(subscriber)


@pytest.mark.parametrize("status", [204, 302, 400, 401])
async def test_other_answers_are_errors_and_the_same_index_may_be_asked_for_again(answering, status):
    refused = reply(f"{status} x", "Location: http://127.0.0.1:1/")
    script, subscriber = await answering(seq_reply(0, b"0"), refused, seq_reply(1, b"1"))
    async with subscriber:
        assert (await anext(subscriber)).seq == 0
        with pytest.raises(Refused) as error:
            await anext(subscriber)
        assert error.value.status == status
        assert (await anext(subscriber)).seq == 1
    assert [seq for _, seq in script.asked[:3]] == ["0", "1", "1"]


async def test_garbage_instead_of_http(scripted, quick):
    async def answer(number, method, seq, wire, headers):
        await wire.write(b"\x00\xff\x00 nonsense\r\n\r\n")
        return True

    script = await scripted(answer)
    async with TrickleSubscriber(script.url, 0, options=quick(patience_seconds=0.02, longest_pause=0.01)) as subscriber:
        with pytest.raises(TrickleError):
            await anext(subscriber)


async def test_a_compressed_answer_is_taken_as_it_is(answering):
    _, subscriber = await answering(seq_reply(0, b"\x1f\x8bnot gzip", "Content-Encoding: gzip"))
    async with subscriber:
        assert await read_all(subscriber) == [(0, 0, b"\x1f\x8bnot gzip")]


async def test_a_channel_that_began_anew(answering):
    async def by_seq(seq, wire):
        if seq == "2":
            await wire.write(seq_reply(2, b"new"))
        elif seq == "3":
            await wire.write(END)
        else:
            await wire.write(reply("470 x", "Lp-Trickle-Latest: 2"))

    _, subscriber = await answering(seq_reply(50, b"old"), *[by_seq] * 500, first=50, patience_seconds=0.02)
    async with subscriber:
        assert [seq for seq, _, _ in await read_all(subscriber)] == [50, 2]
