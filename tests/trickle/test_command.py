"""`whisper-byoc trickle`: its options, and what it does with stdin and stdout."""

import subprocess
import sys

import pytest

from whisper_byoc.cli import trickle
from whisper_byoc.cli.options import Parser
from whisper_byoc.errors import ClientError, StartError, UsageError

RUN = """
import sys
from whisper_byoc.cli import trickle
from whisper_byoc.cli.options import Parser
parser = Parser(prog="whisper-byoc trickle")
trickle.configure(parser)
sys.exit(trickle.run(parser.parse_args(sys.argv[1:])))
"""


def parse(*words):
    parser = Parser(prog="whisper-byoc trickle")
    trickle.configure(parser)
    return parser.parse_args(words)


def start(*words):
    return subprocess.Popen(
        [sys.executable, "-c", RUN, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


async def test_pub_to_sub(trickle_program):
    url = trickle_program + "ch"
    sub = start("sub", url, "--start", "0", "--wait", "20", "--verbose")
    pub = start("pub", url, "--lines", "--create", "--mime", "text/plain", "--delete")
    _, told = pub.communicate(b"one\ntwo\nthree", timeout=30)
    assert pub.returncode == 0, told
    out, told = sub.communicate(timeout=30)
    assert (sub.returncode, out) == (0, b"one\ntwo\nthree"), told
    assert told.decode().splitlines()[-1] == "segment 2: 5 bytes, text/plain"


@pytest.fixture
def trickle_program():
    process = subprocess.Popen(
        [sys.executable, "-m", "whisper_byoc.trickle", "--port", "0"], stderr=subprocess.PIPE, text=True
    )
    try:
        yield process.stderr.readline().split("listening on ")[1].split(" ")[0]
    finally:
        process.terminate()
        process.communicate(timeout=10)


@pytest.mark.parametrize(("text", "seq"), [("current", -2), ("next", -1), ("17", 17)])
def test_where_to_begin(text, seq):
    assert parse("sub", "http://host/ch", "--start", text).start == seq


@pytest.mark.parametrize("words", [[], ["move"], ["pub"], ["sub", "http://host/ch", "--start", "soon"]])
def test_wrong_usage(words):
    with pytest.raises(UsageError):
        parse(*words)


def test_wrong_url():
    with pytest.raises(UsageError, match="not the URL of a channel"):
        trickle.run(parse("sub", "host/ch"))


def test_nobody_there():
    with pytest.raises(ClientError):
        trickle.run(parse("sub", "http://127.0.0.1:1/ch", "--patience", "0.05"))


def test_an_address_that_cannot_be_had():
    with pytest.raises(StartError, match="cannot listen on"):
        trickle.run(parse("serve", "--host", "256.0.0.1", "--port", "0"))
