"""Speech engines on the same weights and the same speech: `python benchmarks/engines.py [--quick] [--json]`.

Each runs in a process of its own, with the same number of threads:

- fast: ours, on OpenVINO; `fast full` computes all 30 s of every window; `fast 5` with a beam of 5
- openai: openai-whisper as this project runs it, the reference
- faster-whisper, int8, with beams of 1 and 5, and with its batched pipeline, which cuts by voice activity as ours does;
  only where it is installed and the model is a CTranslate2 folder
- whisper.cpp, by pywhispercpp, on matrices of int8 (Q8_0) that are converted at first; only where it is installed

They take turns at every sound, so that whatever else the machine does meets all alike. Ours transcribes clips and the
recording as it does recordings, by voice activity, and utterances as it does those of live speech.

Words: errors on all clips, as openai-whisper's normaliser writes both sides, each digit a word where digits are said;
`as written` is without it. Speed: for all clips, for utterances of several lengths (median), and for all clips as one
recording. `--model` takes what the rest of the project takes; `--speech` a folder with a manifest.json, a list of
objects with `file`, `reference`, `language` and `kind` ("nonspeech" has no words). Without it: the project's fixtures.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from clips import Clip, read_clips
from ggml import write_ggml
from options import run, speech_parser
from peers import faster_whisper, trouble, whisper_cpp
from report import Row, emit, machine
from scoring import compare, normalised, total, words
from serving import environment

from audio import pcm
from audio.media import in_blocks
from audio.pcm import SAMPLE_RATE
from whisper_byoc.archive.worker import records_of
from whisper_byoc.processors.base import JobInfo
from whisper_byoc.processors.whisper import WhisperProcessor, WhisperSettings
from whisper_byoc.speech.engine import Samples
from whisper_byoc.speech.models import fetch_model
from whisper_byoc.speech.transcript import from_records

UTTERANCES = {"2 s": 2, "5 s": 5, "10 s": 10, "30 s": 30}
EXCERPTS = 5
"""Utterances of each length."""
RECORDING_SECONDS = 180.0
"""The clips are repeated until the recording is at least so long; it is transcribed twice."""
SETTLE_SECONDS = 0.25
"""Between two engines: the threads of Intel's OpenMP, which faster-whisper has, spin for 200 ms after their work."""
BATCHED = "faster-whisper batched"
BATCH = 8
"""Stretches of speech that it decodes at once."""
PACKAGES = {
    "faster-whisper 1": "faster_whisper",
    "faster-whisper 5": "faster_whisper",
    BATCHED: "faster_whisper",
    "whisper.cpp": "pywhispercpp",
}
"""Engine -> the package that it needs."""
GGML = "model.ggml"
ENGINES = ("fast", "fast full", "fast 5", "openai", *PACKAGES)

Transcribe = Callable[[Samples, bool], str]
"""Sound, and whether it is a recording, not an utterance -> text."""
Sounds = Mapping[str, Sequence[Samples]]
"""What is transcribed -> its sounds: `clips`, `2 s`, …"""


