"""The orchestrator as a whole: what it tells of itself, and that nothing is left after anything."""

import asyncio
import json

import aiohttp
import pytest

from tests.waiting import forever, until
from whisper_byoc import __version__
from whisper_byoc.errors import StartError
from whisper_byoc.network.orchestrator import Orchestrator, OrchestratorConfig
from whisper_byoc.network.pool import Container
from whisper_byoc.network.serving import NetworkLimits, serve_node


async def test_what_it_tells_of_itself(serving, orchestrate, kit):
    api = await orchestrate(wait=False)
    assert await api.json("/health") == (200, {"status": "OK"})
    assert await api.json("/readyz") == (503, {"ready": False, "reasons": ["no capability can take a job"]})
    container = await serving({"test": kit.Upper()})
    await api.register(url=container.url, capacity=3, token="s3cret")
    assert await api.json("/readyz") == (200, {"ready": True, "reasons": []})
    status, shown = await api.json("/capabilities")
    assert (status, shown["capabilities"][0]["available"]) == (200, 3)
    assert "s3cret" not in json.dumps(shown)
    assert await api.status() == {
        "role": "orchestrator",
        "version": __version__,
        "jobs": 0,
        "streams": 0,
        "draining": False,
    }
    assert (await api.json("/healthz"))[0] == 200


async def test_everything_at_once_leaves_nothing_behind(serving, scripted, orchestrate, kit):
    """20 jobs of every kind, clients that hang up, a container that hangs and is killed: the counts are as before."""
    good, dying = await serving({"test": kit.Upper()}, jobs=64), await scripted(lambda wire: forever())
    api = await orchestrate(good, dying, capacity=40)
    api.pool.of("test")[0].capacity = 41

    def tasks():
        """All but those of connections that are kept open for the next request."""
        return [each for each in asyncio.all_tasks() if "RequestHandler.start" not in repr(each)]

    await api.live(b"x")
    await api.quiet()
    before = len(tasks())

    async def one(number):
        if number % 4 == 0:
            return (await api.live(b"frame %d" % number))[0]
        if number % 4 == 1:
            return (await api.batch(b"batch", "test?format=text"))[0]
        feed = kit.Feed()
        feed.send(b"feed %d" % number)
        if number % 4 == 2:
            feed.end()
            return (await api.live(feed, **kit.NDJSON))[0]
        answer = await api.post("/live/video-to-video", feed, headers={"X-Model-Id": "test", **kit.NDJSON})
        await asyncio.sleep(0.1)
        answer.close()
        return "hung up"

    jobs = [asyncio.ensure_future(one(number)) for number in range(20)]
    await until(lambda: dying.asked)
    await dying.close()
    outcomes = await asyncio.gather(*jobs, return_exceptions=True)
    assert not [each for each in outcomes if isinstance(each, BaseException)]
    assert set(outcomes) <= {200, 502, "hung up"}
    await api.quiet()
    assert good.table.jobs == ()
    assert (await api.live(b"next"))[:2] == (200, b"NEXT")
    await api.quiet()
    await until(lambda: len(tasks()) <= before)


async def test_a_stop_in_the_middle_of_a_job_still_ends_it_at_its_container(serving, kit, caplog):
    container = await serving({"test": kit.Gated()})
    config = OrchestratorConfig(
        "127.0.0.1", 0, containers=[Container("test", container.url, 4)],
        limits=NetworkLimits(ask_seconds=0.05, drain_seconds=0.1),
    )  # fmt: skip
    before = asyncio.all_tasks()
    async with aiohttp.ClientSession() as http:
        async with Orchestrator.running(config) as orchestrator:
            await until(lambda: orchestrator.pool.free("test"))
            url = f"http://127.0.0.1:{orchestrator.port}/live/video-to-video"
            posting = asyncio.ensure_future(http.post(url, data=b"x", headers={"X-Model-Id": "test"}))
            await until(lambda: container.table.jobs)
        with pytest.raises(aiohttp.ClientError):
            await posting
        assert container.table.jobs == ()
        assert not any(each.slots for each in orchestrator.pool)
    await until(lambda: {each for each in asyncio.all_tasks() - before if "RequestHandler" not in repr(each)} == set())
    assert not [each for each in caplog.records if each.levelname == "ERROR"]


async def test_it_serves_until_it_is_stopped():
    stop = asyncio.Event()
    stop.set()
    await asyncio.wait_for(serve_node(Orchestrator.running(OrchestratorConfig("127.0.0.1", 0)), stop), 20)


async def test_an_address_in_use_is_a_start_error(orchestrate):
    api = await orchestrate()
    with pytest.raises(StartError, match="stop the program that listens there"):
        await serve_node(Orchestrator.running(OrchestratorConfig("127.0.0.1", api.port)), asyncio.Event())


async def test_it_may_listen_elsewhere_than_it_is_reached(unused_tcp_port):
    service = {"service_host": "orchestrator.example", "service_port": 8936}
    config = OrchestratorConfig("127.0.0.1", unused_tcp_port, **service)
    async with Orchestrator.running(config) as orchestrator:
        assert (orchestrator.port, orchestrator.streams.service_url) == (
            unused_tcp_port,
            "http://orchestrator.example:8936",
        )
