"""From a file to a channel and back, and `whisper-byoc trickle`, which does that with stdin and stdout."""

import asyncio
import fcntl
import io
import os
import runpy
import signal
import struct
import sys
import termios
from asyncio.subprocess import PIPE

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.waiting import until
from whisper_byoc.cli import trickle as command
from whisper_byoc.cli.options import Parser
from whisper_byoc.errors import ClientError, StartError, UsageError
from whisper_byoc.trickle.pipe import by_line, by_size, by_time, publish, subscribe

RUN = """
import sys
from whisper_byoc.cli import trickle
from whisper_byoc.cli.options import Parser
parser = Parser(prog="whisper-byoc trickle")
trickle.configure(parser)
sys.exit(trickle.run(parser.parse_args(sys.argv[1:])))
"""
PIECES = st.lists(st.binary(min_size=1, max_size=40))


async def given_in(pieces):
    for piece in pieces:
        yield piece


async def segments_of(pieces):
    """What `publish` would send."""
    segments = [b""]
    async for data, last in pieces:
        segments[-1] += data
        if last:
            segments.append(b"")
    return segments if segments[-1] else segments[:-1]


@given(PIECES, st.integers(1, 50))
@settings(max_examples=30, deadline=None)
async def test_by_size(pieces, size):
    whole = b"".join(pieces)
    expected = [whole[start : start + size] for start in range(0, len(whole), size)]
    assert await segments_of(by_size(given_in(pieces), size)) == expected


@given(st.lists(st.lists(st.sampled_from([b"a", b"\n", b"bc", b"\n\n"]), min_size=1).map(b"".join)))
@settings(max_examples=30, deadline=None)
async def test_by_line(pieces):
    assert await segments_of(by_line(given_in(pieces))) == b"".join(pieces).splitlines(keepends=True)


async def test_a_line_without_an_end_is_cut():
    got = await segments_of(by_line(given_in([b"x" * 8] * 5), longest=10))
    assert b"".join(got) == b"x" * 40
    assert max(map(len, got)) < 20


async def test_by_time():
    ticks = iter(range(100))
    got = await segments_of(by_time(given_in([b"%d" % number for number in range(7)]), 3, lambda: next(ticks)))
    assert got == [b"012", b"345", b"6"]


async def test_from_a_file_to_a_file(trickle):
    api = await trickle()
    publisher = await api.publisher(create=True)
    subscriber = await api.subscriber(start=0)
    sink, sizes = io.BytesIO(), []
    reading = asyncio.create_task(subscribe(subscriber, sink, lambda segment, size: sizes.append((segment.seq, size))))
    assert await publish(by_line(given_in([b"one\ntw", b"o\nrest"])), publisher) == 3
    await publisher.close(delete_channel=True)
    assert await asyncio.wait_for(reading, 10) == 3
    assert sink.getvalue() == b"one\ntwo\nrest"
    assert sizes == [(0, 4), (1, 4), (2, 4)]


async def test_a_source_that_breaks_ends_the_segment_for_its_readers(trickle):
    api = await trickle()
    publisher = await api.publisher()

    async def breaking():
        yield b"part"
        await api.stored(0, 4)
        raise OSError("the disk")

    with pytest.raises(OSError, match="the disk"):
        await publish(by_size(breaking(), 1000), publisher)
    assert api.slot(0).closed


# --- the command


def parse(*words):
    parser = Parser(prog="whisper-byoc trickle")
    command.configure(parser)
    return parser.parse_args(words)


async def test_pub_to_sub(trickle):
    async def start(*words):
        return await asyncio.create_subprocess_exec(
            sys.executable, "-c", RUN, *words, stdin=PIPE, stdout=PIPE, stderr=PIPE
        )

    url = (await trickle()).url()
    sub = await start("sub", url, "--start", "0", "--wait", "100", "--verbose")
    pub = await start("pub", url, "--lines", "--create", "--mime", "text/plain", "--delete")
    _, errors = await asyncio.wait_for(pub.communicate(b"one\ntwo\nthree"), 150)
    assert pub.returncode == 0, errors
    output, errors = await asyncio.wait_for(sub.communicate(), 150)
    assert (sub.returncode, output) == (0, b"one\ntwo\nthree"), errors
    assert errors.decode().splitlines()[-1] == "segment 2: 5 bytes, text/plain"


async def test_ctrl_c_ends_pub_though_stdin_is_silent(trickle, spawn):
    api = await trickle()
    words = ("-m", "whisper_byoc.cli.main", "trickle", "pub", api.url(), "--create")
    process = await spawn(sys.executable, *words, stdin=PIPE)
    process.stdin.write(b"part")
    await api.stored(0, 4)
    process.send_signal(signal.SIGINT)
    async with asyncio.timeout(20):
        assert await process.wait() == 130
    assert await process.communicate() == (b"", b"")


async def test_ctrl_c_ends_sub_though_nobody_reads_its_output(trickle, spawn):
    api = await trickle()
    await (await api.publisher(create=True)).publish(bytes(1 << 20))
    unread, stdout = os.pipe()
    fcntl.fcntl(stdout, fcntl.F_SETPIPE_SZ, 4096)
    try:
        words = ("-m", "whisper_byoc.cli.main", "trickle", "sub", api.url(), "--start", "0")
        process = await spawn(sys.executable, *words, stdout=stdout)
        await until(lambda: struct.unpack("i", fcntl.ioctl(unread, termios.FIONREAD, bytes(4)))[0], 40)
        process.send_signal(signal.SIGINT)
        async with asyncio.timeout(20):
            assert await process.wait() == 130
        assert await process.communicate() == (None, b"")
    finally:
        os.close(unread)
        os.close(stdout)


@pytest.mark.parametrize(("text", "seq"), [("current", -2), ("next", -1), ("17", 17)])
def test_where_to_begin(text, seq):
    assert parse("sub", "http://host/ch", "--start", text).start == seq


@pytest.mark.parametrize("words", [[], ["move"], ["pub"], ["sub", "http://host/ch", "--start", "soon"]])
def test_wrong_usage(words):
    with pytest.raises(UsageError):
        parse(*words)


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        (["sub", "host/ch"], UsageError, "not the URL of a channel"),
        (["sub", "http://127.0.0.1:1/ch", "--patience", "0.05"], ClientError, "refused"),
        (["serve", "--host", "256.0.0.1", "--port", "0"], StartError, "cannot listen on"),
    ],
)
def test_what_fails_says_why(words, error, message):
    with pytest.raises(error, match=message):
        command.run(parse(*words))


def test_the_package_as_a_program_is_the_command_serve(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["trickle", "--changefeed", "--host", "256.0.0.1", "--port", "0"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("whisper_byoc.trickle", run_name="__main__")
    assert ended.value.code == 1
    assert "cannot listen on 256.0.0.1" in capsys.readouterr().err
