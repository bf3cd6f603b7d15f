"""Measure a demo model through openai-whisper, as a user would call it, on speech made anew.

    python -m tools.demo_model.evaluate                              the bundled model
    python -m tools.demo_model.evaluate OLD.pt NEW.pt --json f.json  several, side by side, on the same recordings

Every set is made of its name and the seed, so the same command compares models on the same sound.
"""

import argparse
import hashlib
import json
import random
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import whisper
from tqdm import tqdm
from whisper.model import Whisper

from tools.demo_model import flite, grammar, scenes
from tools.demo_model.scenes import Recording
from tools.demo_model.scoring import edge_errors, word_errors, words
from tools.demo_model.speech import RATE, Speaker

BUNDLED = Path(__file__).resolve().parents[2] / "whisper_byoc" / "speech" / "assets" / "demo.pt"

Listen = Callable[[Whisper, Recording], list[dict[str, Any]]]
"""Returns the segments that a model hears."""
Make = Callable[[Speaker, random.Random], Iterator[Recording]]

_TEXTS: tuple[tuple[str, scenes.Text], ...] = (
    ("105 words", scenes.core_words),
    ("all words", scenes.all_words),
    ("sentences", grammar.sentence),
)


@dataclass(frozen=True)
class Set:
    """Recordings of one kind, and how the model is asked about them."""

    name: str
    make: Make
    listen: Listen
    needs_flite: bool = False
    key: str = ""
    """What the recordings are drawn by, so that sets can share them; the name by default."""


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


def transcribe(**options: Any) -> Listen:
    """Return a way to ask through `model.transcribe(samples, language="en")`, with these options besides."""

    def listen(model: Whisper, recording: Recording) -> list[dict[str, Any]]:
        # fp16=False is what it falls back to on a CPU, with a warning.
        segments = model.transcribe(recording.samples, language="en", fp16=False, **options)["segments"]
        return [dict(segment) for segment in segments]

    return listen


