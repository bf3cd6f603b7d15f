"""Speed of the tint processors on one 1280x720 RGB24 frame: `python benchmarks/tint.py [--quick] [--json]`.

Each is compared with its plain Python loop and with a plain copy, `bytes(bytearray(frame))`, in the same run: the
subjects take turns, each called several times in a row per turn, and the median over all turns counts.

A copy costs what its memory costs, so everything is measured twice. In a fresh process glibc gives large buffers back
to the kernel as they are freed, and whoever needs two at a time pays page faults for every call. Once a process has
freed a buffer of 30 MB, such as a model's weights while loading, glibc keeps the memory, and copies are many times
faster (mallopt(3): the dynamic mmap threshold).
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import time
from collections.abc import Awaitable, Callable

import numpy as np
from report import Row, emit, machine

from whisper_byoc.processors.tint import Grayscale, GrayscaleProcessor, GreenTintProcessor, green_tint

WIDTH, HEIGHT = 1280, 720
COPY, GREEN_LOOP, GRAY_LOOP = "bytes(bytearray(frame))", "green: Python loop", "gray: Python loop"
LOOPS = {"green": GREEN_LOOP, "gray": GRAY_LOOP}
TARGETS = {"green: green_tint": (250.0, 1.0), "gray: Grayscale()": (60.0, 3.0)}
"""At least so many times the speed of the loop, at most so many times the time of the copy."""

Subject = Callable[[bytes], Awaitable[bytes]]


def green_loop(frame: bytes) -> bytes:
    """Tint byte by byte."""
    out = bytearray(frame)
    for i in range(1, len(out), 3):
        out[i] = min(255, out[i] + 80)
    return bytes(out)


def gray_loop(frame: bytes) -> bytes:
    """Take the luma pixel by pixel."""
    out = bytearray(frame)
    for i in range(0, len(out), 3):
        out[i] = out[i + 1] = out[i + 2] = (299 * out[i] + 587 * out[i + 1] + 114 * out[i + 2]) // 1000
    return bytes(out)


def direct(function: Callable[[bytes], bytes]) -> Subject:
    """Call `function` on the event loop's own thread."""

    async def call(frame: bytes) -> bytes:
        return function(frame)

    return call


async def timed(subject: Subject, frame: bytes, calls: int) -> list[float]:
    """Milliseconds of each of `calls` calls; every result is dropped before the next."""
    times = []
    for _ in range(calls):
        start = time.perf_counter()
        await subject(frame)
        times.append((time.perf_counter() - start) * 1000)
    return times


async def measure(subjects: dict[str, Subject], frame: bytes, rounds: int, calls: int) -> list[Row]:
    """Let the subjects take turns; the slow loops are called once per turn, before the first turn all once."""
    times: dict[str, list[float]] = {name: [] for name in subjects}
    for subject in subjects.values():
        await timed(subject, frame, 1)
    for _ in range(rounds):
        for name, subject in subjects.items():
            times[name] += await timed(subject, frame, 1 if name in LOOPS.values() else calls)
    medians = {name: statistics.median(values) for name, values in times.items()}
    return [row(name, medians) for name in subjects]


def row(name: str, medians: dict[str, float]) -> Row:
    """One line: the time, the two ratios, and for a pure function whether the targets are met."""
    kind = name.partition(":")[0]
    cells: dict[str, object] = {"subject": name, "ms": medians[name]}
    faster = cells["loop / this"] = medians[LOOPS[kind]] / medians[name] if kind in LOOPS else None
    copies = cells["this / copy"] = medians[name] / medians[COPY]
    if faster is not None and name in TARGETS:
        least, most = TARGETS[name]
        cells |= {"target": f">= {least:.0f} x loop, <= {most:.0f} copies", "met": faster >= least and copies <= most}
    return cells


def warm_heap() -> None:
    """Free a buffer of 30 MB, so that glibc raises its thresholds."""
    np.ones(30 << 20, np.uint8)


async def run(rounds: int, calls: int) -> dict[str, list[Row]]:
    """Measure in both states of the heap."""
    frame = os.urandom(WIDTH * HEIGHT * 3)
    green, gray = GreenTintProcessor(), GrayscaleProcessor()
    subjects: dict[str, Subject] = {
        COPY: direct(lambda data: bytes(bytearray(data))),
        GREEN_LOOP: direct(green_loop),
        "green: green_tint": direct(green_tint),
        "green: await process": green.process,
        GRAY_LOOP: direct(gray_loop),
        "gray: Grayscale()": direct(Grayscale()),
        "gray: await process": gray.process,
    }
    tables = {f"{WIDTH}x{HEIGHT}, fresh process": await measure(subjects, frame, rounds, calls)}
    warm_heap()
    tables[f"{WIDTH}x{HEIGHT}, after 30 MB were freed once"] = await measure(subjects, frame, rounds, calls)
    assert green_tint(frame) == green_loop(frame)
    assert Grayscale()(frame) == gray_loop(frame)
    await green.shutdown()
    await gray.shutdown()
    return tables


def main() -> None:
    """Read the options, measure, print."""
    parser = argparse.ArgumentParser(description="Speed of the tint processors.")
    parser.add_argument("--quick", action="store_true", help="few repetitions: a check that it runs, not a figure")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    options = parser.parse_args()
    about = machine()
    tables = asyncio.run(run(*((2, 5) if options.quick else (15, 15))))
    emit("tint", tables, as_json=options.json, about=about)


if __name__ == "__main__":
    main()
