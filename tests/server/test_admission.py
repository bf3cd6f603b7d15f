"""How much work is taken of a pipeline that knows how much it can do; and that nobody holds places with nothing."""

import asyncio
import io
import math

import aiohttp
import pytest

from tests.server.stubs import Says, Sound, Upper
from tests.waiting import until
from whisper_byoc.processors.base import Capacity
from whisper_byoc.server.core import admission
from whisper_byoc.server.ingest import intake

SECOND = bytes(32_000)
RETRY = range(admission.RETRY_AFTER_SECONDS, admission.LONGEST_RETRY_AFTER_SECONDS + 1)


def capacity(live=2, recording_rate=1.0, late=False):
    return Capacity(live, recording_rate, late, lag=1.5, cost=0.25, load=0.5, workers=1, threads=2)


class Measured(Sound):
    """Has the capacity that the test says."""

    def __init__(self, **figures):
        self.figures = figures

    def capacity(self):
        return capacity(**self.figures)


async def put(api, name, data=b"ab", query="?more=1"):
    return await api.put(name, data, query=query)


async def posted(api, seconds, path="/test"):
    async with api.http.post(f"{api.url}{path}", data=io.BytesIO(math.ceil(seconds) * SECOND)) as answer:
        return answer.status, await answer.json(), answer.headers


async def figures(api, name="test"):
    return (await api.json("/health"))[1]["capacity"][name]


async def test_as_many_live_jobs_are_taken_as_can_be_done_in_time(serving):
    speech = Measured(live=2)
    api = await serving({"test": speech, "letters": Upper()})
    assert [(await put(api, name, query="?more=1&pipeline=test"))[0] for name in "ab"] == [200, 200]
    status, body, headers = await put(api, "c", query="?more=1&pipeline=test")
    assert (status, "and 2 fit" in body["error"], int(headers["Retry-After"]) in RETRY) == (503, True, True)
    assert (await put(api, "a", query=""))[0] == 200  # those that were taken go on
    assert (await put(api, "d", query="?more=1&pipeline=letters"))[0] == 200  # which measures nothing
    assert (await posted(api, 1))[0] == 200  # recordings have a measure of their own
    assert (await figures(api)) == {
        "live": 2, "recording_rate": 1.0, "late": False, "lag": 1.5, "cost": 0.25, "load": 0.5, "workers": 1,
        "threads": 2, "live_jobs": 2, "live_free": 0, "recording_seconds": 0.0,
    }  # fmt: skip
    async with api.http.get(f"{api.url}/metrics") as answer:
        found = (await answer.text()).splitlines()
    assert 'byoc_live_capacity{pipeline="test"} 2.0' in found
    assert 'byoc_live_jobs{pipeline="test"} 2.0' in found
    assert 'byoc_refusals_total{reason="capacity"} 1.0' in found
    speech.figures["live"] = 3
    assert (await put(api, "c", query="?more=1&pipeline=test"))[0] == 200
    await api.end("a")
    await until(lambda: api.table.get("a").results.ended)
    assert (await put(api, "e", query="?more=1&pipeline=test"))[0] == 200


async def test_no_place_and_no_capacity_are_both_told_by_readyz(serving):
    speech = Measured(live=2)
    api = await serving(speech, jobs=3)
    for free in (2, 1, 0):
        assert await api.json("/readyz") == (200, {"ready": True, "reasons": [], "free": free, "fits": 2})
        await put(api, f"job-{free}")
    speech.figures["live"] = 9
    told = (await api.json("/readyz"))[1]
    assert (told["free"], told["fits"]) == (1, 3)
    await put(api, "last")
    assert (await api.json("/readyz"))[1]["free"] == 0


async def test_no_live_job_is_taken_while_those_there_are_come_late(serving):
    speech = Measured(live=9, late=True)
    api = await serving(speech)
    assert (await put(api, "a"))[0] == 200  # with none there, it is tried again
    status, body, _ = await put(api, "b")
    assert (status, "late by 1.5 s" in body["error"]) == (503, True)
    speech.figures["late"] = False
    assert (await put(api, "b"))[0] == 200


