"""One log of several processes: whole lines, names before them, nothing that acts on a terminal."""

import io
import os
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whisper_byoc.cli.lines import LONGEST_LINE, Lines, NamedLog

OUTPUT = st.lists(
    st.sampled_from([b"a", b"word ", b"\n", b"\r", b"\r\n", b"\xff", "ü".encode(), b"\x1b[2J"]), max_size=40
)


def cut(data, sizes):
    """The same bytes in pieces."""
    at = 0
    for size in sizes:
        yield data[at : at + size]
        at += size
    yield data[at:]


def taken(pieces):
    lines = Lines()
    return [line for piece in pieces for line in lines.feed(piece)] + lines.close()


@given(OUTPUT.map(b"".join), st.lists(st.integers(0, 12), max_size=10))
def test_lines_do_not_depend_on_how_the_bytes_arrive(data, sizes):
    whole = taken([data])
    assert taken(cut(data, sizes)) == whole
    assert len(whole) == len([each for each in re.split(rb"\r\n|\r|\n", data) if each])


@given(st.binary(max_size=200))
def test_nothing_that_acts_on_a_terminal_comes_through(data):
    for line in taken([data]):
        assert line.isprintable()


def test_what_is_no_text_is_replaced_and_the_rest_stays():
    assert taken([b"caf\xc3\xa9 \xff\x1b[31mred\x07\n"]) == ["café \ufffd\ufffd[31mred\ufffd"]


def test_a_line_without_an_end_is_cut_so_that_memory_is_bounded():
    lines = Lines()
    got = [line for _ in range(100) for line in lines.feed(b"x" * 1000)]
    assert {len(line) for line in got} == {LONGEST_LINE}
    assert len(got) == 100_000 // LONGEST_LINE


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(("no_color", "coloured"), [("", True), ("1", False)])
def test_names_have_colours_on_a_terminal_unless_NO_COLOR_is_set(monkeypatch, no_color, coloured):
    monkeypatch.setenv("NO_COLOR", no_color)
    out = Terminal()
    log = NamedLog(out)
    log.line("gateway", "hello")
    log.line("container", "there")
    log.line("gateway", "again")
    lines = out.getvalue().splitlines()
    if coloured:
        colours = [re.fullmatch(r"\x1b\[(\d+)m\w+ +\|\x1b\[0m \w+", line)[1] for line in lines]
        assert colours[0] == colours[2] != colours[1]
    else:
        assert lines == ["gateway      | hello", "container    | there", "gateway      | again"]


def test_names_have_no_colours_in_a_pipe(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    out = io.StringIO()
    NamedLog(out).line("gateway", "hello")
    assert out.getvalue() == "gateway      | hello\n"


def test_a_reader_that_has_gone_stops_nobody():
    """As `tee` does at Ctrl-C: an exception here would leave three processes running."""
    reading, writing = os.pipe()
    os.close(reading)
    out = os.fdopen(writing, "w")
    NamedLog(out).line("up", "stopping; Ctrl-C once more kills")
    with pytest.raises(BrokenPipeError):  # that is what it was
        out.close()
