"""Addresses, listeners, bounded bodies, lines and JSON."""

import asyncio
import gzip
import socket

import aiohttp
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from whisper_byoc.errors import RequestRefused, StartError, UsageError
from whisper_byoc.http import (
    base_url,
    json_object,
    json_value,
    lines,
    listening,
    open_session,
    reachable,
    read_body,
    reason_of,
)


@pytest.mark.parametrize(
    ("text", "options", "url"),
    [
        ("http://host:8000/", {}, "http://host:8000"),
        (" https://host/base/ ", {}, "https://host/base"),
        ("host", {"scheme": "https"}, "https://host"),
        ("host:1", {"scheme": "http", "port": 8935}, "http://host:1"),
        ("host", {"scheme": "http", "port": 8935}, "http://host:8935"),
        ("http://[::1]/x", {"port": 80}, "http://[::1]:80/x"),
        ("http://user:pass@host", {"credentials": True}, "http://user:pass@host"),
    ],
)
def test_an_address_becomes_a_base_url(text, options, url):
    assert base_url(text, **options) == url


@pytest.mark.parametrize(
    ("host", "reached"),
    [("0.0.0.0", "worker"), ("::", "worker"), ("", "worker"), ("10.0.0.7", "10.0.0.7"), ("fd00::7", "[fd00::7]")],
)
def test_where_a_listener_is_reached(host, reached):
    assert reachable(host, "worker") == reached


@pytest.mark.parametrize(
    "text",
    ["", "host", "ftp://host", "http://", "http://host:0", "http://host:99999", "http://a..b", "http://.a",
     "http://a b", "http://host?x", "http://host#x", "http://host\\x", "http://ho\nst", "http://[::1",
     "http://" + "a" * 64],
)  # fmt: skip
def test_what_is_no_address_is_named(text):
    with pytest.raises(UsageError, match="is not the address of a server, such as http://localhost:8000"):
        base_url(text)


@given(st.text(max_size=30))
def test_any_text_is_an_address_or_a_usage_error(text):
    try:
        base_url(text, scheme="http", port=1)
    except UsageError:
        return


def test_a_password_in_an_address_is_refused_and_not_shown():
    with pytest.raises(UsageError) as caught:
        base_url("http://me:secret@host")
    assert "secret" not in str(caught.value)


async def echo(request):
    limit = int(request.query["limit"])
    refusal = RequestRefused(413, "too large") if "refuse" in request.query else None
    return web.Response(body=await read_body(request.content, limit, refusal))


@pytest.fixture
async def server():
    app = web.Application()
    app.add_routes([web.post("/", echo)])
    async with listening(app, "127.0.0.1", 0, keep_alive_seconds=5, shutdown_seconds=1) as port, open_session() as http:
        yield http, port


async def test_a_body_is_read_up_to_a_limit(server):
    http, port = server
    async with http.post(f"http://127.0.0.1:{port}/?limit=5", data=b"12345") as answer:
        assert await answer.read() == b"12345"
    async with http.post(f"http://127.0.0.1:{port}/?limit=5", data=b"1234567") as answer:
        assert await answer.read() == b"12345"
    async with http.post(f"http://127.0.0.1:{port}/?limit=5&refuse=1", data=b"1234567") as answer:
        assert answer.status == 500


async def test_a_compressed_body_arrives_as_it_was_sent(server):
    http, port = server
    packed = gzip.compress(bytes(10_000))
    async with http.post(
        f"http://127.0.0.1:{port}/?limit=9999", data=packed, headers={"Content-Encoding": "gzip"}
    ) as answer:
        assert await answer.read() == packed


