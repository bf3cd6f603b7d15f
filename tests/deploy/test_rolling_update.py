"""A rolling update as Kubernetes does it, with processes, under load: nothing is lost, doubled or refused.

A new container starts, becomes ready and registers; then the old one gets SIGTERM, unregisters, drains and ends.
"""

import asyncio
import base64
import contextlib
import io
import json
import re
import uuid

import aiohttp
import pytest

from audio import pcm
from audio.wav import read_wav
from tests.waiting import until
from whisper_byoc import GatewayClient
from whisper_byoc.trickle import TrickleError, TricklePublisher

MODEL = "whisper-demo"
PAUSE = bytes(32000)
"""A second, which ends an utterance."""
PIECE = 6400
SPEED = 2.0
"""Of the feeds; so many seconds of sound come in a second."""
DRAIN_SECONDS = 30
GRACE_SECONDS = DRAIN_SECONDS + 15
"""As the chart has it, without what it waits before SIGTERM."""
PCM = {"params": json.dumps({"input": "pcm16"})}


def job(**parameters):
    told = {"request": "{}", "parameters": json.dumps(parameters), "capability": MODEL, "timeout_seconds": 30}
    return {"Livepeer": base64.b64encode(json.dumps(told).encode()).decode()}


class Load:
    """Clients of one gateway that go on until they are told to end; their failures are the test's."""

    def __init__(self, url, http, file, text):
        self.sound = pcm.encode(read_wav(file)) + PAUSE
        self.done = asyncio.Event()
        self.texts = 0
        self.cuts = 0
        self._end = 0
        self._url = url
        self._http = http
        self._file = file
        self._text = text

    async def requests(self):
        """Send a frame, then a recording, and so on, with some time between for everybody else."""
        form = {"model": MODEL, "response_format": "text"}
        url = f"{self._url}/process/request/v1/audio/transcriptions"
        async with GatewayClient(self._url, MODEL) as client:
            while not self.done.is_set():
                assert (await client.process_frame(self.sound)).decode().strip() == self._text
                fields = aiohttp.FormData(form)
                fields.add_field("file", io.BytesIO(self._file), filename="speech.wav")
                async with self._http.post(url, data=fields, headers=job()) as answer:
                    assert answer.status == 200, await answer.text()
                    assert (await answer.text()).strip() == self._text
                self.texts += 2
                await asyncio.sleep(0.1)

    async def feeds(self):
        """Say the same sentence again and again; go on in a new feed where an old one was cut."""
        taken, texts = 0, []
        while not (self.done.is_set() and taken % len(self.sound) == 0):
            async with GatewayClient(self._url, MODEL) as client:
                records = [record async for record in client.stream(self._said(taken))]
            found, cut = checked(records)
            texts += found
            if cut:
                told = re.fullmatch(r"the server is shutting down; (\d+) bytes of the feed were taken", cut)
                assert told, cut
                taken += int(told[1])
                self.cuts += 1
            else:
                taken = self._end
        whole = texts.count(self._text)
        others, sentences = len(texts) - whole, taken // len(self.sound)
        # one that was cut comes in two pieces, of which one may be silence
        assert sentences - self.cuts <= whole <= sentences, texts
        assert others <= 2 * self.cuts, texts
        assert whole == sentences or others, texts

    async def _said(self, begin):
        """Yield the sentence over and over, from byte `begin` on, to the end of one that is under way."""
        self._end = begin
        while not (self.done.is_set() and self._end % len(self.sound) == 0):
            at = self._end % len(self.sound)
            piece = self.sound[at : at + PIECE]
            self._end += len(piece)
            yield piece
            await asyncio.sleep(len(piece) / 32000 / SPEED)

    async def streams(self):
        """Publish a sentence, read its text, and so on; begin another stream where one ends by itself."""
        while not self.done.is_set():
            start = f"{self._url}/process/stream/start"
            headers = job(enable_video_ingress=True, enable_data_output=True)
            async with self._http.post(start, json=PCM, headers=headers) as answer:
                assert answer.status == 200, await answer.text()
                urls = await answer.json()
            sentences, records = await self._published(urls)
            found, cut = checked(records)
            self.cuts += not self.done.is_set()
            assert found[: sentences - 1] == [self._text] * (sentences - 1)
            assert len(found) == sentences or cut, "the last one may have come too late, which the stream says"

    async def _published(self, urls):
        records, sentences = [], 0
        async with (
            TricklePublisher(urls["publish_url"], "audio/L16") as publisher,
            self._http.get(urls["data_url"]) as data,
        ):
            reading = asyncio.ensure_future(read_events(data, records))
            with contextlib.suppress(TrickleError):  # the channel goes with its stream
                while not (reading.done() or self.done.is_set()):
                    await publisher.publish(self.sound)
                    sentences += 1
                    await until(lambda number=sentences: reading.done() or len(texts_of(records)) == number)
            if self.done.is_set():
                stop = f"{self._url}/process/stream/{urls['stream_id']}/stop"
                async with self._http.post(stop, headers=job()):
                    pass
            await reading
        return sentences, records


