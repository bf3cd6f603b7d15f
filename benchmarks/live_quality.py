"""Live text against one-shot transcription and against a plain sliding window: `python benchmarks/live_quality.py`.

Streams of fixture and fresh synthetic speech (espeak-ng) with known text, pauses from 0.1 to 5 s, clean and with pink
noise, go through a real server in real time. Each utterance is also transcribed on its own, cut where it is known to
begin and end (`one-shot`), and the whole stream by a transcriber of 2.5 s windows with 0.5 s overlap (`window`), which
is what containers of this kind do. See benchmarks/README.md for the columns.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from live_streams import Spoken, Stream, noises, streams
from report import Row, emit, machine
from scoring import Score, compare, total, words
from serving import served
from stand_in import Subject, subject

from audio import pcm
from whisper_byoc import TrickleClient
from whisper_byoc.speech.engine import DecodeOptions
from whisper_byoc.speech.models import load_model
from whisper_byoc.speech.openai_engine import OpenAIEngine

WINDOW_SECONDS, OVERLAP_SECONDS = 2.5, 0.5
GATE_DBFS = -45.0
"""Below it such a transcriber takes a window for silence."""
CHUNK = int(0.1 * pcm.SAMPLE_RATE)
LONGEST_SECONDS = 3600.0


@dataclass
class Heard:
    """The records of one stream and when they came, in seconds since its first sample was due."""

    records: list[tuple[float, dict[str, Any]]] = field(default_factory=list)

    @property
    def finals(self) -> list[tuple[float, dict[str, Any]]]:
        """Final transcripts."""
        return [(at, each) for at, each in self.records if each["type"] == "transcript" and each["is_final"]]

    @property
    def partials(self) -> list[tuple[float, dict[str, Any]]]:
        """Partial ones."""
        return [(at, each) for at, each in self.records if each["type"] == "transcript" and not each["is_final"]]

    @property
    def text(self) -> list[str]:
        """All final words."""
        return [word for _, record in self.finals for word in words(record["text"])]


async def listen(url: str, stream: Stream, *, realtime: bool) -> Heard:
    """Send a stream, and note what comes back and when."""
    data, heard, began = pcm.encode(stream.samples.clip(-1, 1)), Heard(), time.monotonic()

    async def microphone() -> AsyncIterator[bytes]:
        for at in range(0, len(data), CHUNK * pcm.SAMPLE_WIDTH):
            due = (at / pcm.SAMPLE_WIDTH + CHUNK) / pcm.SAMPLE_RATE  # a microphone has a chunk when it is full
            if realtime:
                await asyncio.sleep(max(0.0, began + due - time.monotonic()))
            yield data[at : at + CHUNK * pcm.SAMPLE_WIDTH]

    async with TrickleClient(url, params={"partials": "true"}) as client:
        async for record in client.stream(microphone()):
            heard.records.append((time.monotonic() - began, record))
            if record["type"] == "error":
                raise RuntimeError(f"{stream.name}: {record['error']}")
    return heard


def one_shot(engine: OpenAIEngine, stream: Stream) -> Score:
    """Transcribe each utterance on its own, with a quarter of a second around it."""
    margin = pcm.SAMPLE_RATE // 4
    return total(
        compare(words(each.text), words(text_of(engine, stream, each.start - margin, each.end + margin)))
        for each in stream.spoken
    )


def windowed(engine: OpenAIEngine, stream: Stream) -> tuple[list[str], list[float]]:
    """Transcribe windows on their own, and give all words, and the seconds from the end of each utterance to its text.

    The text is there when the first window that holds the end is full and has been transcribed.
    """
    size, step = int(WINDOW_SECONDS * pcm.SAMPLE_RATE), int((WINDOW_SECONDS - OVERLAP_SECONDS) * pcm.SAMPLE_RATE)
    found, late = [], []
    waiting = [each.end for each in stream.spoken]
    for start in range(0, len(stream.samples), step):
        if pcm.dbfs(stream.samples[start : start + size]) < GATE_DBFS:
            continue
        began = time.monotonic()
        found += words(text_of(engine, stream, start, start + size))
        took = time.monotonic() - began
        while waiting and waiting[0] <= start + size:
            late.append((start + size - waiting.pop(0)) / pcm.SAMPLE_RATE + took)
    return found, late


def text_of(engine: OpenAIEngine, stream: Stream, start: int, end: int) -> str:
    """Transcribe a piece of a stream."""
    return engine.transcribe(stream.samples[max(0, start) : end], DecodeOptions()).result().text


def latencies(stream: Stream, heard: Heard) -> tuple[list[float], list[float]]:
    """Give seconds from the first sound of a run of speech to its first partial, and from its last to its final text.

    Utterances with short pauses between them are one run: a final record tells which sound it is about.
    """
    first, last = [], []
    for at, record in heard.finals:
        window = (record["timing"]["media_window_start_ms"] * 16, record["timing"]["media_window_end_ms"] * 16)
        inside = [each for each in stream.spoken if overlaps(each, window)]
        if not inside:
            continue
        last.append(at - min(inside[-1].end, window[1]) / pcm.SAMPLE_RATE)
        shown = [when for when, each in heard.partials if overlaps(inside[0], span(each)) and when < at]
        if shown and inside[0].start >= window[0]:
            first.append(min(shown) - inside[0].start / pcm.SAMPLE_RATE)
    return first, last


def span(record: dict[str, Any]) -> tuple[int, int]:
    """Give the sound that a record is about, in samples."""
    return record["timing"]["media_window_start_ms"] * 16, record["timing"]["media_window_end_ms"] * 16


def overlaps(spoken: Spoken, window: tuple[int, int]) -> bool:
    """Whether most of an utterance's beginning or end lies in a window."""
    return min(spoken.end, window[1]) - max(spoken.start, window[0]) > pcm.SAMPLE_RATE // 10