async def test_an_address_in_use_is_told(server):
    _, port = server
    with pytest.raises(StartError, match=f"port {port} on 127.0.0.1 is in use"):
        async with listening(web.Application(), "127.0.0.1", port, keep_alive_seconds=5, shutdown_seconds=1):
            pass
    with pytest.raises(StartError, match=r"cannot listen on 192\.0\.2\.1 port 0"):
        async with listening(web.Application(), "192.0.2.1", 0, keep_alive_seconds=5, shutdown_seconds=1):
            pass


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this machine has no IPv6")
async def test_one_setting_listens_on_ipv4_and_ipv6():
    app = web.Application()
    app.add_routes([web.post("/", echo)])
    async with listening(app, "::", 0, keep_alive_seconds=5, shutdown_seconds=1) as port, open_session() as http:
        for host in ("127.0.0.1", "[::1]"):
            async with http.post(f"http://{host}:{port}/?limit=5", data=b"12345") as answer:
                assert await answer.read() == b"12345"
        with pytest.raises(StartError, match=f"port {port} on :: is in use"):
            async with listening(web.Application(), "::", port, keep_alive_seconds=5, shutdown_seconds=1):
                pass


async def test_a_client_tries_every_address_of_a_name(server, monkeypatch):
    """As where localhost is ::1 first, and the server listens on 127.0.0.1 alone."""
    http, port = server

    def resolve(host, port, *_, **__):
        addresses = ((socket.AF_INET6, ("::1", port, 0, 0)), (socket.AF_INET, ("127.0.0.1", port)))
        return [(family, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", address) for family, address in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    async with http.post(f"http://localhost:{port}/?limit=5", data=b"12345") as answer:
        assert await answer.read() == b"12345"


async def failure(url):
    async with open_session(total_seconds=5) as session:
        with pytest.raises(aiohttp.ClientError) as caught:
            await session.get(url)
    return caught.value


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost"])
async def test_a_refused_connection_is_told_as_the_system_does(name):
    with socket.socket() as bound:  # bound and not listening: nobody else can take the port meanwhile
        bound.bind(("127.0.0.1", 0))
        reason = reason_of(await failure(f"http://{name}:{bound.getsockname()[1]}/"))
    assert "refused" in reason
    assert "ssl" not in reason


async def test_a_peer_that_does_not_speak_tls_is_told():
    async def accepted(reader, writer):
        await reader.read(100)
        writer.write(b"no TLS here\r\n")
        writer.close()

    peer = await asyncio.start_server(accepted, "127.0.0.1", 0)
    async with peer:
        reason = reason_of(await failure(f"https://127.0.0.1:{peer.sockets[0].getsockname()[1]}/"))
    assert "ssl" in reason.lower()


def test_errors_without_a_text_have_a_name():
    assert reason_of(TimeoutError()) == "no answer in time"
    assert reason_of(ConnectionResetError()) == "ConnectionResetError"
    assert reason_of(aiohttp.ClientPayloadError("Response payload is not completed")) == "the connection broke off"


async def each(chunks):
    for chunk in chunks:
        yield chunk


@given(st.lists(st.binary(max_size=8) | st.sampled_from([b"\n", b"a\nb", b"\n\n", b"a\r\n"])))
def test_lines_do_not_depend_on_where_the_chunks_were_cut(chunks):
    async def collect():
        return [line async for line in lines(each(chunks), 1000, ValueError())]

    expected = b"".join(chunks).split(b"\n")
    assert asyncio.run(collect()) == (expected if expected[-1] else expected[:-1])


@given(st.lists(st.binary(max_size=6)))
def test_no_line_is_longer_than_the_limit(chunks):
    async def collect():
        return [line async for line in lines(each(chunks), 5, ValueError("too long"))]

    if max(map(len, b"".join(chunks).split(b"\n"))) <= 5:
        asyncio.run(collect())
    else:
        with pytest.raises(ValueError, match="too long"):
            asyncio.run(collect())


def test_json_from_outside():
    assert json_value("[1]") == [1]
    assert json_object(b"") == {}
    assert json_object('{"a": 1}') == {"a": 1}
    with pytest.raises(ValueError, match="nested"):
        json_value("[" * 100_000)
    for body in (b"[]", b"{", b"\xff", "[" * 100_000):
        with pytest.raises(RequestRefused, match="the body") as caught:
            json_object(body)
        assert caught.value.status == 400
