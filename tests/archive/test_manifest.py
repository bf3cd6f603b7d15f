"""What is done stays done, whatever happens to the process that did it."""

import os
import signal
import subprocess
import sys

import pytest

from whisper_byoc.archive.manifest import Manifest
from whisper_byoc.archive.sources import Source
from whisper_byoc.errors import UsageError

SOURCE = Source("rec/a.wav", "rec/a.wav", 5, "5 1")
RECORDS = ({"type": "transcript", "text": "yes"},)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "manifest.sqlite"


def test_what_is_done_is_known_to_the_next_run(path):
    with Manifest(path, {"model": "tiny"}) as manifest:
        assert not manifest.has(SOURCE)
        manifest.add(SOURCE, 1.0, RECORDS)
    with Manifest(path, {"model": "tiny"}) as manifest:
        assert manifest.has(SOURCE)
        assert list(manifest.everything()) == [("rec/a.wav", list(RECORDS))]


def test_other_options_or_another_version_are_not_done(path):
    with Manifest(path, {"model": "tiny"}) as manifest:
        manifest.add(SOURCE, 1.0, RECORDS)
        assert not manifest.has(Source("rec/a.wav", "rec/a.wav", 5, "5 2"))
    with Manifest(path, {"model": "base"}) as manifest:
        assert not manifest.has(SOURCE)
        manifest.add(SOURCE, 1.0, RECORDS)
        assert manifest.has(SOURCE)
        assert len(list(manifest.everything())) == 1


def test_a_second_run_on_the_folder_is_refused(path):
    with (
        Manifest(path, {}),
        pytest.raises(UsageError, match="another run works on"),
        Manifest(path, {}),
    ):
        pass
    with Manifest(path, {}):
        pass


@pytest.mark.parametrize("content", [b"something else\n" * 100, b"\x89PNG"])
def test_another_file_of_that_name_is_refused(path, content):
    path.write_bytes(content)
    with pytest.raises(UsageError, match="is no manifest"), Manifest(path, {}):
        pass
    assert path.read_bytes() == content


WRITER = """
import sys
from pathlib import Path
from whisper_byoc.archive.manifest import Manifest
from whisper_byoc.archive.sources import Source
with Manifest(Path(sys.argv[1]), {}) as manifest:
    for number in range(10**6):
        manifest.add(Source(f"{number}", f"{number}", 1, "1"), 1.0, ({"text": "yes " * 1000},))
        print(number, flush=True)
"""


def test_a_killed_run_keeps_what_it_had_done(path):
    command = [sys.executable, "-c", WRITER, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        lines = [process.stdout.readline() for _ in range(30)]
        os.kill(process.pid, signal.SIGKILL)
        lines += process.stdout.read().splitlines()
    with Manifest(path, {}) as manifest:
        assert {source for source, _ in manifest.everything()} >= {line.strip() for line in lines}
