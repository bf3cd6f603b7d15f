"""Wrong usage is one sentence and exit code 2, failure one sentence and 1; never a traceback."""

import os
import re
import shlex
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from tests.cli.conftest import refused
from whisper_byoc import __version__
from whisper_byoc.cli.main import COMMANDS, implied_command, main, two_dashes
from whisper_byoc.cli.options import Parser

ROOT = Path(__file__).resolve().parent.parent.parent


def test_version(run):
    assert run("--version") == (0, f"whisper-byoc {__version__}\n", "")


def test_help_and_version_are_commands_too(run, capsys):
    assert run("version") == run("--version")
    assert run("help") == run("--help")
    with pytest.raises(SystemExit):
        main(["help", "serve"])
    out = capsys.readouterr().out
    assert "default 64M" in out
    assert "\nlimits:\n" in out


async def test_what_kubernetes_sets_for_a_service_is_passed_over(command):
    server = await command("serve", "--tls-key", "FILE", WHISPER_BYOC_PORT="tcp://10.3.241.7:8000")
    await server.logged("for a Service: WHISPER_BYOC_PORT=tcp://10.3.241.7:8000")
    assert await server.end(None) == 2


def test_help(run):
    code, out, _ = run("--help")
    assert code == 0
    rows = dict(line.split(None, 1) for line in out.splitlines() if line.startswith("  "))
    assert set(rows) == set(COMMANDS)
    assert all(rows.values())
    assert run()[0] == 2


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_each_command(name, capsys):
    with pytest.raises(SystemExit) as caught:
        main([name, "--help"])
    assert caught.value.code == 0
    assert f"usage: whisper-byoc {name}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ("bogus", ["'bogus'", "serve"]),
        ("serv", ["'serv'", "did you mean serve?"]),
        ("serve --max-job 3", ["--max-job", "did you mean --max-jobs?"]),
        ("serve --pipeline whisper-tyni", ["did you mean whisper-tiny?"]),
        ("serve --bogus", ["--bogus", "--help"]),
        ("-bogus", ["--bogus"]),
        ("serve --port 70000", ["'70000' is not a port"]),
        ("serve --max-segment lots", ["'lots' is not a size"]),
        ("serve --workers 0", ["'0' is not a whole number"]),
        ("serve --capability-price-per-unit -1", ["--capability-price-per-unit"]),
        ("serve --idle-timeout nan", ["'nan'"]),
        ("serve --log-level loud", ["loud"]),
        ("serve --pipeline nothing", ["'nothing'", "whisper-tiny"]),
        ("serve --auth-token EMPTY", ["--auth-token", "must hold 1 to 4096 characters"]),
        ("up --pipeline nonsense", ["model not found", "'nonsense'"]),
        ("up --pipelines ,", ["--pipeline names no pipeline"]),
        ("transcribe", ["FILE"]),
        ("transcribe FOLDER/none.wav", ["no such file"]),
        ("transcribe FOLDER", ["--output FOLDER"]),
        ("transcribe EMPTY --format doc", ["no format 'doc'", "srt"]),
        ("transcribe EMPTY --format srt,vtt", ["--output"]),
        ("transcribe EMPTY EMPTY --format srt", ["srt", "--output"]),
        ("transcribe EMPTY EMPTY --format vtt", ["vtt", "--output"]),
        ("run", ["the following arguments are required: script (see whisper-byoc run --help)"]),
        ("run FOLDER/none.py", ["no such file"]),
        ("preload --model enormous", ["'enormous'", "tiny"]),
        ("doctor --container 127.0.0.1:8000", ["'127.0.0.1:8000'", "http://"]),
        *(
            (f"{name} {'x' * 300}", ["cannot be looked up: File name too long"])
            for name in ("send", "transcribe", "run")
        ),
        *(
            (f"send --url {address} EMPTY", [repr(address), "is not the address of a server"])
            for address in ("http://", "http://a..b:80", "http://localhost:99999", "http://[::1", "ftp://a")
        ),
    ],
)
def test_wrong_usage_is_one_sentence(run, tmp_path, line, parts):
    (tmp_path / "empty").write_bytes(b"")
    words = line.replace("FOLDER", str(tmp_path)).replace("EMPTY", str(tmp_path / "empty")).split()
    refused(run(*words), 2, *parts)


