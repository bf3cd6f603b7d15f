"""Writes the text of one sound in the formats of transcripts while it comes."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from whisper_byoc.errors import ByocError, UsageError
from whisper_byoc.speech.formats import FORMS
from whisper_byoc.speech.transcript import Transcription, from_records, with_mark


class TranscriptFiles:
    """Takes the final records of one sound; each is written when no later one changes its text.

    A record that `is_open` is held until the next one has come.
    """

    def __init__(self, sound: Path, targets: Mapping[str, Path | None], width: int) -> None:
        """`targets`: the file of each format, which is made when there is something to write; None is stdout."""
        self._sound = sound
        self._targets = targets
        self._forms = {kind: FORMS[kind](width) for kind in targets}
        self._streams: dict[str, TextIO] = {}
        self._held: Transcription | None = None

    def take(self, record: Mapping[str, Any]) -> None:
        """Write a record, or hold it.

        Raises `ByocError` where it is not of the form of a transcript: it may come from anybody's server. Raises
        `UsageError` where a file cannot be written.
        """
        part = self._read(record)
        if self._held:
            self._held, part = with_mark(self._held, part)
        if part.text:
            self._release()
            self._held = part
        if not record.get("is_open"):
            self._release()

    def close(self, *, whole: bool) -> list[Path]:
        """Write what is left, and return the files that there are. Those of a sound without text are made if `whole`.

        Raises as `take` does.
        """
        try:
            self._release()
            for kind in self._targets if whole else [*self._streams]:
                self._write(kind, self._forms[kind].end())
            return [target for kind in self._streams if (target := self._targets[kind])]
        finally:
            for stream in self._streams.values():
                if stream is not sys.stdout:
                    stream.close()

    def _read(self, record: Mapping[str, Any]) -> Transcription:
        if record["type"] != "transcript":
            raise ByocError(f"{self._sound}: the pipeline gives records of the type {record['type']}, without times")
        try:
            return from_records([record])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            message = f"the server's records are no transcript: {type(error).__name__}: {error}"
            raise ByocError(f"{self._sound}: {message}") from None

    def _release(self) -> None:
        part, self._held = self._held, None
        if part:
            for kind, form in self._forms.items():
                self._write(kind, form.add(part))

    def _write(self, kind: str, text: str) -> None:
        with _named(self._targets[kind]):
            if kind not in self._streams:
                target = self._targets[kind]
                self._streams[kind] = target.open("w", encoding="utf-8") if target else sys.stdout
                text = self._forms[kind].start + text
            self._streams[kind].write(text)
            self._streams[kind].flush()


@contextmanager
def _named(target: Path | None) -> Iterator[None]:
    """Name a file that cannot be written; what stdout raises is told elsewhere."""
    try:
        yield
    except OSError as error:
        if target is None:
            raise
        raise UsageError(f"cannot write {target}: {error.strerror}") from None
