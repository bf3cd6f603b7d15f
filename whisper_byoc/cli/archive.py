"""What `transcribe` does with archives: folders, patterns, lists and addresses, in a run that can be resumed."""

import argparse
import asyncio
import glob
import os
import re
import time
from contextlib import AbstractAsyncContextManager, suppress
from pathlib import Path

from tqdm import tqdm

from whisper_byoc.archive import run as archive_run
from whisper_byoc.archive.local import LocalPool
from whisper_byoc.archive.manifest import Manifest
from whisper_byoc.archive.results import FAILED, Folder
from whisper_byoc.archive.sources import Failure, Listing, Source, find, is_folder, is_remote, shown
from whisper_byoc.archive.worker import Outcome, Pool, Recipe
from whisper_byoc.cli.options import Parser, Repeated, byte_count, count
from whisper_byoc.cli.results import speech_params
from whisper_byoc.cli.sources import STDIN, STDIN_FILE, sound_blocks
from whisper_byoc.cli.terminal import printable
from whisper_byoc.errors import ByocError, UsageError
from whisper_byoc.processors.machine import available_cpus, available_memory
from whisper_byoc.processors.registry import model_of
from whisper_byoc.processors.whisper import WhisperSettings

RAY_ADDRESS = re.compile(r"auto|local|[\w.-]+:\d+|\[[0-9a-fA-F:]+\]:\d+")
BAR = "{percentage:3.0f} %|{bar}| {elapsed}, {remaining} left{postfix}"
SHOWN_FAILURES = 5
THREADS = 1
"""Of each worker (benchmarks/archive.py)."""


def add_options(parser: Parser) -> None:
    parser.group("archives")
    parser.option(
        "--from",
        help="file with one path or address per line; may be repeated",
        default=(),
        action=Repeated,
        metavar="LIST",
    )
    parser.option(
        "--processes",
        help="processes, each with an engine of its own, that transcribe at once (default: as many as fit)",
        convert=count,
    )
    parser.option(
        "--ray",
        help="run on a Ray cluster: HOST:PORT of its head, auto (default) for the one this machine "
        "belongs to, or local",
        nargs="?",
        const="auto",
        metavar="ADDRESS",
    )
    parser.option(
        "--worker-memory",
        help="memory that each process needs; Ray reserves it",
        convert=byte_count,
        default=1 << 30,
    )


def is_archive(args: argparse.Namespace) -> bool:
    """Whether a command line asks for what is only done with archives."""
    return bool(args.ray or args.processes or getattr(args, "from")) or any(map(_is_archive, args.files))


def run(args: argparse.Namespace) -> int:
    """Transcribe what is not done yet, and return 0. Raises `ByocError` with what failed, when all else is done."""
    words, address = _words(args)
    if not args.output:
        raise UsageError("an archive needs a folder for its results: --output FOLDER")
    lists = [Path(each[1:]) for each in words if _is_list(each)]
    lists += [STDIN_FILE if each == STDIN else Path(each) for each in getattr(args, "from")]
    listing = find([each for each in words if not _is_list(each)], lists)
    if not listing.sources and not listing.failures:
        others = f"; {listing.passed_over} files have other extensions" if listing.passed_over else ""
        raise UsageError(f"there are no recordings in {', '.join(words) or 'the list'}{others}")
    folder = Folder(Path(args.output), args.format or ["txt"], args.max_line_width)
    recipe = Recipe(model_of(args.model), settings_of(args, args.threads or THREADS), speech_params(args), sound_blocks)
    with Manifest(folder.path / "manifest.sqlite", _options(recipe)) as manifest:
        folder.begin()
        archive = Archive(folder, manifest, listing)
        known = recipe.params.get("language") != "auto"  # else it is found from what was spoken before
        asyncio.run(archive.transcribe(_pool(args, address, recipe), share=known))
    return archive.exit_code()


def settings_of(args: argparse.Namespace, threads: int | None) -> WhisperSettings:
    """Return those of one engine, which takes what the options of `transcribe` say."""
    return WhisperSettings(
        workers=1, threads=threads, model_dir=args.model_dir, engine=args.engine, audio_context=args.audio_context
    )


