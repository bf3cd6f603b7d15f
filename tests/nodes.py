"""Servers as processes, which tests kill, stop and start anew; a plugin of pytest, for its fixtures."""

import asyncio
import contextlib
import os
import re
import resource
import subprocess
import sys
import time
import urllib.error
import urllib.request

import aiohttp
import pytest

from benchmarks import held
from tests.ports import free_port

PIPELINES = ("whisper-demo", "green-tint-cpu", "grayscale-cpu", "passthrough")


class Node:
    """One of our servers in a process that can be killed and started anew at the same port; its log is a file.

    It belongs to no event loop, so that a whole module can share it. One that is `watched` tells what it holds; it may
    have so many `descriptors`.
    """

    def __init__(self, log, *command, environment=None, watched=False, descriptors=None):
        self.log = log
        self._report = log.with_suffix(".held")
        self._program = (held.__file__, str(self._report)) if watched else ("-m", "whisper_byoc.cli.main")
        self._descriptors = descriptors
        self._environment = os.environ | (environment or {})
        self.port = free_port()  # which nobody takes while it is dead
        self._command = command  # the word PORT in it stands for the port
        self.process = None

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def start(self):
        """Begin, and wait until it listens."""
        offset = self.log.stat().st_size if self.log.exists() else 0
        words = [word.replace("PORT", str(self.port)) for word in self._command]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, *self._program, *words],
                stdin=subprocess.DEVNULL,
                stderr=log,
                env=self._environment,
                preexec_fn=self._limit,
            )
        self.port = int(self.until(lambda: re.search(r"listening on port (\d+)\n", self.text[offset:]), 90)[1])
        return self

    def _limit(self):
        if self._descriptors:
            resource.setrlimit(resource.RLIMIT_NOFILE, (self._descriptors, self._descriptors))

    def ready(self):
        """Wait until /readyz says yes."""
        self.until(self._asked, 90)
        return self

    def held(self):
        return held.ask(self.process.pid, self._report)

    def kill(self):
        self.process.kill()
        self.process.wait()

    def revive(self):
        """Start it if it does not run."""
        return self if self.process and self.process.poll() is None else self.start()

    def end(self):
        """Ask it to stop; the exit code."""
        self.process.terminate()
        return self.process.wait(90)

    @property
    def text(self):
        return self.log.read_text()

    def until(self, question, seconds):
        deadline = time.monotonic() + seconds
        while not (answer := question()):
            assert self.process.poll() is None, self.text
            assert time.monotonic() < deadline, self.text
            time.sleep(0.05)
        return answer

    def _asked(self):
        try:
            with urllib.request.urlopen(f"{self.url}/readyz", timeout=5) as answer:
                return answer.status == 200
        except (urllib.error.URLError, TimeoutError):
            return False


@pytest.fixture(scope="module")
def node(tmp_path_factory):
    """Return a function that makes a node of a command line; all of them are killed when the module is done."""
    folder, nodes = tmp_path_factory.mktemp("nodes"), []

    def make(*command, **options):
        log = folder / f"{len(nodes)}-{command[0]}.log"
        nodes.append(Node(log, *command, **options))
        return nodes[-1]

    yield make
    for each in nodes:
        if each.process and each.process.poll() is None:
            each.kill()


@pytest.fixture(scope="module")
def container_node(node):
    """Return a function that makes a container."""

    def make(*pipelines):
        named = [word for name in pipelines or PIPELINES for word in ("--pipeline", name)]
        return node("serve", "--host", "127.0.0.1", "--stream-host", "127.0.0.1", "--port", "PORT", *named)

    return make


@pytest.fixture(scope="module")
def orchestrator_node(node):
    """Return a function that makes an orchestrator for these containers."""

    def make(*containers):
        urls = [word for each in containers for word in ("-byocContainerURL", each.url)]
        names = [word for name in PIPELINES for word in ("-byocModelID", name)]
        return node("orchestrator", "-orchestrator", "-byoc", "-serviceAddr", "127.0.0.1:PORT", *urls, *names)

    return make


@pytest.fixture(scope="module")
def gateway_node(node):
    """Return a function that makes a gateway for these orchestrators."""

    def make(*orchestrators):
        urls = ",".join(each.url for each in orchestrators)
        return node("gateway", "-gateway", "-orchAddr", urls, "-httpAddr", "127.0.0.1:PORT", "-httpIngest")

    return make


@pytest.fixture
async def http():
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=50)) as session:
        yield session


@pytest.fixture
def idle_again(http):
    """Return a context after which nodes must hold as little as before: jobs, places, streams, sessions."""

    async def counts(node):
        if "gateway" not in node.log.name and "orchestrator" not in node.log.name:
            async with http.get(f"{node.url}/metrics") as answer:
                return re.findall(
                    r"^(byoc_sessions_active|byoc_segments_queued) (\S+)$", await answer.text(), re.MULTILINE
                )
        async with http.get(f"{node.url}/status") as answer:
            status = await answer.json()
        async with http.get(f"{node.url}/capabilities") as answer:
            offers = (await answer.json())["capabilities"]
        load = [each["load"] for offer in offers for each in offer.get("containers", [])]
        return (status["jobs"], status["streams"], status["draining"], load)

    @contextlib.asynccontextmanager
    async def watch(*nodes, seconds=60):
        before = [await counts(node) for node in nodes]
        yield
        deadline = time.monotonic() + seconds
        while (after := [await counts(node) for node in nodes]) != before:
            assert time.monotonic() < deadline, f"{[node.log.stem for node in nodes]}: {before} became {after}"
            await asyncio.sleep(0.05)

    return watch
