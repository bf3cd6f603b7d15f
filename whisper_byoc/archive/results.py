"""The files of an archive's results: one for each recording and format, and tables of all; whole, or not there."""

import errno
import itertools
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import fields
from pathlib import Path
from typing import IO, Any

from whisper_byoc.archive.manifest import Manifest, Records
from whisper_byoc.archive.sources import Failure, shown
from whisper_byoc.errors import ByocError, UsageError
from whisper_byoc.speech.formats import FORMS, in_seconds, written
from whisper_byoc.speech.transcript import Confidence, from_records

TABLES = ("jsonl", "parquet")
FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO})
"""Errors with which nothing more can be written, whatever its name."""
ROWS_AT_ONCE = 10_000
FAILED = "failed.jsonl"
CONFIDENCE = tuple(each.name for each in fields(Confidence))

Row = dict[str, Any]


class Folder:
    """Where the results are. `manifest.sqlite` is there too, and `failed.jsonl`, a list of what failed in this run."""

    def __init__(self, path: Path, formats: Sequence[str], width: int) -> None:
        """`formats` are of `FORMS` and `TABLES`. Raises `UsageError` where no file can be made there."""
        self.path = path
        self._formats = [each for each in formats if each in FORMS]
        self._tables = [each for each in formats if each in TABLES]
        self._width = width
        if "parquet" in self._tables:
            _pyarrow()
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"cannot make the folder {path}: {error.strerror}") from None
        if not os.access(path, os.W_OK | os.X_OK):
            raise UsageError(f"cannot write into the folder {path}")

    def begin(self) -> None:
        """Remove what a run that was killed has left, and the list of its failures. The caller has the manifest."""
        for each in [*self.path.glob(".*.part"), self.path / FAILED]:
            each.unlink(missing_ok=True)

    def has(self, name: str) -> bool:
        return all(self._file(name, kind).is_file() for kind in self._formats)

    def remove(self, name: str) -> None:
        """Remove the files of an older text."""
        for kind in FORMS:
            with suppress(OSError):  # of a name that cannot be; writing it tells why
                self._file(name, kind).unlink()

    def write(self, name: str, records: Records) -> None:
        """Write a recording's files.

        Raises `UsageError` where there can be no files of this name, and `ByocError` where nothing can be written.
        """
        transcription = from_records(records)
        for kind in self._formats:
            target, text = self._file(name, kind), written(kind, transcription, self._width)
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                with self._replacing(target) as file:
                    file.write(text.encode())
            except OSError as error:
                sort = ByocError if error.errno in FULL else UsageError
                raise sort(f"cannot write {target}: {error.strerror}") from None

    def fail(self, failure: Failure) -> None:
        """Add a line to the list of failures."""
        line = json.dumps({"source": shown(failure.place), "reason": failure.reason}, ensure_ascii=False)
        with self._writing(FAILED), (self.path / FAILED).open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def write_tables(self, manifest: Manifest) -> None:
        """Write what is done, of this run and those before, as tables with a row for each segment of text."""
        for kind in self._tables:
            target = self.path / f"transcripts.{kind}"
            rows = (row for source, records in manifest.everything() for row in _rows(source, records))
            with self._writing(target.name), self._replacing(target) as file:
                (_to_parquet if kind == "parquet" else _to_jsonl)(file, rows)

    def _file(self, name: str, kind: str) -> Path:
        return self.path / f"{name}.{kind}"

    @contextmanager
    def _replacing(self, target: Path) -> Iterator[IO[bytes]]:
        """Yield a new file that takes the place of a target when it is whole and on the disk."""
        part = self.path / f".{os.getpid()}.part"
        try:
            with part.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)

    @contextmanager
    def _writing(self, name: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise ByocError(f"cannot write {self.path / name}: {error.strerror}") from None


def _rows(source: str, records: Records) -> Iterator[Row]:
    model = next((each.get("model", "") for each in records), "")
    for number, segment in enumerate(from_records(records).segments):
        columns = dict.fromkeys(("start", "end", "text", "language", *CONFIDENCE)) | {"language": "", "words": []}
        yield {"source": source, "segment": number, **columns, **in_seconds(segment), "model": model}


def _to_jsonl(file: IO[bytes], rows: Iterator[Row]) -> None:
    for row in rows:
        file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")


def _to_parquet(file: IO[bytes], rows: Iterator[Row]) -> None:
    pyarrow = _pyarrow()
    text, real = pyarrow.string(), pyarrow.float64()
    word = pyarrow.struct({"word": text, "start": real, "end": real, "probability": real})
    schema = pyarrow.schema(
        {"source": text, "segment": pyarrow.int32(), "start": real, "end": real, "text": text, "language": text}
        | dict.fromkeys(CONFIDENCE, real)
        | {"words": pyarrow.list_(word), "model": text}
    )
    with pyarrow.parquet.ParquetWriter(file, schema) as writer:
        while some := list(itertools.islice(rows, ROWS_AT_ONCE)):
            writer.write_table(pyarrow.Table.from_pylist(some, schema))


def _pyarrow() -> Any:
    try:
        import pyarrow.parquet
    except ImportError:
        raise UsageError("--format parquet needs pyarrow: pip install 'whisper-byoc[parquet]'") from None
    return pyarrow
