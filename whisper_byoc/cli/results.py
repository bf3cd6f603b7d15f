"""What `transcribe` and `send` share: the options of speech, and where the text goes."""

import argparse
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from audio.errors import AudioError
from whisper_byoc.cli.options import Parser, add_beam, language_tag
from whisper_byoc.cli.terminal import Display, printable
from whisper_byoc.cli.transcript_files import TranscriptFiles
from whisper_byoc.errors import BadParam, ByocError, UsageError
from whisper_byoc.params import whole
from whisper_byoc.speech.formats import FORMS, LINE_WIDTH, LINE_WIDTHS

ONE_EACH = ("srt", "vtt")
"""Formats whose files cannot be concatenated: each begins with a header, or counts its cues from 1."""
PARAMS = ("language", "task", "prompt", "hotwords", "words", "beam")
"""Parameters of a job that are options here, under the same names."""


def add_speech(parser: Parser, *, language: str | None) -> None:
    """Add the parameters of a job as options; `language` is the default."""
    parser.group("speech")
    shown = "" if language else " (default: the server's)"
    text = f"language spoken (de, en-US, german), or auto{shown}"
    parser.option("--language", help=text, convert=language_tag, default=language)
    parser.option("--task", help="transcribe, or translate into English", choices=("transcribe", "translate"))
    parser.option("--prompt", help="text that the speech follows, whose names and style it takes up")
    parser.option("--hotwords", help="names and terms that may be spoken")
    parser.switch("--words", help="find the time of every word: in json, and for the cues of srt and vtt")
    add_beam(parser)


def speech_params(args: argparse.Namespace) -> dict[str, str]:
    """Return the parameters of a job that were given, as a query has them."""
    given = {name: getattr(args, name) for name in PARAMS}
    return {
        name: "true" if value is True else str(value) for name, value in given.items() if value not in (None, False)
    }


def add_output(parser: Parser, *more: str) -> None:
    """Add where the text goes; `more` are formats beside those of `FORMS`."""
    known = (*FORMS, *more)
    parser.group("output")
    parser.option(
        "--format",
        help=f"one or more of {', '.join(known)}, separated by commas (default: as --output ends, or txt)",
        convert=partial(formats, known=known),
    )
    parser.option(
        "--output",
        "-o",
        help="file, such as talk.srt, whose ending is the format, or a folder for FILE.txt and so on (default: stdout)",
        metavar="PATH",
    )
    parser.option(
        "--max-line-width",
        help="columns of a line of subtitles; full-width characters take two",
        convert=line_width,
        default=LINE_WIDTH,
    )


def line_width(text: str) -> int:
    try:
        return whole("--max-line-width", text, *LINE_WIDTHS)
    except BadParam as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def formats(text: str, known: Iterable[str] = FORMS) -> list[str]:
    names = text.lower().split(",")
    unknown = [name for name in names if name not in known]
    if unknown:
        raise argparse.ArgumentTypeError(f"no format {unknown[0]!r}; there are: {', '.join(known)}")
    return list(dict.fromkeys(names))


