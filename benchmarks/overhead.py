"""What the server adds to a transcription: `python benchmarks/overhead.py [--model NAME] [--quick] [--json]`.

A is `await WhisperProcessor.process(segment)`, called directly; B is `await TrickleClient.process_frame(segment)`, one
PUT and one GET over loopback. They never run at the same time, and take turns as A B B A, so that whatever else the
machine does meets both alike. Each pair gives one difference, B - A; their median comes with its 95 % confidence
interval, and the target counts as met or missed only when all of the interval agrees. Two set-ups:

- `own process`: B goes to a real `whisper-byoc serve`, as it does for a user. A has the same model in this process,
  in a worker thread of the same kind and with as many torch threads.
- `same model`: the server runs in this process, around the very processor that A calls. No difference between two
  copies of a model can enter, but client and server share one event loop. Here `same call` is known too: how long B
  took less what its own processor call took. It is free of the model's jitter, which on a shared machine is many
  times the target; but it would not show a server that slows the model down, as the difference B - A does.

The segment is 5 s of PCM16. Digital silence never reaches the model: it shows the cost of the transport alone. Every
text is checked.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from report import Row, emit, machine
from serving import served, speech
from stand_in import Subject, subject

from audio.pcm import SAMPLE_RATE, SAMPLE_WIDTH
from whisper_byoc import JobInfo, Result, TrickleClient
from whisper_byoc.processors.base import Session
from whisper_byoc.processors.whisper import WhisperProcessor
from whisper_byoc.server.run import Server, ServerConfig

SEGMENT_BYTES = 5 * SAMPLE_RATE * SAMPLE_WIDTH
FIXTURE = "demo-pipeline.wav"
TARGET_MS = 5.0
LONGEST_SECONDS = 1800.0
WARM_UP_CALLS = 1
SILENCE_PAIRS = 500

Call = Callable[[bytes], Awaitable[bytes]]


class TimedProcessor(WhisperProcessor):
    """Keeps how long its side of each served segment took, in ms."""

    def __init__(self, model: str) -> None:
        super().__init__(model)
        self.times: list[float] = []

    def open_session(self, job: JobInfo) -> TimedSession:  # type: ignore[override]  # the server asks for a Session
        """Open a session that keeps time."""
        return TimedSession(super().open_session(job), self.times)


class TimedSession:
    """One job, timed."""

    def __init__(self, session: Session, times: list[float]) -> None:
        self._session = session
        self._times = times
        self.finish = session.finish
        self.summary = session.summary

    async def feed(self, frame: bytes) -> list[Result]:
        """Transcribe, and keep how long it took."""
        start = time.perf_counter()
        results = await self._session.feed(frame)
        self._times.append((time.perf_counter() - start) * 1000)
        return results


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


def row(direct: Sequence[float], through: Sequence[float], inside: Sequence[float]) -> Row:
    """One line of the table, in milliseconds; `inside` is what the processor took of each of `through`, if known."""
    differences = [b - a for a, b in zip(direct, through, strict=True)]
    low, high = median_interval(differences)
    return {
        "direct p50": statistics.median(direct),
        "p95": p95(direct),
        "server p50": statistics.median(through),
        "p95 ": p95(through),
        "p50 - p50": statistics.median(through) - statistics.median(direct),
        "paired p50": statistics.median(differences),
        "from": low,
        "to": high,
        "same call p50": statistics.median(b - a for a, b in zip(inside, through, strict=True)) if inside else None,
        "pairs": len(differences),
        f"<= {TARGET_MS:g} ms": True if high <= TARGET_MS else False if low > TARGET_MS else "unclear",
    }


def p95(times: Sequence[float]) -> float:
    """The 95th percentile."""
    return statistics.quantiles(times, n=20, method="inclusive")[-1]


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """Between which order statistics the true median lies with a confidence of 95 % (normal approximation)."""
    ranked, middle, half = sorted(values), (len(values) - 1) / 2, 1.96 * math.sqrt(len(values)) / 2
    return ranked[max(0, math.floor(middle - half))], ranked[min(len(ranked) - 1, math.ceil(middle + half))]


@asynccontextmanager
async def loaded(model: Subject) -> AsyncIterator[WhisperProcessor]:
    """Load and warm up the model in this process, as the server does."""
    processor = WhisperProcessor(model.model)
    await processor.initialize()
    try:
        yield processor
    finally:
        await processor.shutdown()


async def measure(setup: str, processor: WhisperProcessor, url: str, pairs: tuple[int, int]) -> list[Row]:
    """Measure one set-up with speech and with silence."""
    rows: list[Row] = []
    async with TrickleClient(url) as client:
        for name, segment, count in zip(
            ("speech", "silence"), (five_seconds(FIXTURE), bytes(SEGMENT_BYTES)), pairs, strict=True
        ):
            direct, through = await take_turns(processor.process, client.process_frame, segment, count)
            inside = processor.times[-count:] if isinstance(processor, TimedProcessor) else []
            rows.append({"set-up": setup, "segment": name, **row(direct, through, inside)})
    return rows


async def run(model: Subject, pairs: tuple[int, int]) -> list[Row]:
    """Measure both set-ups, one after the other."""
    async with loaded(model) as processor, served(model.pipeline) as server:
        rows = await measure("own process", processor, server.url, pairs)
    timed_processor = TimedProcessor(model.model)
    async with Server({"whisper": timed_processor}, ServerConfig("127.0.0.1", 0)) as here:
        await here.loaded()
        return rows + await measure("same model", timed_processor, f"http://127.0.0.1:{here.port}", pairs)


def main() -> None:
    """Read the options, measure, print."""
    parser = argparse.ArgumentParser(description="What the server adds to a transcription.")
    parser.add_argument("--model", default="demo", help="demo (default), tiny, tiny-shape (see stand_in.py), a path")
    parser.add_argument("--pairs", type=int, default=200, help="of calls with speech; a busy machine needs more")
    parser.add_argument("--quick", action="store_true", help="few repetitions: a check that it runs, not a figure")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    options = parser.parse_args()
    about = machine()
    with tempfile.TemporaryDirectory() as folder:
        model = subject(options.model, Path(folder))
        pairs = (2, 5) if options.quick else (options.pairs, SILENCE_PAIRS)
        rows = asyncio.run(asyncio.wait_for(run(model, pairs), LONGEST_SECONDS))
    emit("overhead", {f"5 s of PCM16, model {model.name}, in ms": rows}, as_json=options.json, about=about)


if __name__ == "__main__":
    main()
