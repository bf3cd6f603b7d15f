"""Live text, byte for byte; and in a real pseudo-terminal."""

import fcntl
import io
import json
import os
import pty
import struct
import termios
import threading
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whisper_byoc.cli.terminal import Display, fit, json_line, printable, width
from whisper_byoc.speech.models import DEMO_NOTICE

HOSTILE = "\x1b[2Ja\x9b31mb\x07\x7f\u202ec\u2028d\r\ne\ud800\x00"


def partial(text):
    return {"type": "transcript", "is_final": False, "text": text}


def final(text):
    return {"type": "transcript", "is_final": True, "text": text}


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def written(monkeypatch):
    """Return a function that shows records on a terminal of 80 columns, or in a pipe, and returns what each writes."""

    def run(records, *, out=None, color=True):
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("NO_COLOR", "" if color else "1")
        out = out or Terminal()
        display, texts = Display(out, io.StringIO()), []
        for record in records:
            display.show(record)
            texts.append(out.getvalue())
            out.truncate(0)
            out.seek(0)
        return texts

    return run


def test_partial_lines_are_rewritten_and_final_lines_stay(written):
    records = [partial("hel"), partial("hello wor"), final("hello world"), final("next"), {"type": "end"}]
    assert written(records) == [
        "\r\x1b[J\x1b[2mhel\x1b[0m\n",
        "\x1b[A\r\x1b[J\x1b[2mhello wor\x1b[0m\n",
        "\x1b[A\r\x1b[Jhello world\n",
        "\r\x1b[Jnext\n",
        "\r\x1b[J",
    ]


def test_without_color_it_is_the_same_but_not_dimmed(written):
    assert written([partial("a"), final("b")], color=False) == ["\r\x1b[Ja\n", "\x1b[A\r\x1b[Jb\n"]


def test_a_pipe_gets_final_lines_only(written):
    records = [partial("hel"), final("hello"), final(""), final("a\nb"), {"type": "error"}, {"type": "end"}]
    assert written(records, out=io.StringIO()) == ["", "hello\n", "", "a b\n", "", ""]


def opened(text):
    return {**final(text), "is_open": True}


SENTENCES = [opened("It is old"), final(". It was"), final("known."), opened("So it is"), final("."), final(", no")]


def test_in_a_pipe_a_mark_follows_an_open_line(written):
    assert written(SENTENCES, out=io.StringIO()) == [
        "It is old",
        ".\nIt was\n",
        "known.\n",
        "So it is",
        ".\n",
        ", no\n",
    ]


def test_in_a_pipe_an_open_line_ends_when_something_else_comes(written):
    out = io.StringIO()
    display = Display(out, io.StringIO())
    for record in (opened("It is old"), opened("and so it goes"), {"type": "end"}):
        display.show(record)
    assert out.getvalue() == "It is old\nand so it goes"
    display.close()
    assert out.getvalue() == "It is old\nand so it goes\n"


def test_on_a_terminal_a_mark_is_put_behind_the_line_before(written):
    erased = "\r\x1b[J"
    texts = written([opened("It is old"), partial("It"), final(". It was"), opened("a" * 80), final(".")])
    assert texts == [
        f"{erased}It is old\n",
        f"{erased}\x1b[2mIt\x1b[0m\n",
        f"\x1b[A{erased}\x1b[A\x1b[10G.\nIt was\n",
        f"{erased}{'a' * 80}\n",
        f"{erased}.\n",  # a full line has no room
    ]


def test_a_partial_that_becomes_nothing_or_an_error_is_taken_away(written):
    assert written([partial("a"), partial(""), partial("b"), {"type": "error"}, final("c")]) == [
        "\r\x1b[J\x1b[2ma\x1b[0m\n",
        "\x1b[A\r\x1b[J",
        "\r\x1b[J\x1b[2mb\x1b[0m\n",
        "\x1b[A\r\x1b[J",
        "\r\x1b[Jc\n",
    ]


def test_records_without_is_final_are_final_and_odd_values_do_no_harm(written):
    assert written([{"type": "result", "text": "a"}, {"type": "result", "text": 3}, {"type": "result", "text": None}],
                   out=io.StringIO()) == ["a\n", "3\n", ""]  # fmt: skip


def test_the_demo_model_is_named_once():
    err = io.StringIO()
    display = Display(io.StringIO(), err)
    for text in ("hello", "world"):
        display.show({**final(text), "model": "tiny"})
    assert err.getvalue() == ""
    for text in ("hello", "world"):
        display.show({**final(text), "model": "demo"})
    assert err.getvalue() == f"whisper-byoc: {DEMO_NOTICE}\n"


