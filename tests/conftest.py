"""Fixtures that every folder uses: real servers on loopback, and the speech of `fixtures/`."""

import asyncio
import copy
import ctypes
import functools
import gc
import importlib
import importlib.util
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import types
from contextlib import AsyncExitStack
from pathlib import Path
from types import MappingProxyType

import aiohttp
import hypothesis
import pytest
from aiohttp import web

from tests.ports import free_port
from whisper_byoc.http import listening
from whisper_byoc.server.core.limits import Limits
from whisper_byoc.server.run import Server, ServerConfig

ROOT = Path(__file__).resolve().parent.parent

LIBC = ctypes.CDLL(None)

os.environ["WHISPER_BYOC_MAX_LIVE"] = "100"  # for servers that tests start, however slow the machine is

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # in the background of a script; processes would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)

hypothesis.settings.register_profile("no deadline", deadline=None)  # the machine may be busy
hypothesis.settings.load_profile("no deadline")

pytest_plugins = ("tests.nodes",)


def pytest_collection_finish():
    """Leave what was imported out of garbage collections, which are quick then."""
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def _memory_returned():
    """After each module, free its garbage and give it back to the system; malloc keeps it otherwise."""
    yield
    gc.collect()
    gc.freeze()  # what stays, until the end of the session: the collection after each test does not look at it
    if hasattr(LIBC, "malloc_trim"):
        LIBC.malloc_trim(0)


@pytest.fixture(autouse=True)
def _left_open():
    """Collect garbage after each test: what it left open is charged to it, not to a test of other modules later on."""
    yield  # until its event loop has been closed
    gc.collect()


def pytest_addoption(parser):
    parser.addoption("--all-speech", action="store_true", help="tests of real weights: all recordings, not a few")
    parser.addoption("--real-model", default="tiny.en", help="tests of real weights: name or path of the model")


@pytest.fixture(scope="session")
def fixtures_dir() -> Path:
    return ROOT / "fixtures"


@pytest.fixture(scope="session")
def texts(fixtures_dir) -> dict[str, dict]:
    return json.loads((fixtures_dir / "texts.json").read_text())


@pytest.fixture(scope="session")
def converted(tmp_path_factory):
    """A folder of models in which the demo model has been converted; nobody writes to it."""
    from whisper_byoc.speech.models import load_fast_model

    folder = tmp_path_factory.mktemp("models")
    load_fast_model("demo", folder)
    return folder


@pytest.fixture(scope="session", autouse=True)
def one_demo_model():
    """Whoever loads the demo model for the fast engine in this process gets the same one, unless a folder is named.

    Every compiled model costs memory that OpenVINO does not give back: the kernels for each length of sound.
    """
    from whisper_byoc.processors.machine import available_cpus
    from whisper_byoc.speech import models

    load = models.load_fast_model

    @functools.cache
    def demo():
        model = load("demo")
        model.network(available_cpus())  # compiles it, not for as few threads as the first test wants
        return model

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            models,
            "load_fast_model",
            lambda name, directory=None: demo() if (name, directory) == ("demo", None) else load(name, directory),
        )
        yield


@pytest.fixture(scope="session")
def demo_model():
    """The demo model as openai-whisper has it, loaded once; nobody changes it."""
    from whisper_byoc.speech.models import load_model

    return load_model("demo")


@pytest.fixture(scope="session")
def reference_engine(demo_model):
    """The reference engine with the same weights; it changes the modules, so it has its own."""
    from whisper_byoc.speech.openai_engine import OpenAIEngine

    tensors = [*demo_model.parameters(), *demo_model.buffers()]
    return OpenAIEngine(copy.deepcopy(demo_model, {id(tensor): tensor for tensor in tensors}))


@pytest.fixture(scope="session")
def demo_processor():
    """Speech with the demo model, loaded once for all tests; that servers start and stop it changes nothing."""
    from whisper_byoc.processors.whisper import WhisperProcessor, WhisperSettings

    async def nothing():
        pass

    processor = WhisperProcessor("demo", WhisperSettings(workers=1, live=1000))  # however slow the machine is
    asyncio.run(processor.initialize())
    shutdown = processor.shutdown
    processor.initialize = processor.shutdown = nothing
    yield processor
    asyncio.run(shutdown())


@pytest.fixture(scope="session")
def unused_tcp_port_factory():
    """Return a function that finds ports, each another one; pytest-asyncio's may be a client's when it is used."""
    given = set()

    def find():
        while (port := free_port()) in given:
            pass
        given.add(port)
        return port

    return find


@pytest.fixture
def unused_tcp_port(unused_tcp_port_factory):
    return unused_tcp_port_factory()


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


