"""Which orchestrators a job is brought to: many to many, reachable or not, with a list or without."""

import json

import pytest

from tests.waiting import until
from whisper_byoc.network import directory

NOBODY = "http://127.0.0.1:9"


async def ok(wire):
    await wire.body()
    await wire.answer(200, f"http://{wire.headers['host']}".encode())


async def test_many_gateways_and_many_orchestrators(world):
    apis = [await world.serving(world.Pixels()) for _ in range(3)]
    orchestrators = [
        await world.orchestrator(apis[0], name="a"),
        await world.orchestrator(apis[1], name="b"),
        await world.orchestrator(apis[2], name="a", capacity=3),
    ]
    for gateway in [await world.gateway(*orchestrators), await world.gateway(*reversed(orchestrators))]:
        status, told = await gateway.json("/capabilities")
        assert status == 200
        assert {each["name"]: each["available"] for each in told["capabilities"]} == {"a": 11, "b": 8}
        assert {each["url"] for each in told["orchestrators"]} == {each.url for each in orchestrators}
        assert all(each["reachable"] and not each["trouble"] for each in told["orchestrators"])
        # the larger of two empty ones, and then the one of which a larger share is free
        for name, places in (("a", (0, 2)), ("b", (1, 1))):
            status, body, headers = await gateway.live(b"abc", name)
            assert (status, body, headers["X-Orchestrator-Url"]) == (200, b"cba", orchestrators[places[0]].url)
            status, _, headers = await gateway.batch(b"abc", job={"capability": name})
            assert headers["X-Orchestrator-Url"] == orchestrators[places[1]].url
        status, body, _ = await gateway.live(b"abc", "c")
        assert status == 404
        assert json.loads(body)["error"].startswith("model not found: 'c'; there are: ")
        assert (await gateway.json("/readyz"))[0] == 200


async def test_nobody_can_be_reached(world):
    gateway = await world.gateway(NOBODY)
    for status, body in [(await gateway.live(b"x"))[:2]]:
        assert status == 502
        assert NOBODY in json.loads(body)["error"]
    status, body, _ = await gateway.batch(b"x")
    assert status == 502
    assert NOBODY in body.decode()
    assert (await gateway.json("/readyz"))[0] == 503
    told = (await gateway.json("/capabilities"))[1]["orchestrators"][0]
    assert (told["reachable"], told["capabilities"]) == (False, [])
    assert told["trouble"] == "Connection refused"


async def test_one_that_cannot_be_reached_does_not_hide_the_others(world):
    orchestrator = await world.orchestrator(await world.serving(world.Pixels()))
    gateway = await world.gateway(NOBODY, orchestrator)
    assert (await gateway.live(b"abc"))[:2] == (200, b"cba")
    assert (await gateway.batch(b"abc"))[0] == 200


async def test_a_model_whose_orchestrator_is_away_is_502(world):
    two = await world.orchestrator(await world.serving(world.Pixels()), name="away", relayed=True)
    gateway = await world.gateway(two)
    await two.relay.close()
    status, body, _ = await gateway.live(b"x", "away")
    assert status == 502
    assert two.url in json.loads(body)["error"]
    await two.relay.listen()
    assert (await gateway.live(b"x", "away"))[:2] == (200, b"x")


async def test_a_registration_newer_than_the_last_poll_is_found(world, monkeypatch):
    monkeypatch.setattr(directory, "ASK_EVERY_S", 60.0)
    orchestrator = await world.orchestrator()
    api = await world.serving({"new": world.Pixels()})
    gateway = await world.gateway(orchestrator)
    assert (await gateway.live(b"x", "new"))[0] == 404
    body = json.dumps({"name": "new", "url": api.url, "capacity": 2}).encode()
    async with gateway.http.post(
        f"{orchestrator.url}/capability/register", data=body, headers={"Authorization": "secret"}
    ) as answer:
        assert answer.status == 200
    await until(lambda: orchestrator.run.pool.free("new"))
    assert (await gateway.live(b"abc", "new"))[:2] == (200, b"cba")
    assert (await gateway.batch(b"abc", job={"capability": "new"}))[0] == 200
    _, told = await gateway.json("/capabilities")
    assert told["capabilities"] == []


async def test_an_orchestrator_without_a_list_gets_what_nobody_lists(world):
    listing = await world.script(ok, world.offering(test=0, other=1))
    silent = await world.script(ok)  # as go-livepeer's
    gateway = await world.gateway(listing, silent)
    assert (await gateway.batch(b"abc", job={"capability": "new"}))[1] == silent.url.encode()
    assert (await gateway.batch(b"abc"))[1] == listing.url.encode()


async def test_an_orchestrator_that_lists_others_does_not_hide_that_the_place_is_taken(world):
    async def full(wire):
        await wire.body()
        await wire.answer(503, b"full")

    async def unknown(wire):
        await wire.body()
        await wire.answer(404, b"model not found")

    scripts = [await world.script(unknown, world.offering(other=4)), await world.script(full, world.offering(test=0))]
    gateway = await world.gateway(*scripts)
    assert (await gateway.live(b"abc"))[0] == 503


@pytest.mark.parametrize("entry", [7, {"name": 5, "available": 3}, {"name": "x"}, {"name": "x", "available": True}])
async def test_a_strange_entry_of_a_list_is_passed_over(world, entry):
    gateway = await world.gateway(await world.script(ok, {"capabilities": [entry]}))
    assert (await gateway.json("/capabilities"))[1]["capabilities"] == []


async def test_jobs_go_by_the_share_that_is_free_and_those_sent_since_count(world, monkeypatch):
    monkeypatch.setattr(directory, "ASK_EVERY_S", 60.0)
    scripts = []
    for free, capacity in ((4, 40), (3, 4), (9, 12)):
        offer = {"name": "test", "available": free, "capacity": capacity}
        scripts.append(await world.script(ok, {"capabilities": [offer]}))
    gateway = await world.gateway(*scripts)
    asked = [(await gateway.batch(b"x"))[1] for _ in range(11)]
    assert [asked.count(each.url.encode()) for each in scripts] == [0, 3, 8]
    assert (await gateway.live(b"x"))[1] == scripts[0].url.encode()


@pytest.mark.parametrize("answer", [b"[" * 5000, b"\xff\xfe", b"7", b"{}"])
async def test_an_orchestrator_that_talks_nonsense_is_asked_again(world, answer, monkeypatch):
    monkeypatch.setattr(directory, "ASK_EVERY_S", 0.01)
    script = await world.script(ok)
    script.told["/capabilities"] = 200, answer
    gateway = await world.gateway(script)
    assert (await gateway.json("/capabilities"))[1]["capabilities"] == []
    script.told["/capabilities"] = 200, json.dumps(world.offering(test=4)).encode()
    await gateway.offers(lambda told: told["capabilities"] == [{"name": "test", "available": 4}])


async def test_an_orchestrator_in_trouble_says_so(world):
    script = await world.script(ok)
    script.told["/capabilities"] = 500, b"sorry"
    gateway = await world.gateway(script)
    told = (await gateway.json("/capabilities"))[1]["orchestrators"][0]
    assert (told["reachable"], told["trouble"]) == (False, "it answered 500")
