"""The publisher loses nothing: not when idle, not when a connection breaks, not when an answer does."""

import asyncio
import contextlib
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.waiting import until
from whisper_byoc.aio import cancel
from whisper_byoc.trickle import (
    ChannelClosed,
    ChannelNotFound,
    ClientOptions,
    LocalSubscriber,
    Refused,
    SegmentBroken,
    TrickleError,
    TricklePublisher,
    TrickleServer,
    TrickleSubscriber,
    Unreachable,
)
from whisper_byoc.trickle.remote import Retry

OK = ("HTTP/1.1 200 OK", "Content-Length: 0")


async def collect(channel, count=None):
    """Read what is in a channel from index 0 on: so many segments, or all up to its end."""
    got = []
    async for segment in LocalSubscriber(channel, 0):
        got.append(await segment.read())
        if len(got) == count:
            break
    return got


async def test_segments_get_their_indices_in_order(trickle):
    api = await trickle()
    publisher = await api.publisher(mime="text/x-mine")
    assert [await publisher.publish(b"%d" % number) for number in range(5)] == [0, 1, 2, 3, 4]
    assert [(await api.get(f"ch/{seq}"))[1] for seq in range(1, 5)] == [b"1", b"2", b"3", b"4"]
    assert api.server.channels["ch"].mime == "text/x-mine"


async def test_bytes_arrive_while_the_segment_is_open(trickle):
    api = await trickle()
    publisher = await api.publisher()
    async with await publisher.next() as segment:
        await api.slot_there(1)
        assert api.server.channels["ch"].next_write == 0, "the next POST is open before it is needed"
        await segment.write(b"first ")
        await api.stored(0, 6)
        await segment.write(b"")
        await segment.write(bytearray(b"second"))
        await api.stored(0, 12)
        assert not api.slot(0).closed
    assert api.slot(0).closed, "when `async with` is left, the server has it"


async def test_an_empty_segment(trickle):
    publisher = await (await trickle()).publisher()
    assert [await publisher.publish(data) for data in (b"", b"x")] == [0, 1]


async def test_create(trickle):
    api = await trickle()
    await api.publisher(mime="application/jsonl", create=True)
    assert api.server.channels["ch"].mime == "application/jsonl"
    with pytest.raises(ChannelNotFound, match="no channel at http"):
        await (await trickle(autocreate=False)).publisher(create=True)


async def test_a_missing_channel(trickle):
    api = await trickle(autocreate=False)
    publisher = await api.publisher()
    for _ in range(2):
        with pytest.raises(ChannelNotFound):
            await publisher.publish(b"x")
    api.server.create("ch", "text/plain")
    with contextlib.suppress(ChannelNotFound):  # the POST that was open may have had its answer before
        await publisher.publish(b"x")
    seq = await publisher.publish(b"there now")
    assert (await api.get(f"ch/{seq}"))[1] == b"there now"


async def test_join_goes_on_where_the_channel_is_and_closes_what_was_left_open(trickle):
    api = await trickle()
    for seq in range(7):
        await api.post(f"ch/{seq}", b"x")
    await api.preconnect("ch/7", data=b"left")
    publisher = await api.publisher(join=True)
    await until(lambda: api.slot(7).closed)
    assert [await publisher.publish(b"mine"), await publisher.publish(b"mine")] == [8, 9]


async def test_starting_at_0_on_a_channel_in_use_moves_to_its_next_index(trickle):
    api = await trickle()
    for seq in range(7):
        await api.post(f"ch/{seq}", b"x")
    await api.preconnect("ch/9")
    await api.slot_there(9)
    publisher = await api.publisher()
    assert [await publisher.publish(b"mine"), await publisher.publish(b"mine")] == [7, 8]
    assert (await api.get("ch/7"))[1] == b"mine"