def decode_shortened(seconds: float) -> Listen:
    """Return a way to ask with an audio context of that length, for a model that is to be fast on short clips."""

    def listen(model: Whisper, recording: Recording) -> list[dict[str, Any]]:
        samples = whisper.pad_or_trim(recording.samples, round(seconds * RATE))
        mel = whisper.log_mel_spectrogram(samples)
        whole = model.encoder.positional_embedding
        try:
            model.encoder.positional_embedding = whole[: mel.shape[-1] // 2]
            options = whisper.DecodingOptions(language="en", temperature=0.0, fp16=False)
            result = whisper.decode(model, mel, options)
        finally:
            model.encoder.positional_embedding = whole
        return [{"text": result.text, "start": 0.0, "end": seconds, "seek": 0}]

    return listen


def sets(scale: float) -> Iterator[Set]:
    """Yield what is measured; `scale` multiplies the number of recordings."""
    for voice_name, voice, count in (
        ("espeak-ng, voices heard", scenes.espeak_heard, 100),
        ("flite, voices heard", scenes.flite_heard, 60),
        ("espeak-ng, other voices", scenes.espeak_held_out, 100),
        ("espeak-ng, other voices and accent", scenes.espeak_held_out_accent, 100),
        ("flite, another voice", scenes.flite_held_out, 60),
    ):
        for text_name, text in _TEXTS:
            for snr in (None, 15.0):
                name = f"{voice_name}; {text_name}; {'clean' if snr is None else '15 dB'}"
                yield Set(name, _singles(voice, text, count, snr, scale), transcribe(), "flite" in voice_name)
    yield from _several(scale)
    for length in range(1, 13):
        text = scenes.core_words_of(length)
        yield Set(f"{length} words", _singles(scenes.espeak_heard, text, 20, None, scale), transcribe())
    yield Set("clips of 0.4 s", _tiny(40, scale), transcribe())
    yield Set("one utterance anywhere in 30 s", _anywhere(40, scale), transcribe())
    for seconds in (3, 6, 10, 15):
        yield Set(f"audio context of {seconds} s", _fitting(seconds, 40, scale), decode_shortened(seconds))
    plain = _singles(scenes.espeak_heard, scenes.core_words, 40, None, scale)
    yield Set("without timestamps", plain, transcribe(without_timestamps=True))
    yield Set("nothing said", lambda _, rng: scenes.without_speech(round(200 * scale), rng), transcribe())


def _several(scale: float) -> Iterator[Set]:
    for name, seconds, pauses, count in (
        ("30 s, several utterances", 30.0, (0.5, 2.0), 12),
        ("75 s with pauses", 75.0, (0.8, 2.0), 6),
        ("75 s with long pauses", 75.0, (0.5, 6.0), 6),
    ):
        for text_name, text in (_TEXTS[0], _TEXTS[2]):
            for condition in (False, True):
                full = f"{name}; {text_name}; condition_on_previous_text={condition}"
                make = _conversations(text, seconds, pauses, count, scale)
                listen = transcribe(condition_on_previous_text=condition)
                yield Set(full, make, listen, key=f"{name}; {text_name}")


def _count(count: int, scale: float) -> range:
    return range(max(1, round(count * scale)))


def _singles(voice: scenes.Voice, text: scenes.Text, count: int, snr: float | None, scale: float) -> Make:
    def make(speaker: Speaker, rng: random.Random) -> Iterator[Recording]:
        for _ in _count(count, scale):
            yield scenes.alone(scenes.say(speaker, voice, text, rng), rng, snr)

    return make


def _conversations(text: scenes.Text, seconds: float, pauses: tuple[float, float], count: int, scale: float) -> Make:
    def make(speaker: Speaker, rng: random.Random) -> Iterator[Recording]:
        for _ in _count(count, scale):
            yield scenes.conversation(speaker, scenes.espeak_heard, text, seconds, pauses, rng)

    return make


def _tiny(count: int, scale: float) -> Make:
    def make(speaker: Speaker, rng: random.Random) -> Iterator[Recording]:
        for _ in _count(count, scale):
            spoken = scenes.say(speaker, scenes.espeak_heard, scenes.core_words_of(1), rng, longest=0.4)
            yield scenes.placed(spoken, 0.0, 0.4)

    return make


def _anywhere(count: int, scale: float) -> Make:
    def make(speaker: Speaker, rng: random.Random) -> Iterator[Recording]:
        for _ in _count(count, scale):
            spoken = scenes.say(speaker, scenes.espeak_heard, scenes.core_words, rng)
            yield scenes.placed(spoken, rng.uniform(0, 29.9 - len(spoken.samples) / RATE), 30.0)

    return make


def _fitting(seconds: float, count: int, scale: float) -> Make:
    def make(speaker: Speaker, rng: random.Random) -> Iterator[Recording]:
        for _ in _count(count, scale):
            spoken = scenes.say(speaker, scenes.espeak_heard, scenes.core_words, rng, longest=seconds - 0.5)
            room = seconds - len(spoken.samples) / RATE
            yield scenes.placed(spoken, rng.uniform(0.1, room - 0.3), seconds, rng.uniform(0.1, 1.5))

    return make


def measure(model: Whisper, which: Set, speaker: Speaker, seed: int) -> Result:
    """Return what the model makes of a set."""
    result = Result()
    torch.manual_seed(seed)  # transcribe() draws tokens where it is unsure
    for recording in which.make(speaker, random.Random(f"{seed} {which.key or which.name}")):
        began = time.perf_counter()
        segments = which.listen(model, recording)
        result.add(recording, segments, time.perf_counter() - began)
    return result


def evaluate(models: Sequence[Path], seed: int, scale: float, only: str) -> list[dict[str, Any]]:
    """Return a record for each set whose name has `only` in it, with what each model made of it; print the table."""
    loaded = [whisper.load_model(str(path), device="cpu") for path in models]
    speaker = Speaker()
    chosen = [each for each in sets(scale) if only in each.name and (flite.installed() or not each.needs_flite)]
    records: list[dict[str, Any]] = []
    print("| set | recordings / words | " + " | ".join(path.stem for path in models) + " |")
    print("|---" * (2 + len(models)) + "|", flush=True)
    for each in tqdm(chosen, unit="set", disable=None):
        results = [measure(model, each, speaker, seed) for model in loaded]
        cells = " | ".join(result.cell() for result in results)
        tqdm.write(f"| {each.name} | {results[0].recordings} / {results[0].words} | {cells} |")
        sys.stdout.flush()
        records.append({"set": each.name, "models": [result.record() for result in results]})
    return records


def main() -> int:
    """Run the command line; 0 is success."""
    parser = argparse.ArgumentParser(description="Measure demo models through openai-whisper.")
    parser.add_argument("models", nargs="*", type=Path, default=[BUNDLED], help="default: the bundled one")
    parser.add_argument("--json", type=Path, help="write the results there, too")
    parser.add_argument("--seed", type=int, default=2026, help="default: %(default)s")
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies the recordings; default: %(default)s")
    parser.add_argument("--only", default="", help="measure the sets that have this in their name")
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
