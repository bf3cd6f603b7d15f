"""Turn sound files into text on this machine, without a server.

Text goes to stdout, or into a folder with --output, beside a progress bar on stderr.
"""

import argparse
import asyncio
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from audio import pcm
from audio.errors import AudioError
from whisper_byoc.cli.options import Parser, add_engine, count
from whisper_byoc.cli.sources import load_sound, sound_file
from whisper_byoc.errors import ByocError, ProcessorError, UsageError
from whisper_byoc.processors.base import JobInfo, Result
from whisper_byoc.processors.registry import model_of
from whisper_byoc.processors.whisper import WhisperProcessor, WhisperSettings
from whisper_byoc.server.ingest.recordings import BLOCK_SAMPLES
from whisper_byoc.speech.formats import FORMATS
from whisper_byoc.speech.transcript import Transcription, from_records

ONE_EACH = ("srt", "vtt")
"""Formats whose files cannot be concatenated: each begins with a header, or counts its cues from 1."""


def configure(parser: Parser) -> None:
    parser.add_argument(
        "files",
        nargs="+",
        type=sound_file,
        metavar="FILE",
        help="anything that ffmpeg reads, or - for stdin; .pcm, .raw, .s16le are PCM16 mono 16 kHz",
    )
    parser.option(
        "--model",
        "--pipeline",
        "--byocModelID",
        help="model name, pipeline name, .pt file or CTranslate2 folder",
        env=("WHISPER_MODEL",),
        default="tiny",
    )
    parser.option("--model-dir", help="folder of the models", env=("MODEL_DIR",), convert=Path)
    parser.option("--language", help="language spoken (de, en-US, german), or auto", default="en")
    parser.option("--threads", help="CPU threads (default: the CPUs, 4 at most)", convert=count)
    add_engine(parser)
    parser.option(
        "--format", help=f"one or more of {', '.join(FORMATS)}, separated by commas", convert=formats, default="txt"
    )
    parser.option("--output", help="folder for the results, such as FILE.txt (default: stdout)", convert=Path)


def run(args: argparse.Namespace) -> int:
    if args.output is None and len(args.format) > 1:
        raise UsageError("several formats need a folder: --output DIR")
    if args.output is None and len(args.files) > 1 and (alone := [each for each in args.format if each in ONE_EACH]):
        raise UsageError(f"{alone[0]} of several files would be no valid {alone[0]} when run together: --output DIR")
    if args.output is not None:
        check_output(args.output, args.files)
    settings = WhisperSettings(
        args.language,
        workers=1,
        threads=args.threads,
        model_dir=args.model_dir,
        engine=args.engine,
        audio_context=args.audio_context,
        beam=args.beam,
    )
    processor = WhisperProcessor(model_of(args.model), settings)
    asyncio.run(transcribe_all(processor, args))
    return 0


def check_output(folder: Path, files: list[Path]) -> None:
    """Make the folder before any work is done; two files must not have their text in the same place."""
    first: dict[str, Path] = {}
    for path in files:
        if (other := first.setdefault(path.stem, path)) is not path:
            raise UsageError(f"{other} and {path} would both be written to {folder / path.stem}.*; do one at a time")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot make the folder {folder}: {error.strerror}") from None


async def transcribe_all(processor: WhisperProcessor, args: argparse.Namespace) -> None:
    """Load the model once, then take one file after the other; one that cannot be read does not stop the rest."""
    await processor.initialize()
    unread: list[str] = []
    notice = processor.notice
    for path in args.files:
        try:
            samples = load_sound(path)
        except (AudioError, UsageError) as error:
            if len(args.files) == 1:
                raise
            unread.append(str(error))
            continue
        transcription = await transcribe(processor, samples, path.name)
        if notice:
            print(f"whisper-byoc: {notice}", file=sys.stderr)
            notice = ""
        for kind in args.format:
            write(transcription, kind, path, args.output)
    await processor.shutdown()
    if unread:
        raise ByocError(f"{len(unread)} of {len(args.files)} files could not be read: {' '.join(unread)}")


async def transcribe(processor: WhisperProcessor, samples: NDArray[np.float32], name: str) -> Transcription:
    """Transcribe samples (n,) as the server does a recording, with a progress bar in seconds of sound."""
    session = processor.open_session(JobInfo(name, "transcribe", recording=True))
    found: list[Result] = []
    total = len(samples) / pcm.SAMPLE_RATE
    bar_format = "{desc}: {percentage:3.0f}%|{bar}| {n:.0f}/{total:.0f} s [{elapsed}<{remaining}]"
    with tqdm(total=total, desc=name, disable=None, bar_format=bar_format, leave=False) as bar:
        for at in range(0, len(samples), BLOCK_SAMPLES):
            found += await session.feed_live(pcm.encode(samples[at : at + BLOCK_SAMPLES]), 0.0)
            bar.update(
                max(
                    (result.record["timing"]["media_window_end_ms"] / 1000 for result in found if result.record),
                    default=0.0,
                )
                - bar.n
            )
        found += await session.finish()
        bar.update(total - bar.n)
    for result in found:
        if result.error:
            raise ProcessorError(f"{name}: {result.error}")
    return from_records(
        [result.record for result in found if result.record], processor.options().decoding.language or "en"
    )


def write(transcription: Transcription, kind: str, source: Path, folder: Path | None) -> None:
    text = FORMATS[kind](transcription)
    if folder is None:
        sys.stdout.write(text)
        sys.stdout.flush()
        return
    target = folder / f"{source.stem}.{kind}"
    try:
        target.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot write {target}: {error.strerror}") from None
    print(target)


def formats(text: str) -> list[str]:
    names = text.lower().split(",")
    unknown = [name for name in names if name not in FORMATS]
    if unknown:
        raise argparse.ArgumentTypeError(f"no format {unknown[0]!r}; there are: {', '.join(FORMATS)}")
    return names
