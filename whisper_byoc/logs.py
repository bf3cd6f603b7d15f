"""Log lines, in pytrickle's format or as JSON: always one line per message, whatever it contains."""

import json
import logging
import re
import sysconfig
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any

FORMAT = "%(asctime)s [%(levelname)s] %(name)s - %(message)s"
"""As in pytrickle and its applications."""
NOT_IN_A_LINE = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters, line ends, marks that change the writing direction, and surrogates."""
SUBJECT = re.compile("(job|stream) %s(?: (seq) %d)?")
"""How a message about a job or stream begins, before its values are filled in: what a client sent cannot match."""
CALLERS = (str(Path(__file__).parent), "<frozen runpy>")
LIBRARIES = tuple(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib"))
MARGIN = "  | "
"""Precedes each line of a traceback, so that none looks like a message."""


class LineFormatter(logging.Formatter):
    """Escapes whatever may have been put into a message to control a terminal or to forge lines."""

    def __init__(self) -> None:
        super().__init__(FORMAT)

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        return one_line(super().formatMessage(record))

    def formatException(  # noqa: N802
        self,
        ei: tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None],
    ) -> str:
        return _with_margin(super().formatException(ei))

    def formatStack(self, stack_info: str) -> str:  # noqa: N802
        return _with_margin(stack_info)


class JsonFormatter(logging.Formatter):
    """Writes a message as one line of JSON in ASCII, with `job` or `stream`, and `seq`, where it is about one."""

    def format(self, record: logging.LogRecord) -> str:
        fields = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        } | _subject(record)
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return json.dumps(fields, default=str)


FORMATTERS: Mapping[str, type[logging.Formatter]] = MappingProxyType({"text": LineFormatter, "json": JsonFormatter})


def log_to_stderr(level: str, style: str = "text") -> None:
    """Log to stderr from this level up, in a style of `FORMATTERS`, unless the program has set up logging already."""
    handler = logging.StreamHandler()
    handler.setFormatter(FORMATTERS[style]())
    logging.basicConfig(level=level.upper(), handlers=[handler])


def one_line(text: str) -> str:
    """Escape what does not belong in a line, as Python does in string literals."""
    return NOT_IN_A_LINE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def _subject(record: logging.LogRecord) -> dict[str, Any]:
    found = SUBJECT.match(record.msg) if isinstance(record.msg, str) else None
    if found is None or not isinstance(record.args, tuple):
        return {}
    return dict(zip(filter(None, found.groups()), record.args, strict=False))


def _with_margin(text: str) -> str:
    return "\n".join(MARGIN + one_line(line) for line in text.split("\n"))


def of_author(error: BaseException) -> BaseException:
    """Return an error whose traceback begins in the code of a processor's author, if it reaches any.

    The frames before it are this package's, which mean nothing to the author.
    """
    found = error.__traceback__
    while found is not None and found.tb_frame.f_code.co_filename.startswith(CALLERS):
        found = found.tb_next
    foreign = found is not None and not found.tb_frame.f_code.co_filename.startswith(LIBRARIES)
    if isinstance(error, SyntaxError) and not foreign:  # it names its location itself
        return error.with_traceback(None)
    return error.with_traceback(found) if foreign else error
