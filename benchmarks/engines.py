"""Speech engines on the same weights and the same speech: `python benchmarks/engines.py [--quick] [--json]`.

Each runs in a process of its own, with the same number of threads:

- fast: ours, on OpenVINO; `fast full` computes all 30 s of every window
- openai: openai-whisper as this project runs it, the reference
- faster-whisper, int8, with beams of 1 and 5; only where it is installed and the model is a CTranslate2 folder

Words: errors on all clips. Speed: seconds for utterances of several lengths (median), and for all clips as one
recording. `--model` takes what the rest of the project takes; `--speech` a folder with a manifest.json, a list of
objects with `file`, `reference`, `language` and `kind` ("nonspeech" has no words). Without it: the project's fixtures.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from report import Row, emit, machine
from scoring import compare, total, words

from audio.pcm import SAMPLE_RATE
from whisper_byoc.cli.sources import load_sound
from whisper_byoc.processors.whisper import WhisperProcessor, WhisperSettings
from whisper_byoc.speech.engine import DecodeOptions, Samples
from whisper_byoc.speech.models import fetch_model

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"
UTTERANCES = (2.0, 5.0, 10.0, 29.0)
RECORDING_SECONDS = 180.0
"""The clips are repeated until the recording is at least so long."""
ENGINES = ("fast", "fast full", "openai", "faster-whisper 1", "faster-whisper 5")

Transcribe = Callable[[Samples], str]


@dataclass(frozen=True)
class Clip:
    """Sound, and the words in it."""

    samples: Samples
    reference: str


def main() -> None:
    """Measure every engine in turn, or the one of this process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo", help="name, .pt file or CTranslate2 folder (default: demo)")
    parser.add_argument("--model-dir", type=Path, help="folder of the models")
    parser.add_argument("--speech", type=Path, help="folder with a manifest.json (default: the fixtures)")
    parser.add_argument("--threads", type=int, default=WhisperSettings().sizes()[1])
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=ENGINES)
    parser.add_argument("--quick", action="store_true", help="only check that it runs")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--one", choices=ENGINES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.one, args)))
        return
    about, path = machine(), fetch_model(args.model, args.model_dir)
    rows: list[Row] = []
    for engine in args.engines:
        if engine.startswith("faster") and not (path.is_dir() and importlib.util.find_spec("faster_whisper")):
            print(f"{engine}: left out, as it is not installed or the model is no CTranslate2 folder", file=sys.stderr)
            continue
        done = subprocess.run(
            [sys.executable, __file__, *sys.argv[1:], "--one", engine], capture_output=True, text=True
        )
        if done.returncode:
            raise SystemExit(f"{engine} failed:\n{done.stderr}")
        rows.append(json.loads(done.stdout.splitlines()[-1]))
    emit("engines", {f"{args.model}, {args.threads} threads": rows}, as_json=args.json, about=about)


def measure(engine: str, args: argparse.Namespace) -> Row:
    """Measure one engine in this process."""
    began = time.perf_counter()
    transcribe = load(engine, args)
    spoken = read_clips(args.speech, quick=args.quick)
    transcribe(spoken[0].samples)
    start = time.perf_counter() - began
    began = time.perf_counter()
    texts = [transcribe(clip.samples) for clip in spoken]
    took = time.perf_counter() - began
    pairs = zip(spoken, texts, strict=True)
    score = total(compare(words(clip.reference), words(text)) for clip, text in pairs if clip.reference)
    invented = sum(len(words(text)) for clip, text in zip(spoken, texts, strict=True) if not clip.reference)
    row: dict[str, object] = {
        "engine": engine,
        "start s": start,
        "errors %": float(score.error_rate),
        "wrong": score.wrong,
        "lost": score.lost,
        "extra": score.extra,
        "words": score.said,
        "invented": invented,
        "clips s": took,
    }
    recording = np.concatenate([clip.samples for clip in spoken])
    for seconds in UTTERANCES[: 1 if args.quick else None]:
        utterances = [recording[at : at + int(seconds * SAMPLE_RATE)] for at in range(0, 5 * SAMPLE_RATE, SAMPLE_RATE)]
        row[f"{seconds:g} s: ms"] = 1000 * statistics.median(timed(transcribe, each) for each in utterances)
    if not args.quick:
        recording = np.tile(recording, max(1, round(RECORDING_SECONDS * SAMPLE_RATE / len(recording) + 0.5)))
        row[f"{len(recording) / SAMPLE_RATE:.0f} s: s"] = timed(transcribe, recording)
    return {**row, "RSS MB": rss()}


def load(engine: str, args: argparse.Namespace) -> Transcribe:
    """Return what turns samples into text, all in English."""
    if engine.startswith("faster"):
        from faster_whisper import WhisperModel

        folder = str(fetch_model(args.model, args.model_dir))
        model = WhisperModel(folder, device="cpu", compute_type="int8", cpu_threads=args.threads)
        beam = int(engine.split()[1])

        def transcribe(samples: Samples) -> str:
            segments, _ = model.transcribe(samples, "en", beam_size=beam, condition_on_previous_text=False)
            return "".join(segment.text for segment in segments)

        return transcribe
    settings = WhisperSettings(
        engine=engine.split()[0],
        audio_context="full" if engine == "fast full" else "short",
        model_dir=args.model_dir,
    )
    ours = WhisperProcessor(args.model, settings).load_engine()
    ours.use_threads(args.threads)
    return lambda samples: ours.transcribe(samples, DecodeOptions()).text


def read_clips(folder: Path | None, *, quick: bool) -> Sequence[Clip]:
    """Read English speech, and sound without speech, which has no reference."""
    if folder is None:
        texts = json.loads((FIXTURES / "texts.json").read_text())
        named = [(FIXTURES / name, each["text"]) for name, each in texts.items() if name.startswith("demo-")]
    else:
        manifest = json.loads((folder / "manifest.json").read_text())
        known = [each for each in manifest if each["language"] == "en" and (each["reference"] or silent(each))]
        named = [(folder / each["file"], "" if silent(each) else each["reference"]) for each in known]
    return [Clip(load_sound(path), text) for path, text in named[: 2 if quick else None]]


def silent(clip: dict[str, str]) -> bool:
    """Whether a clip of a manifest has no speech."""
    return clip["kind"] == "nonspeech"


def timed(transcribe: Transcribe, samples: Samples) -> float:
    """Seconds that it takes."""
    began = time.perf_counter()
    transcribe(samples)
    return time.perf_counter() - began


def rss() -> float:
    """Memory of this process in MB, of which some are file pages of libraries."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 1e6


if __name__ == "__main__":
    main()
