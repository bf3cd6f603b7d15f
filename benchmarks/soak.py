"""A container among clients that hang, lie and vanish, for as long as is asked.

    .venv/bin/python benchmarks/soak.py --minutes 60 [--seed 1] [--clients 8] [--kinds live,stream] [--model NAME]

Clients of all kinds come at random (from a seed), each with or without a fault: see soak_clients.py. Now and then a
child of the server (ffmpeg) is killed. Once a minute all of them leave; then the container must come back to what it
held after the first rounds: tasks, threads, descriptors, children. Memory may not rise by much over the run.
One recording is transcribed alone at each of these points; its CPU time must not drift. Records that are lost, doubled
or out of order, errors that nobody has made, clients that wait for ever, and tracebacks in the log are failures too.

Latency is compared with itself only, so another program on the machine does not make a failure. Exit code 1: it leaks,
drifts, or was wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import aiohttp
import numpy as np
from held import Held, ask, children, settled
from options import run as run_main
from report import Row, emit, machine
from serving import Served, started
from soak_clients import KINDS, PICTURES, VIDEO_SECONDS, Clip, Late, Refused, World, Wrong
from subject import Subject

from audio import pcm
from audio.ffmpeg import ffmpeg_environment, ffmpeg_path
from whisper_byoc.aio import cancel
from whisper_byoc.cli.sources import load_sound
from whisper_byoc.trickle.server import TrickleServer

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"
FAULTY = 0.4
"""So many clients have a fault, of the kinds that know some."""
ROUND_SECONDS = 50.0
SETTLE_SECONDS = 60.0
"""Longest wait for that: abandoned jobs end only after `IDLE_SECONDS`."""
IDLE_SECONDS = 20
LONGEST_SECONDS = 180.0
"""A client that has not come to its end by then hangs."""
STRIKE_SECONDS = (4.0, 15.0)
"""Between two kills of a child of the server."""
WARM = 1 / 3
"""Part of the run in which everything is used for the first time: pools of threads, caches, arenas of malloc."""
LEAST_PAUSES = 9
"""In a shorter run, memory, threads and times are not judged."""
MEMORY_RISE = 0.05
"""Of the memory after that part: more, over the rest of the run, is a leak."""
LEAST_RISE_MB = 16.0
DRIFT = 1.5
"""Of CPU time, which other programs on the machine lengthen too."""
MOST = 1_000_000
POOL = min(32, (os.cpu_count() or 1) + 4)
"""Threads that asyncio's own pool may still start."""
PROBES = 3


@dataclass
class Tally:
    """What became of the clients."""

    done: Counter[str] = field(default_factory=Counter)
    faulty: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    late: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    strikes: int = 0


@dataclass(frozen=True)
class Pause:
    """What the server held while no client was there, and how long one recording took alone."""

    minute: float
    held: Held
    probe_ms: float
    probe_cpu: float
    """CPU seconds of the server."""


