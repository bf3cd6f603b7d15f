"""Connections: how many, from where, and how long each may take to say what it wants."""

import asyncio
import contextlib
import json
import logging
import socket
import ssl
import struct

import pytest
from aiohttp import web

from whisper_byoc import connections
from whisper_byoc.connections import ConnectionLimits, Connections, Lingering, client_address
from whisper_byoc.errors import RequestRefused
from whisper_byoc.http import listening, server_tls

AMPLE = ConnectionLimits(total=100, per_address=100)
QUICK = ConnectionLimits(total=100, per_address=100, head_seconds=0.05)


@web.middleware
async def answer_refusals(request, handler):
    try:
        return await handler(request)
    except RequestRefused as error:
        return web.json_response({"error": str(error)}, status=error.status)


@contextlib.asynccontextmanager
async def serving(limits, tls=None):
    """Serve `/health`, and an echo at `/`; yield a function that opens a connection."""

    async def echo(request):
        return web.Response(body=await request.read())

    async def health(_):
        return web.Response(text="well")

    app = web.Application(middlewares=[answer_refusals])
    app.add_routes([web.post("/", echo), web.get("/health", health)])
    options = {"keep_alive_seconds": 60, "shutdown_seconds": 1, "limits": limits, "tls": tls}
    async with listening(app, "127.0.0.1", 0, **options) as port:
        writers = []

        async def connect(data=b"", **how):
            reader, writer = await asyncio.open_connection("127.0.0.1", port, **how)
            writers.append(writer)
            writer.write(data)
            return reader, writer

        try:
            yield connect
        finally:
            for writer in writers:
                writer.close()


def get(path):
    return b"GET %b HTTP/1.1\r\nHost: x\r\n\r\n" % path.encode()


def post(data):
    return b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(data), data)


async def answer(reader):
    """The status and the body of the next answer."""
    async with asyncio.timeout(20):
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:"))
        return int(head.split()[1]), await reader.readexactly(length)


async def is_over(reader):
    async with asyncio.timeout(20):
        return await reader.read() == b""


@pytest.mark.parametrize("begun", [b"", b"GET / HTTP/1.1\r\nHost: x\r\nX-Slow", post(b"abc") + b"POST / HTTP"])
async def test_a_head_that_does_not_come_is_408(begun):
    async with serving(QUICK) as connect:
        reader, writer = await connect(begun[:40])
        writer.write(begun[40:])
        if begun.startswith(b"POST"):
            assert await answer(reader) == (200, b"abc")
            writer.write(b"/1.1\r\n")
        status, body = await answer(reader)
        assert (status, "head of the request" in json.loads(body)["error"]) == (408, True)
        assert await is_over(reader)


async def test_a_slow_body_and_an_idle_connection_are_left_alone():
    async with serving(QUICK) as connect:
        reader, writer = await connect(post(b"12345")[:-4])
        idle_reader, idle_writer = await connect(post(b"idle"))
        assert await answer(idle_reader) == (200, b"idle")
        for piece in (b"2", b"3", b"4"):
            writer.write(piece)
            late, _ = await connect()  # whose time is over later
            assert (await answer(late))[0] == 408
        idle_writer.write(post(b"again"))
        assert await answer(idle_reader) == (200, b"again")
        writer.write(b"5")
        assert await answer(reader) == (200, b"12345")


async def test_the_body_is_asked_for_when_nobody_refuses_the_request():
    head = b"POST / HTTP/1.1\r\nHost: x\r\nExpect: %b\r\nContent-Length: 3\r\n\r\n"
    async with serving(ConnectionLimits(total=1, per_address=1, reserve=2)) as connect:
        reader, writer = await connect(head % b"100-Continue")
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b"abc")
        assert await answer(reader) == (200, b"abc")
        reserved, _ = await connect(head % b"100-continue")
        assert (await answer(reserved))[0] == 503
        writer.write(head % b"200-ok" + b"abc")
        status, body = await answer(reader)
        assert (status, "'200-ok'" in json.loads(body)["error"]) == (417, True)


