"""Turn sound files into text on this machine, without a server.

Text goes to stdout, line by line as it is made, or into a folder with --output, beside a progress bar on stderr.
"""

import argparse
import asyncio
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from audio import pcm
from audio.errors import AudioError
from whisper_byoc.cli.options import Parser, add_engine, count
from whisper_byoc.cli.sources import load_sound, sound_file
from whisper_byoc.errors import BadParam, ByocError, ProcessorError, UsageError
from whisper_byoc.params import whole
from whisper_byoc.processors.base import JobInfo, Result
from whisper_byoc.processors.registry import model_of
from whisper_byoc.processors.whisper import WhisperProcessor, WhisperSettings
from whisper_byoc.server.ingest.recordings import BLOCK_SAMPLES
from whisper_byoc.speech.formats import FORMATS, LINE_WIDTH, LINE_WIDTHS
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
    parser.option(
        "--max-line-width",
        help=f"columns of a line of subtitles (default {LINE_WIDTH}); full-width characters take two",
        convert=line_width,
        default=LINE_WIDTH,
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
            sound = pcm.encode(load_sound(path))
        except (AudioError, UsageError) as error:
            if len(args.files) == 1:
                raise
            unread.append(str(error))
            continue
        at_once = args.output is None and args.format == ["txt"]
        tell = partial(write, kind="txt", width=LINE_WIDTH, source=path, folder=None) if at_once else None
        transcription = await transcribe(processor, sound, path.name, tell)
        if notice:
            print(f"whisper-byoc: {notice}", file=sys.stderr)
            notice = ""
        for kind in [] if at_once else args.format:
            write(transcription, kind, args.max_line_width, path, args.output)
    await processor.shutdown()
    if unread:
        raise ByocError(f"{len(unread)} of {len(args.files)} files could not be read: {' '.join(unread)}")


async def transcribe(
    processor: WhisperProcessor, sound: bytes, name: str, tell: Callable[[Transcription], object] | None = None
) -> Transcription:
    """Transcribe PCM16 as the server does a recording, with a progress bar in seconds of sound.

    `tell` is called with each stretch of speech when its text is there. Raises `ProcessorError` when one has none.
    """
    session = processor.open_session(JobInfo(name, "transcribe", recording=True))
    language = processor.options().decoding.language or "en"
    total = len(sound) / pcm.SAMPLE_WIDTH / pcm.SAMPLE_RATE
    bar_format = "{desc}: {percentage:3.0f}%|{bar}| {n:.0f}/{total:.0f} s [{elapsed}<{remaining}]"
    records: list[Mapping[str, Any]] = []
    with tqdm(total=total, desc=name, disable=None, bar_format=bar_format, leave=False) as bar:

        def take(results: list[Result]) -> None:
            for result in results:
                if result.error:
                    raise ProcessorError(f"{name}: {result.error}")
                if result.record:
                    records.append(result.record)
                    bar.update(result.record["timing"]["media_window_end_ms"] / 1000 - bar.n)
                    if tell is not None:
                        with bar.external_write_mode():
                            tell(from_records([result.record], language))

        size = BLOCK_SAMPLES * pcm.SAMPLE_WIDTH
        for at in range(0, len(sound), size):
            take(await session.feed_live(sound[at : at + size], 0.0))
        take(await session.finish())
        bar.update(total - bar.n)
    return from_records(records, language)


def write(transcription: Transcription, kind: str, width: int, source: Path, folder: Path | None) -> None:
    text = FORMATS[kind](transcription, width)
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


def line_width(text: str) -> int:
    try:
        return whole("--max-line-width", text, *LINE_WIDTHS)
    except BadParam as error:
        raise argparse.ArgumentTypeError(str(error)) from None
