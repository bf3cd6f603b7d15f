"""Addresses as go-livepeer takes them, and a listener that says why it cannot be."""

import asyncio

import aiohttp
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from whisper_byoc.errors import StartError, UsageError
from whisper_byoc.network.serving import Address, base_url, listening
from whisper_byoc.network.tasks import Tasks, within


@pytest.mark.parametrize(
    ("text", "scheme", "host", "port", "listen"),
    [
        ("127.0.0.1:8936", "", "127.0.0.1", 8936, "127.0.0.1"), ("127.0.0.1", "", "127.0.0.1", 1, "127.0.0.1"),
        (":8936", "", "", 8936, "0.0.0.0"), ("0.0.0.0:0", "", "0.0.0.0", 0, "0.0.0.0"),
        ("localhost:1", "", "localhost", 1, "localhost"), ("example.org:80", "", "example.org", 80, "0.0.0.0"),
        ("http://example.org", "http", "example.org", 1, "0.0.0.0"), ("[::1]:80", "", "[::1]", 80, "::1"),
        ("https://a:1/base/", "https", "a", 1, "0.0.0.0"), (" a:1 ", "", "a", 1, "0.0.0.0"),
    ],
)  # fmt: skip
def test_addresses(text, scheme, host, port, listen):
    address = Address(text, 1)
    assert (address.scheme, address.host, address.port, address.listen_host) == (scheme, host, port, listen)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "a:b",
        "a:99999",
        "a:123456",
        "ftp://a",
        "a b:1",
        "a:1?x",
        "http://u:p@h",
        "u@h:1",
        "::1",
        "a#b:1",
        "a..b:1",
        "http://.a",
        "a" * 64,
    ],
)
def test_what_is_no_address(text):
    with pytest.raises(UsageError, match=r"is not an address such as 127\.0\.0\.1:8936"):
        Address(text, 8936)


@given(st.text(max_size=30))
def test_any_text_is_an_address_or_a_usage_error(text):
    try:
        address = Address(text, 8936)
    except UsageError:
        return
    assert 0 <= address.port <= 65535


@pytest.mark.parametrize(
    ("text", "url"),
    [("127.0.0.1:8000", "http://127.0.0.1:8000"), ("https://w:1/base/", "https://w:1/base"), ("w", "http://w:7")],
)
def test_urls_of_peers(text, url):
    assert base_url(text, 7) == url


def test_a_peer_needs_a_host():
    with pytest.raises(UsageError, match="names no host"):
        base_url(":8000", 8000)


async def test_a_port_in_use_is_one_sentence(caplog):
    async with listening(web.Application(), "127.0.0.1", 0, "orchestrator") as port:
        with pytest.raises(StartError, match=rf"cannot listen on 127\.0\.0\.1:{port}: .*another program"):
            async with listening(web.Application(), "127.0.0.1", port, "gateway"):
                pass


async def test_the_port_is_logged(caplog):
    caplog.set_level("INFO")
    async with listening(web.Application(), "127.0.0.1", 0, "orchestrator") as port:
        assert port > 0
        assert f"orchestrator listening on port {port}" in [each.message for each in caplog.records]


async def test_an_address_that_is_not_ours_is_one_sentence():
    with pytest.raises(StartError, match=r"cannot listen on 192\.0\.2\.1:80"):
        async with listening(web.Application(), "192.0.2.1", 80, "orchestrator"):
            pass


# -- tasks -----------------------------------------------------------------------------------------------


async def test_within_gives_the_result_or_its_error_or_a_timeout():
    async def work(value=None):
        if isinstance(value, Exception):
            raise value
        await asyncio.sleep(60 if value is None else 0)
        return value

    assert await within(5, work(7)) == 7
    with pytest.raises(ValueError, match="x"):
        await within(5, work(ValueError("x")))
    with pytest.raises(asyncio.TimeoutError):
        await within(0.01, work())


async def test_within_does_not_forget_a_cancellation_when_the_work_is_done_in_that_moment():
    done = asyncio.get_running_loop().create_future()

    async def work():
        return await done

    async def use():
        await within(5, work())
        return "went on"

    using = asyncio.ensure_future(use())
    await asyncio.sleep(0.01)
    done.set_result(None)
    await asyncio.sleep(0)  # the work is done, and who waits for it has not been told
    using.cancel()
    with pytest.raises(asyncio.CancelledError):
        await using


async def test_tasks_are_waited_for_then_cancelled_and_their_errors_logged(caplog):
    tasks, ended = Tasks(), []

    async def work(seconds, error=None):
        try:
            await asyncio.sleep(seconds)
            if error:
                raise error
        finally:
            ended.append(seconds)

    for seconds, error in ((0, ValueError("a bug")), (0.02, None), (60, None)):
        tasks.start(work(seconds, error))
    assert len(tasks) == 3
    await tasks.close(grace_seconds=0.2)
    assert ended == [0, 0.02, 60]
    assert "a background task failed" in caplog.text
    assert len(tasks) == 0


async def test_a_route_that_there_is_not_says_who_lacks_it():
    async def here(_):
        return web.Response()

    app = web.Application()
    app.router.add_get("/here", here)
    async with listening(app, "127.0.0.1", 0, "gateway") as port, aiohttp.ClientSession() as http:
        async with http.put(f"http://127.0.0.1:{port}/live/a/source") as answer:
            told = {"error": "PUT /live/a/source: this gateway has no such route"}
            assert (answer.status, await answer.json()) == (404, told)
        async with http.post(f"http://127.0.0.1:{port}/here") as answer:
            assert (answer.status, answer.headers["Allow"]) == (405, "GET,HEAD")