class Engine:
    """An engine in a process of its own."""

    def __init__(self, name: str, sounds: Path, args: argparse.Namespace) -> None:
        began = time.perf_counter()
        command = [sys.executable, __file__, "--one", name, "--sounds", str(sounds)]
        command += ["--model", args.model, "--threads", str(args.threads)]
        command += ["--model-dir", str(args.model_dir)] if args.model_dir else []
        self.name = name
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment()
        )
        self._answer()
        self.start_seconds = time.perf_counter() - began
        self.memory_mb = 0.0
        self.texts: dict[str, list[str]] = {}
        self.seconds: dict[str, list[float]] = {}
        self.cpu_seconds: dict[str, list[float]] = {}

    def transcribe(self, kind: str, number: int) -> None:
        """Have it transcribe a sound, and note text and time."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{json.dumps([kind, number])}\n")
        self._process.stdin.flush()
        answer = self._answer()
        self.texts.setdefault(kind, []).append(answer["text"])
        self.seconds.setdefault(kind, []).append(answer["seconds"])
        self.cpu_seconds.setdefault(kind, []).append(answer["cpu_seconds"])
        self.memory_mb = answer["memory_mb"]

    def close(self) -> None:
        """End the process."""
        self._process.communicate()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} ended with {self._process.wait()}; what it said is above")
        return json.loads(line)


def main() -> None:
    """Measure all engines, or be one of them."""
    parser = speech_parser(__doc__ or "")
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=ENGINES)
    parser.add_argument("--one", choices=ENGINES, help=argparse.SUPPRESS)
    parser.add_argument("--sounds", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        answer_questions(args.one, args)
        return
    about, model = machine(), fetch_model(args.model, args.model_dir)
    names = []
    for name in args.engines:
        if why_not := trouble(PACKAGES[name], model) if name in PACKAGES else "":
            print(f"{name}: left out, as {why_not}", file=sys.stderr)
        else:
            names.append(name)
    clips = read_clips(args.speech, quick=args.quick)
    engines = take_turns(names, make_sounds(clips, quick=args.quick), args)
    tables = {f"{args.model}, {args.threads} threads": [row_of(engine, clips) for engine in engines]}
    tables |= {
        f"{what}, as a share of a peer's": ratios
        for what, seconds in (("time", lambda each: each.seconds), ("CPU time", lambda each: each.cpu_seconds))
        if (ratios := ratio_rows(engines, seconds))
    }
    emit("engines", tables, as_json=args.json, about=about)


def make_sounds(clips: Sequence[Clip], *, quick: bool) -> Sounds:
    """Return all that is transcribed."""
    said = np.concatenate([clip.samples for clip in clips])
    sounds: dict[str, Sequence[Samples]] = {"clips": [clip.samples for clip in clips]}
    for name, seconds in list(UTTERANCES.items())[: 1 if quick else None]:
        length = seconds * SAMPLE_RATE
        starts = np.linspace(0, max(0, len(said) - length), 1 if quick else EXCERPTS, dtype=int)
        sounds[name] = [said[at : at + length] for at in starts]
    if not quick:
        recording = np.tile(said, max(1, round(RECORDING_SECONDS * SAMPLE_RATE / len(said) + 0.5)))
        sounds[f"{len(recording) / SAMPLE_RATE:.0f} s"] = [recording, recording]
    return sounds


def take_turns(names: Sequence[str], sounds: Sounds, args: argparse.Namespace) -> list[Engine]:
    """Have every engine transcribe every sound, in turns: forwards, then backwards."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        file = Path(folder) / "sounds.npz"
        np.savez(file, **{f"{kind} {at}": each for kind, many in sounds.items() for at, each in enumerate(many)})  # type: ignore[arg-type]
        if "whisper.cpp" in names:
            write_ggml(fetch_model(args.model, args.model_dir), Path(folder) / GGML)
        engines = []
        for name in names:
            engines.append(Engine(name, file, args))
            stack.callback(engines[-1].close)
        order = list(engines)
        for kind, many in sounds.items():
            for number in range(len(many)):
                for engine in order:
                    time.sleep(SETTLE_SECONDS)
                    engine.transcribe(kind, number)
                order.reverse()
            print(f"{kind}: {len(many)} done", file=sys.stderr, flush=True)
        return engines


