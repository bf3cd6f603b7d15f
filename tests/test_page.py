"""The page's files, and that they need no token while everything else does."""

import base64

import aiohttp
import pytest

from whisper_byoc.page import PATHS

TOKEN = "open, sesame"


@pytest.fixture
async def guarded(serving, demo_processor):
    return await serving({"whisper-demo": demo_processor}, config={"token": TOKEN})


async def test_every_file_has_its_type_and_may_load_nothing_from_elsewhere(guarded):
    for path in PATHS:
        async with guarded.http.get(guarded.url + path) as answer:
            assert answer.status == 200
            assert answer.content_type in {
                "text/html",
                "text/css",
                "text/javascript",
                "image/svg+xml",
                "application/json",
            }
            assert "default-src 'none'" in answer.headers["Content-Security-Policy"]


async def test_the_page_knows_its_server(guarded):
    async with guarded.http.get(f"{guarded.url}/page/server.json") as answer:
        server = await answer.json()
    assert (server["role"], server["wants_token"]) == ("container", True)
    assert [(each["name"], each["media"]) for each in server["pipelines"]] == [("whisper-demo", "audio")]
    assert server["languages"]["de"] == "german"


@pytest.mark.parametrize(("method", "path"), [("POST", "/"), ("GET", "/page/none"), ("GET", "/live/a/output")])
async def test_no_other_request_goes_without_the_token(guarded, method, path):
    async with guarded.http.request(method, guarded.url + path) as answer:
        assert answer.status == 401


@pytest.mark.parametrize(("token", "status"), [(TOKEN, 101), ("wrong", 401), (None, 401)])
async def test_a_websocket_may_carry_the_token_as_a_subprotocol(guarded, token, status):
    encoded = base64.urlsafe_b64encode((token or "").encode()).decode().rstrip("=")
    protocols = ["whisper-byoc", *([f"base64url.bearer.{encoded}"] if token else [])]
    if status == 101:
        async with guarded.http.ws_connect(f"{guarded.url}/transcribe", protocols=protocols) as socket:
            assert socket.protocol == "whisper-byoc"
            await socket.send_str("eos")
        return
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        await guarded.http.ws_connect(f"{guarded.url}/transcribe", protocols=protocols)
    assert refused.value.status == status
