"""What a server costs besides its work: `python benchmarks/footprint.py [--model NAME ...] [--quick] [--json]`.

For each model, with its checkpoint on disk and in the file cache:

- start: from the start of the process to the first 200 of /readyz, several times, with the CPU time that it took; and
  the same steps one after the other in a process without a server, to see where the time goes.
- memory: RSS of the server process after 100 segments of speech, and how it grows over 500 more. The segments are of
  several lengths, and each job takes 25 of them, so that opening and ending jobs counts too.
- idle: CPU time of the whole process, all threads, in a while without work after all that work.

Without --model: the bundled demo model, and whisper-tiny or tiny.en if one of them is on the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from report import Row, emit, machine
from serving import Served, served, speech
from subject import Subject, default_models

from whisper_byoc import TrickleClient

FIXTURES = ("demo-yes.wav", "demo-stop.wav", "demo-hello-world.wav", "demo-directions-slow.wav", "demo-numbers.wav")
SEGMENTS_PER_JOB = 25
START_TARGET_S, MEMORY_TARGET_MB, IDLE_TARGET_PERCENT = 1.0, 350.0, 1.0
NOISE_MB = 5.0
"""Growth below this is taken as none: single readings of RSS differ by about as much."""
LONGEST_SECONDS = 3600.0
STEPS_SECONDS = 120.0

STEPS = """
import json, sys, time
marks = [("python", time.monotonic())]
import whisper_byoc.cli.serve, whisper_byoc.processors.whisper
marks.append(("import server", time.monotonic()))
from whisper_byoc.speech.fast.engine import FastEngine
marks.append(("import OpenVINO", time.monotonic()))
from whisper_byoc.speech.models import load_fast_model
engine = FastEngine(load_fast_model(sys.argv[1]))
marks.append(("load", time.monotonic()))
from whisper_byoc.processors.whisper import WhisperSettings
engine.use_threads(WhisperSettings().sizes()[1])
marks.append(("compile", time.monotonic()))
from whisper_byoc.speech.capacity import try_out
try_out(engine)
marks.append(("trial", time.monotonic()))
from whisper_byoc.speech.silero import Silero
Silero()
marks.append(("voice activity", time.monotonic()))
print(json.dumps(marks))
"""
"""What a server does before it is ready, in this order."""


@dataclass(frozen=True)
class Effort:
    """How much to measure."""

    unmeasured_starts: int = 1
    """They fill the file cache."""
    starts: int = 5
    first: int = 100
    more: int = 500
    idle_seconds: float = 20.0


QUICK = Effort(unmeasured_starts=0, starts=1, first=2, more=4, idle_seconds=0.5)


async def starts(model: Subject, count: int) -> list[Served]:
    """Start the server several times, and end it as soon as it is ready."""
    servers = []
    for _ in range(count):
        async with served(model.pipeline) as server:
            servers.append(server)
    return servers


async def steps(model: Subject) -> dict[str, float]:
    """Seconds of each step up to readiness."""
    began = time.monotonic()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", STEPS, model.name, stdout=asyncio.subprocess.PIPE
    )
    try:
        out, _ = await asyncio.wait_for(process.communicate(), STEPS_SECONDS)
    finally:
        if process.returncode is None:
            process.kill()
    marks = [("", began), *json.loads(out)]
    return {name: at - before for (_, before), (name, at) in itertools.pairwise(marks)}


async def start_row(model: Subject, servers: Sequence[Served], effort: Effort) -> Row:
    """Start to ready, in seconds; and medians of its steps."""
    ready = [server.ready_s for server in servers]
    taken = [await steps(model) for _ in range(effort.starts)]
    return {
        "model": model.name,
        "ready p50": statistics.median(ready),
        "fastest": min(ready),
        "slowest": max(ready),
        f"<= {START_TARGET_S:g}": statistics.median(ready) <= START_TARGET_S,
        "CPU p50": statistics.median(server.ready_cpu_s for server in servers),
        "listening p50": statistics.median(server.listening_s for server in servers),
        **{name: statistics.median(each[name] for each in taken) for name in taken[0]},
    }


async def work(server: Served, segments: Iterator[bytes], count: int) -> list[float]:
    """Have segments transcribed, 25 to a job, and read RSS (MB) after each job."""
    sizes = []
    for begin in range(0, count, SEGMENTS_PER_JOB):
        async with TrickleClient(server.url) as client:
            for segment in itertools.islice(segments, min(SEGMENTS_PER_JOB, count - begin)):
                await client.process_frame(segment)
        sizes.append(server.memory_mb())
    return sizes


async def memory_row(model: Subject, server: Served, effort: Effort) -> Row:
    """RSS in MB when ready, after the first segments, and its growth after that."""
    segments = itertools.cycle([speech(name) for name in FIXTURES])
    ready = server.memory_mb()
    first = (await work(server, segments, effort.first))[-1]
    anonymous = server.memory_mb("RssAnon")
    sizes = [first, *await work(server, segments, effort.more)]
    return {
        "model": model.name,
        "ready": ready,
        f"after {effort.first}": first,
        "of it anonymous": anonymous,
        "peak": server.memory_mb("VmHWM"),
        f"<= {MEMORY_TARGET_MB:g}": first <= MEMORY_TARGET_MB,
        f"growth over {effort.more}": sizes[-1] - first,
        "slope per 100": slope(sizes) * 100 / SEGMENTS_PER_JOB,
        f"< {NOISE_MB:g}": sizes[-1] - first < NOISE_MB,
    }


def slope(values: Sequence[float]) -> float:
    """Rise per step of the least-squares line."""
    return float(np.polynomial.polynomial.polyfit(np.arange(len(values)), np.asarray(values), 1)[1])


async def idle_row(model: Subject, server: Served, effort: Effort) -> Row:
    """CPU time of an idle server, in percent of one core."""
    await asyncio.sleep(1)  # the last job's connections are closing
    before, began = server.cpu_seconds(), time.monotonic()
    await asyncio.sleep(effort.idle_seconds)
    seconds = time.monotonic() - began
    percent = (server.cpu_seconds() - before) / seconds * 100
    return {
        "model": model.name,
        "% of a core": percent,
        "tick": 100 / os.sysconf("SC_CLK_TCK") / seconds,
        "seconds": seconds,
        "threads": server.threads(),
        f"< {IDLE_TARGET_PERCENT:g} %": percent < IDLE_TARGET_PERCENT,
    }


async def run(models: Sequence[Subject], effort: Effort) -> dict[str, list[Row]]:
    """Measure every model."""
    start, memory, idle = [], [], []
    for model in models:
        await starts(model, effort.unmeasured_starts)
        servers = await starts(model, effort.starts - 1)
        async with served(model.pipeline) as server:  # the last of the starts
            memory.append(await memory_row(model, server, effort))
            idle.append(await idle_row(model, server, effort))
        start.append(await start_row(model, [*servers, server], effort))
    return {
        "start to ready, in s (the steps are measured without a server)": start,
        "memory of the server process: RSS, in MB": memory,
        "idle after the work": idle,
    }


def main() -> None:
    """Read the options, measure, print."""
    parser = argparse.ArgumentParser(description="What a server costs besides its work.")
    parser.add_argument("--model", action="append", help="demo, tiny or a path; may be repeated")
    parser.add_argument("--quick", action="store_true", help="few repetitions: a check that it runs, not a figure")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    options = parser.parse_args()
    about = machine()
    models = [Subject(name) for name in options.model or default_models()]
    effort = QUICK if options.quick else Effort()
    tables = asyncio.run(asyncio.wait_for(run(models, effort), LONGEST_SECONDS))
    emit("footprint", tables, as_json=options.json, about=about)


if __name__ == "__main__":
    main()
