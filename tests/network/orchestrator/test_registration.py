"""`/capability/register` and its kin, with our own containers' Registrar and with go-livepeer's forms."""

import asyncio
import base64
import json

import pytest

from tests.waiting import until
from whisper_byoc.livepeer import NOBODY, Capability
from whisper_byoc.network import pool
from whisper_byoc.server.registration import OpenJobs, Registrar, RegistrationOptions

QUICK = {"interval_seconds": 0.1, "confirm_seconds": 0.05, "first_pause": 0.01, "longest_pause": 0.02}


async def unregister(api, name="test", secret="", url=None):
    headers = {"Authorization": secret} if secret else {}
    headers |= {"X-Capability-Url": url} if url else {}
    async with api.post("/capability/unregister", name.encode(), headers=headers) as answer:
        return answer.status, await answer.text()


async def token(api, name="test", sender=None):
    fields = sender or {"addr": NOBODY, "sig": ""}
    headers = {"Livepeer-Capability": name}
    headers["Livepeer-Eth-Address"] = base64.b64encode(json.dumps(fields).encode()).decode()
    async with api.http.get(f"{api.url}/process/token", headers=headers) as answer:
        return answer.status, await answer.json()


async def test_a_container_that_registers_gets_jobs(serving, orchestrate, kit):
    container = await serving({"test": kit.Sound()})
    api = await orchestrate()
    assert await api.register(url=container.url + "/") == (200, "ok")
    status, body, _ = await api.live(bytes(3200))
    assert (status, body) == (200, b"3200 bytes")
    await api.quiet()
    await until(lambda: api.pool.free("test") == 4)
    ((shown,),) = [each["containers"] for each in (await api.json("/capabilities"))[1]["capabilities"]]
    assert shown == {
        "url": container.url, "ready": True, "capacity": 4, "fits": 64, "free": 4, "load": 0, "registered": True,
        "trouble": "",
    }  # fmt: skip


async def test_a_container_with_several_pipelines_and_a_name_of_its_own_works_on_every_way(serving, orchestrate, kit):
    container = await serving({"sound": kit.Sound(), "mirror": kit.Reverse()}, config={"capability": "my-worker"})
    api = await orchestrate()
    await api.register(name="my-worker", url=container.url)
    sound = bytes(3200)
    assert (await api.live(sound, model="my-worker"))[:2] == (200, b"3200 bytes")  # at once, before it was asked
    await api.ready()
    assert (await api.live(sound, model="my-worker"))[:2] == (200, b"3200 bytes")
    feed = kit.Feed()
    feed.send(sound)
    feed.end()
    assert (await api.records(feed, model="my-worker"))[0]["text"] == "3200 bytes"
    for route in ("", "my-worker", "sound"):
        status, body, _ = await api.batch(sound, route, capability="my-worker")
        assert (status, json.loads(body)["text"]) == (200, "3200 bytes")
    headers = kit.job("my-worker", id="s1")
    async with api.post("/ai/stream/start", b"{}", headers=headers) as answer:
        assert answer.status == 200, await answer.text()
    assert container.table.get("s1").info.pipeline == "sound"


async def test_the_secret_must_be_right(orchestrate):
    api = await orchestrate(secret="s3cret")
    for wrong in ("", "s3cre", "Bearer s3cret", "S3CRET", "é"):
        assert await api.register(wrong, url="http://127.0.0.1:9") == (400, "invalid authorization\n")
        assert await unregister(api, secret=wrong) == (400, "invalid authorization\n")
    assert list(api.pool) == []
    assert (await api.register("s3cret", url="http://127.0.0.1:9"))[0] == 200
    assert (await unregister(api, secret="s3cret")) == (200, "ok")
    assert api.pool.names == ()


async def test_registering_again_changes_the_container_and_keeps_its_jobs(serving, orchestrate, kit):
    gate = kit.Gated()
    container = await serving({"test": gate})
    api = await orchestrate()
    await api.register(url=container.url, capacity=1)
    working = asyncio.ensure_future(api.live(b"x"))
    await until(lambda: gate.begun == 1)
    await api.register(url=container.url, capacity=2, price_per_unit=3, price_scaling=5)
    (known,) = api.pool
    assert (known.capacity, known.free) == (2, 1)
    await unregister(api)
    assert (await token(api))[1].get("available_capacity") is None
    await api.register(url=container.url, capacity=2)
    assert (await token(api))[1]["available_capacity"] == 1
    gate.open.set()
    assert (await working)[:2] == (200, b"x")
    await api.quiet()


