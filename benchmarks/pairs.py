"""Two calls that take turns, A B B A, so that whatever else the machine does meets both alike."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence

from report import Row

__all__ = ["Call", "in_turns", "paired_row", "timed"]

Call = Callable[[bytes], Awaitable[bytes]]


async def timed(call: Call, segment: bytes, expected: bytes) -> float:
    """Milliseconds of one call, whose result must be `expected`."""
    start = time.perf_counter()
    text = await call(segment)
    took = (time.perf_counter() - start) * 1000
    if text != expected:
        raise RuntimeError(f"{text[:80]!r} came back instead of {expected[:80]!r}")
    return took


async def in_turns(
    first: Call, second: Call, segment: bytes, expected: bytes, pairs: int, before: Call | None = None
) -> tuple[list[float], list[float]]:
    """Milliseconds of both calls, `pairs` times each, one after the other; `before` goes untimed before each."""
    times: dict[Call, list[float]] = {first: [], second: []}
    for number in range(pairs):
        for call in (second, first) if number % 2 else (first, second):
            if before is not None:
                await before(segment)
            times[call].append(await timed(call, segment, expected))
    return times[first], times[second]


def paired_row(names: tuple[str, str], first: Sequence[float], second: Sequence[float], target: float | None) -> Row:
    """Sum the pairs up: the median of the differences with its 95 % interval, and whether it meets the target."""
    differences = [b - a for a, b in zip(first, second, strict=True)]
    low, high = median_interval(differences)
    judged = {} if target is None else {f"<= {target:g} ms": verdict(low, high, len(differences), target)}
    return {
        f"{names[0]} p50": statistics.median(first),
        "p95": p95(first),
        f"{names[1]} p50": statistics.median(second),
        "p95 ": p95(second),
        "p50 - p50": statistics.median(second) - statistics.median(first),
        "paired p50": statistics.median(differences),
        "from": low,
        "to": high,
        **judged,
        "pairs": len(differences),
    }


def verdict(low: float, high: float, pairs: int, target: float) -> bool | str:
    """Say whether the target is met.

    Fewer than 6 pairs have no such interval; one that reaches far below zero shows two unequal sides.
    """
    if pairs < 6 or low < -target or low <= target < high:
        return "unclear"
    return high <= target


def p95(times: Sequence[float]) -> float:
    """The 95th percentile."""
    return statistics.quantiles(times, n=20, method="inclusive")[-1]


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """Between which order statistics the true median lies with a confidence of 95 % (normal approximation)."""
    ranked, middle, half = sorted(values), (len(values) - 1) / 2, 1.96 * math.sqrt(len(values)) / 2
    return ranked[max(0, math.floor(middle - half))], ranked[min(len(ranked) - 1, math.ceil(middle + half))]
