"""Heads and interim answers, byte for byte."""

import asyncio

import pytest

from tests.waiting import until
from whisper_byoc.trickle import TricklePublisher


def without_date(head):
    """The status line, then the other headers in alphabetical order."""
    return [head[0], *sorted(line for line in head[1:] if not line.startswith(("Date:", "Server:")))]


async def test_a_reader_gets_no_head_before_the_first_byte(trickle):
    api = await trickle()
    await api.post("ch", headers={"Expect-Content": "application/jsonl"})
    wire = await api.wire("GET ch/0")
    await api.slot_there(0)
    writing = await api.preconnect("ch/0")
    await wire.silent()
    await writing.write(b"2\r\n{}\r\n")
    assert without_date(await wire.head()) == [
        "HTTP/1.1 200 OK",
        "Content-Type: application/jsonl",
        "Lp-Trickle-Seq: 0",
        "Transfer-Encoding: chunked",
    ]
    assert await wire.reader.readexactly(7) == b"2\r\n{}\r\n"
    await wire.silent()
    await writing.write(b"1\r\n\n\r\n0\r\n\r\n")
    assert await wire.reader.readexactly(11) == b"1\r\n\n\r\n0\r\n\r\n"


async def test_heads_of_a_reader_behind(trickle):
    api = await trickle()
    for seq in range(2):
        await api.post(f"ch/{seq}", b"abc", headers={"Content-Type": "text/plain"})
    wire = await api.wire("GET ch/0", "Connection: close")
    head, _, body = (await wire.rest()).partition(b"\r\n\r\n")
    assert {"HTTP/1.1 200 OK", "Lp-Trickle-Seq: 0", "Lp-Trickle-Latest: 2", "Content-Type: text/plain"} <= set(
        head.decode().split("\r\n")
    )
    assert body == b"abc"


async def test_a_preconnected_publisher_gets_100_until_its_first_byte(trickle):
    api = await trickle(interim_seconds=0.005)
    wire = await api.preconnect("ch/0")
    for _ in range(10):
        assert await wire.head() == ["HTTP/1.1 100 Continue"]
    await wire.write(b"1\r\nx\r\n")
    await api.stored(0, 1)
    await asyncio.sleep(0.03)
    await wire.write(b"0\r\n\r\n")
    heads = [await wire.head()]
    while heads[-1] == ["HTTP/1.1 100 Continue"]:  # those that were on their way when the byte came
        heads.append(await wire.head())
    assert without_date(heads[-1]) == ["HTTP/1.1 200 OK", "Content-Length: 0", "Lp-Trickle-Seq: 0"]
    assert len(heads) <= 3


async def test_without_interim_there_is_silence(trickle):
    api = await trickle()
    wire = await api.preconnect("ch/0")
    await api.slot_there(0)
    await wire.silent()


async def test_http_1_0_gets_no_interim(trickle):
    api = await trickle(interim_seconds=0.005)
    wire = await api.wire()
    await wire.send(f"POST {api.server.base_path}ch/0 HTTP/1.0", "Content-Length: 3")
    await api.slot_there(0)
    await wire.silent()
    await wire.write(b"abc")
    assert (await wire.head())[0] == "HTTP/1.0 200 OK"


async def test_expect_100_continue_is_answered_at_once(trickle):
    api = await trickle()
    wire = await api.preconnect("ch/0", "Expect: 100-continue")
    assert await wire.head() == ["HTTP/1.1 100 Continue"]


async def test_a_connection_is_kept_between_segments(trickle):
    api = await trickle()
    wire = await api.wire()
    for seq in range(3):
        await wire.send(f"POST {api.server.base_path}ch/{seq} HTTP/1.1", "Host: x", "Content-Length: 1", body=b"x")
        assert without_date(await wire.head()) == ["HTTP/1.1 200 OK", "Content-Length: 0", f"Lp-Trickle-Seq: {seq}"]


@pytest.mark.parametrize(
    ("request_line", "status"),
    [("GET no/0", "404 Not Found"), ("POST ch/-2", "400 Bad Request"), ("DELETE no", "400 Bad Request")],
)
async def test_refusals_are_plain_text_as_gos(trickle, request_line, status):
    api = await trickle()
    await api.post("ch")
    wire = await api.wire(request_line, "Content-Length: 0")
    head = await wire.head()
    assert head[0] == f"HTTP/1.1 {status}"
    assert {"Content-Type: text/plain; charset=utf-8", "X-Content-Type-Options: nosniff"} <= set(head)


async def test_our_publisher_byte_for_byte(scripted, quick):
    """Its head is on the wire before it has a byte, and each write is a chunk."""
    heads, body = {}, []

    async def answer(number, method, seq, wire, headers):
        heads[seq] = headers
        if seq == "0":
            for _ in range(3):
                body.append(await wire.reader.readuntil(b"\r\n"))
                body.append(await wire.reader.readuntil(b"\r\n"))
            await wire.send("HTTP/1.1 200 OK", "Lp-Trickle-Seq: 0", "Content-Length: 0")
        else:
            await wire.reader.read()

    script = await scripted(answer)
    async with TricklePublisher(script.url, "application/jsonl", options=quick()) as publisher:
        await until(lambda: heads)
        assert script.asked == [("POST", "0")]
        assert (heads["0"]["transfer-encoding"], heads["0"]["content-type"]) == ("chunked", "application/jsonl")
        async with await publisher.next() as segment:
            await segment.write(b"hello")
            await until(lambda: len(body) == 2)
            await segment.write(b"world!")
    assert b"".join(body) == b"5\r\nhello\r\n6\r\nworld!\r\n0\r\n\r\n"