def row_of(engine: Engine, clips: Sequence[Clip]) -> Row:
    """Sum up what an engine heard, and how long it took."""
    pairs = [(clip, text) for clip, text in zip(clips, engine.texts["clips"], strict=True) if clip.reference]
    written = total(compare(words(clip.reference), words(text)) for clip, text in pairs)
    score = total(
        compare(*(normalised(each, digits=clip.kind in ("digits", "command")) for each in (clip.reference, text)))
        for clip, text in pairs
    )
    invented = [words(text) for clip, text in zip(clips, engine.texts["clips"], strict=True) if not clip.reference]
    took = {kind: list(seconds) for kind, seconds in engine.seconds.items()}
    clips_seconds = sum(took.pop("clips"))
    return {
        "engine": engine.name,
        "errors %": float(score.error_rate),
        "wrong": score.wrong,
        "lost": score.lost,
        "extra": score.extra,
        "words": score.said,
        "as written %": float(written.error_rate),
        "invented": sum(map(len, invented)),
        "clips s": clips_seconds,
        "CPU s": sum(engine.cpu_seconds["clips"]),
        "ms/token": 1000 * clips_seconds / max(1, tokens(engine.texts["clips"])),
        **{f"{kind}: ms": 1000 * statistics.median(seconds) for kind, seconds in took.items()},
        "start s": engine.start_seconds,
        "RSS MB": engine.memory_mb,
    }


def tokens(texts: Sequence[str]) -> int:
    """Count the tokens of texts, as Whisper's models of English have them; all engines' alike."""
    from whisper.tokenizer import get_tokenizer

    encoding = get_tokenizer(multilingual=False).encoding
    return sum(len(encoding.encode(text)) for text in texts)


def ratio_rows(engines: Sequence[Engine], seconds: Callable[[Engine], Mapping[str, list[float]]]) -> list[Row]:
    """Compare the times of ours with those of every peer."""
    return [
        {"engine": ours.name, "peer": peer.name}
        | {kind: sum(times) / sum(seconds(peer)[kind]) for kind, times in seconds(ours).items()}
        for ours in engines
        if ours.name not in PACKAGES
        for peer in engines
        if peer.name in PACKAGES
    ]


def answer_questions(name: str, args: argparse.Namespace) -> None:
    """Be an engine: transcribe what each line of stdin names. Whatever a library prints goes to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    sounds, transcribe = np.load(args.sounds), load(name, args)
    transcribe(sounds["clips 0"], True)
    print("{}", file=answers, flush=True)
    for line in sys.stdin:
        kind, number = json.loads(line)
        samples = sounds[f"{kind} {number}"]
        began, cpu_began = time.perf_counter(), time.process_time()
        text = transcribe(samples, kind not in UTTERANCES)
        answer = {"text": text, "seconds": time.perf_counter() - began, "memory_mb": rss()}
        answer["cpu_seconds"] = time.process_time() - cpu_began
        print(json.dumps(answer), file=answers, flush=True)


def load(name: str, args: argparse.Namespace) -> Transcribe:
    """Return what turns samples into text, all in English."""
    if name in PACKAGES:
        model = fetch_model(args.model, args.model_dir)
        if name == "whisper.cpp":
            peer = whisper_cpp(args.sounds.with_name(GGML), args.threads)
        elif name == BATCHED:
            peer = faster_whisper(model, args.threads, batch=BATCH)
        else:
            peer = faster_whisper(model, args.threads, beam=int(name.split()[1]))
        return lambda samples, _: " ".join(segment.text for segment in peer(samples))
    engine, _, way = name.partition(" ")
    settings = WhisperSettings(
        engine=engine,
        audio_context="full" if way == "full" else "short",
        model_dir=args.model_dir,
        workers=1,
        threads=args.threads,
        beam=int(way) if way.isdecimal() else 1,
    )
    processor, runner = WhisperProcessor(args.model, settings), asyncio.Runner()
    runner.run(processor.initialize())

    async def transcribe(samples: Samples, *, recording: bool) -> str:
        if recording:
            job = JobInfo("recording", "transcribe", recording=True)
            records = [each async for each in records_of(processor, map(pcm.encode, in_blocks(samples)), job)]
            if errors := [each["error"] for each in records if each["type"] == "error"]:
                raise SystemExit(errors[0])
            return from_records(records[:-1]).text
        return (await processor.transcribe(samples, processor.options().decoding)).value.text

    return lambda samples, recording: runner.run(transcribe(samples, recording=recording))


def rss() -> float:
    """Memory of this process in MB, of which some are file pages of libraries."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 1e6


if __name__ == "__main__":
    run(main)