@pytest.fixture(scope="session")
def certificate(tmp_path_factory):
    """Return a certificate of localhost that nobody has signed, and its key: two PEM files."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl, which makes the certificate, is not installed")
    folder = tmp_path_factory.mktemp("tls")
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "key.pem", "-out", "cert.pem"]
    subject = ["-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    subprocess.run([*command, *subject], cwd=folder, check=True, capture_output=True)
    return folder / "cert.pem", folder / "key.pem"


@pytest.fixture
async def serving():
    """Return a function that serves processors on a free port of loopback until the test is over."""
    async with AsyncExitStack() as stack:

        async def start(processors, *, wait=True, config=MappingProxyType({}), loop=None, **limits) -> Api:
            if not isinstance(processors, dict):
                processors = {"test": processors}
            bounds = Limits(**{"sweep_seconds": 0.05, **limits})
            settings = ServerConfig("127.0.0.1", 0, bounds, **{"stream_hosts": ["127.0.0.1"], **config})
            server = await stack.enter_async_context(Server(processors, settings, loop))
            if wait:
                await server.loaded()
            http = await stack.enter_async_context(aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30)))
            return Api(server, http)

        yield start


@pytest.fixture
async def spawn():
    """Return a function that starts a process with these variables beside ours; what runs at the end is killed."""
    started = []

    async def start(*words, env=None, **options):
        pipe = asyncio.subprocess.PIPE
        options = {"stdin": asyncio.subprocess.DEVNULL, "stdout": pipe, "stderr": pipe} | options
        process = await asyncio.create_subprocess_exec(*words, env=os.environ | (env or {}), **options)
        started.append(process)
        return process

    yield start
    for process in started:
        if process.returncode is None:
            process.kill()
        await process.communicate()


class Running:
    """A command that runs, what it has logged, and the port it listens on."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.log: list[str] = []
        self.out = b""
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def logged(self, pattern: str) -> re.Match:
        """Wait for a line of the log that ends as `pattern` says."""
        async with asyncio.timeout(150):
            while line := (await self.process.stderr.readline()).decode():
                self.log.append(line)
                if found := re.search(pattern + "$", line.rstrip()):
                    return found
        raise AssertionError(f"no {pattern!r} in its log: {self.log}")

    async def listening(self) -> "Running":
        """Wait for the exact log line of the tutorial, and take the port from it."""
        self.port = int((await self.logged(r"Trickle server listening on port (\d+)"))[1])
        return self

    async def ready(self) -> "Running":
        """Wait until every pipeline is warm."""
        await self.listening()
        await self.logged(r"ready: .*")
        return self

    async def end(self, number: signal.Signals | None = signal.SIGTERM) -> int:
        """Send the signal, wait for the exit, keep the rest of the log."""
        if number is not None:
            self.process.send_signal(number)
        async with asyncio.timeout(150):
            self.out, rest = await self.process.communicate()
        self.log.append(rest.decode())
        return self.process.returncode

    @property
    def whole_log(self) -> str:
        return "".join(self.log)


@pytest.fixture
def launch(spawn):
    """Return a function that runs Python with these arguments."""

    async def start(*arguments: str, **environment: str) -> Running:
        return Running(await spawn(sys.executable, *arguments, env=environment))

    return start


@pytest.fixture
def command(launch):
    """Return a function that runs `whisper-byoc` with these arguments."""
    return lambda *arguments, **environment: launch("-m", "whisper_byoc.cli.main", *arguments, **environment)


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
    yield types.SimpleNamespace(
        Publisher=loaded["publisher"].TricklePublisher, Subscriber=loaded["subscriber"].TrickleSubscriber
    )
    gc.collect()  # what it leaves open is warned of now, and in no other test


class FakeGateway:
    """What stands for a gateway: one handler on a real socket, which may misbehave as it likes."""

    def __init__(self) -> None:
        self.url = ""
        self.requests = []
        self.running = 0
        """Handlers that have not ended."""
        self._stack = AsyncExitStack()

    async def serve(self, handler=None, known=None):
        """Serve `handler` at /live/video-to-video, and `known` at /capabilities."""

        async def live(request):
            self.requests.append(request)
            self.running += 1
            try:
                return await handler(request)
            finally:
                self.running -= 1

        async def capabilities(_):
            return web.Response(text=known if isinstance(known, str) else json.dumps(known))

        app = web.Application(client_max_size=1 << 26)
        app.router.add_post("/live/video-to-video", live)
        app.router.add_get("/capabilities", capabilities)
        options = {"keep_alive_seconds": 60, "shutdown_seconds": 0.1, "handler_cancellation": True}
        port = await self._stack.enter_async_context(listening(app, "127.0.0.1", 0, **options))
        self.url = f"http://127.0.0.1:{port}"

    async def close(self):
        await self._stack.aclose()

    @staticmethod
    async def begin(request):
        """Begin an ndjson answer."""
        answer = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        await answer.prepare(request)
        return answer

    @staticmethod
    async def tell(answer, **record):
        """Send one record."""
        await answer.write(json.dumps(record).encode() + b"\n")

    async def upper(self, request):
        """Answer as for a pipeline that makes letters large, a chunk at a time."""
        if request.content_length is not None:
            return web.Response(body=(await request.read()).upper(), headers={"Lp-Trickle-Seq": "0"})
        answer, seq = await self.begin(request), 0
        async for chunk in request.content.iter_any():
            await self.tell(answer, type="result", seq=seq, text=chunk.decode().upper())
            seq += 1
        await self.tell(answer, type="end", seq=seq, errors=0)
        return answer


@pytest.fixture
async def gateway():
    """Return a `FakeGateway` that is closed after the test."""
    fake = FakeGateway()
    yield fake
    await fake.close()
