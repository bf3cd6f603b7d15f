"""Turn sound files into text on this machine, without a server.

Text goes to stdout as it is made, or into files with --output, beside a progress bar on stderr. A file that fails does
not keep the others from being transcribed; the last line says which did.
"""

import argparse
import asyncio
import itertools
import sys
from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import aclosing, closing
from pathlib import Path
from typing import Any

from tqdm import tqdm

from whisper_byoc.aio import in_daemon_thread
from whisper_byoc.cli.options import Parser, add_engine, count
from whisper_byoc.cli.results import Results, add_output, add_speech, speech_params
from whisper_byoc.cli.sources import sound_blocks, sound_files
from whisper_byoc.cli.terminal import printable
from whisper_byoc.processors.base import JobInfo
from whisper_byoc.processors.registry import model_of
from whisper_byoc.processors.whisper import WhisperProcessor, WhisperSettings

BAR = "{desc}: {n:.0f} s of sound [{elapsed}]"


def configure(parser: Parser) -> None:
    parser.add_argument(
        "files",
        nargs="+",
        metavar="FILE",
        help="anything that ffmpeg reads, or - for stdin; .pcm, .raw, .s16le are PCM16 mono 16 kHz",
    )
    add_output(parser)
    add_speech(parser, language="en")
    parser.group("model")
    parser.option(
        "--model",
        "--pipeline",
        "--byocModelID",
        help="model name, pipeline name, .pt file or CTranslate2 folder",
        env=("WHISPER_MODEL",),
        default="tiny",
    )
    parser.option("--model-dir", help="folder of the models", env=("MODEL_DIR",), convert=Path)
    parser.option("--threads", help="CPU threads (default: the CPUs, 4 at most)", convert=count)
    add_engine(parser)


def run(args: argparse.Namespace) -> int:
    files = sound_files(args.files)
    results = Results(args, files)
    settings = WhisperSettings(
        workers=1,
        threads=args.threads,
        model_dir=args.model_dir,
        engine=args.engine,
        audio_context=args.audio_context,
    )
    processor = WhisperProcessor(model_of(args.model), settings)
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
                await in_daemon_thread(results.take, record)  # the reader of our output may be slow


async def records_of(
    processor: WhisperProcessor, sound: Iterable[bytes], job: JobInfo
) -> AsyncGenerator[Mapping[str, Any], None]:
    """Transcribe blocks of PCM16 as the server does, and yield each record when its text is there.

    A stretch of speech without a text has a record of the type `error`.
    """
    seq = itertools.count()
    with closing(processor.open_session(job)) as session:
        for block in itertools.chain(sound, (None,)):
            for result in await (session.finish() if block is None else session.feed_live(block, 0.0)):
                yield {"seq": next(seq), **(result.record or {"type": "error", "error": result.error})}
