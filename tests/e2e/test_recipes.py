"""The recipes of docs/joining-livepeer.md, as they are pasted, through our own gateway and orchestrator."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from audio.ffmpeg import ffmpeg_path

PAGE = Path(__file__).resolve().parents[2] / "docs" / "joining-livepeer.md"
BATCH, STREAM = re.findall(r"^```bash\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
NUMBERS = "seven three nine zero five one"


@pytest.fixture(scope="module")
def gateway(container_node, orchestrator_node, gateway_node):
    container = container_node("whisper-demo").start().ready()
    return gateway_node(orchestrator_node(container).start().ready()).start().ready()


@pytest.fixture
def pasted(gateway, fixtures_dir, tmp_path):
    """Return a function that runs a recipe in a folder with a `talk.mp3`, and returns what it prints."""
    bash = shutil.which("bash")
    if not (bash and shutil.which("curl")):
        pytest.skip("there is no bash with curl here")
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "ffmpeg").symlink_to(ffmpeg_path())
    (programs / "whisper-byoc").write_text(f'#!/bin/sh\nexec "{sys.executable}" -P -m whisper_byoc "$@"\n')
    (programs / "whisper-byoc").chmod(0o755)
    shutil.copy(fixtures_dir / "demo-numbers.wav", tmp_path / "talk.mp3")
    path = {"PATH": f"{programs}:{os.environ['PATH']}", "GATEWAY": gateway.url, "CAPABILITY": "whisper-demo"}

    def run(recipe):
        done = subprocess.run(
            [bash, "-c", recipe], cwd=tmp_path, env=os.environ | path, capture_output=True, text=True, timeout=50
        )
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    return run


def test_a_batch_request(pasted):
    assert re.fullmatch(rf"1\n00:00:00,\d{{3}} --> 00:00:03,\d{{3}}\n{NUMBERS}\n\n", pasted(BATCH))


def test_a_stream(pasted):
    records = [json.loads(data) for data in re.findall(r"^data: (.*)$", pasted(STREAM), re.MULTILINE)]
    said = " ".join(each["text"] for each in records if each["type"] == "transcript" and each["is_final"])
    assert re.findall(r"\w+", said.lower()) == NUMBERS.split()
