"""`whisper-byoc gateway`: the tutorial's command line, go-livepeer's flags, and errors of one sentence."""

import asyncio
import os
import re
import signal
import socket
import sys

import pytest

from whisper_byoc.cli import gateway as command
from whisper_byoc.cli.main import main

TUTORIAL = "-gateway -orchAddr 127.0.0.1:8936 -httpAddr 127.0.0.1:8935 -httpIngest"


@pytest.fixture
def run(capsys, monkeypatch):
    """Run the command, and give its exit code, its errors, and the configuration it would have served."""
    served = []

    async def serve(config):
        served.append(config)

    monkeypatch.setattr(command, "serve", serve)
    monkeypatch.setattr(command, "log_to_stderr", lambda level: None)
    for name in [name for name in os.environ if name.startswith("LP_")]:
        monkeypatch.delenv(name)

    def run(words):
        served.clear()
        code = main(["gateway", *words.split()])
        return code, capsys.readouterr().err, served[0] if served else None

    return run


def test_the_tutorials_command_line(run):
    code, err, config = run(TUTORIAL)
    assert (code, err) == (0, "")
    assert config.orchestrators == ["http://127.0.0.1:8936"]
    assert (config.listen.host, config.listen.port, config.public_host) == ("127.0.0.1", 8935, "")


def test_everything_has_a_default(run):
    _, _, config = run("")
    assert config.orchestrators == ["http://127.0.0.1:8936"]
    assert config.listen.listen_host == "127.0.0.1"


def test_all_flags(run):
    _, _, config = run(
        "--gateway=true -orchAddr https://a:1,b, -httpAddr 0.0.0.0:0 -gatewayHost gw.example:7 "
        "--job-timeout 3 --drain-timeout 4"
    )
    assert config.orchestrators == ["https://a:1", "http://b:8936"]
    assert (config.listen.listen_host, config.listen.port) == ("0.0.0.0", 0)
    assert config.public_host == "gw.example:7"
    assert (config.limits.job_seconds, config.limits.drain_seconds) == (3, 4)


def test_go_livepeers_environment(run, monkeypatch):
    monkeypatch.setenv("LP_ORCHADDR", "c:5")
    _, _, config = run("-gateway")
    assert config.orchestrators == ["http://c:5"]


def test_flags_without_a_meaning_are_named_in_one_line(run, caplog):
    with caplog.at_level("INFO", "whisper_byoc.network"):
        code, _, _ = run(f"{TUTORIAL} -network offchain -v 6 -monitor=false -dataDir x")
    assert code == 0
    lines = [record.getMessage() for record in caplog.records]
    assert lines == ["without a meaning off-chain, and ignored: -network -v -monitor -dataDir"]


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ("-bogus", ["--bogus", "--help"]),
        ("--prot 8000", ["--prot 8000"]),
        ("-orchAdr 127.0.0.1:8936", ["-orchAdr", "did you mean -orchAddr?"]),
        ("-monitor false stray", ["stray"]),
        ("-orchAddr ,", ["-orchAddr", "no orchestrator"]),
        ("-orchAddr a:99999", ["'a:99999'"]),
        ("-orchAddr :5", ["':5'", "no host"]),
        ("-httpAddr x:y", ["'x:y'"]),
        ("-httpAddr https://a:1", ["-httpAddr", "plain HTTP"]),
        ("-gatewayHost :7", ["-gatewayHost", "':7'"]),
        ("-gateway=perhaps", ["'perhaps'"]),
        ("--job-timeout -1", ["-1"]),
    ],
)
def test_errors_are_one_sentence(run, words, parts):
    code, err, config = run(words)
    assert code == 2
    assert config is None
    assert err.startswith("whisper-byoc: ")
    assert err.count("\n") == 1
    for part in parts:
        assert part in err


GATEWAY = (sys.executable, "-m", "whisper_byoc.cli.main", "gateway")


async def test_it_says_where_it_listens_and_ends_on_a_signal(spawn):
    process = await spawn(*GATEWAY, "-gateway", "-orchAddr", "127.0.0.1:9", "-httpAddr", "127.0.0.1:0", "-httpIngest")
    while not (found := re.search(rb"gateway listening on port (\d+)", await process.stderr.readline())):
        assert process.returncode is None
    reader, writer = await asyncio.open_connection("127.0.0.1", int(found[1]))
    writer.write(b"GET /health HTTP/1.0\r\n\r\n")
    assert b'{"status": "OK"}' in await reader.read()
    writer.close()
    process.send_signal(signal.SIGTERM)
    _, err = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 0
    assert b"Traceback" not in err


async def test_a_port_in_use_is_one_sentence(spawn):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        process = await spawn(*GATEWAY, "-httpAddr", f"127.0.0.1:{taken.getsockname()[1]}")
        _, err = await asyncio.wait_for(process.communicate(), 50)
    assert process.returncode == 1
    last = err.decode().splitlines()[-1]
    assert last.startswith("whisper-byoc: cannot listen on 127.0.0.1:")
    assert "another program listens there" in last
    assert b"Traceback" not in err
