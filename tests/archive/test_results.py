"""The files of results: whole, or not there."""

import json

import pytest

from whisper_byoc.archive.manifest import Manifest
from whisper_byoc.archive.results import Folder
from whisper_byoc.archive.sources import Failure, Source
from whisper_byoc.errors import UsageError

SURE = {"avg_logprob": -0.1, "no_speech_prob": 0.0, "compression_ratio": 1.0, "temperature": 0.0}
WORD = {"start_ms": 500, "end_ms": 900, "text": "yes", "probability": 0.9}
SEGMENT = {"start_ms": 500, "end_ms": 900, "text": "yes", "language": "en", **SURE, "words": [WORD]}
RECORDS = ({"type": "transcript", "text": "yes", "language": "en", "model": "demo", "segments": [SEGMENT]},)
ROW = {
    "source": "rec/a.wav",
    "segment": 0,
    "start": 0.5,
    "end": 0.9,
    "text": "yes",
    "language": "en",
    **SURE,
    "words": [{"word": "yes", "start": 0.5, "end": 0.9, "probability": 0.9}],
    "model": "demo",
}


def test_each_recording_has_its_files(tmp_path):
    folder = Folder(tmp_path / "out", ["txt", "srt"], 42)
    assert not folder.has("rec/a.wav")
    folder.write("rec/a.wav", RECORDS)
    assert folder.has("rec/a.wav")
    assert (tmp_path / "out/rec/a.wav.txt").read_text() == "yes\n"
    assert "00:00:00,500" in (tmp_path / "out/rec/a.wav.srt").read_text()
    folder.remove("rec/a.wav")
    assert not any(path.is_file() for path in (tmp_path / "out").rglob("*"))


def test_the_table_has_times_words_and_confidence(tmp_path):
    folder = Folder(tmp_path, ["jsonl"], 42)
    with Manifest(tmp_path / "manifest.sqlite", {}) as manifest:
        manifest.add(Source("rec/a.wav", "rec/a.wav", 1, "1"), 1.0, RECORDS)
        folder.write_tables(manifest)
    assert [json.loads(line) for line in (tmp_path / "transcripts.jsonl").read_text().splitlines()] == [ROW]


def test_the_same_table_as_parquet(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed; see `make test-archives`")
    folder = Folder(tmp_path, ["parquet"], 42)
    with Manifest(tmp_path / "manifest.sqlite", {}) as manifest:
        manifest.add(Source("rec/a.wav", "rec/a.wav", 1, "1"), 1.0, RECORDS)
        folder.write_tables(manifest)
    assert parquet.read_table(tmp_path / "transcripts.parquet").to_pylist() == [ROW]


def test_a_name_that_cannot_be_fails_alone(tmp_path):
    folder = Folder(tmp_path, ["txt"], 42)
    folder.write("a", RECORDS)
    with pytest.raises(UsageError, match=r"cannot write .*a\.txt/b\.txt"):
        folder.write("a.txt/b", RECORDS)


def test_failures_are_a_list_that_a_new_run_begins_anew(tmp_path):
    folder = Folder(tmp_path, ["txt"], 42)
    (tmp_path / ".7.part").write_text("of a run that was killed")
    folder.fail(Failure("rec/b.wav", "not sound"))
    assert json.loads((tmp_path / "failed.jsonl").read_text()) == {"source": "rec/b.wav", "reason": "not sound"}
    folder.begin()
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot make the folder"):
        Folder(tmp_path / "file", ["txt"], 42)
