"""What operators and orchestrators ask."""

import asyncio
import re

import pytest

from tests.server.stubs import Upper
from tests.waiting import until
from whisper_byoc import __version__
from whisper_byoc.errors import UsageError
from whisper_byoc.server.run import ServerConfig


class Slow:
    def __init__(self):
        self.loaded, self.go = asyncio.Event(), asyncio.Event()

    async def initialize(self):
        await self.loaded.wait()

    async def process(self, frame):
        await self.go.wait()
        return frame


async def test_health_through_a_life(serving):
    slow = Slow()
    api = await serving(slow, wait=False)
    assert await api.json("/health") == (200, {"status": "LOADING"})
    places = {"free": 64, "fits": 64}
    for path in ("/readyz", "/healthz"):
        assert await api.json(path) == (503, {"ready": False, "reasons": ["pipeline test is loading"], **places})
    slow.loaded.set()
    await api.server.loaded()
    assert await api.json("/health") == (200, {"status": "IDLE"})
    assert await api.json("/readyz") == (200, {"ready": True, "reasons": [], **places})
    await api.put("job", b"x")
    assert await api.json("/health") == (200, {"status": "OK"})
    slow.go.set()
    assert (await api.get("job"))[0] == 200
    assert await api.json("/health") == (200, {"status": "IDLE"})  # though the job is still open
    draining = asyncio.ensure_future(api.table.drain())
    await until(lambda: api.table.draining)
    status, body = await api.json("/readyz")
    assert (status, body["reasons"]) == (503, ["the server is shutting down"])
    assert (await api.put("new", b"x"))[0] == 503
    await draining


async def test_a_put_during_loading_waits_but_not_for_ever(serving):
    api = await serving(Slow(), wait=False, admission_seconds=0.05)
    status, body, headers = await api.put("job", b"x")
    assert status == 503
    assert "not ready" in body["error"]
    assert headers["Retry-After"]


async def test_a_job_is_busy_until_its_last_words_are_there(serving):
    class Session:
        def __init__(self, go):
            self.go, self.finishing = go, asyncio.Event()

        async def feed(self, frame):
            return []

        async def finish(self):
            self.finishing.set()
            await self.go.wait()
            return []

        def summary(self):
            return {}

    class Holds(Slow):
        def open_session(self, job):
            self.session = Session(self.go)
            return self.session

    holds = Holds()
    holds.loaded.set()
    api = await serving(holds)
    await api.put("job", b"x", chunked=True)
    await holds.session.finishing.wait()
    assert await api.json("/health") == (200, {"status": "OK"})
    async with api.http.get(f"{api.url}/metrics") as answer:
        assert "byoc_sessions_active 1.0" in await answer.text()
    holds.go.set()
    await api.records("job")
    assert await api.json("/health") == (200, {"status": "IDLE"})


async def test_version(serving):
    slow = Slow()
    api = await serving({"a": slow, "b": slow}, wait=False)
    assert await api.json("/version") == (
        200, {"pipeline": "byoc", "model_id": "a,b", "version": __version__},
    )  # fmt: skip


async def test_metrics(serving):
    slow = Slow()
    slow.loaded.set()
    api = await serving(slow)

    async def scrape():
        async with api.http.get(f"{api.url}/metrics") as answer:
            assert answer.content_type == "text/plain"
            lines = (await answer.text()).splitlines()
        return {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in lines if not line.startswith("#")}

    await api.put("job", b"abc")
    figures = await scrape()
    assert figures["byoc_sessions_active"] == 1
    assert figures["byoc_segments_queued"] == 1
    slow.go.set()
    await api.get("job")
    await api.get("nobody", "?wait=0")
    figures = await scrape()
    assert figures["byoc_sessions_active"] == 0
    assert figures['byoc_input_bytes_total{pipeline="test"}'] == 3
    assert figures['byoc_segment_duration_seconds_count{pipeline="test"}'] == 1
    assert figures['byoc_refusals_total{reason="not_found"}'] == 1
    of_output = 'method="GET",route="/live/{job_id}/output"'
    assert figures[f'byoc_http_request_duration_seconds_count{{code="404",{of_output}}}'] == 1
    assert not any(name.startswith("byoc_errors_total") for name in figures)
    assert any(name.startswith("byoc_build_info{") and f'version="{__version__}"' in name for name in figures)
    assert figures["process_resident_memory_bytes"] > 1e6


async def test_routes_in_metrics_are_those_of_the_table_whatever_is_asked(serving):
    api = await serving(Upper())
    for method, path in (
        ("GET", "/no/such/route"),
        ("POST", "/live/a/output"),
        ("PATCH", "/pot"),
        ("PUT", "/live/b/source"),
    ):
        async with api.http.request(method, api.url + path):
            pass
    async with api.http.get(f"{api.url}/metrics") as answer:
        counts = re.findall(r'duration_seconds_count\{code="(\d+)",(.*)\}', await answer.text())
    assert {(labels, code) for code, labels in counts} == {
        ('method="*",route="none"', "404"),
        ('method="*",route="none"', "405"),
        ('method="*",route="/{name}"', "404"),
        ('method="PUT",route="/live/{job_id}/source"', "200"),
    }


async def test_refusals_with_one_status_are_told_apart(serving):
    api = await serving(Upper(), jobs=1)
    await api.put("one", b"x")
    assert (await api.put("two", b"x"))[0] == 503
    await api.end("one")
    await api.records("one")
    api.table.draining = True
    assert (await api.put("three", b"x"))[0] == 503
    text = api.table.metrics.render().decode()
    assert 'byoc_refusals_total{reason="jobs"} 1.0' in text
    assert 'byoc_refusals_total{reason="shutting_down"} 1.0' in text


async def test_work_and_sound_of_transcripts_are_counted(demo, numbers):
    async with demo.http.post(f"{demo.url}/", data=numbers, headers={"Content-Type": "audio/wav"}) as answer:
        seconds = (await answer.json())["duration"]
    text = demo.table.metrics.render().decode()
    figures = dict(re.findall(r"^byoc_(audio|inference)_seconds_total\{.*\} (\S+)$", text, re.MULTILINE))
    assert 0 < float(figures["audio"]) <= seconds + 0.001
    assert float(figures["inference"]) > 0


async def test_the_type_of_worker_is_the_operators(serving):
    api = await serving(Slow(), wait=False, config={"worker_type": "audio-to-text"})
    for path in ("/version", "/hardware/info", "/hardware/stats"):
        assert (await api.json(path))[1]["pipeline"] == "audio-to-text"


def test_a_data_format_that_there_is_not_is_refused_at_the_start():
    with pytest.raises(UsageError, match="data_format must be one of object, pytrickle, not 'xml'"):
        ServerConfig(data_format="xml")
