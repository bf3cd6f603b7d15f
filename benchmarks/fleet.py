"""Live streams at a gateway with 1, 2, 4 containers behind it: `python benchmarks/fleet.py [--quick] [--json]`.

Containers, an orchestrator and a gateway, each a process. A container has one core, by affinity; where there are fewer
cores than containers, they share them, and more of them can do no more: then the rows show what splitting costs, and
that streams are spread, not how a fleet grows. The hops and the client run on all cores, beside the containers.

Streams are those of streams.py, as feeds at `POST /live/video-to-video`. Each fleet runs with shares of as many as its
containers say fit. `final` is from the end of speech until its text was read. `least` and `most` are the live jobs of
one container, while all ran. `work ms/s` is what a second of a stream's sound costs a container's worker, by its own
count, when it was busy; `containers ms/s` and `hops ms/s` are CPU time for a second of a stream's sound, `CPU s/h` that
of both for an hour of sound, and `price/h` what it costs where an hour of a core costs --core-hour.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import sys
import urllib.request
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from clips import read_clips
from live_load import Load, Talk, percentile, talk
from options import run, speech_parser
from report import Row, emit, machine, table
from serving import Served, served, started

COMMAND = ("-m", "whisper_byoc.cli.main")
CAPABILITY = "speech"
CONTAINERS, SHARES, SECONDS = (1, 2, 4), (0.25, 0.5, 0.75, 1.0), 60.0
LONGEST_SECONDS = 90.0


@dataclass(frozen=True)
class Fleet:
    """Containers behind an orchestrator and a gateway."""

    containers: Sequence[Served]
    hops: Sequence[Served]
    url: str

    def cpu_seconds(self) -> float:
        return self.containers_cpu() + sum(each.cpu_seconds() for each in self.hops)

    def containers_cpu(self) -> float:
        return sum(each.cpu_seconds() for each in self.containers)

    def memory_mb(self) -> float:
        return sum(each.memory_mb() for each in (*self.containers, *self.hops))

    def capacities(self) -> list[dict[str, float]]:
        """Return what each container says that it can do, and does."""
        return [_capacity(each.url) for each in self.containers]


def _capacity(url: str) -> dict[str, float]:
    with urllib.request.urlopen(f"{url}/health", timeout=10) as answer:
        (found,) = json.load(answer)["capacity"].values()
    return dict(found)


@contextlib.asynccontextmanager
async def fleet(number: int, options: argparse.Namespace) -> AsyncIterator[Fleet]:
    """Start so many containers, and what is in front of them; the latter is ready when it knows all of the former."""
    folder = ("--model-dir", str(options.model_dir)) if options.model_dir else ()
    given = ("--threads", "1", "--max-jobs", "500", *folder)
    cores = sorted(os.sched_getaffinity(0))
    async with contextlib.AsyncExitStack() as stack:
        containers = [
            await stack.enter_async_context(served(options.model, *given, cores={cores[each % len(cores)]}))
            for each in range(number)
        ]
        urls = [word for each in containers for word in ("-byocContainerURL", each.url)]
        named = ("-byocModelID", CAPABILITY, "-byocCapacity", "500")
        listen = ("-serviceAddr", "127.0.0.1:0")
        orchestrator = await stack.enter_async_context(
            started((*COMMAND, "orchestrator", "-orchestrator", "-byoc", *listen, *urls, *named))
        )
        at = ("-orchAddr", orchestrator.url, "-httpAddr", "127.0.0.1:0", "-httpIngest")
        gateway = await stack.enter_async_context(started((*COMMAND, "gateway", "-gateway", *at)))
        yield Fleet(containers, (orchestrator, gateway), gateway.url)


async def measure(options: argparse.Namespace, sound: Talk) -> list[Row]:
    """Run every fleet with every share of the streams that fit."""
    rows = list[Row]()
    for number in options.containers:
        for share in options.shares:
            async with fleet(number, options) as running:  # a new one, whose capacity is that of its start
                rows.append(await row_of(running, share, options, sound))
            print(table(rows[-1:]), file=sys.stderr, flush=True)
    return rows


async def row_of(running: Fleet, share: float, options: argparse.Namespace, sound: Talk) -> Row:
    """Put one load on a fleet."""
    fits = sum(int(each["live"]) for each in running.capacities())
    streams = max(1, round(share * fits))
    before = running.containers_cpu(), running.cpu_seconds()
    loading = asyncio.create_task(Load.put_on(running, sound, streams, options.seconds, model=CAPABILITY))
    await asyncio.wait({loading}, timeout=0.9 * options.seconds)
    at_work = await asyncio.to_thread(running.capacities)
    load = await loading
    taken = (streams - load.refused) * options.seconds
    containers, both = running.containers_cpu() - before[0], running.cpu_seconds() - before[1]
    live = [int(each["live_jobs"]) for each in at_work]
    return {
        "containers": len(running.containers),
        "fit": fits,
        "streams": streams,
        "seconds": options.seconds,
        "final p50 s": percentile(load.finals, 50),
        "final p95 s": percentile(load.finals, 95),
        "utterances": len(load.finals) - load.lost,
        "lost": load.lost,
        "errors": load.errors,
        "refused": load.refused,
        "least": min(live),
        "most": max(live),
        "lag s": sum(each["lag"] for each in at_work) / len(at_work),
        "work ms/s": 1000 * sum(each["cost"] for each in at_work) / len(at_work),
        "containers ms/s": 1000 * containers / max(taken, 1e-9),
        "hops ms/s": 1000 * (both - containers) / max(taken, 1e-9),
        "CPU s/h": 3600 * both / max(taken, 1e-9),
        "price/h": both / max(taken, 1e-9) * options.core_hour,
        "client core %": 100 * load.client,
        "sent late ms": 1000 * load.sent_late,
    }


def numbers(text: str) -> list[int]:
    """Read `1,2,4`."""
    return [int(each) for each in text.split(",")]


def shares(text: str) -> list[float]:
    """Read `0.5,1`."""
    return [float(each) for each in text.split(",")]


def main() -> None:
    """Read the options, measure, print."""
    parser = speech_parser(__doc__ or "")
    parser.add_argument("--containers", type=numbers, default=CONTAINERS, help="how many (default: 1,2,4)")
    parser.add_argument("--shares", type=shares, default=SHARES, help="of what fits (default: 0.25,0.5,0.75,1)")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="length of each run, at most 90 (default: 60)")
    parser.add_argument("--core-hour", type=float, default=0.04, help="price of a core for an hour (default: 0.04)")
    options = parser.parse_args()
    if options.quick:
        options.containers, options.shares, options.seconds = [2], [0.04], 4.0
    options.seconds = min(options.seconds, LONGEST_SECONDS)
    about = machine()
    sound = talk([clip for clip in read_clips(options.speech, quick=options.quick) if clip.reference])
    rows = asyncio.run(measure(options, sound))
    emit("fleet", {f"{options.model}, containers of one core": rows}, as_json=options.json, about=about)


if __name__ == "__main__":
    run(main)
