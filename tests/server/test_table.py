"""Which pipeline a job runs on, what opens one, and who keeps it open."""

import asyncio
import functools
import gc
import json
import weakref

import aiohttp
import pytest

from tests.server.stubs import Mirror, Says, Sound, Upper
from tests.waiting import until
from whisper_byoc.errors import BadParam, BadSegment, UsageError
from whisper_byoc.processors.base import PlainSession
from whisper_byoc.server.core import admission


async def test_a_job_that_nobody_feeds_or_reads_ends_after_its_alone_time(serving):
    api = await serving(Upper())
    await api.put("left", b"abc", query="?alone=0.2&more=1")
    await api.put("kept", b"abc", query="?more=1")
    await until(lambda: api.table.get("left").results.ended)
    *_, error, end = await api.records("left")
    assert error["error"] == "nobody fed or read the job for 0.2 s"
    assert end["type"] == "end"
    assert not api.table.get("kept").results.ended


async def test_a_reader_or_a_feed_that_is_silent_keeps_the_job(serving):
    api = await serving(Mirror())
    over = asyncio.Event()

    async def feed():
        yield b"abc"
        await over.wait()

    url = f"{api.url}/live/fed"
    feeding = asyncio.ensure_future(api.http.put(f"{url}/source?alone=0.1", data=feed()))
    await api.put("read", b"abc", query="?alone=0.1&more=1")
    reading = asyncio.ensure_future(api.records("read"))
    await api.put("left", b"abc", query="?alone=0.1&more=1")
    await until(lambda: api.table.get("left").results.ended)
    assert not api.table.get("fed").results.ended
    assert not api.table.get("read").results.ended
    over.set()
    (await feeding).release()
    await api.end("read")
    assert [each["type"] for each in await reading] == ["result", "end"]


async def test_work_keeps_the_job_too(serving):
    slow = Says.gated("done")
    api = await serving({"slow": slow, "mirror": Mirror()})
    await api.put("job", b"abc", query="?alone=0.1&pipeline=slow")
    await api.put("left", b"abc", query="?alone=0.1&pipeline=mirror")
    await until(lambda: api.table.get("left").results.ended)
    slow.go.set()
    status, body, _ = await api.get("job")
    assert (status, body) == (200, b"done")


async def test_alone_may_be_more_than_the_idle_limit_and_must_be_a_number(serving):
    api = await serving(Upper(), idle_seconds=10)
    status, _, _ = await api.put("job", b"abc", query="?alone=30")  # an orchestrator does not know the limit
    assert status == 200
    assert api.table.get("job").alone_limit == 10
    for bad in ("-1", "soon", "nan", "1e9"):
        status, body, _ = await api.put("other", b"abc", query=f"?alone={bad}")
        assert status == 400
        assert "alone" in body["error"]


async def test_alone_is_no_parameter_of_the_processor(serving):
    api = await serving(Upper())
    await api.put("job", b"abc", query="?alone=30&language=de")
    assert dict(api.table.get("job").info.params) == {"language": "de"}


@pytest.fixture
def named(serving):
    return lambda: serving({"speech": Sound(), "mirror": Mirror()}, config={"capability": "my-worker"})


async def test_the_registered_name_is_the_first_pipeline_on_every_way(named):
    api = await named()
    sound = bytes(3200)
    status, _, _ = await api.put("job", sound, query="?pipeline=my-worker")
    assert (status, api.table.get("job").info.pipeline) == (200, "speech")
    assert (await api.put("job", sound, query="?pipeline=speech"))[0] == 200
    assert (await api.put("job", sound, query="?pipeline=mirror"))[0] == 409
    assert (await api.get("job"))[1] == b"3200 bytes"
    for path in ("/my-worker", "/?pipeline=my-worker", "/"):
        async with api.http.post(f"{api.url}{path}", data=sound) as answer:
            assert (answer.status, (await answer.json())["text"]) == (200, "3200 bytes"), path
    form = aiohttp.FormData()
    form.add_field("model", "my-worker")
    form.add_field("file", sound, filename="a.pcm", content_type="audio/L16")
    async with api.http.post(f"{api.url}/v1/audio/transcriptions", data=form) as answer:
        assert answer.status == 200, await answer.text()
    async with api.http.ws_connect(f"{api.url}/transcribe?pipeline=my-worker") as socket:
        await socket.send_bytes(sound)
        await socket.send_str("eos")
        assert "3200" in json.dumps((await socket.receive(20)).data)
    start = {"gateway_request_id": "stream", "params": None}
    async with api.http.post(f"{api.url}/stream/start?pipeline=my-worker", json=start) as answer:
        assert answer.status == 200, await answer.text()
    assert api.table.get("stream").info.pipeline == "speech"


async def test_another_name_is_still_unknown(named):
    api = await named()
    status, body, _ = await api.put("job", b"ab", query="?pipeline=my-work")
    assert status == 404
    assert "it serves: speech, mirror" in body["error"]


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (BadSegment, 400, "no language xx"),
        (UsageError, 400, "no language xx"),
        (functools.partial(BadParam, "language"), 400, "no language xx"),
        (ValueError, 500, "the server failed on this request; its log says why"),
    ],
)
async def test_parameters_that_a_session_refuses_are_400_and_bugs_are_500(serving, error, status, words):
    class Picky(Upper):
        def open_session(self, job):
            raise error(f"no language {job.params['language']}")

    api = await serving(Picky())
    answered, body, _ = await api.put("job", b"abc", query="?language=xx")
    assert (answered, body["error"]) == (status, words)
    assert api.table.jobs == ()