class Soak:
    """One run."""

    def __init__(self, world: World, server: Served, report: Path, options: argparse.Namespace) -> None:
        self.tally = Tally()
        self.pauses: list[Pause] = []
        self._world = world
        self._server = server
        self._report = report
        self._clients = options.clients
        self._rng = random.Random(options.seed)
        self._kinds = {name: KINDS[name] for name in options.kinds.split(",")}
        self._seconds = options.minutes * 60
        self._round = min(ROUND_SECONDS, self._seconds / 3)

    async def run(self) -> None:
        """Run rounds until the time is over."""
        await self._pause(0.0)
        began = time.monotonic()
        while (passed := time.monotonic() - began) < self._seconds:
            until = began + min(passed + self._round, self._seconds)
            striking = asyncio.ensure_future(self._strike())
            try:
                await asyncio.gather(*(self._come_and_go(until) for _ in range(self._clients)))
            finally:
                await cancel(striking)
            await self._pause((time.monotonic() - began) / 60)

    async def _come_and_go(self, until: float) -> None:
        names, shares = list(self._kinds), [each.share for each in self._kinds.values()]
        while time.monotonic() < until:
            name = self._rng.choices(names, shares)[0]
            kind = self._kinds[name]
            fault = self._rng.choice(kind.faults) if kind.faults and self._rng.random() < FAULTY else ""
            try:
                async with asyncio.timeout(LONGEST_SECONDS):
                    await kind.run(self._world, random.Random(self._rng.random()), fault)
                self.tally.done[name] += 1
                self.tally.faulty[name] += bool(fault)
            except Refused:
                self.tally.refused[name] += 1
                await asyncio.sleep(1.0)
            except Late:
                self.tally.late[name] += 1
            except Wrong as error:
                self.tally.wrong.append(f"{name} {fault}: {error}")
            except TimeoutError:
                self.tally.wrong.append(f"{name} {fault}: not at its end after {LONGEST_SECONDS:g} s")
            except Exception as error:  # the run goes on, and tells of it
                self.tally.wrong.append(f"{name} {fault}: {type(error).__name__}: {error}")

    async def _strike(self) -> None:
        while True:
            await asyncio.sleep(self._rng.uniform(*STRIKE_SECONDS))
            if running := children(self._server.pid):
                self._world.struck = asyncio.get_running_loop().time()
                os.kill(self._rng.choice(running), signal.SIGKILL)
                self.tally.strikes += 1

    async def _pause(self, minute: float) -> None:
        def measure() -> Held:
            return ask(self._server.pid, self._report)

        base = self.pauses[-1].held if self.pauses else await asyncio.to_thread(measure)
        base = replace(base, threads=MOST, memory_mb=MOST)  # pools of threads only grow; memory has a slope
        held = await asyncio.to_thread(settled, measure, base, SETTLE_SECONDS)
        took, cpu = await self._probe()
        self.pauses.append(Pause(minute, held, took, cpu))

    async def _probe(self) -> tuple[float, float]:
        clip, found = max(self._world.clips, key=lambda each: len(each.pcm)), []
        for _ in range(PROBES):
            form = aiohttp.FormData({"model": "whisper-1", "beam": "1"})
            form.add_field("file", clip.files["sound.wav"], filename="sound.wav")
            began, cpu = time.perf_counter(), self._server.cpu_seconds()
            async with self._world.http.post(f"{self._world.url}/v1/audio/transcriptions", data=form) as answer:
                await answer.read()
                answer.raise_for_status()
            found.append(((time.perf_counter() - began) * 1000, self._server.cpu_seconds() - cpu))
        return min(took for took, _ in found), min(cpu for _, cpu in found)


