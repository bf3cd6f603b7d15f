"""Fixtures that every folder uses: real servers on loopback, and the speech of `fixtures/`."""

import asyncio
import importlib
import importlib.util
import io
import json
import sys
import types
from contextlib import AsyncExitStack
from pathlib import Path

import aiohttp
import pytest

from whisper_byoc.server.limits import Limits
from whisper_byoc.server.run import Server, ServerConfig

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def fixtures_dir() -> Path:
    return ROOT / "fixtures"


@pytest.fixture(scope="session")
def texts(fixtures_dir) -> dict[str, dict]:
    return json.loads((fixtures_dir / "texts.json").read_text())


class Api:
    """A server under test and an HTTP session to it."""

    def __init__(self, server: Server, http: aiohttp.ClientSession) -> None:
        self.server = server
        self.table = server.table
        self.port = server.port
        self.url = f"http://127.0.0.1:{server.port}"
        self.http = http

    async def put(self, job, data=b"", *, chunked=False, query="", **options):
        body = pieces(data) if chunked else io.BytesIO(data)
        async with self.http.put(f"{self.url}/live/{job}/source{query}", data=body, **options) as answer:
            return answer.status, await answer.json(), answer.headers

    async def get(self, job, query="?wait=5", **options):
        async with self.http.get(f"{self.url}/live/{job}/output{query}", **options) as answer:
            return answer.status, await answer.read(), answer.headers

    async def records(self, job):
        """Follow the output to its end."""
        headers = {"Accept": "application/x-ndjson"}
        async with self.http.get(f"{self.url}/live/{job}/output", headers=headers) as answer:
            assert answer.status == 200, await answer.text()
            return [json.loads(line) async for line in answer.content]

    async def end(self, job):
        async with self.http.delete(f"{self.url}/live/{job}/source") as answer:
            return answer.status

    async def json(self, path):
        async with self.http.get(f"{self.url}{path}") as answer:
            return answer.status, await answer.json()

    async def still_serves(self):
        """The server takes a new job, whatever happened to the others."""
        status, _, _ = await self.put("next-job", b"abc")
        assert status == 200
        assert (await self.get("next-job"))[0] in (200, 500)


async def pieces(data):
    """Bytes or a list of chunks as a chunked body."""
    chunks = [data] if isinstance(data, bytes) else data
    for chunk in chunks:
        yield chunk
        await asyncio.sleep(0)


@pytest.fixture
async def serving():
    """Give a function that serves processors on a free port of loopback until the test is over."""
    async with AsyncExitStack() as stack:

        async def start(processors, *, wait=True, **limits) -> Api:
            if not isinstance(processors, dict):
                processors = {"test": processors}
            server = await stack.enter_async_context(Server(processors, ServerConfig("127.0.0.1", 0, Limits(**limits))))
            if wait:
                await server.loaded()
            http = await stack.enter_async_context(aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30)))
            return Api(server, http)

        yield start


@pytest.fixture
def pytrickle(monkeypatch):
    """Livepeer's own publisher and subscriber, as attributes; see tests/trickle/test_pytrickle.py."""
    spec = importlib.util.find_spec("pytrickle")
    if spec is None:
        pytest.skip("pytrickle is not installed")
    folder = spec.submodule_search_locations
    package = types.ModuleType("pytrickle")
    package.__path__ = list(folder)
    for name in [name for name in sys.modules if name.split(".")[0] == "pytrickle"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pytrickle", package)
    loaded = {name: importlib.import_module(f"pytrickle.{name}") for name in ("base", "publisher", "subscriber")}
    for name, module in loaded.items():
        monkeypatch.setitem(sys.modules, f"pytrickle.{name}", module)
    return types.SimpleNamespace(
        Publisher=loaded["publisher"].TricklePublisher, Subscriber=loaded["subscriber"].TrickleSubscriber
    )
