"""Turn sound files into text on this machine, or on a Ray cluster, without a server.

Text goes to stdout as it is made, or into files with --output, beside a progress bar on stderr. A file that fails does
not keep the others from being transcribed; the last line says which did.

With a folder, a quoted pattern, @LIST or an address among the files, or one of the options for archives, --output is a
folder of results whose names are those of their sources. Such a run goes on where one before it was stopped.
"""

import argparse
import asyncio
import sys
from collections.abc import Iterable
from contextlib import aclosing
from pathlib import Path

from tqdm import tqdm

from whisper_byoc.aio import in_daemon_thread
from whisper_byoc.archive.results import TABLES
from whisper_byoc.archive.worker import records_of
from whisper_byoc.cli import archive
from whisper_byoc.cli.options import Parser, add_engine, add_model_dir, count
from whisper_byoc.cli.results import Results, add_output, add_speech, speech_params
from whisper_byoc.cli.sources import sound_blocks, sound_files
from whisper_byoc.cli.terminal import printable
from whisper_byoc.errors import UsageError
from whisper_byoc.processors.base import JobInfo
from whisper_byoc.processors.registry import model_of
from whisper_byoc.processors.whisper import WhisperProcessor

BAR = "{desc}: {n:.0f} s of sound [{elapsed}]"


def configure(parser: Parser) -> None:
    parser.add_argument(
        "files",
        nargs="*",
        metavar="FILE",
        help="anything that ffmpeg reads, or - for stdin; .pcm, .raw, .s16le are PCM16 mono 16 kHz; for archives also "
        "a folder, a quoted pattern, an address (s3, gs, http, https), or @LIST, a file with one of these per line",
    )
    add_output(parser, *TABLES)
    add_speech(parser, language="en")
    parser.group("model")
    parser.option(
        "--model",
        "--pipeline",
        "--byocModelID",
        help="model name, pipeline name, .pt file or CTranslate2 folder",
        default="tiny",
    )
    add_model_dir(parser)
    parser.option(
        "--threads", help="CPU threads (default: the CPUs, 4 at most; for archives, of each worker)", convert=count
    )
    add_engine(parser)
    archive.add_options(parser)


def run(args: argparse.Namespace) -> int:
    if archive.is_archive(args):
        return archive.run(args)
    if not args.files:
        raise UsageError("name a FILE, or - for stdin (see whisper-byoc transcribe --help)")
    if tables := [each for each in args.format or () if each in TABLES]:
        raise UsageError(f"--format {tables[0]} is a table of an archive: name a folder of recordings, or --processes")
    files = sound_files(args.files)
    results = Results(args, files)
    processor = WhisperProcessor(model_of(args.model), archive.settings_of(args, args.threads))
    if sys.stderr.isatty():
        print(f"whisper-byoc: loading the model {printable(args.model)} …", file=sys.stderr)
    return asyncio.run(transcribe_all(processor, files, speech_params(args), results))


async def transcribe_all(
    processor: WhisperProcessor, files: list[Path], params: dict[str, str], results: Results
) -> int:
    """Load the model once, take one file after the other, and return the exit code."""
    await processor.initialize()
    processor.options(params)  # a value that cannot be is said before a file is read
    try:
        for path in files:
            with results.of(path):
                job = JobInfo(path.name, "transcribe", params, recording=True)
                await transcribe(processor, sound_blocks(path), job, results)
    finally:
        results.show_end()
    await processor.shutdown()
    return results.exit_code()


async def transcribe(processor: WhisperProcessor, sound: Iterable[bytes], job: JobInfo, results: Results) -> None:
    """Transcribe blocks of PCM16, and show how far it is."""
    with tqdm(desc=printable(job.job_id), disable=None, bar_format=BAR, leave=False) as bar:
        async with aclosing(records_of(processor, sound, job)) as records:
            async for record in records:
                if timing := record.get("timing"):
                    bar.update(timing["media_window_end_ms"] / 1000 - bar.n)
                if warnings := record.get("warnings"):
                    record = {**record, "warnings": [f"{job.job_id}: {each}" for each in warnings]}
                await in_daemon_thread(results.take, record)  # the reader of our output may be slow