class Results:
    """Shows the text of one sound after another as it comes, or writes it.

    Text is shown on stdout unless another format goes there; with `--output` on a terminal only. A sound that fails
    does not keep the others from being transcribed: `exit_code` says which did.
    """

    def __init__(self, args: argparse.Namespace, sounds: Iterable[Path], *, as_json: bool = False) -> None:
        """`as_json`: whole records go to stdout.

        Raises `UsageError` when the options do not fit, or nothing can be written there.
        """
        self._sounds = list(sounds)
        self._output = Path(args.output) if args.output else None
        self._as_file = self._output is not None and not args.output.endswith(os.sep) and _is_file(self._output)
        ending = [self._output.suffix[1:].lower()] if self._output and self._as_file else []
        self._formats: list[str] = args.format or ending or ["txt"]
        if ending and self._formats != ending:
            raise UsageError(f"{self._output} ends as {ending[0]}, and --format says {','.join(self._formats)}")
        if self._output:
            self._check_output(self._output)
        elif as_json and args.format:
            raise UsageError("--json has stdout for itself; write another format into a file: --output PATH")
        else:
            self._check_stdout()
        self._as_json = as_json
        self._width = args.max_line_width
        self._writes = writes = bool(self._output) or (self._formats != ["txt"] and not as_json)
        shows = as_json or sys.stdout.isatty() if self._output else not writes
        self._display = Display(sys.stdout, sys.stderr, as_json=as_json, quiet=not shows)
        self._files: TranscriptFiles | None = None
        self._errors = 0
        self._failed: list[str] = []

    def take(self, record: Mapping[str, Any]) -> None:
        """Show a record, or write it. Blocks while the reader of our output does not read."""
        self._errors += record["type"] == "error"
        if self._files and record.get("is_final", True) and record["type"] not in ("error", "end"):
            self._files.take(record)
        self._display.show(record)

    @contextmanager
    def of(self, sound: Path) -> Iterator[None]:
        """Write what comes of a sound, however it ends. One that is bad is told, and passed over."""
        whole = False
        if self._writes:
            self._files = TranscriptFiles(
                sound, {kind: self._target(sound, kind) for kind in self._formats}, self._width
            )
        try:
            yield
            whole = not self._errors
        except (AudioError, UsageError) as error:
            if len(self._sounds) == 1:
                raise
            print(f"whisper-byoc: {printable(str(error))}", file=sys.stderr)
        finally:
            files, self._files, self._errors = self._files, None, 0
            if not whole:
                self._failed.append(str(sound))
            if files:
                self._tell(files.close(whole=whole), whole=whole)

    def show_end(self) -> None:
        """Leave the terminal in order."""
        self._display.close()

    def exit_code(self) -> int:
        """Return 0, or 1 where the only sound had errors, which have been shown.

        Raises `ByocError` with the names of those that failed, of several.
        """
        if self._failed and len(self._sounds) > 1:
            raise ByocError(f"{len(self._failed)} of {len(self._sounds)} failed: {', '.join(self._failed)}")
        return 1 if self._failed else 0

    def _target(self, sound: Path, kind: str) -> Path | None:
        if self._output is None or self._as_file:
            return self._output
        return self._output / f"{sound.stem}.{kind}"

    def _tell(self, written: list[Path], *, whole: bool) -> None:
        for target in written:
            if not self._as_json:
                print(target, flush=True)
            if not whole:
                print(f"whisper-byoc: {printable(str(target))} is not complete", file=sys.stderr)

    def _check_stdout(self) -> None:
        if len(self._formats) > 1:
            raise UsageError("several formats need a folder: --output DIR")
        if len(self._sounds) > 1 and self._formats[0] in ONE_EACH:
            kind = self._formats[0]
            raise UsageError(f"{kind} of several files would be no valid {kind} when run together: --output DIR")

    def _check_output(self, output: Path) -> None:
        """See that all can be written before any work is done; two sounds must not have their text in one place."""
        if self._as_file and len(self._sounds) > 1:
            raise UsageError(f"{output} is one file, and there are {len(self._sounds)} sounds: name a folder")
        first: dict[str, Path] = {}
        for path in self._sounds:
            if (other := first.setdefault(path.stem, path)) is not path:
                raise UsageError(
                    f"{other} and {path} would both be written to {output / path.stem}.*; do one at a time"
                )
        folder = output.parent if self._as_file else output
        try:
            if not self._as_file:
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"cannot make the folder {folder}: {error.strerror}") from None
        if not (folder.is_dir() and os.access(folder, os.W_OK)):
            raise UsageError(f"cannot write {output}: {folder} is no folder in which files can be made")


def _is_file(path: Path) -> bool:
    """Return whether a path is that of a file, by its ending; a folder that is there, or has no ending, is none."""
    if path.is_dir() or not path.suffix:
        return False
    if path.suffix[1:].lower() not in FORMS:
        endings = ", ".join(f".{each}" for each in FORMS)
        raise UsageError(f"{path} has the ending of no format ({endings}); a new folder is written as {path}{os.sep}")
    return True