async def test_one_live_job_is_taken_even_where_none_fits(serving):
    api = await serving(Measured(live=0))
    assert (await put(api, "a"))[0] == 200
    assert (await put(api, "b"))[0] == 503


@pytest.mark.parametrize("capacity", [lambda: 1 / 0, lambda: {"live": 1}, 7])
async def test_a_processor_that_cannot_tell_its_capacity_has_places(serving, capacity):
    speech = Sound()
    speech.capacity = capacity
    api = await serving(speech, jobs=2)
    assert [(await put(api, name))[0] for name in "abc"] == [200, 200, 503]
    assert "capacity" not in (await api.json("/health"))[1]


async def test_websockets_and_streams_are_live_jobs(serving):
    api = await serving(Measured(live=1))
    await put(api, "a")
    with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
        await api.http.ws_connect(f"{api.url}/transcribe")
    assert (caught.value.status, int(caught.value.headers["Retry-After"]) in RETRY) == (503, True)
    async with api.http.post(f"{api.url}/stream/start", json={"gateway_request_id": "stream"}) as answer:
        assert (answer.status, int(answer.headers["Retry-After"]) in RETRY) == (503, True)


class Gated(Says):
    def capacity(self):
        return capacity(recording_rate=0.5)


async def test_recordings_are_bounded_by_the_seconds_of_work_that_they_are(serving):
    slow = Gated.gated("done")
    api = await serving(slow, recording_seconds=10.0)
    first = asyncio.ensure_future(posted(api, 20))  # 40 s of work, but the only one
    await slow.begun.wait()
    assert (await figures(api))["recording_seconds"] == 20.0
    status, body, headers = await posted(api, 3)
    assert (status, headers["Retry-After"]) == (429, str((3 + 3) * 2 - 10))
    assert "is at 20 s of recordings" in body["error"]
    short = asyncio.ensure_future(posted(api, 2))  # which is done side by side with the long one
    await until(lambda: len(api.table.jobs) == 2)
    slow.go.set()
    assert (await short)[0] == 200
    assert (await first)[0] == 200
    assert (await figures(api))["recording_seconds"] == 0.0
    assert [each[0] for each in await asyncio.gather(*(posted(api, 1) for _ in range(5)))] == [200] * 5


# --- jobs and uploads without a byte


@pytest.fixture
def no_youth(monkeypatch):
    monkeypatch.setattr(admission, "YOUNG_SECONDS", 0.0)
    monkeypatch.setattr(intake, "YOUNG_SECONDS", 0.0)


async def test_a_live_job_without_a_byte_makes_place_where_capacity_is_short(serving, no_youth):
    api = await serving({"test": Measured(live=1), "other": Sound()})
    for name in ("test", "other"):
        await put(api, name, b"", query=f"?more=1&pipeline={name}")
    assert (await put(api, "fed", query="?more=1&pipeline=test"))[0] == 200
    assert sorted(job.info.job_id for job in api.table.jobs) == ["fed", "other"]


async def test_a_socket_without_a_byte_makes_place_and_counts_for_its_address(serving, no_youth):
    api = await serving(Sound(), jobs=4)
    async with api.http.ws_connect(f"{api.url}/transcribe") as socket:
        with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
            await api.http.ws_connect(f"{api.url}/transcribe")  # one of four is the share
        assert caught.value.status == 503
        async with api.http.post(f"{api.url}/stream/start", json={"gateway_request_id": "stream"}) as answer:
            assert answer.status == 503
        for name in ("a", "b", "c"):
            api.table.jobs[0].client = "192.0.2.1"
            assert (await put(api, name))[0] == 200
        assert (await put(api, "d"))[0] == 200
        assert "no bytes" in (await socket.receive_json())["error"]
    assert sorted(job.info.job_id for job in api.table.jobs) == ["a", "b", "c", "d"]