async def test_a_first_put_that_is_refused_leaves_no_job_behind(serving):
    api = await serving({"speech": Sound(), "mirror": Mirror()})
    for query, options, status in (
        ("?pipeline=none", {}, 404), ("", {}, 400),
        ("?pipeline=speech", {"headers": {"Content-Type": "text/plain"}}, 415),
        ("?pipeline=mirror&width=0", {"chunked": True}, 400),
    ):  # fmt: skip
        got, body, _ = await api.put("job", b"abcd", query=query, **options)
        assert got == status, body
    assert api.table.jobs == ()


async def test_one_failure_does_not_end_the_sweeps(serving, caplog):
    api = await serving(Upper(), linger_seconds=0.05)
    await api.put("job", b"x")
    job = api.table.get("job")

    async def fails(reason):
        raise OSError("no memory")

    job.stop, job.alone_limit = fails, 0.0
    await until(lambda: "the sweep of jobs failed" in caplog.text)
    del job.stop
    await until(lambda: not api.table.jobs)


@pytest.mark.parametrize("declared", [None, frozenset({"language"})])
async def test_parameters_that_nobody_reads_are_named_in_a_warning(serving, caplog, declared):
    class Picky(Upper):
        params = declared or frozenset()

    api = await serving(Picky() if declared else Upper())
    status, body, _ = await api.put("job", b"abc", query="?langauge=de&width=2&more=1&language=de")
    unknown = ["langauge"] if declared else ["langauge", "language"]
    assert (status, body["warnings"]) == (200, [f"pipeline test has no parameter {each}" for each in unknown])
    await api.put("job", b"abc")
    assert caplog.text.count("job job: pipeline test has no parameters") == 1
    assert ", ".join(unknown) in caplog.text


async def test_sessions_of_others_read_what_parameters_they_like(serving, caplog):
    class Tunable(Upper):
        def open_session(self, job):
            return PlainSession(self)

    api = await serving(Tunable())
    assert "warnings" not in (await api.put("job", b"abc", query="?mood=happy"))[1]
    assert "no parameters" not in caplog.text


# --- jobs without a byte


async def put_empty(api, name):
    return (await api.put(name, b""))[0]


async def test_a_job_without_a_byte_is_forgotten_soon_and_its_id_can_be_used(serving):
    api = await serving(Upper(), empty_seconds=0.1)
    assert await put_empty(api, "empty") == 200
    assert (await api.put("fed", b"abc", query="?more=1"))[0] == 200
    await until(lambda: [job.info.job_id for job in api.table.jobs] == ["fed"])
    assert (await api.put("empty", b"abc"))[0] == 200
    assert (await api.get("empty"))[1] == b"ABC"


async def test_a_reader_or_a_feed_keeps_a_job_without_a_byte(serving):
    api = await serving(Upper(), empty_seconds=0.1)
    over = asyncio.Event()

    async def feed():
        await over.wait()
        yield b"abc"

    feeding = asyncio.ensure_future(api.http.put(f"{api.url}/live/fed/source", data=feed()))
    await put_empty(api, "read")
    reading = asyncio.ensure_future(api.records("read"))
    await until(lambda: api.table.get("read").has_reader)
    await put_empty(api, "left")
    await until(lambda: len(api.table.jobs) == 2)
    over.set()
    assert (await feeding).status == 200
    assert (await api.put("read", b"abc"))[0] == 200
    await api.end("read")
    assert [each["type"] for each in await reading] == ["result", "end"]


async def test_jobs_without_a_byte_make_place(serving, monkeypatch):
    monkeypatch.setattr(admission, "YOUNG_SECONDS", 0.0)
    api = await serving(Upper(), jobs=4, empty_seconds=600)
    assert await put_empty(api, "empty") == 200
    for name in ("a", "b", "c"):
        assert (await api.put(name, b"abc", query="?more=1"))[0] == 200
    assert (await api.json("/readyz"))[1]["free"] == 1
    assert (await api.put("d", b"abc", query="?more=1"))[0] == 200
    assert sorted(job.info.job_id for job in api.table.jobs) == ["a", "b", "c", "d"]
    assert (await api.json("/readyz"))[1]["free"] == 0
    assert (await api.put("e", b"abc", query="?more=1"))[0] == 503


@pytest.mark.parametrize("live", [False, True])
async def test_a_job_is_freed_when_it_is_forgotten_without_the_garbage_collector(serving, demo_processor, live):
    api = await serving({"test": demo_processor if live else Mirror()}, linger_seconds=0.1)
    gc.collect()
    gc.disable()
    try:
        await api.put("read", bytes(32_000), chunked=live)
        await api.end("read")
        await api.records("read")
        await api.put("left", bytes(32_000), query="?alone=0.1", chunked=live)
        freed = [weakref.ref(job) for job in api.table.jobs]
        assert len(freed) == 2
        await until(lambda: not api.table.jobs)
        await until(lambda: not any(each() for each in freed))
    finally:
        gc.enable()
