"""What orchestrators and routers expect of any BYOC worker, by plain HTTP.

The assertions follow pytrickle's own tests, as far as these speak HTTP. They run against a server of ours, or against
any other one: CONFORMANCE_URL=http://host:8000 pytest tests/conformance
"""

import asyncio
import os

import aiohttp
import pytest

GOOD = {
    "gateway_request_id": "conformance",
    "subscribe_url": "http://127.0.0.1:9/in",
    "publish_url": "http://127.0.0.1:9/out",
}
STATUSES = {"LOADING", "IDLE", "OK", "ERROR"}


class Echo:
    media = "audio"

    async def process(self, frame):
        return frame


@pytest.fixture
async def base(serving):
    if url := os.environ.get("CONFORMANCE_URL"):
        return url.rstrip("/")
    return (await serving(Echo(), jobs=4)).url


@pytest.fixture
async def http(base):
    async with aiohttp.ClientSession(base, timeout=aiohttp.ClientTimeout(total=30)) as session:
        yield session
        for _ in range(8):  # leave no stream behind
            async with session.get("/stream/status") as answer:
                running = (await answer.json()).get("streams", [])
            if not running:
                break
            async with session.post("/stream/stop", headers={"X-Stream-Id": running[0]}) as answer:
                await answer.read()


async def post(http, path, body, **options):
    async with http.post(path, json=body, **options) as answer:
        return answer.status, await answer.json()


async def get(http, path):
    async with http.get(path) as answer:
        return answer.status, await answer.json()


@pytest.mark.parametrize(
    "change",
    [
        {"gateway_request_id": None},
        {"gateway_request_id": 5},
        {"gateway_request_id": ""},
        {"subscribe_url": 7},
        {"params": "text"},
        {"params": [1]},
        {"params": {"width": 512}},
        {"params": {"height": 512}},
        {"params": {"width": -1, "height": 512}},
        {"params": {"width": 0, "height": 512}},
        {"params": {"width": "wide", "height": 512}},
        {"params": {"width": True, "height": 512}},
        {"params": {"max_framerate": 0}},
        {"params": {"max_framerate": 61}},
        {"params": {"max_framerate": "fast"}},
    ],
)
async def test_start_that_cannot_be_is_400_and_leaves_the_worker_idle(http, change):
    body = {name: value for name, value in (GOOD | change).items() if value is not None}
    status, answer = await post(http, "/stream/start", body)
    assert (status, answer["status"]) == (400, "error")
    assert answer["message"]
    assert await get(http, "/health") == (200, {"status": "IDLE"})


@pytest.mark.parametrize("body", ["[]", '"x"', "nothing", ""])
async def test_start_with_a_body_that_is_no_object_is_400(http, body):
    async with http.post("/stream/start", data=body, headers={"Content-Type": "application/json"}) as answer:
        assert answer.status == 400
        assert (await answer.json())["status"] == "error"


async def test_start_needs_json_by_its_content_type(http):
    async with http.post("/stream/start", data=b"{}", headers={"Content-Type": "text/plain"}) as answer:
        assert answer.status == 400


async def test_params_and_stop_without_a_stream_are_400(http):
    status, answer = await post(http, "/stream/params", {"language": "en"})
    assert (status, answer["status"]) == (400, "error")
    status, answer = await post(http, "/stream/stop", {})
    assert status == 400
    assert "No active stream" in answer["message"]


async def test_status_without_a_stream(http):
    status, answer = await get(http, "/stream/status")
    assert status == 200
    assert answer["client_active"] is False
    assert answer["active_streams"] == 0
    assert answer["pipeline_ready"] is True
    assert answer["startup_complete"] is True
    assert {"status", "state", "error_message", "pipeline_state", "additional_info"} <= set(answer)


@pytest.mark.parametrize("prefix", ["", "/api"])
async def test_a_stream_from_start_to_stop(http, prefix):
    status, answer = await post(http, f"{prefix}/stream/start", GOOD | {"params": None})
    assert (status, answer["status"], answer["request_id"]) == (200, "success", "conformance")
    assert answer["current_state"]["active_streams"] == 1
    status, answer = await get(http, f"{prefix}/stream/status")
    assert answer["client_active"] is True
    assert answer["current_params"]["gateway_request_id"] == "conformance"
    assert answer["current_params"]["subscribe_url"] == GOOD["subscribe_url"]
    assert (await get(http, "/health"))[1] == {"status": "OK"}
    status, answer = await post(http, f"{prefix}/stream/params", {"anything": "goes"})
    assert (status, answer["status"]) == (200, "success")
    status, answer = await post(http, f"{prefix}/stream/stop", {})
    assert (status, answer["status"]) == (200, "success")
    assert (await get(http, "/health"))[1] == {"status": "IDLE"}


async def test_other_name_of_start(http):
    assert (await post(http, "/live-video-to-video", GOOD))[0] == 200


async def test_starts_at_once_with_one_id(http):
    answers = await asyncio.gather(*(post(http, "/stream/start", GOOD) for _ in range(3)))
    assert sorted(status for status, _ in answers) == [200, 400, 400]
    assert (await get(http, "/stream/status"))[1]["active_streams"] == 1


async def test_versions(http):
    status, answer = await get(http, "/version")
    assert status == 200
    assert set(answer) == {"pipeline", "model_id", "version"}
    assert set((await get(http, "/app-version"))[1]) == {"version"}


async def test_health_is_one_word(http):
    status, answer = await get(http, "/health")
    assert status == 200
    assert set(answer) == {"status"}
    assert answer["status"] in STATUSES


async def test_hardware(http):
    status, answer = await get(http, "/hardware/info")
    assert status == 200
    assert {"pipeline", "model_id", "gpu_info"} <= set(answer)
    status, answer = await get(http, "/hardware/stats")
    assert status == 200
    assert {"pipeline", "model_id", "gpu_stats"} <= set(answer)


@pytest.mark.parametrize(
    "path", ["/health", "/version", "/app-version", "/hardware/info", "/hardware/stats", "/stream/status"]
)
async def test_every_get_answers_with_an_object(http, path):
    status, answer = await get(http, path)
    assert status in (200, 500, 503)
    assert isinstance(answer, dict)
