"""Live streams at once, in real time, through the real server: `python benchmarks/streams.py [--quick] [--json]`.

Every stream is people speaking, clip after clip with pauses of 0.1 to 5 s, from another place on; a client sends its
sound in pieces of 100 ms at the sound's own pace to PUT /live/JOB/source, and reads GET /live/JOB/output as it comes.
Three servers take turns:

- ours, ours with partial text
- peer: peer_server.py, where each utterance is one call of faster-whisper (int8, beam 1); only where it is installed
  and the model is a CTranslate2 folder

`final`: from the end of an utterance's speech until its final record was read, on the stream's clock. Speech ends where
the voice activity last heard it: 0.2 s, which both servers keep, before the end of the sound that the record is about,
or at that end where a long utterance was cut. `partial`: from the end of the sound that a partial record is about until
it was read. A clip during which no text was spoken is `lost`, and counts as text that never comes.

With --overload N, ours is offered N times as many streams as it says fit, all at once: how many it takes, and how late
their text is. Streams that are refused do not try again.

Without --streams the largest number of streams is looked for whose p95 of final text is under 1 s, with nothing
refused and no error: 1, 2, 4, … until one fails, then halfway between. A number that fails by less than twice the limit
is tried once more. With --silent the streams are silent, and CPU time is what counts.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import sys
import urllib.request
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path

from clips import read_clips
from live_load import Load, Talk, percentile, silence, talk
from options import run, speech_parser
from peers import trouble
from report import Row, emit, machine, table
from search import Search
from serving import Served, served, started

from whisper_byoc.speech.models import fetch_model

PEER_SERVER = Path(__file__).resolve().parent / "peer_server.py"
LIMIT_SECONDS = 1.0
MOST_STREAMS = 64
MOST_OFFERED, FEW_OFFERED = 400, 8
"""Streams with --overload, and with --quick; each takes the client two connections."""
RUN_SECONDS = 40.0
UTTERANCES = 40
"""A run of few streams is longer, so that there are about so many utterances; one takes some 7 s."""
LONGEST_RUN_SECONDS = 180.0
OURS, PARTIALS, PEER = "ours", "ours, partials", "faster-whisper"


class Servers:
    """How to start each server."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options

    def start(self, name: str, streams: int) -> AbstractAsyncContextManager[Served]:
        """Start a server."""
        options = self._options
        threads = ("--threads", str(options.threads))
        if name == PEER:
            return started((str(PEER_SERVER), "--model", str(fetch_model(options.model, options.model_dir)), *threads))
        given = {"--model-dir": options.model_dir, "--workers": options.workers, "--engine": options.engine}
        more = [word for flag, value in given.items() if value is not None for word in (flag, str(value))]
        return served(options.model, "--max-jobs", str(streams), *threads, *more)


async def measure(options: argparse.Namespace, names: Sequence[str], sound: Talk) -> dict[str, list[Row]]:
    """Run all numbers of streams, or look for the largest."""
    servers, rows = Servers(options), list[Row]()

    async def late(name: str, streams: int) -> float:
        """Run so many; return p95 of final text, infinite when anything was refused or failed."""
        seconds = options.seconds or min(LONGEST_RUN_SECONDS, max(RUN_SECONDS, 7 * UTTERANCES / streams))
        async with servers.start(name, streams) as server:
            load = await Load.put_on(server, sound, streams, seconds, partials=name == PARTIALS)
        rows.append(row_of(name, streams, seconds, load, silent=not sound.spoken))
        print(table(rows[-1:]), file=sys.stderr, flush=True)
        p95 = percentile(load.finals, 95)
        return math.inf if p95 is None or load.refused or load.errors else p95

    if options.streams:
        for streams in options.streams:
            for name in names:
                await late(name, streams)
        return {title(options, sound): rows}
    searches = {name: Search(options.most) for name in names}
    while pending := [(name, search) for name, search in searches.items() if search.next is not None]:
        for name, search in pending:
            number = search.next
            assert number is not None
            p95 = await late(name, number)
            if options.limit <= p95 < 2 * options.limit:  # that may have been the machine: once more
                p95 = await late(name, number)
            search.tell(number, passed=p95 < options.limit)
    return {title(options, sound): rows, f"streams with p95 of final text under {options.limit:g} s": found(searches)}