def test_hostile_text():
    assert printable(HOSTILE) == "\ufffd[2Ja\ufffd31mb\ufffd\ufffdc d  e\ufffd\ufffd"
    joined = "\u0645\u06cc\u200c\u062e \U0001f469\u200d\U0001f680 é 語"  # Persian and an emoji, with their joiners
    assert printable(joined) == joined


@given(st.text())
def test_printable_leaves_no_control(text):
    safe = printable(text)
    assert printable(safe) == safe
    assert not any(unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp") for char in safe)
    assert len(safe.splitlines()) <= 1


@given(st.text(), st.integers(0, 60))
def test_fit_never_exceeds_the_columns_and_keeps_the_end(text, columns):
    safe = printable(text)
    cut = fit(safe, columns)
    assert sum(map(width, cut)) <= columns
    assert cut == safe or cut == "" or (cut[0] == "…" and safe.endswith(cut[1:]))


@pytest.mark.parametrize(
    ("text", "columns", "expected"),
    [
        ("hello", 5, "hello"), ("hello", 4, "…llo"), ("hello", 1, "…"), ("hello", 0, ""),
        ("日本語", 6, "日本語"), ("日本語", 5, "…本語"), ("日本語", 4, "…語"), ("日本語", 2, "…"),
        ("ae\u0301b", 3, "ae\u0301b"), ("ae\u0301b", 2, "…b"), ("❤\ufe0f", 2, "❤\ufe0f"), ("각", 2, "각"),
    ],
)  # fmt: skip
def test_fit(text, columns, expected):
    assert fit(text, columns) == expected


@given(st.dictionaries(st.text(), st.text() | st.integers() | st.none()))
def test_json_lines_are_whole_and_harmless(record):
    line = json_line(record)
    assert json.loads(line) == record
    assert printable(line) == line


def test_json_keeps_readable_letters():
    assert json_line({"text": "é語\x9b"}) == '{"text": "é語\\u009b"}'


def test_display_splits_text_and_errors():
    out, err = io.StringIO(), io.StringIO()
    display = Display(out, err)
    for record in (partial("a"), final("b"), {"type": "error", "seq": 1, "error": "no\x1b[2J"}, {"type": "error"}):
        display.show(record)
    display.close()
    assert out.getvalue() == "b\n"
    assert err.getvalue() == "segment 1 failed: no\ufffd[2J\nsegment None failed: None\n"


def test_display_of_json_has_partials_too():
    out = io.StringIO()
    display = Display(out, out, as_json=True)
    for record in (partial("a"), {"type": "error", "seq": 1, "error": "no"}):
        display.show(record)
    display.close()
    assert [json.loads(line) for line in out.getvalue().splitlines()] == [
        partial("a"), {"type": "error", "seq": 1, "error": "no"},
    ]  # fmt: skip


def test_an_encoding_that_lacks_letters_does_no_harm():
    raw = io.BytesIO()
    out = io.TextIOWrapper(raw, "ascii")
    Display(out, io.StringIO()).show(final("é"))
    assert raw.getvalue() == b"?\n"


@pytest.fixture
def terminal():
    """Return a function that shows records in a pseudo-terminal of some columns, and tells what it received."""

    def run(records, columns=22):
        master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        received = bytearray()

        def read():
            try:
                while data := os.read(master, 4096):
                    received.extend(data)
            except OSError:  # the other side is closed
                pass

        reader = threading.Thread(target=read)
        reader.start()
        with os.fdopen(slave, "w", encoding="utf-8") as out:
            display = Display(out, out)
            for record in records:
                display.show(record)
            display.close()
        reader.join(20)
        os.close(master)
        return received.decode().replace("\r\n", "\n")

    return run


def test_in_a_terminal(terminal, monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert terminal([partial("one two three four five"), final("one two three four five six")]) == (
        "\r\x1b[J\x1b[2m… two three four five\x1b[0m\n" + "\x1b[A\r\x1b[Jone two three four five six\n" + "\r\x1b[J"
    )


def test_a_dumb_terminal_is_as_good_as_a_pipe(terminal, monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    assert terminal([partial("a"), final("b")]) == "b\n"


def test_warnings_of_the_end_are_told_apart_from_text():
    out, err = io.StringIO(), io.StringIO()
    display = Display(out, err)
    for warnings in (["no speech was found", f"no{HOSTILE[:4]}"], "odd", None):
        display.show({"type": "end", "warnings": warnings})
    display.close()
    assert err.getvalue() == "whisper-byoc: no speech was found\nwhisper-byoc: no\ufffd[2J\n"
