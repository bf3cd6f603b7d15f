"""The page in a real Firefox, by WebDriver BiDi, which it speaks itself."""

import asyncio
import itertools
import json
import re
import shutil
import subprocess
from contextlib import asynccontextmanager

import aiohttp
import pytest

FIREFOX = shutil.which("firefox-esr") or shutil.which("firefox")


class Page:
    """A tab of Firefox. `problems` are the errors in its console."""

    def __init__(self, socket):
        self.problems = []
        self._socket = socket
        self._numbers = itertools.count(1)
        self._context = ""

    async def open(self, url):
        await self._command("session.new", capabilities={})
        await self._command("session.subscribe", events=["log.entryAdded"])
        tree = await self._command("browsingContext.getTree")
        self._context = tree["contexts"][0]["context"]
        await self._command("browsingContext.navigate", context=self._context, url=url, wait="complete")

    async def until(self, expression):
        """Return what an expression gives, once it gives something."""
        while not (found := await self._evaluate(expression)):
            await asyncio.sleep(0.1)
        return found

    async def choose_file(self, css, path):
        found = await self._command(
            "browsingContext.locateNodes", context=self._context, locator={"type": "css", "value": css}
        )
        element = {"sharedId": found["nodes"][0]["sharedId"]}
        await self._command("input.setFiles", context=self._context, element=element, files=[str(path)])

    async def _evaluate(self, expression):
        target = {"context": self._context}
        found = await self._command("script.evaluate", expression=expression, target=target, awaitPromise=True)
        assert found["type"] == "success", found
        return found["result"].get("value")

    async def _command(self, method, **params):
        number = next(self._numbers)
        await self._socket.send_json({"id": number, "method": method, "params": params})
        while True:
            message = json.loads(await self._socket.receive_str())
            if message.get("method") == "log.entryAdded" and message["params"]["level"] == "error":
                self.problems.append(message["params"]["text"])
            if message.get("id") == number:
                assert message["type"] == "success", message
                return message["result"]


@asynccontextmanager
async def firefox(profile):
    """Run a Firefox, and yield the address of its BiDi."""
    process = await asyncio.create_subprocess_exec(
        FIREFOX, "--headless", "--no-remote", "--profile", profile, "--remote-debugging-port", "0", "about:blank",
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        listening = None
        while listening is None:
            line = (await process.stderr.readline()).decode()
            assert line, "Firefox has ended"
            listening = re.search(r"BiDi listening on (\S+)", line)
        yield listening[1]
    finally:
        process.terminate()
        await process.wait()


@pytest.mark.skipif(FIREFOX is None, reason="there is no Firefox: apt-get install firefox-esr")
async def test_a_file_is_read_in_firefox(container_node, fixtures_dir, tmp_path):
    container = container_node("whisper-demo").start().ready()
    async with (
        asyncio.timeout(150),
        firefox(tmp_path) as address,
        aiohttp.ClientSession() as http,
        http.ws_connect(f"{address}/session", max_msg_size=0) as socket,
    ):
        page = Page(socket)
        await page.open(container.url)
        await page.until("document.querySelector('#speech-pipeline option') !== null")
        await page.choose_file("#file", fixtures_dir / "demo-numbers.wav")
        text = await page.until("document.querySelector('#text li.final span')?.innerText")
        assert text == "seven three nine zero five one"
        assert page.problems == []
