"""`POST /process/request/…` through both hops: go-livepeer's requests, with answers that tell what happened."""

import asyncio
import base64
import json
import os

import pytest
from yarl import URL


class Batch:
    """A container's own routes."""

    def __init__(self):
        self.asked = []

    async def __call__(self, wire):
        body = await wire.body()
        self.asked.append((f"{wire.path}?{wire.query}", wire.headers, body))
        route = wire.path.strip("/")
        if route == "json":
            await wire.answer(200, b'{"a": 1}', Content_Type="application/json", X_Metadata="m")
        elif route.isdigit():
            await wire.answer(int(route), b'{"error": "because"}', Retry_After=7)
        elif route == "sse":
            await wire.begin(Content_Type="text/event-stream")
            for piece in (b"data: 1\n\n", b"data: 2\n\n", b""):
                await wire.piece(piece)
        else:
            await wire.answer(200, body)


async def batch_pair(world, count=1):
    """Orchestrators with one scripted container each."""
    containers = [Batch() for _ in range(count)]
    scripts = [await world.script(each) for each in containers]
    orchestrators = [await world.orchestrator(urls=[each.url]) for each in scripts]
    return containers, orchestrators, await world.gateway(*orchestrators)


async def test_a_batch_job_through_both_hops(world):
    (container,), (orchestrator,), gateway = await batch_pair(world)
    body = os.urandom(200_000)
    status, answer, headers = await gateway.batch(body, "some/route?a=1&a=2&b=%26", **{"Content-Type": "x/y"})
    assert (status, answer) == (200, body)
    path, sent, received = container.asked[-1]
    assert received == body
    assert path == "/some/route?a=1&a=2&b=%26"
    assert sent["content-type"] == "x/y"
    status, answer, headers = await gateway.batch(b"{}", "json")
    assert (status, answer) == (200, b'{"a": 1}')
    assert headers["Content-Type"] == "application/json"
    assert (headers["X-Metadata"], headers["Livepeer-Balance"]) == ("m", "0")
    assert headers["X-Orchestrator-Url"] == orchestrator.url
    await gateway.settled()
    assert orchestrator.slots == 0


async def test_a_chunked_batch_body_and_no_route(world):
    (container,), _, gateway = await batch_pair(world)

    async def body():
        yield b"abc"
        yield b"def"

    status, answer, _ = await gateway.batch(body())
    assert (status, answer) == (200, b"abcdef")
    assert container.asked[-1][0] == "/?"


async def test_a_route_stays_what_it_is(world):
    (container,), _, gateway = await batch_pair(world)
    url = URL(f"{gateway.url}/process/request/a%3Fb", encoded=True)
    async with gateway.http.post(url, data=b"x", headers={"Livepeer": world.header()}) as answer:
        assert answer.status == 200
    assert container.asked[-1][0] == "/a%3Fb?"
    for bad in ("/process/request/../../ai/stream/stop", "/process/request/%2e%2e/x"):
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.running.port)
        head = f"POST {bad} HTTP/1.1\r\nHost: x\r\nLivepeer: {world.header()}\r\nContent-Length: 0\r\n\r\n"
        writer.write(head.encode())
        assert (await reader.readline()).split()[1] in (b"400", b"404")
        writer.close()
    assert len(container.asked) == 1


@pytest.mark.parametrize(
    ("job", "words"),
    [
        ("", "missing"),
        ("not base64!", "base64"),
        ("W10=", "object"),
        ({"capability": ""}, "capability"),
        ({"seconds": 0}, "timeout_seconds"),
        ({"request": "x"}, ""),
        ({"capability": "a\nb"}, "a\\nb"),
        ({"capability": "\ud800"}, ""),
    ],
)
async def test_a_job_that_is_not_one(world, job, words):
    _, _, gateway = await batch_pair(world)
    value = world.header(**job) if isinstance(job, dict) else job
    headers = {"Livepeer": value} if value else {}
    if job == {"request": "x"}:
        fields = {"capability": "test", "timeout_seconds": 1, "request": "x", "parameters": "{}"}
        headers = {"Livepeer": base64.b64encode(json.dumps(fields).encode()).decode()}
    status, body, _ = await gateway.post("/process/request/x", b"", headers=headers)
    assert status == 400
    assert words in body.decode()
    assert body.endswith(b"\n")


async def test_an_unknown_capability_is_what_the_orchestrator_says(world):
    _, _, gateway = await batch_pair(world)
    status, body, _ = await gateway.batch(b"", job={"capability": "other"})
    assert status == 503
    assert "No capacity available for capability other" in body.decode()


@pytest.mark.parametrize("status", [404, 429, 500, 503])
async def test_error_codes_of_a_container_are_seen_by_the_client(world, status):
    _, (orchestrator,), gateway = await batch_pair(world)
    got, body, headers = await gateway.batch(b"x", str(status))
    assert got == status
    assert body == b"because\n"
    if status in (429, 503):
        assert headers["Retry-After"] == "7"
    await gateway.settled()
    assert orchestrator.slots == 0


async def test_an_event_stream_ends_properly_and_runs_once(world):
    containers, _, gateway = await batch_pair(world, 2)
    status, body, headers = await gateway.batch(b"x", "sse")
    assert (status, body) == (200, b"data: 1\n\ndata: 2\n\n")
    assert headers["Content-Type"] == "text/event-stream"
    assert sum(len(each.asked) for each in containers) == 1