def survival(heard: Heard) -> float | None:
    """Percent of the words in partial records that stand at the same place in the final text; None without any."""
    kept = shown = 0
    waiting: list[list[str]] = []
    for _, record in heard.records:
        if record["type"] != "transcript":
            continue
        if not record["is_final"]:
            waiting.append(words(record["text"]))
            continue
        final = words(record["text"])
        for partial in waiting:
            shown += len(partial)
            kept += sum(a == b for a, b in zip(partial, final, strict=False))
        waiting = []
    return 100 * kept / shown if shown else None


def percentile(values: Sequence[float], percent: int) -> float | None:
    """Give a percentile; None of nothing."""
    return float(np.percentile(values, percent)) if values else None


def quality_rows(engine: OpenAIEngine, stream: Stream, heard: Heard, *, realtime: bool) -> list[Row]:
    """Give the lines of one stream: live, one-shot, window."""
    said = [word for each in stream.spoken for word in words(each.text)]
    live, alone = compare(said, heard.text), one_shot(engine, stream)
    text, late = windowed(engine, stream)
    window = compare(said, text)
    first, last = latencies(stream, heard)
    cuts = max(1, len(heard.finals))
    windows = max(1, int(stream.seconds / (WINDOW_SECONDS - OVERLAP_SECONDS)))
    return [
        score_row(stream.name, "live", live)
        | {"extra/cut": live.extra / cuts, "lost/cut": live.lost / cuts, "partials kept %": survival(heard)}
        | (delays(first, last) if realtime else {}),
        score_row(stream.name, "one-shot", alone),
        score_row(stream.name, "window", window)
        | {"extra/cut": window.extra / windows, "lost/cut": window.lost / windows}
        | (delays([], late) if realtime else {}),
    ]


def delays(first: Sequence[float], last: Sequence[float]) -> dict[str, object]:
    """Give the columns with times, in seconds."""
    return {
        "first p50 s": percentile(first, 50), "first p95": percentile(first, 95),
        "final p50 s": percentile(last, 50), "final p95": percentile(last, 95),
    }  # fmt: skip


def score_row(name: str, way: str, score: Score) -> dict[str, object]:
    """Begin a line."""
    return {
        "stream": name, "text": way, "words": score.said, "error rate %": score.error_rate,
        "wrong": score.wrong, "lost": score.lost, "extra": score.extra,
    }  # fmt: skip


async def invented(url: str, engine: OpenAIEngine, seconds: float, seed: int) -> list[Row]:
    """Count the words in sound without speech, sent as fast as the server takes it."""
    rows: list[Row] = []
    for stream in noises(seconds, seed):
        heard = await listen(url, stream, realtime=False)
        partial = sum(len(words(each["text"])) for _, each in heard.partials)
        window, _ = windowed(engine, stream)
        rows.append(
            {"sound": stream.name, "minutes": stream.seconds / 60, "live": len(heard.text), "partial": partial,
             "window": len(window)}
        )  # fmt: skip
    return rows


async def measure(model: Subject, options: argparse.Namespace) -> dict[str, list[Row]]:
    """Run everything."""
    engine = OpenAIEngine(load_model(model.model))
    rows: list[Row] = []
    tables: dict[str, list[Row]] = {}
    async with served(model.pipeline, "--partial-policy", options.policy) as server:
        for stream in streams(options.seconds, options.seed, model.vocabulary):
            heard = await listen(server.url, stream, realtime=not options.fast)
            rows += quality_rows(engine, stream, heard, realtime=not options.fast)
        tables[f"speech, policy {options.policy}, model {model.name}"] = rows
        if options.noise_seconds:
            tables["words invented in sound without speech"] = await invented(
                server.url, engine, options.noise_seconds, options.seed
            )
    return tables


def main() -> None:
    """Read the options, measure, print."""
    parser = argparse.ArgumentParser(description="How good live text is, and how soon it comes.")
    parser.add_argument("--model", default="demo", help="demo (default), tiny, tiny-shape (see stand_in.py), a path")
    parser.add_argument("--policy", default="attention", choices=("attention", "agreement"), help="of partial text")
    parser.add_argument("--seconds", type=float, default=180.0, help="length of each stream of speech")
    parser.add_argument("--noise-seconds", type=float, default=100.0, help="length of each sound without speech")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--fast", action="store_true", help="send as fast as the server takes it; no latencies then")
    parser.add_argument("--quick", action="store_true", help="little and fast: a check that it runs, not a figure")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    options = parser.parse_args()
    if options.quick:
        options.seconds, options.noise_seconds, options.fast = 12.0, 4.0, True
    about = machine()
    with tempfile.TemporaryDirectory() as folder:
        model = subject(options.model, Path(folder))
        tables = asyncio.run(asyncio.wait_for(measure(model, options), LONGEST_SECONDS))
    emit("live_quality", tables, as_json=options.json, about=about)


if __name__ == "__main__":
    main()
