"""Lines of the log."""

import json
import logging
import sys

from hypothesis import given
from hypothesis import strategies as st

from whisper_byoc.logs import MARGIN, JsonFormatter, LineFormatter, one_line


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


def as_json(message, *args, error=None):
    info = (type(error), error, None) if error else None
    line = JsonFormatter().format(logging.LogRecord("name", logging.WARNING, "path", 1, message, args, info))
    assert len(line.splitlines()) == 1
    return json.loads(line)


@given(st.text(), st.text())
def test_json_holds_a_message_whatever_is_in_it(message, error):
    fields = as_json("%s", message, error=ValueError(error))
    assert (fields["message"], fields["level"], fields["logger"]) == (message, "warning", "name")
    assert fields["exception"] == (f"ValueError: {error}" if error else "ValueError")
    assert "job" not in fields


def test_json_names_the_job_and_the_number_that_a_message_is_about():
    fields = as_json("job %s seq %d: %s failed", "a", 7, "it")
    assert (fields["job"], fields["seq"], fields["message"]) == ("a", 7, "job a seq 7: it failed")
    assert as_json("job %s: %s", "a", "ended")["job"] == "a"
    assert as_json("stream %s runs at %s", "b", "x")["stream"] == "b"
    assert "seq" not in as_json("stream %s runs at %s", "b", 3)
    assert "job" not in as_json("job what seq 3")
