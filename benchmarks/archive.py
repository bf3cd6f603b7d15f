"""Archives beside plain `transcribe`, on the same files: `python benchmarks/archive.py --speech FOLDER [--model NAME]`.

Each way is a command in a process of its own, from its start to its end, and they take turns. `sound/s` are seconds of
sound in a second; `CPU s` is the time of all processes, which a busy machine changes less (a Ray node's processes are
nobody's children, so theirs is not known). With few recordings, all is the start of processes.

Ways: plain `transcribe`; archives by one process with all CPUs as threads, and by one process for each CPU; the same
number of actors on a Ray cluster of this machine, where Ray is installed (`pip install 'whisper-byoc[ray]'`).
"""

from __future__ import annotations

import argparse
import importlib.util
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from report import Row, emit, machine

from audio.media import load_audio
from audio.pcm import SAMPLE_RATE
from whisper_byoc.archive.sources import find
from whisper_byoc.processors.machine import available_cpus

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"
COMMAND = (sys.executable, "-m", "whisper_byoc.cli.main", "transcribe")
LONGEST_SECONDS = 3600.0


def ways(quick: bool) -> Mapping[str, Sequence[str]]:
    """Return the options of each way."""
    cpus = str(available_cpus())
    found = {
        "transcribe": (),
        f"1 process, {cpus} threads": ("--processes", "1", "--threads", cpus),
        f"{cpus} processes, 1 thread": ("--processes", cpus, "--threads", "1"),
    }
    if quick:
        return dict(list(found.items())[::2])
    if importlib.util.find_spec("ray"):
        found[f"Ray, {cpus} actors, 1 thread"] = ("--ray", "local", "--processes", cpus, "--threads", "1")
    else:
        print("Ray is not installed, and left out", file=sys.stderr)
    return found


def run(files: Sequence[str], options: Sequence[str], model: str) -> tuple[float, float]:
    """Transcribe files into a folder that is then removed; return seconds, and seconds of CPU time."""
    with tempfile.TemporaryDirectory() as folder:
        began, before = time.monotonic(), children()
        command = [*COMMAND, *files, *options, "--model", model, "--output", f"{folder}/texts/"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=LONGEST_SECONDS)
        took = time.monotonic() - began
        if len(list(Path(folder).rglob("*.txt"))) != len(files):
            raise SystemExit(f"{' '.join(options)}: there are not as many texts as recordings")
    return took, children() - before


def children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def measure(files: Sequence[str], model: str, rounds: int, *, quick: bool) -> list[Row]:
    sound = sum(len(load_audio(each)) for each in files) / SAMPLE_RATE
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in ways(quick)}
    for _ in range(rounds):
        for name, options in ways(quick).items():
            found[name].append(run(files, options, model))
    plain = statistics.median(seconds for seconds, _ in found["transcribe"])
    return [row(name, each, sound, plain) for name, each in found.items()]


def row(name: str, runs: Sequence[tuple[float, float]], sound: float, plain: float) -> Row:
    seconds = statistics.median(seconds for seconds, _ in runs)
    cpu = None if name.startswith("Ray") else statistics.median(cpu for _, cpu in runs)
    return {"way": name, "s": seconds, "sound/s": sound / seconds, "of transcribe": plain / seconds, "CPU s": cpu}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--speech", type=Path, default=FIXTURES, help="folder of recordings")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--files", type=int, default=1000, help="at most so many of the recordings")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="only check that it runs")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if args.quick:
        args.files, args.rounds = 2, 1
    about = machine()
    files = [each.place for each in find([str(args.speech)], []).sources][: args.files]
    rows = measure(files, args.model, args.rounds, quick=args.quick)
    emit("archive", {f"{len(files)} recordings, {args.model}": rows}, as_json=args.json, about=about)


if __name__ == "__main__":
    main()
