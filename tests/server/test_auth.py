"""The bearer token: on everything but what monitors ask, and never a 401 without one configured."""

import json

import aiohttp
import pytest

from tests.server.stubs import Upper
from whisper_byoc.server.run import Server, ServerConfig

TOKEN = "kÿ-token"


@pytest.fixture
async def guarded():
    config = ServerConfig("127.0.0.1", 0, token=TOKEN)
    async with Server({"upper": Upper()}, config) as server, aiohttp.ClientSession() as http:
        await server.loaded()
        yield lambda method, path, **options: http.request(method, f"http://127.0.0.1:{server.port}{path}", **options)


@pytest.mark.parametrize("path", ["/health", "/metrics", "/"])
async def test_open_paths_are_open_to_readers_only(guarded, path):
    async with guarded("POST", path, data=b"abc") as answer:
        assert answer.status == 401


WORK = [("PUT", "/live/job/source"), ("GET", "/live/job/output?wait=0"), ("DELETE", "/live/job"), ("GET", "/nowhere")]


@pytest.mark.parametrize(("method", "path"), WORK)
@pytest.mark.parametrize(
    "shown",
    [None, "", "Bearer", "Bearer ", "Bearer wrong", f"Bearer {TOKEN}x", f"Basic {TOKEN}", TOKEN, "Bearer \udcff"],
)
async def test_work_without_the_token_is_401(guarded, method, path, shown):
    headers = {} if shown is None else {"Authorization": shown.encode("utf-8", "surrogateescape").decode("latin-1")}
    async with guarded(method, path, headers=headers) as answer:
        assert answer.status == 401
        assert answer.headers["WWW-Authenticate"] == "Bearer"
        assert list(await answer.json()) == ["error"]
        assert TOKEN not in await answer.text()


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "Bearer "])
async def test_work_with_the_token(guarded, scheme):
    headers = {"Authorization": f"{scheme} {TOKEN}"}
    async with guarded("PUT", "/live/job/source", data=b"abc", headers=headers) as answer:
        assert answer.status == 200
    async with guarded("GET", "/live/job/output?wait=5", headers=headers) as answer:
        assert await answer.read() == b"ABC"
    async with guarded("GET", "/nowhere", headers=headers) as answer:
        assert answer.status == 404


@pytest.mark.parametrize("path", ["/health", "/healthz", "/readyz", "/version", "/metrics"])
async def test_monitors_need_no_token(guarded, path):
    async with guarded("GET", path) as answer:
        assert answer.status == 200


@pytest.mark.parametrize("path", ["//health", "/health/", "/live/health/source", "/health%2f..%2flive/job/output"])
async def test_no_way_around(guarded, path):
    async with guarded("GET", path) as answer:
        assert answer.status == 401


async def test_no_401_without_a_token(serving):
    api = await serving(Upper())
    status, _, _ = await api.put("job", b"abc", headers={"Authorization": "Bearer anything"})
    assert status == 200


async def test_jobs_are_described_to_whoever_has_the_token_and_to_nobody_else(guarded, serving):
    headers = {"Authorization": f"Bearer {TOKEN}"}
    async with guarded("PUT", "/live/job/source?prompt=private", data=b"abc", headers=headers) as answer:
        assert answer.status == 200
    async with guarded("GET", "/debug/jobs", headers=headers) as answer:
        text = await answer.text()
    (job,) = json.loads(text)["jobs"]
    told = {"job_id": "job", "pipeline": "upper", "client": "127.0.0.1", "has_feed": False, "ended": False}
    assert job.items() >= told.items()
    assert "private" not in text
    async with guarded("GET", "/debug/jobs") as answer:
        assert answer.status == 401
    assert (await (await serving(Upper())).json("/debug/jobs"))[0] == 404
