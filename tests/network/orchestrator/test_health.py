"""Containers are followed: they come, refuse, fall silent, die and come back."""

import asyncio
import json
import logging

import pytest

from tests.waiting import until
from whisper_byoc.aio import stop_listening
from whisper_byoc.network import pool


async def test_a_container_without_readyz_is_ready_when_its_health_does_not_object(orchestrate):
    writers = []
    said = {"/readyz": (404, {}), "/health": (200, {"status": "LOADING"}), "/version": (404, {})}

    async def run(reader, writer):
        writers.append(writer)
        while line := await reader.readline():
            path = line.split()[1].decode().partition("?")[0]
            await reader.readuntil(b"\r\n\r\n")
            status, body = said[path]
            body = json.dumps(body).encode()
            writer.write(b"HTTP/1.1 %d x\r\nContent-Length: %d\r\n\r\n%b" % (status, len(body), body))

    listener = await asyncio.start_server(run, "127.0.0.1", 0)
    api = await orchestrate(f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}", wait=False)
    (container,) = api.pool
    await until(lambda: container.trouble == "its health is LOADING")
    assert not container.ready
    for good in ("IDLE", "OK", 7, None):
        said["/health"] = (200, {"status": good})
        await until(lambda: container.ready)
        said["/health"] = (200, {"status": "ERROR"})
        await until(lambda: not container.ready)
    said["/health"] = (404, {})  # anybody's container
    await until(lambda: container.ready)
    said["/health"] = (500, {})
    await until(lambda: container.trouble == "its health is 500")
    said["/readyz"] = (503, {"reasons": ["loading", "stuck"]})
    await until(lambda: container.trouble == "loading; stuck")
    said["/readyz"] = (503, {})
    await until(lambda: container.trouble == "it is not ready")
    said["/readyz"] = (200, {})
    await until(lambda: container.ready)
    await stop_listening(listener)
    for writer in writers:
        writer.transport.abort()


async def test_a_container_that_loads_and_drains_keeps_its_jobs_and_gets_no_new_ones(serving, orchestrate, kit):
    gate = kit.Gated()
    container = await serving({"test": gate})
    api = await orchestrate(container)
    working = asyncio.ensure_future(api.live(b"x"))
    await until(lambda: gate.begun == 1)
    container.table.draining = True
    await until(lambda: not api.pool.free("test"))
    assert (await api.live(b"y"))[0] == 502
    gate.open.set()
    assert (await working)[:2] == (200, b"x")
    await api.quiet()


async def test_a_container_that_dies_is_lost_at_once_and_comes_back(scripted, orchestrate, caplog):
    caplog.set_level(logging.INFO)

    async def answer(wire):
        await wire.answer(200)

    container = await scripted(answer)
    api = await orchestrate(container)
    await container.close()
    await until(lambda: not api.pool.free("test"))
    assert f"BYOC capability lost: test ({container.url}): " in caplog.text
    status, shown = await api.json("/capabilities")
    assert status == 200
    assert shown["capabilities"][0]["containers"][0]["trouble"]
    await container.listen()
    await api.ready()
    assert [each.message for each in caplog.records].count("BYOC capability registered: test") == 2
    assert (await api.batch(b"x"))[0] == 200


async def test_a_container_that_has_said_nothing_for_a_while_comes_last(scripted, orchestrate, monkeypatch):
    monkeypatch.setattr(pool, "STALE_S", 600.0)

    async def answer(wire):
        await wire.body()
        await wire.answer(200)

    larger, smaller = [await scripted(answer) for _ in range(2)]
    api = await orchestrate(pool.Container("test", larger.url, 60), pool.Container("test", smaller.url, 4))
    assert (await api.batch(b"x"))[0] == 200
    assert (larger.count("POST"), smaller.count("POST")) == (1, 0)
    larger.frozen = True
    await until(lambda: larger.hanging)  # so no answer of it is on its way
    api.pool.of("test")[0].heard -= 601
    assert [each.rank[0] for each in api.pool] == [False, True]
    assert (await api.batch(b"x"))[0] == 200
    assert (larger.count("POST"), smaller.count("POST")) == (1, 1)
    larger.frozen = False


async def test_a_container_that_falls_silent_is_lost_after_three_silences(scripted, orchestrate):
    async def answer(wire):
        await asyncio.Event().wait()

    container = await scripted(answer)
    api = await orchestrate(container, answer_seconds=0.2)
    working = asyncio.ensure_future(api.batch(b"x", timeout=60))
    await until(lambda: container.asked)
    container.frozen = True
    status, body, _ = await working
    assert status == 502
    assert b"3 times in a row it gave no answer" in body
    container.frozen = False
    await api.ready()
    await api.quiet()


@pytest.mark.parametrize(
    "body", [b"x", b"[]", b"[" * 100_000, b'{"model_id":7}', b'{"model_id":""}', b"{" + b" " * 90_000]
)
async def test_nonsense_about_itself_neither_ends_the_following_nor_the_jobs(scripted, orchestrate, body):
    async def answer(wire):
        await wire.answer(200)

    container = await scripted(answer)
    container.told["/version"] = 200, body
    api = await orchestrate(container)
    (known,) = api.pool
    for _ in range(3):
        known.not_ready("again")
        await api.ready()
    assert known.pipelines == ()
    assert (await api.batch(b"x"))[0] == 200


async def test_its_pipelines_are_learned_and_named_in_requests(scripted, orchestrate):
    queries = []

    async def answer(wire):
        queries.append(wire.query)
        await wire.body()
        await wire.answer(200, b"x")

    container = await scripted(answer)
    container.told["/version"] = 200, b'{"model_id":"other,test"}'
    api = await orchestrate(container)
    await api.live(b"x")
    assert "pipeline=test" in queries[0]
    container.told["/version"] = 200, b'{"model_id":"whatever"}'
    api.pool.of("test")[0].not_ready("restarted")
    await api.ready()
    queries.clear()
    await api.live(b"x")
    assert "pipeline" not in queries[0]


async def test_a_container_that_registered_and_has_been_gone_for_long_is_forgotten(
    orchestrate, unused_tcp_port, monkeypatch
):
    monkeypatch.setattr(pool, "FORGOTTEN", 3)
    api = await orchestrate()
    await api.register(url=f"http://127.0.0.1:{unused_tcp_port}")
    await until(lambda: not list(api.pool))
    assert (await api.live(b"x"))[0] == 404


async def test_one_that_was_named_at_the_start_is_never_forgotten(orchestrate, unused_tcp_port, monkeypatch):
    monkeypatch.setattr(pool, "FORGOTTEN", 0)
    api = await orchestrate(f"http://127.0.0.1:{unused_tcp_port}", wait=False)
    (container,) = api.pool
    await until(lambda: "refused" in container.trouble.lower())
    assert list(api.pool) == [container]
    status, body, _ = await api.live(b"x")
    assert status == 502
    assert container.url in json.loads(body)["error"]