def judge(pauses: Sequence[Pause], wrong: Sequence[str], log: str) -> tuple[list[Row], list[str]]:
    """Return what changed over the run, and the failures."""
    failures, long = [*wrong], len(pauses) >= LEAST_PAUSES
    first = max(1, round(len(pauses) * WARM))
    warm, rest = pauses[:first], pauses[first:]
    before = max(each.held.memory_mb for each in warm)
    base = Held(
        MOST,
        max(each.held.threads for each in warm) + POOL if long else MOST,
        max(each.held.descriptors for each in warm),
        max(each.held.children for each in warm),
        Counter({name: max(each.held.tasks[name] for each in warm) for each in warm for name in each.held.tasks}),
    )
    last = pauses[-1]
    failures += [f"leaked: {each}" for each in last.held.beyond(base)]
    slope = 0.0
    if long:
        times, memory = [each.minute for each in rest], [each.held.memory_mb for each in rest]
        slope = float(np.polyfit(times, memory, 1)[0])
        rise = slope * (times[-1] - times[0])
        if rise > max(LEAST_RISE_MB, MEMORY_RISE * before):
            failures.append(f"memory rose by {rise:.1f} MB in {times[-1] - times[0]:.0f} minutes")
    third = max(1, len(pauses) // 3)
    cpu = _ratio([each.probe_cpu for each in pauses], third)
    if long and cpu > DRIFT:
        failures.append(f"one recording took {cpu:.2f} times the CPU time of the first third")
    for sign in ("Traceback", "was never retrieved", "was destroyed but"):
        if found := log.count(sign):
            failures.append(f"the log has {found} times {sign!r}")
    row: dict[str, object] = {
        "memory_mb": last.held.memory_mb,
        "mb_per_hour": slope * 60,
        "tasks_leaked": sum((last.held.tasks - base.tasks).values()),
        "threads_more": last.held.threads - max(each.held.threads for each in warm),
        "descriptors_leaked": max(0, last.held.descriptors - base.descriptors),
        "wrong": len(wrong),
        "cpu_drift": cpu,
        "time_drift": _ratio([each.probe_ms for each in pauses], third),
    }
    return [row], failures


def _ratio(values: Sequence[float], third: int) -> float:
    before = statistics.median(values[:third])
    return statistics.median(values[-third:]) / before if before else 1.0


def pause_rows(pauses: Sequence[Pause]) -> list[Row]:
    """Ten of the pauses, from the first to the last."""
    shown = sorted({round(number) for number in np.linspace(0, len(pauses) - 1, min(len(pauses), 10))})
    return [
        {
            "minute": each.minute,
            "memory_mb": each.held.memory_mb,
            "tasks": sum(each.held.tasks.values()),
            "threads": each.held.threads,
            "descriptors": each.held.descriptors,
            "probe_ms": each.probe_ms,
            "probe_cpu_s": each.probe_cpu,
        }
        for each in (pauses[number] for number in shown)
    ]


def read_clips(vocabulary: str) -> list[Clip]:
    """Read the fixtures whose words the model knows, each as WAV and, for ffmpeg, as FLAC."""
    clips = []
    for path in sorted(FIXTURES.glob(f"{vocabulary}-*.wav")):
        sound = pcm.encode(load_sound(path))
        if len(sound) <= 10 * pcm.SAMPLE_RATE * pcm.SAMPLE_WIDTH:
            flac = _ffmpeg("-i", str(path), "-f", "flac", "pipe:1")
            clips.append(Clip(path.stem, sound, {"sound.wav": path.read_bytes(), "sound.flac": flac}))
    return clips


def moving_pictures() -> bytes:
    """Make a small MPEG-TS with a tone."""
    source = ("-f", "lavfi", "-i", f"testsrc2=size=160x120:rate={PICTURES // VIDEO_SECONDS}")
    tone = ("-f", "lavfi", "-i", "sine=sample_rate=48000", "-t", str(VIDEO_SECONDS), "-c:a", "aac")
    return _ffmpeg(*source, *tone, "-c:v", "libx264", "-preset", "ultrafast", "-g", "10", "-f", "mpegts", "pipe:1")


def _ffmpeg(*words: str) -> bytes:
    import subprocess

    command = [ffmpeg_path(), "-loglevel", "error", *words]
    return subprocess.run(command, env=ffmpeg_environment(), stdout=subprocess.PIPE, check=True).stdout


async def soak(options: argparse.Namespace, folder: Path) -> tuple[Mapping[str, Sequence[Row]], list[str]]:
    """Serve, run, judge."""
    model, report = Subject(options.model), folder / "report"
    report.touch()
    command = [str(Path(__file__).with_name("held.py")), str(report), "serve", "--host", "127.0.0.1", "--port", "0"]
    for name in (model.pipeline, "passthrough", "green-tint-cpu"):
        command += ["--pipeline", name]
    command += [
        "--stream-host",
        "127.0.0.1",
        "--idle-timeout",
        str(2 if options.quick else IDLE_SECONDS),
        "--linger",
        "10",
        "--drain-timeout",
        "2",
    ]
    if options.model_dir:
        command += ["--model-dir", str(options.model_dir)]
    trickle = TrickleServer("/ai/trickle/")
    async with (
        trickle.listening("127.0.0.1", 0) as trickle_url,
        started(command) as server,
        aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=LONGEST_SECONDS),
            connector=aiohttp.TCPConnector(limit=0, force_close=True),  # an idle connection is held by the server, too
        ) as http,
    ):
        async with http.get(f"{server.url}/version") as answer:
            speech = (await answer.json())["model_id"].split(",")[0]
        world = World(server.url, speech, http, trickle, trickle_url, read_clips(model.vocabulary), moving_pictures())
        run = Soak(world, server, report, options)
        await run.run()
        log = server.log()
    if options.log:
        options.log.write_text(log)
    verdict, failures = judge(run.pauses, run.tally.wrong, log)
    tally = run.tally
    clients: list[Row] = [
        {"client": name, "done": float(tally.done[name]), "of_them_faulty": tally.faulty[name],
         "refused": tally.refused[name], "late": tally.late[name]}
        for name in options.kinds.split(",")
    ]  # fmt: skip
    about = f"{options.clients} clients at once, seed {options.seed}, {tally.strikes} ffmpegs killed"
    tables = {
        f"{run.pauses[-1].minute:.0f} minutes, {about}": clients,
        "while no client is there": pause_rows(run.pauses),
        "over the run": verdict,
    }
    return tables, failures


def main() -> None:
    """Read the options, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0, help="how long (default: 10)")
    parser.add_argument("--seed", type=int, default=1, help="of what clients do, and when")
    parser.add_argument("--clients", type=int, default=8, help="at once (default: 8)")
    parser.add_argument("--kinds", default=",".join(KINDS), help="kinds of clients, with commas (default: all)")
    parser.add_argument("--model", default="demo", help="name or .pt file (default: demo)")
    parser.add_argument("--model-dir", type=Path, help="folder of the models")
    parser.add_argument("--log", type=Path, help="file for the server's log")
    parser.add_argument("--quick", action="store_true", help="some seconds: a check that it runs, not a figure")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    options = parser.parse_args()
    if options.quick:
        options.minutes, options.kinds = 0.03, "frames,recording,stranger"
    about = machine()
    with tempfile.TemporaryDirectory() as folder:
        tables, failures = asyncio.run(soak(options, Path(folder)))
    emit("soak", tables, as_json=options.json, about=about)
    for each in failures[:50]:
        print(each, file=sys.stderr)
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    run_main(main)