READ = ["--tls-key is the key of a certificate"]  # what is said when all values have been taken


@pytest.mark.parametrize(
    ("variable", "value", "parts"),
    [
        ("WHISPER_BYOC_PORT", "abc", ["environment variable WHISPER_BYOC_PORT", "'abc'"]),
        ("WHISPER_BYOC_PORT", "", READ),  # as good as none
        ("WHISPER_BYOC_PORT", "80", READ),
        (
            "WHISPER_BYOC_LOG_LEVEL",
            "loud",
            ["variable WHISPER_BYOC_LOG_LEVEL", "'loud'", "debug, info, warning, error"],
        ),
        ("WHISPER_BYOC_LOG_LEVEL", "INFO", READ),
        ("WHISPER_BYOC_ORCH_VERIFY_TLS", "perhaps", ["variable WHISPER_BYOC_ORCH_VERIFY_TLS", "'perhaps'"]),
        ("WHISPER_BYOC_LANGUAGE", "klingon", ["environment variable WHISPER_BYOC_LANGUAGE", "'klingon'"]),
        ("WHISPER_BYOC_PIPELINE", "passthrough, whisper", ["variable WHISPER_BYOC_PIPELINE", "'whisper'"]),
        ("MODEL_ID", "no-such", ["environment variable MODEL_ID", "'no-such'"]),
        ("ORCH_URL", "http://a..b", ["environment variable ORCH_URL", "'http://a..b'"]),
        *(
            (name, "nonsense", READ)
            for name in ("PORT", "HOST", "LANGUAGE", "LOG_LEVEL", "MODEL", "WORKERS", "THREADS")
        ),
    ],
)
def test_the_environment_sets_options(run, monkeypatch, variable, value, parts):
    monkeypatch.setenv(variable, value)
    refused(run("serve", "--tls-key", "FILE"), 2, *parts)


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("WHISPER_BYOC_PORT", "abc", ["--port", "8000"]),
        ("WHISPER_BYOC_PIPELINE", "nothing", ["--pipeline", "passthrough"]),
        ("WHISPER_BYOC_TLS_KEY", "none.pem", []),
    ],
)
def test_the_command_line_wins_over_the_environment(run, monkeypatch, variable, value, words):
    monkeypatch.setenv(variable, value)
    refused(run("serve", "--tls-key", "FILE", *words), 2, *READ)


def test_the_environment_sets_repeated_options(run, monkeypatch):
    monkeypatch.setenv("WHISPER_BYOC_PIPELINE", "passthrough, nothing")
    refused(run("serve"), 2, "'nothing'")


def test_pipelines_is_a_table(run):
    code, out, _ = run("pipelines")
    assert code == 0
    lines = out.splitlines()
    assert lines[0].split()[:3] == ["NAME", "READS", "GIVES"]
    names = [line.split()[0] for line in lines[1:6]]
    assert names == ["whisper-tiny", "whisper-demo", "green-tint-cpu", "grayscale-cpu", "passthrough"]


def test_every_option_of_serve_has_a_variable(capsys):
    with pytest.raises(SystemExit):
        main(["serve", "--help"])
    out = capsys.readouterr().out
    options = [line for line in out.splitlines() if line.startswith("  --")]
    assert len(options) > 15
    assert out.count("WHISPER_BYOC_") == len(options)


def test_the_table_of_settings_is_what_the_commands_read():
    there = {}
    for command in COMMANDS:
        parser = Parser(prog=command)
        import_module(f"whisper_byoc.cli.{command}").configure(parser)
        for action in parser.all_actions():
            if named := re.search(r"env ([\w, ]+)\]$", action.help or ""):
                own, *others = named[1].split(", ")
                cells = there.setdefault(own, (set(), set(), set()))
                for cell, words in zip(cells, (action.option_strings, others, [command]), strict=True):
                    cell.update(words)
    operating = (ROOT / "docs" / "operating.md").read_text()
    rows = re.findall(r"^\| `(WHISPER_BYOC_\w+)` \|(.*)\|(.*)\|(.*)\|$", operating, re.MULTILINE)
    assert [name for name, *_ in rows] == sorted(there), "the table at the end of docs/operating.md"
    assert {name: tuple(set(re.findall(r"[\w-]+", cell)) for cell in cells) for name, *cells in rows} == there


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("-byocModelID", "--byocModelID"), ("-port=8000", "--port=8000"), ("--port", "--port"), ("-h", "-h"),
        ("-", "-"), ("-5", "-5"), ("serve", "serve"), ("-v", "-v"), ("file-name.wav", "file-name.wav"),
    ],
)  # fmt: skip
def test_go_spelling(word, expected):
    assert two_dashes(word) == expected


