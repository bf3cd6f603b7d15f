"""What each way in hears of real speech: `python benchmarks/speech.py --model MODEL --speech FOLDER [--json]`.

The recordings of a folder (see clips.py) go through a real server and the real command line, on the same weights:

- OpenAI API: the file, to `/v1/audio/transcriptions`
- batch: the file, as the body of a POST
- transcribe: all files, to `whisper-byoc transcribe`
- live: their sound as PCM16, as live feeds as fast as the server takes them. They ask for the beam of 5 that a feed has
  where nothing hurries the server, so the final text is that of a feed in real time
- openai-whisper, and faster-whisper (int8) with beams of 5 and 1: with the defaults of their `transcribe`; the latter
  only where it is installed and the model is a CTranslate2 folder

The first table is of each recording alone, the second of all that is read, as one recording with pauses.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import json
import re
import subprocess
import sys
import tempfile
import wave
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from itertools import cycle
from pathlib import Path

import aiohttp
import numpy as np
from clips import Clip, read_clips
from options import run, speech_parser
from peers import faster_whisper, trouble
from report import Row, emit, machine
from scoring import Score, compare, normalised, total
from serving import environment, served

from audio import pcm
from whisper_byoc import TrickleClient
from whisper_byoc.speech.models import fetch_model, load_model

BEAM = 5
BEAMS = {"faster-whisper 5": 5, "faster-whisper 1": 1}
"""Peer -> its beam."""
SERVED = ("OpenAI API", "batch", "live")
WAYS = (*SERVED, "transcribe", "openai-whisper", *BEAMS)
PIECE = pcm.SAMPLE_RATE // 10 * pcm.SAMPLE_WIDTH
"""Bytes of a live feed that are sent at once: 100 ms."""
PAUSES = (0.3, 0.6, 1.0, 0.4, 1.5)
"""Seconds between what is joined to one recording, in turns."""
SPELLED = ("digits", "command")
"""Kinds in which every digit is a word."""
LONGEST_SECONDS = 1800.0
SENTENCE_END = re.compile(r"[.!?…](?=\s|$)")

Hear = Callable[[Clip], Awaitable[str]]


def main() -> None:
    """Have every way hear every recording, and print both tables."""
    parser = speech_parser(__doc__ or "")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS, help="(default: all)")
    parser.add_argument("--texts", type=Path, metavar="FILE", help="write also what was heard: way -> file -> text")
    args = parser.parse_args()
    about, clips = machine(), read_clips(args.speech, quick=args.quick)
    with tempfile.TemporaryDirectory() as folder:
        sets = {"each recording alone": clips}
        if not args.quick:
            sets["what is read, as one recording"] = [joined(clips, Path(folder) / "joined.wav")]
        texts = asyncio.run(asyncio.wait_for(hear_all(args, list(sets.values())), LONGEST_SECONDS))
    tables = {
        f"{args.model}: {title}": [score_row("reference", [each.reference for each in heard], heard)]
        + [score_row(way, found[number], heard) for way, found in texts.items()]
        for number, (title, heard) in enumerate(sets.items())
    }
    if args.texts is not None:
        heard_by = {
            way: {clip.path.name: text for clips, heard in zip(sets.values(), found, strict=True)
                  for clip, text in zip(clips, heard, strict=True)}
            for way, found in texts.items()
        }  # fmt: skip
        args.texts.write_text(json.dumps(heard_by, indent=1, ensure_ascii=False), encoding="utf-8")
    emit("speech", tables, as_json=args.json, about=about)


def joined(clips: Sequence[Clip], path: Path) -> Clip:
    """Write all clips that are read as one recording, with pauses."""
    read = [clip for clip in clips if clip.reference and clip.kind not in SPELLED]
    pauses = (np.zeros(int(seconds * pcm.SAMPLE_RATE), np.float32) for seconds in cycle(PAUSES))
    samples = np.concatenate([each for clip in read for each in (clip.samples, next(pauses))])
    with wave.open(str(path), "wb") as file:
        file.setparams((1, pcm.SAMPLE_WIDTH, pcm.SAMPLE_RATE, 0, "NONE", ""))
        file.writeframes(pcm.encode(samples))
    return Clip(samples, " ".join(clip.reference for clip in read), "read", path)


async def hear_all(args: argparse.Namespace, sets: Sequence[Sequence[Clip]]) -> dict[str, list[list[str]]]:
    """Return for each way the texts of every set."""
    texts: dict[str, list[list[str]]] = {}
    for way in args.ways:
        if way in BEAMS and (why_not := trouble("faster_whisper", fetch_model(args.model, args.model_dir))):
            print(f"{way}: left out, as {why_not}", file=sys.stderr)
            continue
        async with AsyncExitStack() as stack:
            hear = None if way == "transcribe" else await open_way(way, args, stack)
            texts[way] = [
                [await hear(clip) for clip in clips] if hear else await transcribed(args, clips) for clips in sets
            ]
        print(f"{way}: done", file=sys.stderr, flush=True)
    return texts


async def open_way(way: str, args: argparse.Namespace, stack: AsyncExitStack) -> Hear:
    """Start what hears; `stack` ends it."""
    if way in SERVED:
        server = await stack.enter_async_context(served(args.model, *model_options(args)))
        if way == "live":
            return functools.partial(live, server.url)
        http = await stack.enter_async_context(aiohttp.ClientSession(server.url))
        return functools.partial(from_openai_route if way == "OpenAI API" else from_batch_route, http)
    if way in BEAMS:
        model = fetch_model(args.model, args.model_dir)
        peer = faster_whisper(model, args.threads, beam=BEAMS[way], context=True)
        return in_thread(lambda clip: " ".join(segment.text for segment in peer(clip.samples)))
    reference = load_model(args.model, args.model_dir)
    return in_thread(lambda clip: str(reference.transcribe(clip.samples, language="en", fp16=False)["text"]))


def model_options(args: argparse.Namespace) -> list[str]:
    """Return the options that our commands share."""
    folder = [] if args.model_dir is None else ["--model-dir", str(args.model_dir)]
    return ["--language", "en", "--threads", str(args.threads), *folder]


def in_thread(function: Callable[[Clip], str]) -> Hear:
    """Call a function in a thread."""
    return lambda clip: asyncio.to_thread(function, clip)


async def from_openai_route(http: aiohttp.ClientSession, clip: Clip) -> str:
    """Send a file as OpenAI's clients do."""
    form = aiohttp.FormData({"model": "whisper-1", "language": "en", "response_format": "json"})
    form.add_field("file", clip.path.read_bytes(), filename=clip.path.name)
    async with http.post("/v1/audio/transcriptions", data=form, raise_for_status=True) as answer:
        return str((await answer.json())["text"])


