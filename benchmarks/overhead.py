"""What the server adds to a transcription: `python benchmarks/overhead.py [--model NAME] [--quick] [--json]`.

A is `await WhisperProcessor.process(segment)`, called directly; B is `await TrickleClient.process_frame(segment)`, one
PUT and one GET over loopback. They never run at the same time, and take turns as A B B A, so that whatever else the
machine does meets both alike. Each pair gives one difference, B - A; their median comes with its 95 % confidence
interval. The target is met when all of it lies within 5 ms around zero, missed when all of it lies above, and otherwise
the noise is too great to tell. Two set-ups:

- `own process`: B goes to a real `whisper-byoc serve`, as it does for a user. A has the same model in this process,
  in a worker thread of the same kind and with as many torch threads.
- `same model`: the server runs in this process, around the very processor that A calls. No difference between two
  copies of a model can enter, but client and server share one event loop.

The model's own time varies, on a shared machine by many times the target. Two figures are free of that. `outside mean`
is how long B took less what the server itself counted for these very calls, from a segment's arrival in its job to its
outcome; it leaves out what goes on within a job beside the model, and would not show a server that slows the model
down, as B - A does. And digital silence never reaches the model, so that its rows show the transport with the job.

The segment is 5 s of PCM16. Every text is checked.
"""

from __future__ import annotations

import argparse
import asyncio
import re

import aiohttp
from pairs import Call, in_turns, paired_row, timed
from report import Row, emit, machine
from serving import served, speech
from subject import Subject

from audio.pcm import SAMPLE_RATE, SAMPLE_WIDTH
from whisper_byoc import TrickleClient
from whisper_byoc.processors.whisper import WhisperProcessor
from whisper_byoc.server.run import Server, ServerConfig

SEGMENT_BYTES = 5 * SAMPLE_RATE * SAMPLE_WIDTH
FIXTURE = "demo-pipeline.wav"
TARGET_MS = 5.0
LONGEST_SECONDS = 1800.0
SILENCE_PAIRS = 500


def five_seconds(name: str) -> bytes:
    """Cut a fixture, or fill it up with silence, to 5 s."""
    return speech(name)[:SEGMENT_BYTES].ljust(SEGMENT_BYTES, b"\0")


async def take_turns(direct: Call, client: TrickleClient, url: str, segment: bytes, pairs: int) -> Row:
    """Call one after the other, A B B A, and give one line of the table, in milliseconds."""
    through = client.process_frame
    expected = await direct(segment)
    await timed(through, segment, expected)
    before = await inside_job(url)
    alone, served_times = await in_turns(direct, through, segment, expected, pairs)
    inside = await inside_job(url) - before
    row = paired_row(("direct", "server"), alone, served_times, TARGET_MS)
    return {**row, "outside mean": (sum(served_times) - inside) / pairs}


async def inside_job(url: str) -> float:
    """Milliseconds from arrival to outcome, summed over all segments so far: the server's own count."""
    async with aiohttp.ClientSession() as http, http.get(f"{url}/metrics") as answer:
        sums = re.findall(r"^byoc_segment_duration_seconds_sum\{.*\} (\S+)$", await answer.text(), re.MULTILINE)
    return 1000 * sum(map(float, sums))


async def measure(setup: str, processor: WhisperProcessor, url: str, pairs: tuple[int, int]) -> list[Row]:
    """Measure one set-up with speech and with silence."""
    segments = {"speech": five_seconds(FIXTURE), "silence": bytes(SEGMENT_BYTES)}
    rows: list[Row] = []
    async with TrickleClient(url) as client:
        for (name, segment), count in zip(segments.items(), pairs, strict=True):
            cells = await take_turns(processor.process, client, url, segment, count)
            rows.append({"set-up": setup, "segment": name, **cells})
    return rows


async def run(model: Subject, pairs: tuple[int, int]) -> list[Row]:
    """Measure both set-ups, one after the other; the server of the other one idles meanwhile."""
    processor = WhisperProcessor(model.name)
    here = Server({"whisper": processor}, ServerConfig("127.0.0.1", 0))
    async with here, served(model.pipeline) as there:
        await here.loaded()
        own_process = await measure("own process", processor, there.url, pairs)
        return own_process + await measure("same model", processor, f"http://127.0.0.1:{here.port}", pairs)


def main() -> None:
    """Read the options, measure, print."""
    parser = argparse.ArgumentParser(description="What the server adds to a transcription.")
    parser.add_argument("--model", default="demo", help="demo (default), tiny, a path")
    parser.add_argument("--pairs", type=int, default=200, help="of calls with speech; a busy machine needs more")
    parser.add_argument("--quick", action="store_true", help="few repetitions: a check that it runs, not a figure")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    options = parser.parse_args()
    about = machine()
    model = Subject(options.model)
    pairs = (2, 5) if options.quick else (options.pairs, SILENCE_PAIRS)
    rows = asyncio.run(asyncio.wait_for(run(model, pairs), LONGEST_SECONDS))
    emit("overhead", {f"5 s of PCM16, model {model.name}, in ms": rows}, as_json=options.json, about=about)


if __name__ == "__main__":
    main()