@pytest.mark.parametrize(
    ("line", "command"),
    [
        ("-byocModelID whisper-tiny", "serve"),
        ("-orchestrator -network offchain -serviceAddr 127.0.0.1:8936", "orchestrator"),
        ("-gateway -orchAddr 127.0.0.1:8936 -httpIngest", "gateway"),
        ("-network offchain -gateway", "gateway"),
    ],
)
def test_a_line_that_begins_with_an_option_names_its_command(line, command):
    assert implied_command([two_dashes(word) for word in line.split()]) == command


def test_a_refused_connection_is_told_as_the_system_says_it(run, tmp_path, unused_tcp_port):
    path = tmp_path / "sound.pcm"
    path.write_bytes(bytes(3200))
    url = f"http://127.0.0.1:{unused_tcp_port}"
    told = f"no answer from {url}: Connection refused; is the server running there?"
    refused(run("send", "--url", url, path), 1, told)


def test_program_ends_in_order_though_a_daemon_thread_is_in_the_midst_of_torch(tmp_path):
    """Python's own end takes such a thread down with `terminate called without an active exception`, exit code 134."""
    script = tmp_path / "busy.py"
    script.write_text(
        "import atexit, sys, threading, torch\n"
        "atexit.register(print, 'tidied up')\n"
        "def work():\n    while True:\n        torch.ones(300, 300) @ torch.ones(300, 300)\n"
        "for _ in range(4):\n    threading.Thread(target=work, daemon=True).start()\n"
        "sys.exit(0)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-m", "whisper_byoc.cli.main", "run", str(script)], capture_output=True, text=True, timeout=50
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "tidied up\n", "")


def program(*words, **options):
    command = (sys.executable, "-m", "whisper_byoc.cli.main", *map(str, words))
    return subprocess.run(command, text=True, timeout=50, check=False, **{"stderr": subprocess.PIPE} | options)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_disk_is_one_sentence(monkeypatch, unbuffered):
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    with Path("/dev/full").open("w") as full:
        ended = program("pipelines", stdout=full)
    assert ended.returncode == 1
    assert ended.stderr == "whisper-byoc: cannot write the output: No space left on device\n"


@pytest.mark.parametrize(("words", "code"), [(["pipelines"], 0), (["bogus"], 2), (["send", "-"], 1)])
def test_files_that_are_closed_from_the_start(words, code, unused_tcp_port):
    url = f"http://127.0.0.1:{unused_tcp_port}"
    line = shlex.join([sys.executable, "-m", "whisper_byoc.cli.main", *words])
    ended = subprocess.run(
        ["/bin/sh", "-c", f"{line} <&- >&-"], env=os.environ | {"WHISPER_BYOC_URL": url}, text=True, timeout=50,
        stderr=subprocess.PIPE, check=False,
    )  # fmt: skip
    assert ended.returncode == code, ended.stderr
    assert "Traceback" not in ended.stderr
    assert "bug" not in ended.stderr


def test_ctrl_c_while_the_program_is_still_being_imported():
    entry = re.search(r'^whisper-byoc = "(.+):(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    module, name = entry.groups()
    source = (
        "import signal, sys\n"
        "from importlib import import_module\n"
        "class Interrupt:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'whisper_byoc.cli.options':\n"
        "            signal.raise_signal(signal.SIGINT)\n"
        "sys.meta_path.insert(0, Interrupt())\n"
        f"sys.exit(getattr(import_module({module!r}), {name!r})())\n"
    )
    ended = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, timeout=50, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "")


def test_help_on_a_terminal_that_has_not_every_character(monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    ended = program("--help", stdout=subprocess.PIPE)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.startswith("usage: whisper-byoc COMMAND ?\n")