async def test_a_container_that_unregisters_finishes_what_it_has(serving, orchestrate, kit):
    gate = kit.Gated()
    container = await serving({"test": gate})
    api = await orchestrate()
    await api.register(url=container.url)
    working = asyncio.ensure_future(api.live(b"x"))
    await until(lambda: gate.begun == 1)
    assert await unregister(api) == (200, "ok")
    assert (await api.status())["jobs"] == 1
    assert (await api.live(b"y"))[0] == 404
    gate.open.set()
    assert (await working)[:2] == (200, b"x")
    await api.quiet()
    assert list(api.pool) == []


async def test_what_a_container_that_left_has_sent_is_read_though_nobody_listens_there_any_more(
    scripted, orchestrate, monkeypatch
):
    monkeypatch.setattr(pool, "SILENCES", 10_000)
    drained = asyncio.Event()

    async def answer(wire):
        if wire.method == "GET" and wire.path.endswith("/output"):
            await drained.wait()
            await wire.answer(200, b"text")
        else:
            await wire.answer(200 if wire.method == "PUT" else 404, Connection="close")

    container = await scripted(answer)
    container.told.clear()
    api = await orchestrate()
    await api.register(url=container.url)
    working = asyncio.ensure_future(api.live(b"x"))
    await until(lambda: container.count("GET", "/output"))
    await unregister(api)
    await container.refuse()
    (known,) = api.pool
    await until(lambda: "refused" in known.trouble.lower())
    drained.set()
    assert (await working)[:2] == (200, b"text")
    await api.quiet()


async def test_of_two_containers_under_one_name_the_one_that_says_its_url_leaves_alone(orchestrate):
    api = await orchestrate(ask_seconds=60)
    urls = [f"http://127.0.0.1:{port}" for port in (9, 10)]
    for url in urls:
        await api.register(url=url)
    await unregister(api, url=urls[0] + "/")
    assert [each.url for each in api.pool] == [urls[1]]
    await api.register(url=urls[0])
    assert await unregister(api) == (200, "ok")  # the bare name, as go-livepeer has it, is all of them
    assert list(api.pool) == []
    assert await unregister(api, "unknown") == (200, "ok")


async def test_a_container_named_at_the_start_does_not_leave_for_good(scripted, orchestrate):
    async def answer(wire):
        await wire.answer(200)

    api = await orchestrate(await scripted(answer))
    await unregister(api)
    await api.ready()
    assert (await api.batch(b"x"))[0] == 200


async def test_our_registrar_keeps_a_container_registered_and_takes_it_out_alone(serving, orchestrate, kit):
    containers = [await serving({"test": kit.Upper()}) for _ in range(2)]
    api = await orchestrate(secret="s3cret")
    registrars = []
    for container in containers:
        capability = Capability("test", "", container.url, 4)
        registrars.append(
            Registrar(RegistrationOptions((api.url,), "s3cret", capability, **QUICK), lambda: OpenJobs(0))
        )
        registrars[-1].start()
    await api.ready(2)
    await unregister(api, secret="s3cret")  # it forgets, as one does that restarts
    await api.ready(2)
    await registrars[0].stop()
    assert [each.url for each in api.pool.of("test")] == [containers[1].url]
    assert (await api.live(b"abc"))[:2] == (200, b"ABC")
    await registrars[1].stop()
    assert api.pool.of("test") == []


GOOD = {"name": "test", "url": "http://127.0.0.1:9", "capacity": 1}


