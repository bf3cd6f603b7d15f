"""A fleet that is larger than the machine, simulated: `python benchmarks/fleet_model.py FLEET.json [--json]`.

FLEET.json is what fleet.py printed with --json: what a second of a stream's sound costs a container of one core, by how
many streams it has, and how many fit. A container works on one utterance after the other, each for its cost times the
sound since the one before. (A real one takes several at a time: that is in the cost, not in the order.) The pause that
ends an utterance is noticed 0.2 to 0.5 s after it began.

- check: the fleets that were measured; containers that shared a core are one here.
- size: streams come and go, to the container with the fewest, and are refused where all are full.
- loss: one container in fifty is lost, and its streams go to others. What got no text is lost, or late if sent again.
- growth: arrivals grow each minute by as many as there were at first. The autoscaler asks for the containers that the
  streams of a time ahead will fill to `FULL`, by the trend; one is there when its image is pulled and it has started.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import simpy
from live_load import PAUSES, percentile
from report import emit

SPEECH_S, NOTICED_S, STREAM_S = (2.0, 12.0), (0.2, 0.5), 600.0
"""An utterance, some 7 s as in streams.py; when its end is noticed; the mean of streams, exponentially distributed."""
DETECT_S, RETRY_S = 1.5, 5.0
"""Streams learn of a lost container within 1 to 2 s (docs/network.md); who is refused tries again (Retry-After)."""
SIZES, LOSES, SHARES, WORK_S = (10, 100, 1000), (50, 1000), (0.5, 0.7, 0.9), 10_000.0
"""Containers, also of which some are lost, streams as a share of what fits, container seconds that are watched."""
AHEAD_S, PULLS_S, GROWS_S, WARM_S = (0, 15, 30, 60, 120), (0, 10, 30, 60), 300.0, 15.0
FULL, SYNC_S, TREND_S = 0.9, 15.0, 60.0
"""How full the autoscaler wants containers, how often it looks (as Kubernetes'), and what it takes the trend from."""

Row = Mapping[str, Any]
Steps = Generator[simpy.Event, Any, None]


class Curve(NamedTuple):
    """What was measured of one container."""

    cost: Sequence[float]
    """Core seconds that text takes for a second of one stream's sound, by the number of streams up to twice `fits`."""
    fits: int

    @classmethod
    def of(cls, rows: Sequence[Row], steady: float) -> Curve:
        """Take it from the rows of single containers; `steady` of the cost is no work at text, but slows it."""
        points = sorted((row["streams"], row["containers ms/s"] / 1000, row["fit"]) for row in rows)
        streams, cost, fits = (np.array(each, dtype=float) for each in zip(*points, strict=True))
        text = np.maximum(cost - steady, 0) / np.maximum(1 - streams * steady, 0.1)
        most = round(fits.mean())
        return cls(np.interp(range(2 * most + 1), streams, text).tolist(), most)


class Stream:
    """Where one speaker is, and the end of the sound that has its text."""

    def __init__(self, env: simpy.Environment, container: int) -> None:
        self.container, self.heard, self.moved = container, env.now, env.event()


class Fleet:
    """Containers by their numbers, and what befalls their streams."""

    def __init__(self, curve: Curve, containers: int) -> None:
        self.env, self.curve, self.rng = simpy.Environment(), curve, random.Random(1)
        self.streams, self.free_at = np.zeros(containers, dtype=int), np.zeros(containers)
        self.alive = np.ones(containers, dtype=bool)
        self.speakers = dict[Stream, None]()
        self.lags = list[tuple[float, float, bool]]()  # when a text was there, how late, whether its stream had to move
        self.lost = list[float]()  # seconds of sound without text when a stream had moved
        self.offered = self.refused = 0

    def choose(self) -> int | None:
        """Return a container with the fewest streams that is not full."""
        streams = np.where(self.alive, self.streams, self.curve.fits)
        fewest = streams.min()
        return self.rng.choice(np.flatnonzero(streams == fewest).tolist()) if fewest < self.curve.fits else None

    def arrive(self, seconds: float, container: int | None = None, *, speaks: bool = True) -> None:
        """Begin a stream of so many seconds, at a container or at any that has a place."""
        self.offered += 1
        chosen = self.choose() if container is None else container
        if chosen is None:
            self.refused += 1
            return
        self.streams[chosen] += 1
        self.env.process(self._speak(Stream(self.env, chosen), seconds, speaks=speaks))

    def fill(self, streams: int, containers: int, *, speaks: bool = True) -> None:
        """Begin with so many on the first containers, as if they had come and gone for long."""
        for number in range(streams):
            self.arrive(self.rng.expovariate(1 / STREAM_S), number % containers, speaks=speaks)
        self.offered = 0

    def arrivals(self, rate: float, *, growth: float = 0.0, speaks: bool = True) -> Steps:
        """Let streams come, so many a second, and more by `growth` of that each second."""
        while True:
            yield self.env.timeout(self.rng.expovariate(rate * (1 + growth * self.env.now)))
            self.arrive(self.rng.expovariate(1 / STREAM_S), speaks=speaks)

    def _speak(self, stream: Stream, seconds: float, *, speaks: bool) -> Steps:
        ends, self.speakers[stream] = self.env.now + seconds, None
        yield self.env.timeout(self.rng.uniform(0, SPEECH_S[1]) if speaks else seconds)  # not all begin at once
        stream.heard = self.env.now
        while self.env.now < ends:
            speech, pause = self.rng.uniform(*SPEECH_S), self.rng.choice(PAUSES)
            yield self.env.timeout(speech)
            self.env.process(self._text(stream, speech + pause, self.env.now))
            yield self.env.timeout(pause)
        self.streams[stream.container] -= 1
        del self.speakers[stream]

    def _text(self, stream: Stream, sound: float, ended: float) -> Steps:
        yield self.env.timeout(self.rng.uniform(*NOTICED_S))
        while True:
            at = stream.container
            self.free_at[at] = max(self.free_at[at], self.env.now) + self.curve.cost[self.streams[at]] * sound
            yield self.env.timeout(self.free_at[at] - self.env.now)
            if self.alive[at]:
                self.lags.append((self.env.now, self.env.now - ended, stream.moved.triggered))
                stream.heard = max(stream.heard, ended)
                return
            yield stream.moved

    def lose(self, containers: int) -> None:
        """Lose so many containers."""
        self.alive[:containers] = False
        for stream in self.speakers:
            if not self.alive[stream.container]:
                self.env.process(self._move(stream))

    def _move(self, stream: Stream) -> Steps:
        yield self.env.timeout(DETECT_S)
        while (chosen := self.choose()) is None:
            self.refused += 1
            yield self.env.timeout(RETRY_S)
        self.streams[chosen] += 1
        stream.container = chosen
        stream.moved.succeed()
        self.lost.append(self.env.now - stream.heard)

    def late(self, percent: float, begin: float, end: float = math.inf, *, moved: bool = False) -> float | None:
        """Return a percentile of the lags between two times, of all streams or of those that had to move."""
        return percentile([lag for at, lag, had in self.lags if begin <= at < end and had >= moved], percent)


def check(rows: Sequence[Row], curve: Curve, cores: int) -> Iterator[Row]:
    """Model what was measured."""
    for row in rows:
        servers, each = min(row["containers"], cores), min(row["streams"] // row["containers"], 2 * curve.fits)
        fleet = Fleet(Curve([curve.cost[each]] * (row["streams"] + 1), curve.fits), servers)
        for number in range(row["streams"]):
            fleet.arrive(math.inf, number % servers)
        fleet.env.run(300)
        late = {f"model p{percent} s": fleet.late(percent, WARM_S) for percent in (50, 95)}
        yield {name: row[name] for name in ("containers", "streams", "final p50 s", "final p95 s")} | late


def size(curve: Curve, containers: int, share: float, work: float) -> Row:
    """Run a fleet of a size at a load."""
    fleet, streams = Fleet(curve, containers), round(share * curve.fits * containers)
    fleet.fill(streams, containers)
    fleet.env.process(fleet.arrivals(streams / STREAM_S))
    fleet.env.run(2 * WARM_S + work / containers)
    late = {f"p{percent} s": fleet.late(percent, WARM_S) for percent in (50, 95)}
    late["refused %"] = 100 * fleet.refused / max(fleet.offered, 1)
    return {"containers": containers, "share": share, "streams": streams, **late}


def loss(curve: Curve, containers: int, share: float) -> Row:
    """Lose one container in fifty, after half a minute."""
    fleet, dead, at = Fleet(curve, containers), max(1, containers // 50), 30.0
    fleet.fill(round(share * curve.fits * containers), containers)
    fleet.env.run(at)
    fleet.lose(dead)
    fleet.env.run(at + 20)
    return {
        "containers": containers, "share": share, "lost": dead, "streams moved": int(fleet.streams[:dead].sum()),
        "refused at first": fleet.refused, "p95 s before": fleet.late(95, WARM_S, at),
        "p95 s after": fleet.late(95, at, at + 10), "moved: p95 s": fleet.late(95, at, at + 15, moved=True),
        "not sent again: lost p50 s": percentile(fleet.lost, 50), "lost p95 s": percentile(fleet.lost, 95),
    }  # fmt: skip


def growth(curve: Curve, pull: float, start: float, aheads: Sequence[float]) -> Row:
    """Let arrivals at ten containers grow, with an autoscaler that looks so far ahead."""
    row: dict[str, object] = {"image pulled in s": pull}
    for ahead in aheads:
        fleet, begun = Fleet(curve, 100), round(FULL * 10 * curve.fits)
        fleet.alive[10:] = False
        fleet.fill(begun, 10, speaks=False)
        fleet.env.process(fleet.arrivals(begun / STREAM_S, growth=1 / 60, speaks=False))
        fleet.env.process(_autoscale(fleet, ahead, pull + start))
        fleet.env.run(GROWS_S)
        row[f"refused %, {ahead} s ahead"] = 100 * fleet.refused / fleet.offered
    return row


def _autoscale(fleet: Fleet, ahead: float, delay: float) -> Steps:
    seen, asked = [int(fleet.streams.sum())], int(fleet.alive.sum())

    def begin(number: int) -> Steps:
        yield fleet.env.timeout(delay)
        fleet.alive[:number] = True

    while True:
        yield fleet.env.timeout(SYNC_S)
        seen = [*seen, int(fleet.streams.sum())][-1 - round(TREND_S / SYNC_S) :]
        trend = (seen[-1] - seen[0]) / (SYNC_S * (len(seen) - 1))
        asked = max(asked, min(math.ceil((seen[-1] + trend * ahead) / (FULL * fleet.curve.fits)), len(fleet.streams)))
        fleet.env.process(begin(asked))


def main() -> None:
    """Read the measured fleets, simulate, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="FLEET.json")
    parser.add_argument("--start", type=float, default=1.1, help="seconds a container takes to start (footprint.py)")
    parser.add_argument("--steady", type=float, default=4.0, help="ms/s of a silent stream (streams.py --silent)")
    parser.add_argument("--quick", action="store_true", help="little and fast: a check that it runs, not a figure")
    parser.add_argument("--json", action="store_true", help="print one JSON object in a line instead of tables")
    options = parser.parse_args()
    measured = json.loads(options.run.read_text().splitlines()[-1])
    (rows,) = measured["tables"].values()
    alone = [row for row in rows if row["containers"] == 1]
    if not alone:
        raise SystemExit(f"{options.run} has no run of a single container; make it with fleet.py --containers 1,2,4")
    curve = Curve.of(alone, options.steady / 1000)
    some, work = (1, WORK_S / 100) if options.quick else (9, WORK_S)
    tables = {
        "check: measured and modelled": [*check(rows, curve, measured["machine"]["cores"])],
        f"size: {curve.fits} fit on one": [
            size(curve, n, share, work) for n in SIZES[:some] for share in SHARES[:some]
        ],
        "loss of one container in fifty": [
            loss(curve, number, share) for number in LOSES[:some] for share in (0.7, 0.9)
        ],
        "growth of arrivals": [growth(curve, each, options.start, AHEAD_S[:some]) for each in PULLS_S],
    }
    emit("fleet_model", tables, as_json=options.json, about=measured["machine"])


if __name__ == "__main__":
    main()
