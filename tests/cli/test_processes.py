"""Children that start and end together, and their one log; `tests/e2e/test_up.py` has them as `up` runs them."""

import asyncio
import io
import os
import re
import signal
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whisper_byoc.cli.processes import LONGEST_LOG_LINE, LogLines, Processes, write_log_line
from whisper_byoc.errors import StartError

SERVE = ("serve", "--pipeline", "passthrough", "--host", "127.0.0.1", "--port", "0")


def newest_child():
    """Process id of the youngest child of this process."""
    listed = subprocess.run(["ps", "-A", "-o", "pid=,ppid=,args="], capture_output=True, text=True, check=True).stdout
    rows = [row.split(None, 2) for row in listed.splitlines()]
    return max(int(pid) for pid, parent, words in rows if int(parent) == os.getpid() and " serve " in words)


async def test_a_child_that_does_not_end_is_killed_and_the_log_says_so():
    log = []
    async with Processes(lambda name, line: log.append((name, line)), 0.2) as processes:
        assert await processes.start("first", *SERVE) > 0
        os.kill(newest_child(), signal.SIGSTOP)
    assert ("first", "(killed: it had not ended within 0.2 s)") in log  # lines from before may be read after it
    assert processes.children[0].outcome.startswith("the first ended with signal SIGKILL: ")


async def test_a_command_that_ends_before_it_listens_is_told_with_its_last_words():
    async with Processes(lambda *_: None, 5) as processes:
        with pytest.raises(StartError, match=r"^the second ended with exit code 2: model not found: .*'nonsense'"):
            await processes.start("second", "serve", "--pipeline", "nonsense")


async def test_the_first_end_is_named_and_the_others_end_in_order():
    async with Processes(lambda *_: None, 10) as processes:
        for name, style in (("one", "text"), ("two", "json")):  # the port is read from either
            await processes.start(name, *SERVE, variables={"WHISPER_BYOC_LOG_FORMAT": style})
        one, two = processes.children
        two.kill()
        async with asyncio.timeout(60):
            with pytest.raises(StartError, match=r"^the two ended with signal SIGKILL: "):
                await processes.first_end()
        assert not one.ended.done()
    assert one.outcome.startswith("the one ended with exit code 0: ")


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
    lines = LogLines()
    return [line for piece in pieces for line in lines.feed(piece)] + lines.feed(b"", final=True)


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
    got = taken([b"x" * 1000] * 100)
    assert max(map(len, got)) == LONGEST_LOG_LINE
    assert sum(map(len, got)) == 100_000


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(("no_color", "coloured"), [("", True), ("1", False)])
def test_names_have_colours_on_a_terminal_unless_NO_COLOR_is_set(monkeypatch, no_color, coloured):
    monkeypatch.setenv("NO_COLOR", no_color)
    out = Terminal()
    write_log_line(out, "gateway", "hello")
    write_log_line(out, "container", "there")
    write_log_line(out, "gateway", "again")
    lines = out.getvalue().splitlines()
    if coloured:
        colours = [re.fullmatch(r"\x1b\[(\d+)m\w+ +\|\x1b\[0m \w+", line)[1] for line in lines]
        assert colours[0] == colours[2] != colours[1]
    else:
        assert lines == ["gateway      | hello", "container    | there", "gateway      | again"]


def test_names_have_no_colours_in_a_pipe(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    out = io.StringIO()
    write_log_line(out, "gateway", "hello")
    assert out.getvalue() == "gateway      | hello\n"


def test_a_reader_that_has_gone_stops_nobody():
    """As `tee` does at Ctrl-C: an exception here would leave three processes running."""
    reading, writing = os.pipe()
    os.close(reading)
    out = os.fdopen(writing, "w")
    write_log_line(out, "up", "stopping; Ctrl-C once more kills")
    with pytest.raises(BrokenPipeError):  # that is what it was
        out.close()