BAD = [
    {"name": ""}, {"name": None}, {"name": 7}, {"name": "a\nb"}, {"name": "x" * 3000}, {"name": []},
    {"url": ""}, {"url": "127.0.0.1:9"}, {"url": "ftp://x"}, {"url": "http://"}, {"url": "http://[::1"},
    {"url": "http://x:99999"}, {"url": "http://x:0"}, {"url": "http://user:pw@x"}, {"url": "http://x?a=b"},
    {"url": "http://x#a"}, {"url": "http://x y"}, {"url": "http://x\r\nA: b"}, {"url": ["x"]},
    {"url": "http://a..b:1"}, {"url": f"http://{'a' * 64}:1"},
    {"capacity": -1}, {"capacity": False}, {"capacity": "4"}, {"capacity": 1.5}, {"capacity": True},
    {"capacity": 1 << 63}, {"token": "a\r\nB: c"}, {"token": "\x00"}, {"token": "\ud800"}, {"token": {}},
]  # fmt: skip


async def test_what_is_no_capability_is_400_with_one_line(orchestrate):
    api = await orchestrate()
    for body in (
        b"",
        b"x",
        b"[]",
        b"null",
        b"[" * 50_000,
        b"\xff",
        *(json.dumps({**GOOD, **bad}).encode() for bad in BAD),
    ):
        async with api.post("/capability/register", body) as answer:
            text = await answer.text()
        assert answer.status == 400, (body, text)
        assert text.count("\n") == 1
        assert len(text) < 300
    assert list(api.pool) == []


async def test_a_long_body_is_413(orchestrate):
    api = await orchestrate()
    async with api.post("/capability/register", bytes(100_000)) as answer:
        assert answer.status == 413


async def test_go_livepeers_own_fields_are_taken(orchestrate):
    api = await orchestrate()
    more = {"description": "über\nalles", "currency": "wei", "price_per_unit": 0, "price_scaling": 1, "extra": [1]}
    assert (await api.register(url="https://worker:8000/base", **more))[0] == 200
    assert (await api.register(name="none", url="http://worker", capacity=0))[0] == 200
    assert [each.url for each in api.pool] == ["https://worker:8000/base", "http://worker"]


async def test_a_token_tells_of_free_places(orchestrate, scripted):
    async def answer(wire):
        await wire.answer(200)

    api = await orchestrate()
    await api.register(url=(await scripted(answer)).url, capacity=2)
    go = {"addr": NOBODY, "sig": "0x"}  # as an off-chain go-livepeer gateway signs
    status, answer = await token(api, sender=go)
    assert status == 200
    assert answer == {
        "sender_address": go, "ticket_params": {}, "balance": 0, "price": {"pixelsPerUnit": 1},
        "service_addr": api.url, "available_capacity": 2,
    }  # fmt: skip
    status, answer = await token(api, "unknown")
    assert status == 200
    assert "available_capacity" not in answer


@pytest.mark.parametrize("header", [None, "", "%", "W10=", base64.b64encode(b"[" * 40_000).decode()])
async def test_a_token_for_whom_nobody_knows_is_400(orchestrate, header):
    api = await orchestrate()
    headers = {"Livepeer-Capability": "test"} | ({} if header is None else {"Livepeer-Eth-Address": header})
    async with api.http.get(f"{api.url}/process/token", headers=headers) as answer:
        assert answer.status == 400
    sender = {"Livepeer-Eth-Address": base64.b64encode(b"{}").decode()}
    async with api.http.get(f"{api.url}/process/token", headers=sender) as answer:
        assert answer.status == 400
        assert "Livepeer-Capability" in await answer.text()


async def test_other_methods_are_405(orchestrate):
    api = await orchestrate()
    for method, path in (("GET", "/capability/register"), ("POST", "/process/token"), ("HEAD", "/process/token"),
                         ("GET", "/process/request/x"), ("GET", "/ai/stream/start")):  # fmt: skip
        async with api.http.request(method, f"{api.url}{path}") as answer:
            assert answer.status == 405


async def test_there_is_a_most_of_containers_and_those_known_may_register_again(orchestrate, monkeypatch):
    monkeypatch.setattr("whisper_byoc.network.orchestrator.MOST_CONTAINERS", 2)
    api = await orchestrate(ask_seconds=60)
    for port in (9, 10, 9):
        assert (await api.register(url=f"http://127.0.0.1:{port}"))[0] == 200
    assert (await api.register(url="http://127.0.0.1:11"))[0] == 503