async def overload(options: argparse.Namespace, names: Sequence[str], sound: Talk) -> dict[str, list[Row]]:
    """Offer more streams than fit, and see what becomes of those that are taken."""
    rows, seconds = list[Row](), options.seconds or LONGEST_RUN_SECONDS / 2
    for name in names:
        async with Servers(options).start(name, MOST_OFFERED) as server:
            fits = (await asyncio.to_thread(capacity, server))["live"]
            offered = min(math.ceil(options.overload * fits), FEW_OFFERED if options.quick else MOST_OFFERED)
            load = await Load.put_on(server, sound, offered, seconds, partials=name == PARTIALS)
            after = await asyncio.to_thread(capacity, server)
        taken = {"fit at first": fits, "taken": offered - load.refused, "fit at the end": after["live"]}
        rows.append({**row_of(name, offered, seconds, load, silent=False), **taken})
        print(table(rows[-1:]), file=sys.stderr, flush=True)
    return {f"{title(options, sound)}, {options.overload:g} times as many streams as fit": rows}


def capacity(server: Served) -> dict[str, float]:
    """Return what a server says of its only pipeline."""
    with urllib.request.urlopen(f"{server.url}/health", timeout=10) as answer:
        (found,) = json.load(answer)["capacity"].values()
    return dict(found)


def found(searches: dict[str, Search]) -> list[Row]:
    """Give the largest numbers, and how many times the peer's they are."""
    peer = searches[PEER].passed if PEER in searches else 0
    return [
        {
            "server": name,
            "streams": search.passed,
            "tried up to": float(search.failed or search.most),
            "times the peer": search.passed / peer if peer else None,
        }
        for name, search in searches.items()
    ]


def title(options: argparse.Namespace, sound: Talk) -> str:
    """Describe what was sent."""
    if not sound.spoken:
        return f"{options.model}, silent streams"
    share = sum(end - begin for begin, end in sound.spoken) / sound.seconds
    return f"{options.model}, {options.threads} threads, speech for {share:.0%} of the time"


def row_of(name: str, streams: int, seconds: float, load: Load, *, silent: bool) -> Row:
    """Sum a load up."""
    costs: Row = {
        "CPU ms/s": 1000 * load.cpu,
        "RSS MB": load.memory_mb,
        "client core %": 100 * load.client,
        "sent late ms": 1000 * load.sent_late,
    }
    times = {
        f"{kind} p{percent} s": percentile(values, percent)
        for kind, values in (("final", load.finals), ("partial", load.partials))
        for percent in (50, 95, 99)
    }
    heard: Row = {
        **times,
        "utterances": len(load.finals) - load.lost,
        "lost": load.lost,
        "beam search %": 100 * load.with_beam,
    }
    counts: Row = {"errors": load.errors, "refused": load.refused}
    return {"server": name, "streams": streams, "seconds": seconds, **({} if silent else heard), **counts, **costs}


def numbers(text: str) -> list[int]:
    """Read `1,4,16`."""
    found = [int(each) for each in text.split(",")]
    if min(found) < 1:
        raise ValueError
    return found


def main() -> None:
    """Read the options, measure, print."""
    parser = speech_parser(__doc__ or "")
    parser.add_argument("--streams", type=numbers, metavar="N,N", help="how many at once (default: look for the most)")
    parser.add_argument(
        "--most", type=int, default=MOST_STREAMS, help="the most streams to look for (default: %(default)s)"
    )
    parser.add_argument(
        "--limit", type=float, default=LIMIT_SECONDS, help="p95 of final text to stay under, in seconds"
    )
    parser.add_argument("--seconds", type=float, help="length of each run (default: 40, and longer for few streams)")
    parser.add_argument("--overload", type=float, metavar="N", help="offer N times as many streams as fit")
    parser.add_argument("--engine", default="auto", help="ours: fast, openai or auto (default: %(default)s)")
    parser.add_argument("--workers", type=int, help="ours: worker threads, of --threads each (default: as many as fit)")
    parser.add_argument("--silent", action="store_true", help="streams without speech (default: 1 and 20 of them)")
    parser.add_argument("--servers", type=lambda text: text.split(";"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.quick:
        options.seconds, options.streams = 4.0, options.streams or [2]
    if options.silent:
        options.streams, options.seconds = options.streams or [1, 20], options.seconds or RUN_SECONDS
    about = machine()
    names = [OURS] if options.silent else [OURS, PARTIALS]
    if options.overload:
        names = names[: 1 if options.quick else 2]
    elif why_not := trouble("faster_whisper", fetch_model(options.model, options.model_dir)):
        print(f"{PEER}: left out, as {why_not}", file=sys.stderr)
    else:
        names.append(PEER)
    clips = [clip for clip in read_clips(options.speech, quick=options.quick) if clip.reference]
    sound = silence() if options.silent else talk(clips)
    run_all = overload if options.overload else measure
    emit("streams", asyncio.run(run_all(options, names, sound)), as_json=options.json, about=about)


if __name__ == "__main__":
    run(main)
