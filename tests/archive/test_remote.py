"""Recordings at S3 and HTTP servers; `make test-archives` runs this, with a real S3 server on loopback."""

import functools
import http.server
import json
import shutil
import threading
import urllib.request

import pytest

from tests.cli.conftest import run  # noqa: F401 - a fixture
from whisper_byoc.archive.sources import find, local_copy
from whisper_byoc.errors import UsageError

s3fs = pytest.importorskip("s3fs", reason="s3fs is not installed; `make test-archives` has it")
moto_server = pytest.importorskip("moto.server", reason="moto is not installed; `make test-archives` has it")

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of botocore and moto
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # sessions of s3fs live as long as the process
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture
def s3(monkeypatch, tmp_path):
    """An S3 server with the bucket `bucket`."""
    import boto3

    monkeypatch.chdir(tmp_path)
    server = moto_server.ThreadedMotoServer(port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/moto-api/reset", b"", timeout=30):
        pass  # what it has outlives a server
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    client = boto3.client("s3")
    client.create_bucket(Bucket="bucket")
    s3fs.S3FileSystem.clear_instance_cache()
    yield client
    server.stop()


def test_a_prefix_of_a_bucket_is_transcribed_and_resumed(run, s3, fixtures_dir, tmp_path):  # noqa: F811
    parquet = pytest.importorskip("pyarrow.parquet")
    for name, key in (("demo-yes", "rec/a.wav"), ("demo-hello-world", "rec/day/[b] ü.wav"), ("demo-stop", "c.wav")):
        s3.upload_file(str(fixtures_dir / f"{name}.wav"), "bucket", key)
    s3.put_object(Bucket="bucket", Key="rec/broken.mp3", Body=bytes(100))
    s3.put_object(Bucket="bucket", Key="rec/notes.txt", Body=b"")
    words = (
        "transcribe",
        "s3://bucket/rec",
        "--model",
        "demo",
        "--output",
        "out",
        "--format",
        "txt,parquet",
        "--words",
    )
    code, out, err = run(*words)
    assert code == 1
    assert out.startswith("out: 2 transcribed (")
    assert out.endswith("1 other files skipped\n")
    assert "s3://bucket/rec/broken.mp3: The file 's3://bucket/rec/broken.mp3' is not media" in err
    folder = tmp_path / "out/s3/bucket/rec"
    assert (folder / "a.wav.txt").read_text() == "yes\n"
    assert (folder / "day/[b] ü.wav.txt").read_text() == "hello world\n"
    rows = parquet.read_table(tmp_path / "out/transcripts.parquet").to_pylist()
    assert [(row["source"], row["text"], len(row["words"])) for row in rows] == [
        ("s3://bucket/rec/a.wav", "yes", 1),
        ("s3://bucket/rec/day/[b] ü.wav", "hello world", 2),
    ]

    s3.upload_file(str(fixtures_dir / "demo-stop.wav"), "bucket", "rec/a.wav")
    s3.delete_object(Bucket="bucket", Key="rec/broken.mp3")
    s3fs.S3FileSystem.clear_instance_cache()  # another run is another process
    code, out, _ = run(*words)
    assert (code, out.startswith("out: 1 transcribed ("), "1 were done before" in out) == (0, True, True)
    assert (folder / "a.wav.txt").read_text() == "stop\n"


def test_what_is_not_in_the_bucket_is_said(run, s3, tmp_path):  # noqa: F811
    code, _, err = run("transcribe", "s3://bucket/gone/*.wav", "--model", "demo", "--output", "out")
    assert (code, err) == (2, "whisper-byoc: nothing is found at s3://bucket/gone/*.wav\n")
    (tmp_path / "list").write_text("s3://bucket/gone.wav\ns3://nowhere/gone.wav\n")
    listing = find([], [tmp_path / "list"])
    assert [each.reason for each in listing.failures] == [
        "there is nothing at s3://bucket/gone.wav",
        "there is nothing at s3://nowhere/gone.wav",
    ]


def test_a_pattern_of_a_bucket_is_the_files_that_match(s3):
    for key in ("rec/a.wav", "rec/b.wav", "rec/c.mp3"):
        s3.put_object(Bucket="bucket", Key=key, Body=b"sound")
    found = find(["s3://bucket/rec/*.wav"], []).sources
    assert [(each.place, each.size) for each in found] == [("s3://bucket/rec/a.wav", 5), ("s3://bucket/rec/b.wav", 5)]


@pytest.fixture
def web(tmp_path):
    """A web server of the files in a folder."""
    (tmp_path / "web").mkdir()
    handler = functools.partial(QuietHandler, directory=tmp_path / "web")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield tmp_path / "web", f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


def test_addresses_of_the_web_are_copied_for_as_long_as_they_are_read(web, fixtures_dir):
    folder, url = web
    shutil.copy(fixtures_dir / "demo-yes.wav", folder / "yes.wav")
    (source,) = find([f"{url}/yes.wav?token=secret"], []).sources
    assert source.size == (fixtures_dir / "demo-yes.wav").stat().st_size
    with local_copy(source.place) as path:
        assert path.suffix == ".wav"
        assert path.read_bytes() == (folder / "yes.wav").read_bytes()
    assert not path.exists()
    assert "secret" not in json.dumps(source.name)


def test_what_the_web_does_not_have_is_a_failure(web):
    _, url = web
    (failure,) = find([f"{url}/gone.wav"], []).failures
    assert failure.reason == f"there is nothing at {url}/gone.wav"
    with pytest.raises(UsageError, match="there is nothing at"), local_copy(f"{url}/gone.wav"):
        pass
