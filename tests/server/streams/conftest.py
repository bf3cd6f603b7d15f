"""An orchestrator for the tests of streams: a trickle server of its own, and what go-livepeer does with it."""

import asyncio
import json

import pytest

from tests.server.stubs import Sound
from whisper_byoc.server.streams import input as stream_input
from whisper_byoc.server.streams import output as stream_output
from whisper_byoc.server.streams import routes, video
from whisper_byoc.server.streams.monitor import Monitor
from whisper_byoc.server.streams.output import EventWriter
from whisper_byoc.trickle.publisher import TricklePublisher
from whisper_byoc.trickle.remote import ClientOptions
from whisper_byoc.trickle.server import TrickleServer
from whisper_byoc.trickle.subscriber import TrickleSubscriber

KINDS = {"": "video/MP2T", "-out": "video/MP2T", "-control": "application/json", "-events": "application/json",
         "-data": "application/jsonl"}  # fmt: skip
NAMES = {"": "subscribe_url", "-out": "publish_url", "-control": "control_url", "-events": "events_url",
         "-data": "data_url"}  # fmt: skip


def unheard_monitor():
    """Make the monitor of a stream whose events nobody hears."""
    return Monitor("pipeline", EventWriter("stream", None, ClientOptions()))


class Orchestrator:
    """What an orchestrator does for a stream: make channels, tell the container, read what it writes."""

    def __init__(self, trickle, base, api):
        self.trickle = trickle
        self.base = base
        self.api = api

    def channels(self, name, kinds=KINDS):
        for kind in kinds:
            self.trickle.create(name + kind, KINDS[kind])
        return {NAMES[kind]: f"{self.base}/ai/trickle/{name}{kind}" for kind in kinds}

    async def start(self, name, urls, params=None, **headers):
        body = {"gateway_request_id": name, **urls, "params": params}
        return await self.post("/stream/start", body, name, **headers)

    async def post(self, path, body, name=None):
        headers = {"X-Stream-Id": name} if name else {}
        async with self.api.http.post(f"{self.api.url}{path}", json=body, headers=headers) as answer:
            return answer.status, await answer.json()

    async def stop(self, name):
        """As go-livepeer does it: no content type, some bytes."""
        async with self.api.http.post(
            f"{self.api.url}/stream/stop",
            data=b"why not",
            headers={"X-Stream-Id": name},
            skip_auto_headers=["Content-Type"],
        ) as answer:
            return answer.status, await answer.json()

    def errors(self, name):
        """Give the error records that a stream's job still holds."""
        results = self.api.table.get(name).results
        return [record.error for seq in range(results.next_seq) if (record := results.at(seq)) and record.error]

    def publisher(self, name, mime="video/MP2T"):
        return TricklePublisher(f"{self.base}/ai/trickle/{name}", mime)

    def follow(self, name, kind):
        """Collect the JSON lines of a channel until it ends or the task is cancelled."""
        found = []

        async def run():
            async for segment in self._segments(name, kind):
                assert all(len(line) < 65536 for line in segment.splitlines())
                found.extend(json.loads(line) for line in segment.splitlines())

        return found, asyncio.ensure_future(run())

    def collect(self, name, kind):
        """Collect the segments of a channel as bytes until it ends."""
        found = []

        async def run():
            async for segment in self._segments(name, kind):
                found.append(segment)

        return found, asyncio.ensure_future(run())

    async def through(self, name, segments, params=None):
        """Send segments through a stream of its own, and return the records on its data channel."""
        urls = self.channels(name, ["", "-data"])
        status, body = await self.start(name, urls, params)
        assert status == 200, body
        data, reading = self.follow(name, "-data")
        async with self.publisher(name) as publisher:
            for segment in segments:
                await publisher.publish(segment)
            assert (await self.stop(name))[0] == 200
        self.trickle.close(name + "-data")
        await reading
        return data

    async def _segments(self, name, kind):
        async with TrickleSubscriber(f"{self.base}/ai/trickle/{name}{kind}", start=0) as subscriber:
            async for segment in subscriber:
                yield await segment.read()


@pytest.fixture
async def orchestrate(serving, monkeypatch):
    monkeypatch.setattr(stream_output, "FIRST_LINE_S", 0.0)  # followers read from the first segment on
    for module, name in ((routes, "STOP_LIMIT_S"), (stream_input, "STOP_READING_S"), (video, "ENCODER_FLUSH_S")):
        monkeypatch.setattr(module, name, 100.0)  # however slow the machine is
    trickle = TrickleServer("/ai/trickle/")
    worlds = []
    async with trickle.listening("127.0.0.1", 0) as url:

        async def start(processor=None, **limits):
            base = url.removesuffix(trickle.base_path)
            worlds.append(Orchestrator(trickle, base, await serving(processor or Sound(), **limits)))
            return worlds[-1]

        yield start
        for world in worlds:
            await world.api.server.streams.close()  # else they connect anew while the listener goes
