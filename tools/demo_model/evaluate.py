"""Measure a demo model through openai-whisper, as a user would call it, on speech made anew.

    python -m tools.demo_model.evaluate                              the bundled model
    python -m tools.demo_model.evaluate OLD.pt NEW.pt --json f.json  several, side by side, on the same recordings

Every set is made of its name and the seed.
"""

import argparse
import hashlib
import json
import random
import re
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import whisper
from tqdm import tqdm
from whisper.model import Whisper
from whisper.tokenizer import get_tokenizer

from tools.demo_model import flite
from tools.demo_model.scenes import Recording
from tools.demo_model.scoring import edge_errors, word_errors, words
from tools.demo_model.sets import Set, sets
from tools.demo_model.speech import Speaker

BUNDLED = Path(__file__).resolve().parents[2] / "whisper_byoc" / "speech" / "assets" / "demo.pt"


@dataclass
class Result:
    """What a model made of a set."""

    recordings: int = 0
    words: int = 0
    errors: int = 0
    exact: int = 0
    """Recordings without an error."""
    seconds: float = 0.0
    starts: list[float] = field(default_factory=list)
    ends: list[float] = field(default_factory=list)
    wrong: list[tuple[str, str]] = field(default_factory=list)
    """The first few: what was said, and what was heard."""

    def add(self, recording: Recording, segments: Sequence[dict[str, Any]], seconds: float) -> None:
        """Count one recording in."""
        heard = [word for segment in segments for word in words(segment["text"])]
        errors = word_errors(recording.words, heard)
        self.recordings += 1
        self.words += len(recording.words)
        self.errors += errors
        self.exact += not errors
        self.seconds += seconds
        starts, ends = edge_errors(recording, segments)
        self.starts += starts
        self.ends += ends
        if errors and len(self.wrong) < 5:
            self.wrong.append((" ".join(recording.words), " ".join(heard)))

    def record(self) -> dict[str, Any]:
        """Return it for JSON: rates in percent, times in seconds."""
        return {
            "recordings": self.recordings,
            "words": self.words,
            "word_error_rate": round(100 * self.errors / self.words, 2) if self.words else None,
            "exact": self.exact,
            "seconds_each": round(self.seconds / self.recordings, 3),
            "start_error_median": _median(self.starts),
            "end_error_median": _median(self.ends),
            "wrong": self.wrong,
        }

    def cell(self) -> str:
        """Return it for the table."""
        return f"{100 * self.errors / self.words:.1f} %" if self.words else f"{self.exact} of {self.recordings} empty"


def _median(values: list[float]) -> float | None:
    return round(float(np.median(values)), 3) if values else None


def knows(model: Whisper, vocabulary: Sequence[str]) -> bool:
    """Tell whether a demo model was trained on all of these words: rows of the embedding that were not are zero."""
    tokenizer = get_tokenizer(multilingual=False)
    pieces = {piece for word in vocabulary for piece in tokenizer.encode(f" {word}")}
    return bool(model.decoder.token_embedding.weight[sorted(pieces)].any(1).all())


def measure(model: Whisper, which: Set, recordings: Sequence[Recording], seed: int) -> Result:
    """Return what the model makes of a set's recordings."""
    result = Result()
    torch.manual_seed(seed)  # transcribe() draws tokens where it is unsure
    for recording in recordings:
        began = time.perf_counter()
        segments = which.listen(model, recording)
        result.add(recording, segments, time.perf_counter() - began)
    return result


def evaluate(models: Sequence[Path], seed: int, scale: float, only: str) -> list[dict[str, Any]]:
    """Return a record for each set whose name matches `only`, with what each model made of it; print the table."""
    loaded = [whisper.load_model(str(path), device="cpu") for path in models]
    speaker = Speaker()
    chosen = [
        each for each in sets(scale) if re.search(only, each.name) and (flite.installed() or not each.needs_flite)
    ]
    records: list[dict[str, Any]] = []
    print("| set | recordings / words | " + " | ".join(path.stem for path in models) + " |")
    print("|---" * (2 + len(models)) + "|", flush=True)
    for each in tqdm(chosen, unit="set", disable=None):
        recordings = list(each.make(speaker, random.Random(f"{seed} {each.key or each.name}")))
        results = [
            measure(model, each, recordings, seed) if knows(model, each.vocabulary) else None for model in loaded
        ]
        cells = " | ".join(result.cell() if result else "-" for result in results)
        tqdm.write(f"| {each.name} | {len(recordings)} / {sum(len(r.words) for r in recordings)} | {cells} |")
        sys.stdout.flush()
        records.append({"set": each.name, "models": [result.record() if result else None for result in results]})
    return records


def main() -> int:
    """Run the command line; 0 is success."""
    parser = argparse.ArgumentParser(description="Measure demo models through openai-whisper.")
    parser.add_argument("models", nargs="*", type=Path, default=[BUNDLED], help="default: the bundled one")
    parser.add_argument("--json", type=Path, help="write the results there, too")
    parser.add_argument("--seed", type=int, default=2026, help="default: %(default)s")
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies the recordings; default: %(default)s")
    parser.add_argument("--only", default="", help="measure the sets whose name this pattern is found in")
    parser.add_argument("--threads", type=int, default=1, help="default: %(default)s")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    warnings.filterwarnings("ignore", message="unclosed file", category=ResourceWarning)
    records = evaluate(arguments.models, arguments.seed, arguments.scale, arguments.only)
    if arguments.json:
        about = {
            "openai-whisper": whisper.__version__,
            "torch": torch.__version__,
            "seed": arguments.seed,
            "models": [
                {"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
                for path in arguments.models
            ],
        }
        arguments.json.write_text(json.dumps({**about, "sets": records}, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
