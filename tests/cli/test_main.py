"""Wrong usage is one sentence and exit code 2, failure one sentence and 1; never a traceback."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from audio import pcm
from audio.media import load_audio
from whisper_byoc import __version__
from whisper_byoc.cli.main import implied_command, main, two_dashes

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def run(capsys, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")

    def run(*words):
        code = main([str(word) for word in words])
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return code, out, err

    return run


def refused(result, code, *parts):
    got, out, err = result
    assert got == code, err
    assert out == ""
    assert err.startswith("whisper-byoc: ")
    assert err.count("\n") == 1
    for part in parts:
        assert part in err


def test_version(run):
    assert run("--version") == (0, f"whisper-byoc {__version__}\n", "")


def test_help(run):
    code, out, _ = run("--help")
    assert code == 0
    for name in ("serve", "send", "transcribe", "run", "preload", "pipelines", "doctor"):
        assert name in out
    assert run()[0] == 2


@pytest.mark.parametrize("name", ["serve", "send", "transcribe", "run", "preload", "pipelines", "trickle", "doctor"])
def test_help_of_each_command(name, capsys):
    with pytest.raises(SystemExit) as caught:
        main([name, "--help"])
    assert caught.value.code == 0
    assert f"usage: whisper-byoc {name}" in capsys.readouterr().out


def test_pipelines_is_a_table(run):
    code, out, _ = run("pipelines")
    assert code == 0
    lines = out.splitlines()
    assert lines[0].split()[:3] == ["NAME", "READS", "GIVES"]
    names = [line.split()[0] for line in lines[1:6]]
    assert names == ["whisper-tiny", "whisper-demo", "green-tint-cpu", "grayscale-cpu", "passthrough"]


def test_wrong_usage(run, tmp_path):
    refused(run("bogus"), 2, "'bogus'", "serve")
    refused(run("serve", "--bogus"), 2, "--bogus", "--help")
    refused(run("-bogus"), 2, "--bogus")
    refused(run("serve", "--port", "70000"), 2, "'70000' is not a port")
    refused(run("serve", "--max-segment", "lots"), 2, "'lots' is not a size")
    refused(run("serve", "--workers", "0"), 2, "'0' is not a whole number")
    refused(run("serve", "--idle-timeout", "nan"), 2, "'nan'")
    refused(run("serve", "--log-level", "loud"), 2, "loud")
    refused(run("serve", "--pipeline", "nothing"), 2, "'nothing'", "whisper-tiny")
    refused(run("up", "--pipelines", "nonsense"), 2, "model not found: ", "'nonsense'")
    refused(run("up", "--pipelines", ","), 2, "--pipelines names no pipeline")
    refused(run("transcribe"), 2, "FILE")
    refused(run("transcribe", tmp_path / "none.wav"), 2, "no such file")
    refused(run("transcribe", __file__, "--format", "doc"), 2, "no format 'doc'", "srt")
    refused(run("run", tmp_path / "none.py"), 2, "no such file")
    refused(run("preload", "--model", "enormous"), 2, "'enormous'", "tiny")


def test_environment_sets_options_and_the_command_line_wins(run, monkeypatch):
    monkeypatch.setenv("PORT", "abc")
    refused(run("serve"), 2, "environment variable PORT", "'abc'")
    monkeypatch.setenv("PORT", "")  # as good as none
    refused(run("serve", "--pipeline", "neither"), 2, "'neither'")
    monkeypatch.setenv("PORT", "80")
    monkeypatch.setenv("WHISPER_BYOC_PIPELINE", "passthrough, nothing")
    refused(run("serve"), 2, "'nothing'")
    refused(run("serve", "--pipeline", "neither"), 2, "'neither'")


def test_every_option_of_serve_has_a_variable(capsys):
    with pytest.raises(SystemExit):
        main(["serve", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    options = [word for word in text.split("options:")[1].split() if word.startswith("--")]
    assert len(options) > 15
    assert text.count("WHISPER_BYOC_") == len(set(options) - {"--help", "--model", "--byocModelID"} - {
        option.rstrip(",") for option in options if option.endswith(",")
    } | {"--pipeline"}) - 0  # fmt: skip


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("-byocModelID", "--byocModelID"), ("-port=8000", "--port=8000"), ("--port", "--port"), ("-h", "-h"),
        ("-", "-"), ("-5", "-5"), ("serve", "serve"), ("-v", "-v"), ("file-name.wav", "file-name.wav"),
    ],
)  # fmt: skip
def test_go_spelling(word, expected):
    assert two_dashes(word) == expected


def test_transcribe_writes_every_format(run, fixtures_dir, tmp_path, texts):
    name = "demo-hello-world.wav"
    code, out, _ = run(
        "transcribe",
        fixtures_dir / name,
        "--model",
        "whisper-demo",
        "--format",
        "txt,json,srt,vtt",
        "--output",
        tmp_path,
    )
    assert code == 0
    assert sorted(out.split()) == sorted(
        str(tmp_path / f"demo-hello-world.{kind}") for kind in ("txt", "json", "srt", "vtt")
    )
    assert (tmp_path / "demo-hello-world.txt").read_text() == texts[name]["text"] + "\n"
    assert json.loads((tmp_path / "demo-hello-world.json").read_text())["text"] == texts[name]["text"]
    assert " --> " in (tmp_path / "demo-hello-world.srt").read_text()
    assert (tmp_path / "demo-hello-world.vtt").read_text().startswith("WEBVTT\n")


def test_transcribe_long_file_and_silence_to_stdout(run, fixtures_dir, texts):
    code, out, _ = run(
        "transcribe", fixtures_dir / "demo-long-40s.wav", fixtures_dir / "silence-3s.wav", "--model", "demo"
    )
    assert code == 0
    assert out.split() == texts["demo-long-40s.wav"]["text"].split()


def test_transcribe_reads_raw_pcm_as_send_does(run, fixtures_dir, tmp_path):
    path = tmp_path / "hello.pcm"
    path.write_bytes(pcm.encode(load_audio(fixtures_dir / "demo-hello-world.wav")))
    assert run("transcribe", path, "--model", "demo") == (0, "hello world\n", "")


def test_transcribe_looks_at_its_folder_before_it_works(run, tmp_path):
    taken, talk, again = tmp_path / "taken", tmp_path / "talk.wav", tmp_path / "talk.mp3"
    for path in (taken, talk, again):
        path.write_bytes(b"")
    refused(run("transcribe", talk, "--output", taken), 2, f"cannot make the folder {taken}")
    refused(run("transcribe", talk, again, "--output", tmp_path / "out"), 2, str(talk), str(again), "both")
    assert not (tmp_path / "out").exists()


def test_transcribe_what_is_no_sound(run, tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("not sound")
    refused(run("transcribe", path, "--model", "demo"), 1, "notes.txt")


def test_files_that_cannot_be_read_do_not_keep_others_from_being_transcribed(run, fixtures_dir, tmp_path):
    broken, cut = tmp_path / "broken.mp3", tmp_path / "cut.wav"
    broken.write_bytes(bytes(100))
    cut.write_bytes((fixtures_dir / "demo-hello-world.wav").read_bytes()[:-2])
    code, out, err = run("transcribe", "--model", "demo", broken, cut, fixtures_dir / "demo-hello-world.wav")
    assert code == 1
    assert out == "hello world\n"
    assert "2 of 3 files could not be read" in err
    assert str(broken) in err
    assert str(cut) in err


def test_several_formats_need_a_folder(run, fixtures_dir):
    refused(run("transcribe", fixtures_dir / "demo-yes.wav", "--format", "srt,vtt"), 2, "--output")


def test_preload_of_the_demo_model_says_where_it_is(run):
    code, out, _ = run("preload", "-model", "whisper-demo")
    assert code == 0
    assert out.startswith("demo: ")
    assert "demo.pt (4.2 MB)" in out


@pytest.mark.parametrize(
    ("source", "part"),
    [
        ("x = 1\n", "defines no class"),
        ("class A:\n    async def process(self, frame): return frame\nclass B(A): pass\n", "A, B"),
        (
            "class A:\n    def __init__(self, x): pass\n    async def process(self, frame): return frame\n",
            "without arguments",
        ),
        ("from pytrickle import FrameProcessor\nclass A(FrameProcessor): pass\n", "defines no class"),
    ],
)
def test_scripts_that_cannot_be_served(run, tmp_path, source, part):
    path = tmp_path / "script.py"
    path.write_text(source)
    refused(run("run", path), 2, part)


def test_a_script_that_fails_shows_its_own_traceback(capsys, tmp_path):
    path = tmp_path / "script.py"
    path.write_text("def f():\n    return 1 / 0\nf()\n")
    assert main(["run", str(path)]) == 1
    err = capsys.readouterr().err
    assert "line 2, in f" in err  # the author's own mistake, with its place
    assert err.endswith(f"whisper-byoc: {path} failed with ZeroDivisionError: division by zero\n")


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


def test_overview_keeps_names_and_summaries_apart(run):
    _, out, _ = run("--help")
    assert all(re.fullmatch(r"  [a-z]+ +\S.*", line) for line in out.splitlines() if line.startswith("  "))


def test_an_environment_variable_is_held_to_the_choices_of_its_option(run, monkeypatch):
    monkeypatch.setenv("LOG_LEVEL", "loud")
    refused(run("serve", "--pipeline", "nothing"), 2, "LOG_LEVEL", "'loud'", "debug, info, warning, error")
    monkeypatch.setenv("LOG_LEVEL", "INFO")
    monkeypatch.setenv("DATA_FORMAT", "xml")
    refused(run("serve", "--pipeline", "nothing"), 2, "DATA_FORMAT", "'xml'", "object, pytrickle")
    monkeypatch.setenv("DATA_FORMAT", "pytrickle")
    refused(run("serve", "--pipeline", "nothing"), 2, "no pipeline 'nothing'")


def test_a_script_need_not_have_arguments(run):
    code, _, err = run("run")
    assert (code, err) == (
        2,
        "whisper-byoc: the following arguments are required: script (see whisper-byoc run --help)\n",
    )


def test_doctor_wants_a_whole_address(run):
    refused(run("doctor", "--container", "127.0.0.1:8000"), 2, "'127.0.0.1:8000'", "http://")


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
    assert ended.stderr == "whisper-byoc: the output cannot be written: No space left on device\n"


@pytest.mark.parametrize(("words", "code"), [(["pipelines"], 0), (["bogus"], 2), (["send", "-"], 1)])
def test_files_that_are_closed_from_the_start(words, code, unused_tcp_port):
    url = f"http://127.0.0.1:{unused_tcp_port}"
    line = shlex.join([sys.executable, "-m", "whisper_byoc.cli.main", *words])
    ended = subprocess.run(
        ["/bin/sh", "-c", f"{line} <&- >&-"], env=os.environ | {"BYOC_URL": url}, text=True, timeout=50,
        stderr=subprocess.PIPE, check=False,
    )  # fmt: skip
    assert ended.returncode == code, ended.stderr
    assert "Traceback" not in ended.stderr
    assert "bug" not in ended.stderr


@pytest.mark.parametrize("command", ["send", "transcribe", "run"])
def test_a_name_that_cannot_be_looked_up_is_wrong_usage(run, command):
    refused(run(command, "x" * 300), 2, "cannot be looked up: File name too long")


@pytest.mark.parametrize("address", ["http://", "http://a..b:80", "http://localhost:99999", "http://[::1", "ftp://a"])
def test_what_is_no_address(run, tmp_path, address):
    path = tmp_path / "sound.pcm"
    path.write_bytes(bytes(3200))
    refused(run("send", "--url", address, path), 2, repr(address), "is not the address of a server")


@pytest.mark.parametrize("command", ["preload", "transcribe"])
def test_pipelines_of_other_models_are_known_by_their_names_too(run, monkeypatch, tmp_path, command):
    """As `serve --pipeline whisper-base` knows them; here the file is there, and is none."""
    monkeypatch.setenv("MODEL_DIR", str(tmp_path))
    (tmp_path / "base.pt").mkdir()
    sound = tmp_path / "sound.pcm"
    sound.write_bytes(bytes(3200))
    code, out, err = run(command, "--model", "whisper-base", *([sound] if command == "transcribe" else []))
    assert (code, out) == (1, ""), err
    assert "base.pt" in err


@pytest.mark.parametrize("before", [[], ["-port", "0"], ["-log-level=info", "--host", "127.0.0.1"]])
def test_arguments_of_a_script_are_handed_on_as_they_are(run, tmp_path, before):
    path = tmp_path / "script.py"
    given = ["-name", "value", "-port", "-x", "--y"]
    path.write_text(f"import sys\nassert sys.argv[1:] == {given}, sys.argv\nsys.exit(3)\n")
    told = run("run", *before, path, *given)
    refused(told, 1, "script.py exited with 3")


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


def test_a_name_that_is_no_text_is_printed_as_it_is(monkeypatch, fixtures_dir, tmp_path):
    monkeypatch.setenv("PYTHONIOENCODING", "utf-8:strict")  # as in a locale such as en_US.UTF-8
    name = os.fsdecode(b"t\xe9st.wav")
    shutil.copy(fixtures_dir / "demo-yes.wav", tmp_path / name)
    words = ("transcribe", tmp_path / name, "--model", "demo", "--output", tmp_path)
    command = (sys.executable, "-m", "whisper_byoc.cli.main", *map(str, words))
    ended = subprocess.run(command, capture_output=True, timeout=50, check=False)
    assert (ended.returncode, ended.stderr) == (0, b"")
    assert ended.stdout == os.fsencode(tmp_path) + b"/t\xe9st.txt\n"


@pytest.mark.parametrize("kind", ["srt", "vtt"])
def test_subtitles_of_several_files_are_not_run_together(run, fixtures_dir, kind):
    files = (fixtures_dir / "demo-yes.wav", fixtures_dir / "demo-hello-world.wav")
    refused(run("transcribe", *files, "--model", "demo", "--format", kind), 2, kind, "--output")


@pytest.mark.parametrize(
    "source",
    ["from http_trickle import TrickleClient", "import http_trickle", "from whisper_byoc import GatewayClient"],
)
def test_a_script_with_a_client_need_not_define_a_processor(run, tmp_path, source):
    path = tmp_path / "client.py"
    path.write_text(f"{source}\nprint('received')\n")
    assert run("run", path) == (0, "received\n", "")
    path.write_text(f"{source}\nclass A:\n    async def process(self, frame): ...\nclass B(A): pass\n")
    refused(run("run", path), 2, "A, B")
