"""The subscriber gives every segment once and in order, says what it missed, and ends only when the channel does."""

import asyncio

import pytest

from tests.waiting import until
from whisper_byoc.aio import cancel
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
    """Return a function that serves these answers one after the other, and a subscriber to them."""

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


async def head_first(seq, wire):
    await wire.send("HTTP/1.1 200 OK", "Lp-Trickle-Seq: 0", "Transfer-Encoding: chunked")
    await asyncio.sleep(0.02)
    await wire.write(b"1\r\nx\r\n0\r\n\r\n")


def early_or_behind(latest):
    return reply("470 Entry not found", f"Lp-Trickle-Latest: {latest}", body=b"Entry not found")


def broken_after(size, data):
    """Announce all of `data`, send `size` bytes of it, and break."""

    async def answer(seq, wire):
        await wire.write(seq_reply(seq, data)[: size - len(data)])
        return True

    return answer


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
    await api.post("ch/1", b"longer than its limit")
    await api.post("ch/2", b"next")
    subscriber = await api.subscriber(start=0)
    first, second = await anext(subscriber), await anext(subscriber)
    assert [data async for data in first] == []
    with pytest.raises(SegmentTooLarge, match="more than 10 bytes"):
        await second.read(10)
    assert await (await anext(subscriber)).read(10) == b"next"


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
    with pytest.raises(TrickleError, match="not open"):
        await anext(TrickleSubscriber("http://127.0.0.1:1/ch"))
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

X = seq_reply(0, b"x")
INTERIM = b"HTTP/1.1 100 Continue\r\n\r\n" * 200 + b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"
NO_NEXT = reply("400 Bad Request", body=b"Invalid idx\n")
LATEST_7 = reply("200 OK", "Lp-Trickle-Latest: 7", body=b"7")
SCRIPTS = {  # start, answers, {index read: how many were missed before it}, indices asked for
    "any number of interim answers": (0, [INTERIM + X], {0: 0}, "0"),
    "a head before the first byte": (0, [head_first], {0: 0}, "0"),
    "compressed bytes are taken as they are": (0, [seq_reply(0, b"x", "Content-Encoding: gzip")], {0: 0}, "0"),
    "silence is asked again": (0, [silent, silent, X], {0: 0}, "0 0 0"),
    "early waits for the same index": (0, [early_or_behind(0)] * 3 + [X], {0: 0}, "0 0 0 0"),
    "early without latest": (0, [reply("470 x"), X], {0: 0}, "0 0"),
    "early with a bad latest": (0, [early_or_behind("x"), X], {0: 0}, "0 0"),
    "early with a negative latest": (0, [early_or_behind(-5), X], {0: 0}, "0 0"),
    "early with a huge latest": (0, [early_or_behind("9" * 40), X], {0: 0}, "0 0"),
    "behind jumps to what may be there": (0, [early_or_behind(8)] * 2 + [seq_reply(4, b"x")], {4: 4}, "0 3 4"),
    "an older server skips by 470": (0, [X, early_or_behind(2), seq_reply(2, b"x")], {0: 0, 2: 1}, "0 1 2"),
    "ended": (0, [END], {}, "0"),
    "ended by any mark": (0, [X, reply("200 OK", "Lp-Trickle-Closed: yes", body=b"not found")], {0: 0}, "0 1"),
    "ended by 404": (0, [X, NOT_THERE], {0: 0}, "0 1"),
    "5xx is tried again": (0, [reply("503 x")] * 3 + [X], {0: 0}, "0 0 0 0"),
    "next is made an index": (-1, [LATEST_7, seq_reply(7, b"x")], {7: 0}, "next 7"),
    "current is made an index": (-2, [LATEST_7, seq_reply(6, b"x")], {6: 0}, "next 6"),
    "next without /next": (-1, [NO_NEXT, seq_reply(41, b"x"), seq_reply(42, b"x")], {41: 0, 42: 0}, "next -1 42"),
    "current without /next": (-2, [NO_NEXT, seq_reply(41, b"x"), seq_reply(42, b"x")], {41: 0, 42: 0}, "next -2 42"),
}


@pytest.mark.parametrize(("start", "answers", "missed", "asked"), SCRIPTS.values(), ids=list(SCRIPTS))
async def test_what_a_server_may_answer(answering, start, answers, missed, asked):
    refresh = 0.3 if silent in answers else 20.0
    script, subscriber = await answering(*answers, first=start, refresh_seconds=refresh, longest_pause=0.01)
    async with subscriber:
        assert await read_all(subscriber) == [(seq, count, b"x") for seq, count in missed.items()]
        with pytest.raises(StopAsyncIteration):
            await anext(subscriber)
    assert [seq for _, seq in script.asked][: len(asked.split())] == asked.split()


async def asked_in_vain(script, subscriber, seconds):
    """Wait for a segment that never comes, and return how often the server was asked for it."""
    async with subscriber:
        reading = asyncio.create_task(anext(subscriber))
        await until(lambda: len(script.asked) > 5)
        await asyncio.sleep(seconds)
    with pytest.raises(StopAsyncIteration):
        await reading
    return len(script.asked)


async def test_who_has_an_empty_segment_for_every_index_is_not_flooded(answering):
    assert await asked_in_vain(*await answering(*[reply()] * 50, early_seconds=5.0), 0.1) < 20


