"""A processor whose code runs on its author's event loop, in another thread than the server's."""

import asyncio
import json
import threading
import time

import pytest

from tests.server.stubs import Listener, partial
from tests.waiting import forever, until
from whisper_byoc.errors import BadParam


@pytest.fixture
def author_loop():
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield loop
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


class Live(Listener):
    """Notes in which threads each of its functions was called."""

    def __init__(self):
        super().__init__(lambda piece: [] if piece else [partial("so far")])
        self.threads, self.opened = {}, 0

    async def initialize(self):
        pass

    def open_session(self, job):
        self.opened += 1
        return self

    def update(self, params):
        if params.get("language") == "xx":
            raise BadParam("language", "no language xx")

    async def feed_live(self, piece, arrived):
        self.tell()
        return await super().feed_live(piece, arrived)

    async def flush(self):
        return []  # a final text would take the place of the partial one

    def trouble(self):
        return None

    async def shutdown(self):
        pass


CALLED = (
    "initialize", "open_session", "update", "feed", "feed_live", "when_ready", "ready", "flush", "end_feed", "finish",
    "close", "summary", "trouble", "shutdown",
)  # fmt: skip


def noted(function):
    def call(self, *arguments):
        self.threads.setdefault(function.__name__, set()).add(threading.get_ident())
        return function(self, *arguments)

    return call


for name in CALLED:
    setattr(Live, name, noted(getattr(Live, name)))


async def test_all_of_a_live_processors_code_runs_on_its_authors_loop(author_loop, serving):
    live = Live()
    api = await serving(live, loop=author_loop, flush_seconds=0.02)
    await api.put("job", b"ab", chunked=True, query="?more=1")
    async with api.http.get(f"{api.url}/live/job/output", headers={"Accept": "application/x-ndjson"}) as output:
        assert json.loads(await output.content.readline())["text"] == "so far"
        await until(lambda: "flush" in live.threads)
        await api.put("job", b"cd")
        await api.table.get("job").update({"language": "de"})
        with pytest.raises(BadParam):
            await api.table.get("job").update({"language": "xx"})
        await api.put("job", b"ef", chunked=True)
        records = [json.loads(line) async for line in output.content]
    assert [each["text"] for each in records if each.get("is_final")] == ["last words", "segment of 2", "4 bytes"]
    assert (records[-1]["type"], records[-1]["errors"]) == ("end", 0)
    assert (await api.json("/health"))[1] == {"status": "IDLE"}
    await api.server.__aexit__(None, None, None)
    assert set(live.threads) == set(CALLED)
    (thread,) = set.union(*live.threads.values())
    assert thread != threading.get_ident()


async def test_requests_are_answered_while_the_authors_loop_is_blocked(author_loop, serving):
    live, unblock = Live(), threading.Event()
    api = await serving(live, loop=author_loop, admission_seconds=0.1)
    await api.put("job", b"ab")
    await until(lambda: "feed" in live.threads)
    author_loop.call_soon_threadsafe(unblock.wait)
    began = time.monotonic()
    assert (await api.json("/readyz"))[0] == 200
    status, body, _ = await api.put("other", b"cd")
    assert status == 503
    assert "did not open a session in 0.1 s" in body["error"]
    await api.table.forget("job", "enough")
    assert time.monotonic() - began < 20
    unblock.set()
    await until(lambda: live.opened == 1)
    assert (await api.put("other", b"cd"))[0] == 200


async def test_two_requests_at_once_open_one_session(author_loop, serving):
    live = Live()
    api = await serving(live, loop=author_loop, jobs=1)
    unblock = threading.Event()
    author_loop.call_soon_threadsafe(unblock.wait)
    putting = [asyncio.ensure_future(api.put("job", b"ab")) for _ in range(2)]
    await api.json("/health")  # by now both are being admitted
    unblock.set()
    assert [status for status, *_ in await asyncio.gather(*putting)] == [200, 200]
    assert live.opened == 1


async def test_a_processor_that_cannot_tell_how_it_is_or_is_stuck_is_in_trouble(serving, monkeypatch):
    class Stuck:
        async def process(self, frame):
            await forever()

        def trouble(self):
            return "the model is gone" if self.gone else None

    stuck = Stuck()
    api = await serving(stuck)
    reasons = (await api.json("/readyz"))[1]["reasons"]
    assert reasons[0].startswith("pipeline test: it cannot tell how it is: AttributeError: 'Stuck' object has")
    stuck.gone = True
    assert (await api.json("/readyz"))[1]["reasons"] == ["pipeline test: the model is gone"]
    assert (await api.json("/health"))[1] == {"status": "ERROR"}
    stuck.gone = False
    await api.put("job", b"x")
    assert (await api.json("/readyz"))[0] == 200
    monkeypatch.setattr("whisper_byoc.server.core.pipeline.STUCK_SECONDS", -1.0)
    assert "has been working on one frame for 0 s" in (await api.json("/readyz"))[1]["reasons"][0]