async def read_events(answer, records):
    async for line in answer.content:
        if line.startswith(b"data:") and (record := json.loads(line[5:])) != {"type": "stream_ended"}:
            records.append(record)


def texts_of(records):
    return [each["text"] for each in records if each["type"] == "transcript" and each["is_final"]]


def checked(records):
    """Check that no record of a job is missing or doubled; return its texts, and why it was cut off, if it was."""
    assert [each["seq"] for each in records] == list(range(len(records)))
    assert [each["type"] for each in records].count("end") == 1
    assert records[-1]["type"] == "end"
    return texts_of(records), "; ".join(each["error"] for each in records if each["type"] == "error")


@pytest.mark.parametrize(
    ("number", "live_seconds"),
    [(1, 0), (2, 0), (2, 60)],
    ids=["one orchestrator", "two orchestrators", "live jobs go on"],
)
@pytest.mark.timeout(120)  # where other programs want the processor, too
async def test_nothing_is_lost_or_refused_while_containers_are_replaced(
    node, http, fixtures_dir, texts, number, live_seconds
):
    secret = {"ORCH_SECRET": uuid.uuid4().hex}
    around = [node("orchestrator", "-serviceAddr", "127.0.0.1:PORT", environment=secret).start() for _ in range(number)]
    urls = ",".join(each.url for each in around)

    async def new_one():
        """Start a container; it is ready, and known to the orchestrators."""
        made = node(
            "serve", "--pipeline", MODEL, "--host", "127.0.0.1", "--port", "PORT",
            "--drain-live", str(live_seconds), "--drain-timeout", str(DRAIN_SECONDS),
            environment={**secret, "ORCH_URL": urls},
        )  # fmt: skip
        await asyncio.to_thread(lambda: made.start().ready())
        await until(lambda: made.text.count("registered capability") == number)
        return made

    old = await new_one()
    gateway = node("gateway", "-orchAddr", urls, "-httpAddr", "127.0.0.1:PORT").start()
    await asyncio.to_thread(gateway.ready)
    name = "demo-numbers.wav"
    load = Load(gateway.url, http, (fixtures_dir / name).read_bytes(), texts[name]["text"])
    async with asyncio.TaskGroup() as group:
        for work in (load.requests, load.feeds, load.streams):
            group.create_task(work())
        await until(lambda: load.texts, 40)
        new = await new_one()
        old.process.terminate()
        if not live_seconds:
            assert await asyncio.to_thread(old.process.wait, GRACE_SECONDS) == 0
        before = load.texts
        await until(lambda: load.texts > before + 2, 40)
        load.done.set()
    assert await asyncio.to_thread(old.process.wait, GRACE_SECONDS) == 0
    cut = 0 if live_seconds else 2
    assert load.cuts == cut, "the feed and the stream were on the old container, and were told of its end"
    for each in (old, new, *around, gateway):
        assert "Traceback" not in each.text
    told, drained = old.text.index("unregistered at"), old.text.index("shutting down:")
    assert told < drained
    assert old.text.count("unregistered at") == number