async def test_an_address_is_not_held_to_what_it_has_left(serving, no_youth):
    api = await serving(Upper(), jobs=4)
    writers = []
    for name in "abc":
        _, writer = await asyncio.open_connection("127.0.0.1", api.port)
        writer.write(f"PUT /live/{name}/source HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
        await until(lambda name=name: any(job.info.job_id == name and job.has_feed for job in api.table.jobs))
        for job in api.table.jobs:
            job.client = "192.0.2.1"
        writers.append(writer)
    for job in api.table.jobs:
        job.client = "127.0.0.1"
    assert (await put(api, "d"))[0] == 503
    for writer in writers:
        writer.transport.abort()
    await until(lambda: not any(job.has_feed for job in api.table.jobs))
    assert (await put(api, "d"))[0] == 200


async def test_of_the_jobs_without_a_byte_one_goes_whose_address_has_most(serving, no_youth):
    api = await serving(Upper(), jobs=4)
    for name, address in (("first", "192.0.2.1"), ("many", "192.0.2.2"), ("more", "192.0.2.2"), ("last", "192.0.2.3")):
        assert (await put(api, name, b""))[0] == 200
        api.table.get(name).client = address
    assert (await put(api, "fed"))[0] == 200
    assert sorted(job.info.job_id for job in api.table.jobs) == ["fed", "first", "last", "more"]


async def test_young_jobs_without_a_byte_make_place_where_one_address_has_more_than_its_share(serving, monkeypatch):
    monkeypatch.setattr(admission, "YOUNG_SECONDS", 600.0)
    api = await serving(Upper(), jobs=4)
    for name in "abcd":
        assert (await put(api, name, b""))[0] == 200
    api.table.get("d").client = "192.0.2.1"
    for fed, left in (("e", "bcde"), ("f", "cdef")):
        assert (await put(api, fed))[0] == 200
        assert sorted(job.info.job_id for job in api.table.jobs) == [*left]
    assert (await put(api, "g"))[0] == 503


async def begun_upload(api):
    """Connect and send the head of an upload alone."""
    reader, writer = await asyncio.open_connection("127.0.0.1", api.port)
    writer.write(b"POST /test HTTP/1.1\r\nHost: localhost\r\nContent-Length: 32000\r\n\r\n")
    return reader, writer


async def test_an_upload_without_a_byte_makes_place_for_another_one(serving, no_youth):
    api = await serving(Sound(), jobs=1)
    reader, writer = await begun_upload(api)
    answer = asyncio.ensure_future(reader.readline())
    async with asyncio.timeout(20):
        while not answer.done():  # the first one may come before it has its place
            assert (await posted(api, 1))[0] == 200
    assert b" 408 " in answer.result()
    writer.close()


async def test_an_upload_that_comes_keeps_its_place(serving, no_youth):
    api = await serving(Sound(), jobs=1)
    reader, writer = await begun_upload(api)
    writer.write(bytes(100))
    async with asyncio.timeout(20):
        while (await posted(api, 1))[0] == 200:
            pass
    status, body, headers = await posted(api, 1)
    assert (status, "busy" in body["error"], "Retry-After" in headers) == (429, True, True)
    writer.write(bytes(31_900))
    assert b" 200 " in await asyncio.wait_for(reader.readline(), 20)
    writer.close()


async def test_one_address_has_its_share_of_the_places_of_uploads(serving):
    slow = Says.gated("done")
    api = await serving(slow, jobs=4)
    first = [asyncio.ensure_future(posted(api, 1)) for _ in range(2)]
    await until(lambda: len(api.table.jobs) == 2)
    status, body, _ = await posted(api, 1)
    assert (status, "2 recordings from your address" in body["error"]) == (429, True)
    slow.go.set()
    assert [(await each)[0] for each in first] == [200, 200]
