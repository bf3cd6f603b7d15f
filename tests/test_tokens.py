"""Bearer tokens: every listener has its own, and no line of a log has one."""

import asyncio
import logging

import aiohttp
import pytest

from tests.server.stubs import Sound
from tests.waiting import until
from whisper_byoc.livepeer import STREAM_ID
from whisper_byoc.network.gateway import Gateway, GatewayConfig
from whisper_byoc.server.registration import RegistrationOptions
from whisper_byoc.server.run import Server, ServerConfig
from whisper_byoc.trickle import ClientOptions, Refused, TricklePublisher, TrickleServer, TrickleSubscriber

TOKEN = "token-of-this-test"
SHOWN = {"Authorization": f"Bearer {TOKEN}"}


async def test_a_gateway_asks_its_clients_and_tells_monitors(http):
    async with Gateway.running(GatewayConfig("127.0.0.1", 0, token=TOKEN)) as node:
        url = f"http://127.0.0.1:{node.port}"
        for method, path in (
            ("GET", "/capabilities"),
            ("POST", "/live/video-to-video"),
            ("POST", "/process/request/x"),
        ):
            async with http.request(method, url + path) as answer:
                assert (answer.status, answer.headers["WWW-Authenticate"]) == (401, "Bearer")
                assert "send `Authorization: Bearer TOKEN`" in await answer.text()
            async with http.request(method, url + path, headers=SHOWN) as answer:
                assert answer.status != 401
        for path in ("/health", "/"):
            async with http.get(url + path) as answer:
                assert answer.status == 200
        async with http.get(f"{url}/page/server.json") as answer:
            assert (await answer.json())["wants_token"]


async def test_a_trickle_server_asks_publishers_and_subscribers():
    async with TrickleServer(autocreate=True).listening("127.0.0.1", 0, token=TOKEN) as url:
        showing, hiding = ClientOptions(token=TOKEN), ClientOptions(patience_seconds=0.05)
        async with (
            TricklePublisher(f"{url}a", options=showing) as publisher,
            TrickleSubscriber(f"{url}a", 0, options=ClientOptions(token=TOKEN, absent_seconds=5)) as subscriber,
        ):
            reading = asyncio.create_task(anext(subscriber))
            await publisher.publish(b"sound")
            assert await (await reading).read() == b"sound"
        with pytest.raises(Refused, match="401"):
            async with TrickleSubscriber(f"{url}a", 0, options=hiding) as subscriber:
                await anext(subscriber)


async def test_no_line_of_the_log_has_a_secret_whatever_is_sent(caplog, http):
    """Tokens in headers and in queries, secrets of orchestrators, passwords in addresses of channels."""
    caplog.set_level(logging.DEBUG)
    hidden = "hidden-from-logs"
    registration = RegistrationOptions(("http://127.0.0.1:9",), secret=hidden)
    config = ServerConfig("127.0.0.1", 0, token=TOKEN, stream_hosts=["127.0.0.1"], registration=registration)
    channel = f"http://user:{hidden}@127.0.0.1:9/ai/trickle/x"
    streams = {"a": {"subscribe_url": channel}, "b": {"subscribe_url": f"{channel}?key={hidden}"}}
    async with Server({"sound": Sound()}, config) as server:
        await server.loaded()
        server.join()
        url = f"http://127.0.0.1:{server.port}"
        for headers in (SHOWN, {"Authorization": f"Bearer {hidden}"}, SHOWN | {"Cookie": hidden}):
            for method, path, body in (
                ("PUT", f"/live/job/source?prompt={hidden}", b"abc"),
                ("GET", f"/live/nobody/output?wait=0&key={hidden}", None),
                ("POST", f"/nowhere?key={hidden}", b"abc"),
                ("BREW", f"/?key={hidden}", b""),
            ):
                async with http.request(method, url + path, data=body, headers=headers):
                    pass
        for name, urls in streams.items():
            async with http.post(
                f"{url}/stream/start", json={"gateway_request_id": name, **urls}, headers=SHOWN
            ) as answer:
                assert answer.status == 200
        await until(lambda: "http://127.0.0.1:9/ai/trickle/x: " in caplog.text and "stream b: " in caplog.text)
        for name in streams:
            async with http.post(f"{url}/stream/stop", headers=SHOWN | {STREAM_ID: name}):
                pass
    lines = [f"{record.name} {record.getMessage()} {record.exc_text}" for record in caplog.records]
    assert any("PUT /live/job/source from 127.0.0.1: 200" in line for line in lines)
    assert not [line for line in lines if hidden in line or TOKEN in line]


@pytest.fixture
async def http():
    async with aiohttp.ClientSession() as session:
        yield session