async def test_two_publishers_in_turn_lose_nothing(trickle):
    api = await trickle()
    one, two = await api.publisher(), await api.publisher()
    reading = asyncio.create_task(collect(api.server.create("ch")))
    for number in range(5):
        await one.publish(b"one %d" % number)
        await two.publish(b"two %d" % number)
    await api.delete("ch")
    got = b" ".join(await reading)
    assert all(b"%s %d" % (who, number) in got for who in (b"one", b"two") for number in range(5))


async def test_an_index_that_somebody_closed_is_passed_over(trickle):
    api = await trickle()
    publisher = await api.publisher()
    await api.slot_there(0)
    await api.delete("ch/0")
    await api.slot_there(1)
    assert await publisher.publish(b"x") == 1


async def test_the_channel_ends_in_mid_segment_and_while_idle(trickle):
    api = await trickle()
    publisher = await api.publisher()
    segment = await publisher.next()
    await segment.write(b"part")
    await api.stored(0, 4)
    await api.slot_there(1)
    await api.delete("ch")
    await segment.write(b"more")
    with pytest.raises(ChannelClosed, match="was closed"):
        await segment.close()
    with pytest.raises(ChannelClosed, match="was closed"):
        await publisher.publish(b"x")


@pytest.mark.parametrize("data", [b"part", b""])
async def test_an_exception_breaks_the_segment_off(trickle, data):
    api = await trickle()
    publisher = await api.publisher()
    with pytest.raises(KeyError):
        async with await publisher.next() as segment:
            await segment.write(data)
            await api.stored(0, len(data))
            raise KeyError
    assert api.slot(0).closed, "nobody waits for the rest"
    assert await publisher.publish(b"x") == 1


async def test_cancelled_in_close_breaks_the_segment_off(scripted, quick):
    async def answer(number, method, seq, wire, headers):
        if method == "POST":
            await wire.reader.read()
        await wire.send(*OK)

    script = await scripted(answer)
    async with TricklePublisher(script.url, options=quick()) as publisher:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(publisher.publish(b"x"), 0.1)
        assert ("DELETE", "0") in script.asked


async def test_close_leaves_the_channel_and_delete_ends_it(trickle):
    api = await trickle()
    publisher = await api.publisher()
    await publisher.publish(b"x")
    await publisher.close()
    await publisher.close()
    assert (await api.get("ch/next"))[1] == b"1", "no segment is made up by closing"
    with pytest.raises(TrickleError, match="not open"):
        await publisher.publish(b"x")
    publisher = await api.publisher(join=True)
    await publisher.close(delete_channel=True)
    assert (await api.get("ch/0"))[0] == 404


async def test_a_reader_has_time_for_the_last_segment(trickle):
    api = await trickle()
    publisher = await api.publisher(create=True, options={"linger_seconds": 0.1})
    subscriber = await api.subscriber(start=0)
    reading = asyncio.create_task(collect_remote(subscriber))
    for number in range(3):
        await publisher.publish(b"%d" % number)
    await publisher.close(delete_channel=True)
    assert await asyncio.wait_for(reading, 5) == [b"0", b"1", b"2"]


async def collect_remote(subscriber):
    return [await segment.read() async for segment in subscriber]


async def test_any_number_of_interim_answers(scripted, quick):
    async def answer(number, method, seq, wire, headers):
        if seq == "0":
            await wire.write(b"HTTP/1.1 100 Continue\r\n\r\n" * 50)
            assert await wire.reader.readuntil(b"0\r\n\r\n") == b"1\r\nx\r\n0\r\n\r\n"
            await wire.send(*OK)
        else:
            await wire.reader.read()

    async with TricklePublisher((await scripted(answer)).url, options=quick()) as publisher:
        assert await publisher.publish(b"x") == 0


# --- broken connections


async def test_an_outage_while_idle_costs_nothing_however_often_and_long(relayed):
    api, behind, relay = await relayed()
    publisher = await behind.publisher(options={"patience_seconds": 0.01, "longest_pause": 0.01})
    await api.slot_there(0)
    for up in (True, False):
        tries = relay.connections
        relay.up = up
        relay.cut()
        await until(lambda before=tries + (1 if up else 10): relay.connections >= before)
        await until(lambda: relay.passing or not relay.up)
    relay.up = True
    await until(lambda: relay.passing)  # a connection that is still cut leaves the index in doubt
    assert await publisher.publish(b"still the first") == 0
    assert (await api.get("ch/0"))[1] == b"still the first"