async def test_a_channel_that_began_anew_is_followed_at_once(answering):
    """Whatever pauses and patience are."""

    async def by_seq(seq, wire):
        answers = {"0": seq_reply(0, b"new"), "1": seq_reply(1, b"newer"), "2": END}
        await wire.write(answers.get(seq, early_or_behind(2)))

    old = seq_reply(50, b"old")
    script, subscriber = await answering(old, *[by_seq] * 9, first=50, patience_seconds=600, early_seconds=600)
    async with subscriber:
        segments = [(each.seq, each.missed, each.began_anew, await each.read()) async for each in subscriber]
    assert segments == [(50, 0, False, b"old"), (0, 0, True, b"new"), (1, 0, False, b"newer")]
    assert [seq for _, seq in script.asked] == ["50", "51", "0", "1", "2"]


async def test_a_publisher_that_begins_again_at_0_costs_a_reader_nothing_but_what_was_before(trickle):
    api = await trickle()
    for seq in range(8):
        await api.post(f"ch/{seq}", b"%d" % seq)
    subscriber = await api.subscriber(early_seconds=600)
    assert await (await anext(subscriber)).read() == b"7"
    await api.slot_there(8)
    for seq in range(3):
        await api.post(f"ch/{seq}", b"again %d" % seq)
    again = [await anext(subscriber) for _ in range(3)]
    assert [(each.seq, each.missed, each.began_anew) for each in again] == [(0, 0, True), (1, 0, False), (2, 0, False)]


@pytest.mark.parametrize("latest", [lambda seq: seq, lambda seq: seq + 9], ids=["early", "late"])
async def test_who_always_answers_470_is_asked_more_and_more_seldom(answering, latest):
    async def never(seq, wire):
        await wire.write(early_or_behind(latest(int(seq))))

    assert await asked_in_vain(*await answering(*[never] * 500, early_seconds=0.05), 0.2) < 16


async def test_who_is_asked_again_after_a_refusal_is_not_asked_hot(answering):
    script, subscriber = await answering(*[reply("403 x")] * 500, longest_pause=5.0)

    async def insist():
        while True:
            with pytest.raises(Refused):
                await anext(subscriber)

    async with subscriber:
        insisting = asyncio.create_task(insist())
        await until(lambda: len(script.asked) > 2)
        await asyncio.sleep(0.3)
        await cancel(insisting)
    assert len(script.asked) < 12


async def test_a_server_that_sends_one_segment_for_every_index_gives_it_once_and_is_not_asked_hot(answering):
    script, subscriber = await answering(*[seq_reply(0, b"x")] * 500, early_seconds=5.0)
    async with subscriber:
        assert await (await anext(subscriber)).read() == b"x"
        reading = asyncio.create_task(anext(subscriber))
        await until(lambda: len(script.asked) > 1)
        await asyncio.sleep(0.1)
        assert not reading.done()
    assert len(script.asked) < 4
    with pytest.raises(StopAsyncIteration):
        await reading


async def test_an_answer_without_its_index(answering):
    _, subscriber = await answering(NO_NEXT, reply("200 OK", body=b"x"), first=-1)
    async with subscriber:
        with pytest.raises(Refused, match="without Lp-Trickle-Seq"):
            await anext(subscriber)


@pytest.mark.parametrize("status", [204, 302, 400, 401])
async def test_other_answers_are_errors_and_the_same_index_may_be_asked_for_again(answering, status):
    refused = reply(f"{status} x", "Location: http://127.0.0.1:1/")
    script, subscriber = await answering(X, refused, seq_reply(1, b"1"))
    async with subscriber:
        assert (await anext(subscriber)).seq == 0
        with pytest.raises(Refused) as error:
            await anext(subscriber)
        assert error.value.status == status
        assert (await anext(subscriber)).seq == 1
    assert [seq for _, seq in script.asked[:3]] == ["0", "1", "1"]


@pytest.mark.parametrize(
    ("answer", "error"), [(reply("503 x"), Unreachable), (b"\x00\xff nonsense\r\n\r\n", TrickleError)]
)
async def test_what_does_not_get_better_is_an_error(answering, answer, error):
    _, subscriber = await answering(*[answer] * 500, patience_seconds=0.02, longest_pause=0.01)
    async with subscriber:
        with pytest.raises(Unreachable, match=r"http://127\.0\.0\.1"):
            await anext(subscriber)


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


async def test_a_segment_that_breaks_off_or_stalls_is_taken_up_where_it_broke(scripted, quick):
    data = b"0123456789"

    async def stalling(seq, wire):
        await wire.write(seq_reply(seq, data)[:-2])
        await wire.reader.read()

    first = [*[broken_after(size, data) for size in (1, 4, 2, 7)], stalling, seq_reply(0, data)]
    script = await scripted(by_index({"0": first, "1": [seq_reply(1, b"next")]}))
    options = quick(stall_seconds=0.05, longest_pause=0.02)
    async with TrickleSubscriber(script.url, 0, options=options) as subscriber:
        assert await read_all(subscriber) == [(0, 0, data), (1, 0, b"next")]


@pytest.mark.parametrize(
    "later",
    [
        early_or_behind(9),
        NOT_THERE,
        END,
        seq_reply(0, b"012"),
        seq_reply(0, b""),
        broken_after(5, b"0123456789"),
    ],
)
async def test_a_segment_that_cannot_be_had_to_its_end_is_an_error_and_the_next_comes(scripted, quick, later):
    script = await scripted(by_index({"0": [broken_after(5, b"0123456789"), later], "1": [seq_reply(1, b"next")]}))
    async with TrickleSubscriber(script.url, 0, options=quick(longest_pause=0.02)) as subscriber:
        segment = await anext(subscriber)
        with pytest.raises(SegmentBroken, match="segment 0 broke off after 5 bytes") as broken:
            await segment.read()
        assert broken.value.seq == 0
        assert await (await anext(subscriber)).read() == b"next"
