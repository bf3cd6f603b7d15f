"""`whisper-byoc run` with scripts of every kind; `tests/e2e/test_tutorial.py` has the tutorial's."""

import pytest

from tests.cli.conftest import refused
from whisper_byoc.cli.main import main


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