@pytest.mark.parametrize("outage", [False, True])
async def test_breaking_in_mid_segment_sends_all_of_it_again(relayed, outage):
    api, behind, relay = await relayed()
    publisher = await behind.publisher()
    async with await publisher.next() as segment:
        await segment.write(b"first half, ")
        await api.stored(0, 12)
        relay.up = not outage
        tries = relay.connections
        relay.cut()
        await segment.write(b"second half")
        closing = asyncio.create_task(segment.close())
        if outage:
            await until(lambda: relay.connections > tries + 3)
            assert not closing.done()
            relay.up = True
        await closing
    assert segment.seq > 0
    assert api.slot(0).closed, "nobody is left waiting for the rest of the first try"
    assert (await api.get(f"ch/{segment.seq}"))[1] == b"first half, second half"
    assert await publisher.publish(b"next") == segment.seq + 1


async def test_of_a_continuous_stream_nothing_comes_twice(relayed):
    """An odd number of bytes before the break: sent again, the rest of a stream of PCM16 would be noise."""
    api, behind, relay = await relayed()
    publisher = await behind.publisher(continuous=True)
    async with await publisher.next() as segment:
        await segment.write(b"one")
        await api.stored(0, 3)
        relay.cut()
        await segment.write(b"two")
    assert api.slot(0).closed
    async with await publisher.next() as segment:
        await segment.write(b"three")
        await api.stored(segment.seq, 5)
        relay.cut()  # all of it is there, and then it ends
    await publisher.publish(b"four")
    assert b"".join(chunk for each in api.server.channels["ch"].segments for chunk in each.chunks) == b"onetwothreefour"


@pytest.mark.parametrize("dropped", [False, True])
async def test_what_the_server_turns_out_not_to_have_is_sent_again(scripted, quick, dropped):
    stored = {}

    async def answer(number, method, seq, wire, headers):
        if method == "POST" and seq == "0":
            if dropped:
                await wire.reader.readuntil(b"4\r\ndata\r\n")
            else:  # a release that crosses with the first bytes, and is not to be taken for delivery
                await wire.reader.readexactly(1)
                await wire.send(*OK, "Connection: close")
            return True
        if method == "POST":
            stored[seq] = await wire.reader.readuntil(b"0\r\n\r\n")
            await wire.send(*OK)
        elif method == "GET" and seq != "next":
            await wire.send("HTTP/1.1 470 Entry not found" if dropped else OK[0], "Content-Length: 0")
        else:
            await wire.send(*OK, "Lp-Trickle-Latest: 1")
        return False

    script = await scripted(answer)
    async with TricklePublisher(script.url, continuous=dropped, options=quick()) as publisher:
        assert await publisher.publish(b"data") == 1
    assert stored == {"1": b"4\r\ndata\r\n0\r\n\r\n"}


async def test_a_lost_answer_makes_no_duplicate(relayed):
    api, behind, relay = await relayed()
    publisher = await behind.publisher(create=True)
    await api.slot_there(0)

    def lose_the_answer(data, to_server):
        if not to_server and b"Lp-Trickle-Seq: 0" in data:
            relay.after = None
            return None
        return data

    relay.after = lose_the_answer
    assert await publisher.publish(b"once") == 0
    assert relay.after is None
    assert await publisher.publish(b"twice") >= 1


async def test_a_segment_too_large_to_keep_is_lost_loudly_and_the_next_is_not(relayed):
    api, behind, relay = await relayed(resume_seconds=0.01)
    publisher = await behind.publisher(keep_bytes=1000)
    segment = await publisher.next()
    for _ in range(4):
        await segment.write(bytes(500))
    await api.stored(0, 2000)
    relay.cut()
    with pytest.raises(SegmentBroken, match="segment 0 broke after 2000 bytes") as broken:
        await segment.close()
    assert broken.value.seq == 0
    await until(lambda: api.slot(0).closed)
    seq = await publisher.publish(b"next")
    assert (await api.get(f"ch/{seq}"))[1] == b"next"