@pytest.mark.parametrize("limits", [{"total": 2, "per_address": 9}, {"total": 9, "per_address": 2}])
async def test_beyond_the_limit_only_monitors_are_answered(limits, caplog):
    async with serving(ConnectionLimits(**limits, reserve=4, reserve_head_seconds=20)) as connect:
        first, _ = await connect(post(b"1"))
        second, writer = await connect(post(b"2"))
        assert (await answer(first), await answer(second)) == ((200, b"1"), (200, b"2"))
        reserved, _ = await connect(get("/health"))
        assert await answer(reserved) == (200, b"well")
        assert await is_over(reserved)  # the place is for the next monitor
        reserved, _ = await connect(post(b"3"))
        assert (await answer(reserved))[0] == 503
        holder, _ = await connect()
        reserved, _ = await connect(get("/health"))
        assert await answer(reserved) == (200, b"well")
        status, body = await answer(holder)  # which said nothing, and had the share of this address
        assert (status, "too many connections" in json.loads(body)["error"]) == (503, True)
        assert await is_over(holder)
        writer.close()

        async def has_room():
            reader, _ = await connect(post(b"4"))
            return await answer(reader) == (200, b"4")

        async with asyncio.timeout(20):
            while not await has_room():
                await asyncio.sleep(0)
    assert sum("no more are taken" in message for message in caplog.messages) == 1


async def test_who_says_nothing_keeps_no_place_of_the_reserve():
    async with serving(ConnectionLimits(total=1, per_address=1, reserve=2, reserve_head_seconds=0.05)) as connect:
        first, _ = await connect(post(b"1"))
        assert await answer(first) == (200, b"1")
        silent, _ = await connect()
        assert (await answer(silent))[0] == 408
        assert await is_over(silent)
        reader, _ = await connect(get("/health"))
        assert await answer(reader) == (200, b"well")


async def test_handshakes_that_do_not_end_count_as_connections(certificate, monkeypatch):
    trusting = {"ssl": ssl.create_default_context(cafile=certificate[0]), "server_hostname": "localhost"}
    limits = ConnectionLimits(total=2, per_address=2, reserve=8)
    monkeypatch.setattr(connections, "HANDSHAKE_SECONDS", 60)
    async with serving(limits, server_tls(*certificate)) as connect:
        for _ in range(2):
            await connect(b"\x16\x03\x01")
        reader, _ = await connect(get("/health"), **trusting)
        assert await answer(reader) == (200, b"well")
        reader, _ = await connect(post(b"1"), **trusting)
        assert (await answer(reader))[0] == 503
        held, _ = await connect()  # the share of this address in the reserve: it gives way to the next one
        reader, _ = await connect(get("/health"), **trusting)
        assert await answer(reader) == (200, b"well")
        with contextlib.suppress(ConnectionError):
            assert await is_over(held)


async def test_handshakes_that_do_not_end_are_ended(certificate, monkeypatch):
    trusting = {"ssl": ssl.create_default_context(cafile=certificate[0]), "server_hostname": "localhost"}
    async with serving(ConnectionLimits(total=2, per_address=2, reserve=8), server_tls(*certificate)) as connect:
        monkeypatch.setattr(connections, "HANDSHAKE_SECONDS", 0.05)
        for reader, _ in [await connect(b"\x16\x03\x01") for _ in range(2)]:
            with contextlib.suppress(ConnectionError):
                assert await is_over(reader)
        monkeypatch.setattr(connections, "HANDSHAKE_SECONDS", 60)
        reader, _ = await connect(post(b"2"), **trusting)
        assert await answer(reader) == (200, b"2")


async def test_bytes_that_are_no_request_are_one_line(caplog):
    async with serving(AMPLE) as connect:
        for _ in range(20):
            reader, _ = await connect(b"\x16\x03\x01\x1b[2J what is this\r\n\r\n")
            status, body = await answer(reader)
            assert (status, "no HTTP request" in json.loads(body)["error"]) == (400, True)
            assert await is_over(reader)
        reader, _ = await connect(get("/" + "a" * 9000))
        assert (await answer(reader))[0] == 400
    (record,) = [each for each in caplog.records if each.levelno >= logging.INFO]
    assert "127.0.0.1 are no HTTP request" in record.getMessage()
    assert "\n" not in record.getMessage()
    assert record.exc_info is None


async def test_descriptors_that_are_used_up_are_one_line(caplog):
    loop = asyncio.get_running_loop()
    async with serving(AMPLE):
        for _ in range(300):
            error = OSError(24, "Too many open files")
            loop.call_exception_handler({"message": "socket.accept() out of system resource", "exception": error})
        (message,) = caplog.messages
        assert "Too many open files" in message
        loop.call_exception_handler({"message": "something else"})
        assert caplog.messages[-1] == "something else"
    assert loop.get_exception_handler() is None


