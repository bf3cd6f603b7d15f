"""Refusals out of error answers, addresses and tokens."""

import pytest
from aiohttp import web

from whisper_byoc import GatewayClient
from whisper_byoc.errors import SegmentFailed, ServerRefused, UsageError


@pytest.mark.parametrize(
    ("status", "body", "kind", "message"),
    [
        (404, '{"error": "model not found: \'x\'; there are: a, b"}', ServerRefused, "model not found: 'x'"),
        (500, '{"error": "ValueError: no", "seq": 3}', SegmentFailed, "ValueError: no"),
        (500, '{"error": "no", "seq": "3"}', ServerRefused, "no"),
        (502, "<html>Bad gateway</html>", ServerRefused, "<html>Bad gateway</html>"),
        (503, "", ServerRefused, "Service Unavailable"),
        (400, "[" * 100_000, ServerRefused, r"\[\[\["),
        (400, "[]", ServerRefused, r"\[\]"),
        (400, b"\xff\xfe", ServerRefused, "\ufffd\ufffd"),
    ],
)
async def test_every_error_answer_is_one_exception(gateway, status, body, kind, message):
    async def refuse(_):
        return web.Response(status=status, body=body if isinstance(body, bytes) else body.encode())

    await gateway.serve(refuse)
    async with GatewayClient(gateway.url, "x") as client:
        with pytest.raises(kind, match=message) as caught:
            await client.process_frame(b"frame")
        assert getattr(caught.value, "status", 500) == status
        assert len(str(caught.value)) <= 200
        with pytest.raises(kind, match=message):
            async for _ in client.stream(b"feed"):
                pass


async def test_an_error_answer_that_breaks_off_still_has_its_status(gateway):
    async def refuse(request):
        answer = web.StreamResponse(status=502, headers={"Content-Length": "100"})
        await answer.prepare(request)
        await answer.write(b"{")
        request.transport.abort()
        return answer

    await gateway.serve(refuse)
    async with GatewayClient(gateway.url, "x") as client:
        with pytest.raises(ServerRefused, match="Bad Gateway"):
            await client.process_frame(b"frame")


@pytest.mark.parametrize("url", ["localhost:8935", "ftp://host", ""])
def test_what_is_no_address_is_refused_at_once(url):
    with pytest.raises(UsageError, match="is not the address of a server"):
        GatewayClient(url, "x")


def test_a_token_beside_a_user_in_the_address_is_wrong_usage():
    with pytest.raises(UsageError, match="only one of them"):
        GatewayClient("http://user:secret@localhost:1", token="another")
    GatewayClient("http://user:secret@localhost:1")
