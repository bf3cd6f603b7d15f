"""What the server adds to a transcription: `python benchmarks/overhead.py [--model NAME] [--quick] [--json]`.

A is `await WhisperProcessor.process(segment)`, called directly; B is `await TrickleClient.process_frame(segment)`, one
PUT and one GET over loopback. They never run at the same time, and take turns as A B B A, so that whatever else the
machine does meets both alike. Each pair gives one difference. The segment is 5 s of PCM16. Two set-ups:

- `own process`: B goes to a real `whisper-byoc serve`, as it does for a user. A has the same model in this process,
  in a worker thread of the same kind and with as many torch threads.
- `same model`: the server runs in this process, around the very processor that A calls. No difference between two
  copies of a model can enter, but client and server share one event loop.

Digital silence never reaches the model: it shows the cost of the transport alone. The transcript is checked too.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from report import Row, emit, machine
from serving import served, speech
from stand_in import Subject, subject

from audio.pcm import SAMPLE_RATE, SAMPLE_WIDTH
from whisper_byoc import TrickleClient
from whisper_byoc.processors.whisper import WhisperProcessor
from whisper_byoc.server.run import Server, ServerConfig

SEGMENT_BYTES = 5 * SAMPLE_RATE * SAMPLE_WIDTH
FIXTURE = "demo-pipeline.wav"
TARGET_MS = 5.0
LONGEST_SECONDS = 900.0
WARM_UP_CALLS = 3

Call = Callable[[bytes], Awaitable[bytes]]


def five_seconds(name: str) -> bytes:
    """Cut a fixture, or fill it up with silence, to 5 s."""
    return speech(name)[:SEGMENT_BYTES].ljust(SEGMENT_BYTES, b"\0")


async def timed(call: Call, segment: bytes, expected: bytes) -> float:
    """Milliseconds of one call, whose text must be `expected`."""
    start = time.perf_counter()
    text = await call(segment)
    took = (time.perf_counter() - start) * 1000
    if text != expected:
        raise RuntimeError(f"{text!r} came back instead of {expected!r}")
    return took


async def take_turns(direct: Call, through: Call, segment: bytes, pairs: int) -> tuple[list[float], list[float]]:
    """Call one after the other, A B B A, and give the milliseconds of both in pairs."""
    expected = await direct(segment)
    for _ in range(WARM_UP_CALLS):
        await timed(direct, segment, expected)
        await timed(through, segment, expected)
    times: dict[Call, list[float]] = {direct: [], through: []}
    for number in range(pairs):
        for call in (through, direct) if number % 2 else (direct, through):
            times[call].append(await timed(call, segment, expected))
    return times[direct], times[through]


def row(setup: str, segment: str, direct: list[float], through: list[float]) -> Row:
    """One line of the table; all but the last columns in milliseconds."""
    added = statistics.median(through) - statistics.median(direct)
    paired = statistics.median(b - a for a, b in zip(direct, through, strict=True))
    return {
        "set-up": setup,
        "segment": segment,
        "direct p50": statistics.median(direct),
        "p95": p95(direct),
        "server p50": statistics.median(through),
        "p95 ": p95(through),
        "p50 - p50": added,
        "paired p50": paired,
        "pairs": len(direct),
        "target": f"<= {TARGET_MS:g} ms",
        "met": max(added, paired) <= TARGET_MS,
    }


def p95(times: list[float]) -> float:
    """The 95th percentile."""
    return statistics.quantiles(times, n=20, method="inclusive")[-1]


@asynccontextmanager
async def processors(model: Subject) -> AsyncIterator[WhisperProcessor]:
    """Load and warm up the model in this process, as the server does."""
    processor = WhisperProcessor(model.model)
    await processor.initialize()
    try:
        yield processor
    finally:
        await processor.shutdown()


async def measure(
    setup: str, processor: WhisperProcessor, url: str, speech_pairs: int, silence_pairs: int
) -> list[Row]:
    """Measure one set-up with speech and with silence."""
    rows = []
    async with TrickleClient(url) as client:
        for name, segment, pairs in (
            ("speech", five_seconds(FIXTURE), speech_pairs),
            ("silence", bytes(SEGMENT_BYTES), silence_pairs),
        ):
            rows.append(row(setup, name, *await take_turns(processor.process, client.process_frame, segment, pairs)))
    return rows


async def run(model: Subject, speech_pairs: int, silence_pairs: int) -> list[Row]:
    """Measure both set-ups, one after the other."""
    rows = []
    async with processors(model) as processor, served(model.pipeline) as server:
        rows += await measure("own process", processor, server.url, speech_pairs, silence_pairs)
    processor = WhisperProcessor(model.model)
    async with Server({"whisper": processor}, ServerConfig("127.0.0.1", 0)) as here:
        await here.loaded()
        url = f"http://127.0.0.1:{here.port}"
        rows += await measure("same model", processor, url, speech_pairs, silence_pairs)
    return rows


def main() -> None:
    """Read the options, measure, print."""
    parser = argparse.ArgumentParser(description="What the server adds to a transcription.")
    parser.add_argument("--model", default="demo", help="demo (default), tiny, tiny-shape (see stand_in.py), a path")
    parser.add_argument("--quick", action="store_true", help="few repetitions: a check that it runs, not a figure")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    options = parser.parse_args()
    about = machine()
    with tempfile.TemporaryDirectory() as folder:
        model = subject(options.model, Path(folder))
        pairs = (3, 5) if options.quick else (100, 500)
        rows = asyncio.run(asyncio.wait_for(run(model, *pairs), LONGEST_SECONDS))
    emit("overhead", {f"5 s of PCM16, model {model.name}, in ms": rows}, as_json=options.json, about=about)


if __name__ == "__main__":
    main()