async def test_a_large_segment_that_does_not_break(trickle):
    api = await trickle()
    publisher = await api.publisher(keep_bytes=1000)
    data = bytes(range(256)) * 16384
    async with await publisher.next() as segment:
        for start in range(0, len(data), 100_000):
            await segment.write(data[start : start + 100_000])
    assert (await api.get("ch/0"))[1] == data


@pytest.mark.parametrize("refresh_seconds", [25.0, 0.01])
async def test_nobody_there(quick, refresh_seconds, unused_tcp_port):
    url = f"http://127.0.0.1:{unused_tcp_port}/ch"
    options = quick(patience_seconds=0.05, longest_pause=0.01, refresh_seconds=refresh_seconds)
    async with TricklePublisher(url, options=options) as publisher:
        with pytest.raises(Unreachable, match=r"segment 0 of http.*: Connection refused"):
            await publisher.publish(b"x")
    with pytest.raises(Unreachable, match="refused"):
        await TricklePublisher(url, create=True, options=options).start()
    for start in (0, -1):
        async with TrickleSubscriber(url, start, options=options) as subscriber:
            with pytest.raises(Unreachable, match="refused"):
                await anext(subscriber)


def test_tries_pause_ever_longer_and_end_after_their_patience():
    patient = Retry(ClientOptions(longest_pause=1.0))
    broken, now = ConnectionResetError(), time.monotonic()
    for longest in (0.0, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0):
        assert longest / 2 <= patient.pause_after(broken, now, "it") <= longest
    hasty = Retry(ClientOptions(patience_seconds=0.0))
    assert hasty.pause_after(broken, now, "it") == 0
    assert hasty.pause_after(broken, now - 60, "it") == 0, "a connection that lasted had been working"
    for error in (broken, TimeoutError()):
        with pytest.raises(Unreachable, match=r"^it: "):
            hasty.pause_after(error, now, "it")
    with pytest.raises(Unreachable, match="no answer in time"):
        hasty.pause_after(TimeoutError(), now - 60, "it")


# --- servers that misbehave


async def test_5xx_is_tried_again(scripted, quick):
    tries = []

    async def answer(number, method, seq, wire, headers):
        if method == "POST":
            await wire.reader.readuntil(b"0\r\n\r\n")
            tries.append(seq)
            await wire.send(f"HTTP/1.1 {503 if len(tries) < 4 else 200} x", "Content-Length: 0")
        else:
            await wire.send(*OK)

    script = await scripted(answer)
    async with TricklePublisher(script.url, options=quick(longest_pause=0.01)) as publisher:
        await publisher.publish(b"x")
    assert len(tries) == 4


@pytest.mark.parametrize("status", [400, 401, 413])
async def test_4xx_is_an_error_that_says_what_the_server_said(scripted, quick, status):
    async def answer(number, method, seq, wire, headers):
        await wire.reader.readuntil(b"0\r\n\r\n")
        await wire.send(f"HTTP/1.1 {status} x", "Content-Length: 3", body=b"why")

    script = await scripted(answer)
    async with TricklePublisher(script.url, options=quick()) as publisher:
        with pytest.raises(Refused, match=f"answered {status}$") as refused:
            await publisher.publish(b"x")
        assert (refused.value.status, refused.value.words) == (status, "why")


async def test_a_server_that_never_answers(scripted, quick):
    async def answer(number, method, seq, wire, headers):
        await wire.reader.read()

    script = await scripted(answer)
    options = quick(answer_seconds=0.05, patience_seconds=0.05)
    async with TricklePublisher(script.url, options=options) as publisher:
        await asyncio.sleep(0.1)  # silence is fine as long as there is nothing to answer
        assert script.asked == [("POST", "0")]
        with pytest.raises(Unreachable, match="no answer in time"):
            await publisher.publish(b"x")


