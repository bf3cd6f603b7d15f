"""What gateway and orchestrator have in common as servers."""

import aiohttp

from whisper_byoc.network.gateway import Gateway, GatewayConfig


async def test_a_route_that_there_is_not_says_who_lacks_it(caplog):
    caplog.set_level("INFO")
    config = GatewayConfig("127.0.0.1", 0, ["http://127.0.0.1:9"])
    async with Gateway.running(config) as gateway, aiohttp.ClientSession() as http:
        url = f"http://127.0.0.1:{gateway.port}"
        async with http.put(f"{url}/live/a/source") as answer:
            told = {"error": "PUT /live/a/source: this gateway has no such route"}
            assert (answer.status, await answer.json()) == (404, told)
        async with http.post(f"{url}/health") as answer:
            assert (answer.status, answer.headers["Allow"]) == (405, "GET,HEAD")
    assert f"gateway listening on port {gateway.port}" in caplog.messages
