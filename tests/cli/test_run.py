"""`whisper-byoc run` with scripts of every kind; `tests/e2e/test_tutorial.py` has the tutorial's."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import refused
from tests.ports import free_port
from whisper_byoc import TrickleClient
from whisper_byoc.cli.main import main

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.mark.parametrize(
    ("source", "part"),
    [
        ("x = 1\n", "defines no class or function"),
        ("async def other(frame): return frame\n", "defines no class or function"),
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


def test_a_script_that_is_no_python_shows_its_line(capsys, tmp_path):
    path = tmp_path / "script.py"
    path.write_text("x = 1\ndef f(:\n")
    assert main(["run", str(path)]) == 1
    assert re.match(r'  File ".*script\.py", line 2\n', capsys.readouterr().err)


@pytest.mark.parametrize("before", [[], ["-port", "0"], ["-log-level=info", "--host", "127.0.0.1"]])
def test_arguments_of_a_script_are_handed_on_as_they_are(run, tmp_path, before):
    path = tmp_path / "script.py"
    given = ["-name", "value", "-port", "-x", "--y"]
    path.write_text(f"import sys\nassert sys.argv[1:] == {given}, sys.argv\nsys.exit(3)\n")
    told = run("run", *before, path, *given)
    refused(told, 1, "script.py exited with 3")


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


FUNCTION = """
async def process(frame: bytes) -> str:
    return frame.decode().upper()
"""


async def test_a_plain_function_that_returns_text_is_a_processor(command, tmp_path):
    path = tmp_path / "upper.py"
    path.write_text(FUNCTION)
    server = await (await command("run", "--port", "0", str(path))).ready()
    async with TrickleClient(server.url) as client:
        assert await client.process_frame(b"abc") == b"ABC"
        records = [record async for record in client.stream(b"def")]
    assert [each.get("text") for each in records] == ["DEF", None]
    assert await server.end(signal.SIGTERM) == 0


async def test_a_change_begins_it_anew(command, tmp_path):
    path = tmp_path / "upper.py"
    path.write_text(FUNCTION)
    port = free_port()
    server = await command("run", "--reload", "--port", str(port), str(path))
    await server.logged("ready: process")
    path.write_text("this is no Python")
    await server.logged("SyntaxError.*")
    path.write_text(FUNCTION.replace("upper", "lower"))
    await server.logged("ready: process")
    async with TrickleClient(f"http://127.0.0.1:{port}") as client:
        assert await client.process_frame(b"Abc") == b"abc"
    assert await server.end(signal.SIGTERM) == 0


async def test_an_option_behind_the_script_is_named(command, tmp_path):
    path = tmp_path / "script.py"
    path.write_text("import sys\nsys.exit(3)\n")
    told = await command("run", str(path), "--port", "9000")
    await told.logged("--port is passed to the script; put it before the script to set the server's option")
    assert await told.end(None) == 1


def test_a_new_project_works(run, tmp_path):
    assert run("new", tmp_path / "my-speech")[0] == 0
    code = "import sys, pytest; sys.exit(pytest.main(['-q', '-p', 'no:cacheprovider', '.']))"
    options = {"cwd": tmp_path / "my-speech", "env": os.environ | {"PYTHONPATH": str(ROOT)}, "capture_output": True}
    tested = subprocess.run([sys.executable, "-c", code], **options, check=False)
    assert tested.returncode == 0, tested.stdout
    assert "class MySpeech" in (tmp_path / "my-speech" / "processor.py").read_text()
    refused(run("new", tmp_path / "my-speech"), 2, "already exists")
    refused(run("new", "--"), 2)
