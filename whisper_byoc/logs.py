"""Lines of the log: as pytrickle has them, and one for each message whatever is in it."""

import logging
import re
from types import TracebackType

FORMAT = "%(asctime)s [%(levelname)s] %(name)s - %(message)s"
"""As in pytrickle and its applications."""
NOT_IN_A_LINE = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Controls, ends of lines, marks that change the writing direction, halves of characters."""
MARGIN = "  | "
"""Before each line of a traceback, so that none looks like a message."""


class LineFormatter(logging.Formatter):
    """Escapes what somebody may have put into a message to act on a terminal, or to forge lines."""

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


def log_to_stderr(level: str) -> None:
    """Log to stderr from this level on, unless the program logs already."""
    handler = logging.StreamHandler()
    handler.setFormatter(LineFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler])


def one_line(text: str) -> str:
    """Escape what does not belong into a line, as Python writes it in strings."""
    return NOT_IN_A_LINE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def _with_margin(text: str) -> str:
    return "\n".join(MARGIN + one_line(line) for line in text.split("\n"))