class Archive:
    """What is kept of one run, and shown of it."""

    def __init__(self, folder: Folder, manifest: Manifest, listing: Listing) -> None:
        self._folder = folder
        self._manifest = manifest
        self._failures: list[Failure] = []
        for failure in listing.failures:
            self._fail(failure)
        self._left = [each for each in listing.sources if not manifest.has(each)]
        self._sources = listing.sources
        self._passed_over = listing.passed_over
        self._done = 0
        self._sound = 0.0

    async def transcribe(self, pool: AbstractAsyncContextManager[Pool], *, share: bool) -> None:
        """Do what is left, and write what is missing of what is done. `share` is that of `archive.run.transcribe`."""
        left = {each.name for each in self._left}
        for source in self._sources:
            if source.name not in left and not self._folder.has(source.name):
                self._write(source)
        began = time.monotonic()
        if self._left:
            total = sum(each.size or 1 for each in self._left)
            with tqdm(total=total, disable=None, bar_format=BAR, leave=False, smoothing=0) as bar:

                def take(source: Source, outcome: Outcome) -> None:
                    self._take(source, outcome)
                    rate = self._sound / (time.monotonic() - began)
                    bar.set_postfix_str(f"{rate:.1f} s of sound/s, {len(self._failures)} failed", refresh=False)
                    bar.update(source.size or 1)

                async with pool as workers:
                    await archive_run.transcribe(self._left, workers, take, share=share)
        self._folder.write_tables(self._manifest)
        self._show_end(time.monotonic() - began)

    def exit_code(self) -> int:
        """Return 0. Raises `ByocError` where something failed."""
        if not self._failures:
            return 0
        some = "; ".join(f"{shown(each.place)}: {each.reason}" for each in self._failures[:SHOWN_FAILURES])
        more = " …" if len(self._failures) > SHOWN_FAILURES else ""
        raise ByocError(f"{len(self._failures)} failed, see {self._folder.path / FAILED}: {some}{more}")

    def _take(self, source: Source, outcome: Outcome) -> None:
        if outcome.reason:
            self._fail(Failure(source.place, outcome.reason))
            return
        self._done += 1
        self._sound += outcome.seconds
        self._folder.remove(source.name)
        self._manifest.add(source, outcome.seconds, outcome.records)
        self._write(source)

    def _write(self, source: Source) -> None:
        try:
            self._folder.write(source.name, self._manifest.records(source))
        except UsageError as error:
            self._fail(Failure(source.place, str(error)))

    def _fail(self, failure: Failure) -> None:
        self._failures.append(failure)
        self._folder.fail(failure)

    def _show_end(self, seconds: float) -> None:
        before = len(self._sources) - len(self._left)
        line = f"{self._folder.path}: {self._done} transcribed"
        if self._done:
            line += f" ({self._sound:.0f} s of sound, {self._sound / max(seconds, 0.001):.1f} s in a second)"
        for number, what in ((before, "were done before"), (self._passed_over, "other files skipped")):
            line += f", {number} {what}" if number else ""
        print(printable(line), flush=True)


def _words(args: argparse.Namespace) -> tuple[list[str], str]:
    """Return the sources, and the address of a cluster, if there is one: `--ray SOURCE` has the first source there."""
    words, address = list(args.files), args.ray or ""
    if address.startswith("ray://"):
        raise UsageError("ray:// is for Ray's client; run on a machine of the cluster, and name HOST:PORT or auto")
    if address and not RAY_ADDRESS.fullmatch(address):
        words, address = [address, *words], "auto"
    return words, address


def _pool(args: argparse.Namespace, address: str, recipe: Recipe) -> AbstractAsyncContextManager[Pool]:
    threads = recipe.settings.sizes()[1]
    if not address:
        fit = min(available_cpus() // threads, available_memory() // args.worker_memory)
        return LocalPool(recipe, args.processes or max(1, fit))
    try:
        from whisper_byoc.archive.cluster import RayPool
    except ImportError:
        raise UsageError("--ray needs Ray: pip install 'whisper-byoc[ray]'") from None
    return RayPool(address, recipe, threads=threads, memory=args.worker_memory, workers=args.processes)


def _options(recipe: Recipe) -> dict[str, object]:
    """Return what the texts depend on."""
    settings, found = recipe.settings, None
    with suppress(OSError):  # it has a name
        found = Path(recipe.model).stat()
    return {
        "model": recipe.model,
        "version": f"{found.st_size} {found.st_mtime_ns}" if found else "",
        "engine": settings.engine,
        "audio_context": settings.audio_context,
        **recipe.params,
    }


def _is_archive(word: str) -> bool:
    pattern = glob.has_magic(word) and not os.path.lexists(word)
    return is_remote(word) or is_folder(word) or _is_list(word) or pattern


def _is_list(word: str) -> bool:
    return word.startswith("@") and not os.path.lexists(word)
