"""What of an archive is done: its transcripts, in an SQLite file that a kill at any moment leaves whole."""

import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from whisper_byoc.archive.sources import Source, shown
from whisper_byoc.errors import ByocError, UsageError

VERSION = 1
SCHEMA = """
CREATE TABLE IF NOT EXISTS transcripts (
    name TEXT PRIMARY KEY,  -- of the results, below the folder, without an ending
    source TEXT NOT NULL,
    version TEXT NOT NULL,  -- of the source's content
    options TEXT NOT NULL,  -- what the text depends on, as JSON
    seconds REAL NOT NULL,  -- of sound
    finished TEXT NOT NULL,  -- UTC
    records TEXT NOT NULL  -- the records of `speech.transcript`, as JSON
) WITHOUT ROWID
"""
Records = Sequence[Mapping[str, Any]]
"""The final `transcript` records of one recording, as JSON fields."""


class Manifest:
    """The manifest of one folder, open and locked within `with`: a second run on the folder is refused.

    A row is written in one transaction when a recording is done, and is on the disk when `add` returns.
    """

    def __init__(self, path: Path, options: Mapping[str, Any]) -> None:
        """`options` are those on which a text depends: with others it is made anew."""
        self._path = path
        self._options = json.dumps(options, sort_keys=True)

    def __enter__(self) -> Self:
        """Raise `UsageError` when another run has it, or it is none."""
        with self._told():
            self._db = sqlite3.connect(self._path, timeout=0, isolation_level=None)
        try:
            with self._told():
                # Set before the first access, it needs no memory shared with others: fit for network file systems.
                self._db.execute("PRAGMA locking_mode=EXCLUSIVE")
                self._db.execute("PRAGMA journal_mode=WAL")
                self._db.execute("PRAGMA synchronous=FULL")
                (version,) = self._db.execute("PRAGMA user_version").fetchone()
                if version not in (0, VERSION):
                    raise UsageError(f"{self._path} is of another release of whisper-byoc; name another folder")
                self._db.execute("BEGIN IMMEDIATE")
                self._db.execute(SCHEMA)
                self._db.execute(f"PRAGMA user_version={VERSION}")
                self._db.execute("COMMIT")
        except BaseException:
            self._db.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._db.close()

    def has(self, source: Source) -> bool:
        """Whether the text of this version of a source was made with these options."""
        with self._told():
            row = self._db.execute("SELECT version, options FROM transcripts WHERE name = ?", (source.name,)).fetchone()
        return bool(row == (source.version, self._options))

    def add(self, source: Source, seconds: float, records: Records) -> None:
        """Note that a source is done, in the place of what was noted before."""
        row = (
            *(source.name, shown(source.place), source.version, self._options),
            *(seconds, datetime.now(UTC).isoformat(timespec="seconds"), json.dumps(records, ensure_ascii=False)),
        )
        with self._told():
            self._db.execute("REPLACE INTO transcripts VALUES (?, ?, ?, ?, ?, ?, ?)", row)

    def records(self, source: Source) -> Records:
        """Return those of a source that is done."""
        with self._told():
            (text,) = self._db.execute("SELECT records FROM transcripts WHERE name = ?", (source.name,)).fetchone()
        found: Records = json.loads(text)
        return found

    def everything(self) -> Iterator[tuple[str, Records]]:
        """Yield all that is done, of this run and those before: sources as `shown`, and their records."""
        with self._told():
            for source, text in self._db.execute("SELECT source, records FROM transcripts ORDER BY name"):
                yield source, json.loads(text)

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            if error.sqlite_errorname.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
                raise UsageError(f"another run works on {self._path.parent}; wait for its end, or end it") from None
            if error.sqlite_errorname == "SQLITE_NOTADB":
                raise UsageError(f"{self._path} is no manifest; move it away, or name another folder") from None
            raise ByocError(f"the manifest {self._path} cannot be read or written: {error}") from None
