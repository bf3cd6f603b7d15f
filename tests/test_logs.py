"""Lines of the log."""

import logging
import sys

from hypothesis import given
from hypothesis import strategies as st

from whisper_byoc.logs import MARGIN, LineFormatter, one_line


@given(st.text(), st.text())
def test_a_message_is_one_line_without_controls_whatever_is_in_it(message, error):
    try:
        raise ValueError(error)
    except ValueError:
        info = sys.exc_info()
    record = logging.LogRecord("name", logging.INFO, "path", 1, "%s", (message,), info)
    first, *trace = LineFormatter().format(record).split("\n")
    assert first.endswith(f"[INFO] name - {one_line(message)}")
    assert first.isprintable() or all(char.isspace() or not char.isascii() for char in first if not char.isprintable())
    assert trace
    assert all(line.startswith(MARGIN) for line in trace)
    for line in (first, *trace):
        line.encode()
        assert len(line.splitlines()) == 1
        assert "\x1b" not in line


def test_what_is_escaped():
    assert one_line("Zürich\t\x1b[2J\r\n\x85\u202e\udc80 日本") == "Zürich\\t\\x1b[2J\\r\\n\\x85\\u202e\\udc80 日本"