async def sends_on(writer, size):
    """Send so many bytes more; raise `ConnectionError` when the connection was reset."""
    for _ in range(size // 65536):
        writer.write(b"x" * 65536)
        await writer.drain()


@pytest.mark.parametrize(
    ("limits", "begun", "status"),
    [
        (ConnectionLimits(total=0, per_address=0, reserve=0), b"", 503),
        (QUICK, b"POST / HT", 408),
        (AMPLE, b"\x16\x03\x01\x02\x00\x01", 400),
        (AMPLE, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
        (AMPLE, b"POST /none HTTP/1.0\r\nContent-Length: 99999999\r\n\r\n", 404),
    ],
)
async def test_a_client_that_still_sends_has_its_last_answer_and_no_reset(limits, begun, status):
    async with serving(limits) as connect:
        reader, writer = await connect(begun)
        assert (await answer(reader))[0] == status
        assert await is_over(reader)
        await sends_on(writer, 4 << 20)


@pytest.mark.parametrize("bound", ["LINGER_BYTES", "LINGER_SECONDS"])
async def test_it_is_reset_when_it_does_not_stop(monkeypatch, bound):
    monkeypatch.setattr(connections, bound, 0)
    async with serving(ConnectionLimits(total=0, per_address=0, reserve=0)) as connect:
        reader, writer = await connect()
        assert (await answer(reader))[0] == 503
        with pytest.raises(ConnectionError):
            await sends_on(writer, 64 << 20)


async def test_a_client_that_has_reset_it_is_no_failure():
    loop, opened, lost = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()

    class Accepted(asyncio.Protocol):
        def connection_made(self, transport):
            self.transport = transport
            opened.set()

        def connection_lost(self, exc):
            lost.set()

    accepted, lingering = Accepted(), []
    async with await loop.create_server(lambda: accepted, "127.0.0.1", 0) as server:
        client = socket.create_connection(server.sockets[0].getsockname())
        await opened.wait()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        lingering.append(Lingering(accepted.transport, lingering))
        async with asyncio.timeout(20):
            await lost.wait()
        assert not lingering


async def test_the_oldest_of_too_many_that_linger_is_reset():
    async with serving(ConnectionLimits(total=0, per_address=0, reserve=0)) as connect:
        (first, oldest), (second, newest) = await connect(), await connect()
        assert [(await answer(each))[0] for each in (first, second)] == [503, 503]
        with pytest.raises(ConnectionError):
            await sends_on(oldest, 64 << 20)
        await sends_on(newest, 1 << 20)


class Holder:
    """A connection, as what counts them sees it."""

    def __init__(self, connections, address, *, idle=False):
        self.address, self.idle, self.connections = address, idle, connections
        self.reserved = connections.enter(self)

    def give_way(self):
        self.connections.leave(self)
        self.reserved = None


async def test_all_places_are_free_again():
    connections = Connections(ConnectionLimits(total=2, per_address=1, reserve=2))
    taken = [Holder(connections, address) for address in ("a", "a", "b", "c", "c", "a")]
    assert [each.reserved for each in taken] == [False, True, False, True, None, None]
    connections.leave(taken[0])
    assert Holder(connections, "c").reserved is False
    connections.leave(taken[3])
    assert Holder(connections, "c").reserved is True


async def test_one_that_says_nothing_gives_way_in_the_reserve():
    connections = Connections(ConnectionLimits(total=0, per_address=0, reserve=16))
    silent = [Holder(connections, f"bad-{n // 2}", idle=True) for n in range(16)]
    assert Holder(connections, "bad-3", idle=True).reserved  # in the place of one of its own
    assert [number for number, each in enumerate(silent) if each.reserved is None] == [6]
    monitors = [Holder(connections, "good") for _ in range(2)]
    assert all(each.reserved for each in monitors)
    assert [number for number, each in enumerate(silent) if each.reserved is None] == [0, 1, 6]
    assert Holder(connections, "good").reserved is None  # both are being answered


class Peer:
    def __init__(self, address):
        self.address = address

    def get_extra_info(self, _):
        return self.address


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        (("10.0.0.7", 1), "10.0.0.7"),
        (("::ffff:10.0.0.7", 1, 0, 0), "10.0.0.7"),
        (("2001:db8:1:2:3:4:5:6", 1, 0, 0), "2001:db8:1:2::/64"),
        (("fe80::1%eth0", 1, 0, 2), "fe80::/64"),
        ("/a/socket", ""),
    ],
)
def test_what_counts_as_one_client(peer, address):
    assert client_address(Peer(peer)) == address


def test_half_of_the_descriptors_are_for_clients():
    limits = ConnectionLimits.of_this_process()
    assert 0 < limits.per_address <= limits.total <= 10_000
