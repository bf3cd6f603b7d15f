"""Two containers of unlike capacity behind an orchestrator and a gateway, as processes: who gets how many feeds."""

import asyncio
import json
from contextlib import AsyncExitStack

import pytest

from tests.waiting import until

MODEL = {"X-Model-Id": "whisper-demo", "Accept": "application/x-ndjson"}


@pytest.fixture
def container_that_takes(node):
    def make(live):
        named = ("--pipeline", "whisper-demo", "--max-live", str(live), "--threads", "1")
        return node("serve", "--host", "127.0.0.1", "--port", "PORT", *named)

    return make


class Feeds:
    """Live feeds at a gateway that last until the test is over."""

    def __init__(self, http, gateway, stack):
        self._url = f"{gateway.url}/live/video-to-video"
        self._http = http
        self._stack = stack
        self._over = asyncio.Event()
        stack.callback(self._over.set)

    async def _silence(self):
        yield bytes(3200)
        await self._over.wait()

    async def begin(self):
        """Begin one more; return the status of the answer, whose feed goes on."""
        posting = self._http.post(self._url, data=self._silence(), headers=MODEL)
        return (await self._stack.enter_async_context(posting)).status


async def load(http, container):
    async with http.get(f"{container.url}/health") as answer:
        return json.loads(await answer.read())["capacity"]["whisper-demo"]["live_jobs"]


async def test_feeds_go_where_capacity_is_free_and_a_lost_container_gets_none(
    http, container_that_takes, orchestrator_node, gateway_node
):
    slow, fast = (container_that_takes(live).start() for live in (2, 6))
    orchestrator = orchestrator_node(slow.ready(), fast.ready()).start().ready()
    gateway = gateway_node(orchestrator).start().ready()

    async def offers(free):
        async def are_told():
            async with http.get(f"{gateway.url}/capabilities") as answer:
                known = {each["name"]: each["available"] for each in (await answer.json())["capabilities"]}
            return known.get("whisper-demo") == free

        await until(are_told)

    async with AsyncExitStack() as stack:
        feeds = Feeds(http, gateway, stack)
        await offers(8)
        assert [await feeds.begin() for _ in range(4)] == [200] * 4
        assert [await load(http, each) for each in (slow, fast)] == [1, 3]
        assert [await feeds.begin() for _ in range(4)] == [200] * 4
        assert [await load(http, each) for each in (slow, fast)] == [2, 6]
        assert await feeds.begin() == 503
        fast.kill()
        await offers(0)
        assert await feeds.begin() == 503
    await offers(2)
    async with AsyncExitStack() as stack:
        feeds = Feeds(http, gateway, stack)
        assert [await feeds.begin() for _ in range(3)] == [200, 200, 503]
        assert await load(http, slow) == 2