async def test_a_server_that_does_not_read_holds_the_writer_back(scripted, quick):
    ended = asyncio.Event()

    async def answer(number, method, seq, wire, headers):
        await ended.wait()

    script = await scripted(answer)
    options = quick(answer_seconds=0.2, patience_seconds=0.1)
    async with TricklePublisher(script.url, options=options) as publisher:
        segment = await publisher.next()
        written = 0
        with pytest.raises((Unreachable, SegmentBroken)):
            for _ in range(1000):
                await segment.write(bytes(1 << 20))
                written += 1
        assert written < 100, "it does not pile up here"
        ended.set()
        await segment.abort()


async def test_who_takes_no_index_at_all_is_not_flooded_and_given_up(scripted, quick):
    """A wrong URL: a web server that answers 200 to whatever it is asked."""

    async def answer(number, method, seq, wire, headers):
        await wire.send(*OK, "Connection: close")
        return True

    script = await scripted(answer)
    async with TricklePublisher(script.url, options=quick(longest_pause=5.0, patience_seconds=0.05)) as publisher:
        await until(lambda: len(script.asked) > 3)
        await asyncio.sleep(0.2)
        assert len(script.asked) < 20
        with pytest.raises(Unreachable):
            await publisher.publish(b"x")


async def test_a_server_without_next(scripted, quick):
    async def answer(number, method, seq, wire, headers):
        if seq == "next":
            await wire.send("HTTP/1.1 400 Bad Request", "Content-Length: 0")
        elif method == "POST":
            await wire.reader.readuntil(b"0\r\n\r\n")
            await wire.send(f"HTTP/1.1 {409 if int(seq) < 3 else 200} x", "Content-Length: 0")

    script = await scripted(answer)
    async with TricklePublisher(script.url, join=True, options=quick(longest_pause=0.01)) as publisher:
        assert await publisher.publish(b"x") == 3


@pytest.mark.parametrize(
    "url",
    ["", "ch", "ftp://host/ch", "http:///ch", "http://host", "http://host/", "http://[::1/ch", "http://host/ch?x"],
)
def test_what_is_no_channel_url(url):
    for end in (TricklePublisher, TrickleSubscriber):
        with pytest.raises(TrickleError, match="not the URL of a channel"):
            end(url)


@given(
    st.lists(st.lists(st.binary(max_size=3000), max_size=6), min_size=1, max_size=8),
    st.sampled_from([0, 1, 1 << 20]),
)
@settings(max_examples=15, deadline=None)
async def test_any_chunking_arrives_as_it_was_written(segments, keep_bytes):
    server = TrickleServer("/", autocreate=True)
    wanted = [b"".join(each) for each in segments if b"".join(each)]
    async with server.listening("127.0.0.1", 0) as base:
        reading = asyncio.create_task(collect(server.create("ch"), len(wanted)))
        async with TricklePublisher(base + "ch", keep_bytes=keep_bytes) as publisher:
            for pieces in segments:
                async with await publisher.next() as segment:
                    for piece in pieces:
                        await segment.write(piece)
        if not wanted:
            server.close("ch")
        assert await asyncio.wait_for(reading, 10) == wanted


async def test_who_asks_again_and_again_what_is_refused_is_slowed_down(scripted, quick):
    async def refuse(number, method, seq, wire, headers):
        await wire.send("HTTP/1.1 403 x", "Content-Length: 0", "Connection: close")
        return True

    script = await scripted(refuse)
    async with TricklePublisher(script.url, options=quick(longest_pause=5.0)) as publisher:

        async def insist():
            while True:
                with pytest.raises(Refused):
                    await publisher.publish(b"x")

        insisting = asyncio.create_task(insist())
        await until(lambda: len(script.asked) > 3)
        await asyncio.sleep(0.3)
        await cancel(insisting)
    assert len(script.asked) < 16
