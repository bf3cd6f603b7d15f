"""`whisper-byoc transcribe` with folders of recordings: processes of this machine, and runs that go on."""

import importlib.util
import json
import shutil
import signal
import sqlite3

import pytest

from tests.cli.conftest import refused
from tests.waiting import until
from whisper_byoc.archive.manifest import Manifest

NAMES = ("demo-hello-world", "demo-yes", "demo-numbers")


@pytest.fixture
def recordings(fixtures_dir, tmp_path, monkeypatch):
    """A folder with three recordings, beside which the tests run."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rec" / "day").mkdir(parents=True)
    for name in NAMES:
        shutil.copy(fixtures_dir / f"{name}.wav", tmp_path / "rec" / "day")
    return tmp_path / "rec"


def transcribe(run, *words):
    return run("transcribe", *words, "--model", "demo", "--output", "out")


def test_an_archive_has_the_texts_of_plain_transcribe_and_resumes(run, recordings, tmp_path, texts):
    (recordings / "broken.mp3").write_bytes(bytes(100))
    formats = ("--format", "json,txt,jsonl", "--words")
    code, out, err = transcribe(run, "rec", *formats, "--processes", "2")
    assert code == 1
    assert out.startswith("out: 3 transcribed (")
    assert "1 failed, see out/failed.jsonl: rec/broken.mp3: " in err
    assert json.loads((tmp_path / "out/failed.jsonl").read_text())["source"] == "rec/broken.mp3"
    (tmp_path / "plain").mkdir()
    files = [recordings / "day" / f"{name}.wav" for name in NAMES]
    words = ("--format", "json,txt", "--words", "--model", "demo", "--output", tmp_path / "plain")
    assert run("transcribe", *files, *words)[0] == 0
    for name in NAMES:
        for kind in ("json", "txt"):
            mine = tmp_path / "out/rec/day" / f"{name}.wav.{kind}"
            assert mine.read_text() == (tmp_path / "plain" / f"{name}.{kind}").read_text()
    rows = [json.loads(line) for line in (tmp_path / "out/transcripts.jsonl").read_text().splitlines()]
    assert {row["source"] for row in rows} == {f"rec/day/{name}.wav" for name in NAMES}

    (recordings / "broken.mp3").unlink()
    (tmp_path / "out/rec/day/demo-yes.wav.txt").unlink()
    code, out, _ = transcribe(run, "rec", *formats)
    assert (code, out) == (0, "out: 0 transcribed, 3 were done before\n")
    assert (tmp_path / "out/rec/day/demo-yes.wav.txt").read_text() == "yes\n"
    assert not (tmp_path / "out/failed.jsonl").exists()

    shutil.copy(recordings / "day/demo-yes.wav", recordings / "day/demo-numbers.wav")  # another recording, same name
    code, out, _ = transcribe(run, "rec", "--format", "txt", "--words")
    assert out.endswith("2 were done before\n")
    assert (tmp_path / "out/rec/day/demo-numbers.wav.txt").read_text() == "yes\n"
    assert not (tmp_path / "out/rec/day/demo-numbers.wav.json").exists()  # it was of the older one


async def test_a_run_that_is_killed_or_interrupted_goes_on_where_it_was(command, recordings, tmp_path):
    """Its processes end with it, the next run is not kept out, and nothing that was done is done again."""
    out = tmp_path / "out"
    for number in range(20):
        shutil.copy(recordings / "day/demo-numbers.wav", recordings / f"{number}.wav")
    words = ("transcribe", "rec", "--model", "demo", "--output", "out", "--processes", "1")
    done = 0
    for how, code in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)):
        running = await command(*words)
        await until(lambda before=done: len(list(out.rglob("*.txt"))) >= before + 2)
        assert await running.end(how) == code  # waits until its processes have closed stderr, too
        with Manifest(out / "manifest.sqlite", {}):
            pass
        done = len(list(out.rglob("*.txt")))
        assert {path.read_text() for path in out.rglob("*.txt")} == {(out / "rec/0.wav.txt").read_text()}
    running = await command(*words)
    assert await running.end(None) == 0
    with sqlite3.connect(out / "manifest.sqlite") as db:
        ((rows,),) = db.execute("SELECT count(*) FROM transcripts")
    assert rows == len(list(out.rglob("*.txt"))) == 23
    assert int(running.out.split()[1]) + done in (23, 24)  # what was noted when it was killed may have had no file


def test_what_a_list_names_and_is_not_there_is_a_failure(run, recordings, tmp_path):
    (tmp_path / "list.txt").write_text("rec/day/gone.wav\n")
    code, out, err = transcribe(run, "@list.txt")
    assert (code, out) == (1, "out: 0 transcribed\n")
    assert "1 failed, see out/failed.jsonl: rec/day/gone.wav: No such file or directory" in err


def test_a_folder_that_is_worked_on_is_refused(run, recordings, tmp_path):
    (tmp_path / "out").mkdir()
    with Manifest(tmp_path / "out/manifest.sqlite", {}):
        refused(transcribe(run, "rec"), 2, "another run works on out")


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (("rec",), "--output FOLDER"),
        (("empty", "-o", "out"), "no recordings in empty; 1 files have other extensions"),
        (("rec/*.flac", "-o", "out"), "rec/*.flac"),
        (("@gone.txt", "-o", "out"), "gone.txt cannot be read"),
        (("--from", "gone.txt", "-o", "out"), "gone.txt cannot be read"),
        (("ftp://host/a.wav", "-o", "out"), "s3://"),
        (("--ray", "ray://host:10001", "rec", "-o", "out"), "HOST:PORT"),
        (("rec", "-o", "taken"), "cannot make the folder taken"),
        ((), "name a FILE"),
        (("rec/day/demo-yes.wav", "--format", "jsonl"), "a table of an archive"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(run, recordings, tmp_path, words, part):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("")
    (tmp_path / "taken").write_text("")
    refused(run("transcribe", *words), 2, part)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("package", "words"),
    [("ray", ("--ray", "rec")), ("s3fs", ("s3://bucket/a.wav",)), ("pyarrow", ("rec", "--format", "parquet"))],
)
def test_what_is_not_installed_is_named(run, recordings, package, words):
    if importlib.util.find_spec(package):
        pytest.skip(f"{package} is installed")
    refused(transcribe(run, *words), 2, "pip install 'whisper-byoc[")