async def from_batch_route(http: aiohttp.ClientSession, clip: Clip) -> str:
    """Send a file as the body."""
    query = {"language": "en", "response_format": "text"}
    async with http.post("/", params=query, data=clip.path.read_bytes(), raise_for_status=True) as answer:
        return (await answer.text()).strip()


async def live(url: str, clip: Clip) -> str:
    """Send sound as a live feed, and join the final text."""
    found = []
    async with TrickleClient(url, params={"language": "en", "beam": str(BEAM)}) as client:
        async for record in client.stream(in_pieces(pcm.encode(clip.samples))):
            if record["type"] == "error":
                raise RuntimeError(f"{clip.path.name}: {record['error']}")
            if record["type"] == "transcript" and record["is_final"]:
                found.append(record["text"])
    return " ".join(found)


async def in_pieces(data: bytes) -> AsyncIterator[bytes]:
    """Yield bytes piece by piece."""
    for at in range(0, len(data), PIECE):
        yield data[at : at + PIECE]


async def transcribed(args: argparse.Namespace, clips: Sequence[Clip]) -> list[str]:
    """Have the command transcribe all files."""
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{number}{clip.path.suffix}" for number, clip in enumerate(clips)]  # no name twice
        for file, clip in zip(files, clips, strict=True):
            file.symlink_to(clip.path.resolve())
        command = [sys.executable, "-m", "whisper_byoc.cli.main", "transcribe", *map(str, files)]
        command += ["--output", folder, "--model", args.model, *model_options(args)]
        run_command = functools.partial(
            subprocess.run, command, stdout=subprocess.DEVNULL, env=environment(), check=True
        )
        await asyncio.to_thread(run_command)
        return [file.with_suffix(".txt").read_text(encoding="utf-8").strip() for file in files]


def score(clip: Clip, text: str) -> Score:
    """Count the errors in what was heard of one recording, as papers do."""
    said, heard = (normalised(each, digits=clip.kind in SPELLED) for each in (clip.reference, text))
    return compare(said, heard)


def score_row(way: str, texts: Sequence[str], clips: Sequence[Clip]) -> Row:
    """Sum up what one way heard."""
    pairs = [(clip, text) for clip, text in zip(clips, texts, strict=True) if clip.reference]
    found = total(score(*pair) for pair in pairs)
    silent = [clip for clip in clips if not clip.reference]
    invented = sum(len(normalised(text)) for clip, text in zip(clips, texts, strict=True) if not clip.reference)
    return {
        "way": way, "errors %": float(found.error_rate), "wrong": found.wrong, "lost": found.lost, "extra": found.extra,
        "words": found.said, "longest lost": found.longest_lost,
        "sentence ends": sum(len(SENTENCE_END.findall(text)) for _, text in pairs),
        **({f"invented in {len(silent)} sounds": invented} if silent else {}),
    }  # fmt: skip


if __name__ == "__main__":
    run(main)
