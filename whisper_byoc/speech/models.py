"""Checkpoints: which there are, where they are kept, and how they are downloaded, checked and loaded.

A model is named by openai-whisper's own table (`tiny`, `tiny.en`, `base`, ...), by `demo` (bundled, see
assets/README.md) or by the path of a `.pt` file. The one asked for is loaded, or an error says why not.
torch and openai-whisper take seconds to import, so only the functions that need them do.
"""

import hashlib
import http.client
import os
import secrets
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from whisper_byoc.errors import ModelError, UnknownModel

if TYPE_CHECKING:
    from whisper.model import Whisper

DEMO_SHA256 = "5f75c514ba7ea41a74b1b0c0c4fa5beb1f0de32487da30a3e5a41fd79131a4b1"
DEMO_FILE = Path(__file__).resolve().parent / "assets" / "demo.pt"

MAX_CHECKPOINT_BYTES = 4 << 30
"""No download grows beyond it; the largest in openai-whisper's table (large-v3) has 3.1 GB."""

MAX_DOWNLOAD_SECONDS = 2 * 3600
"""Ends a download that trickles: every read is in time, yet the whole never arrives."""


@dataclass(frozen=True)
class Checkpoint:
    """A file with a model's dimensions and weights."""

    name: str
    """The model's name, or the path it was asked for by."""
    file: Path
    """Its name in the folder of models, or an absolute path."""
    url: str | None
    """Where it can be downloaded; None when it cannot."""
    sha256: str | None
    """In lower-case hex; None for a file of the user's own."""

    def path(self, directory: Path | None = None) -> Path:
        """Return where the file is or would be: in `directory`, by default `default_model_dir()`."""
        return self.file if self.file.is_absolute() else (directory or default_model_dir()) / self.file


def model_names() -> tuple[str, ...]:
    """Return every model that has a name: openai-whisper's table, then `demo`."""
    import whisper

    return (*whisper.available_models(), "demo")


def checkpoint(name: str | os.PathLike[str]) -> Checkpoint:
    """Look up a model by name, or a checkpoint file by path; a name wins over a file that is called like it.

    Raises UnknownModel when `name` is neither.
    """
    name = os.fspath(name)
    if name == "demo":
        return Checkpoint(name, DEMO_FILE, None, DEMO_SHA256)
    import whisper

    # The table is private, and the only source of these addresses; openai-whisper is pinned for it.
    url = whisper._MODELS.get(name)  # noqa: SLF001
    if url is not None:
        *_, sha256, file = url.split("/")  # .../<SHA-256 of the file>/<file>, as whisper._download reads it
        return Checkpoint(name, Path(file), url, sha256)
    if os.path.isfile(name):  # noqa: PTH113 - Path.is_file raises when the name is too long for a path
        return Checkpoint(name, Path(name).absolute(), None, None)
    raise UnknownModel(f"{name!r} is neither a model nor a checkpoint file: the models are {', '.join(model_names())}.")


def default_model_dir() -> Path:
    """Return openai-whisper's own cache folder, which honours XDG_CACHE_HOME. It need not exist yet."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "whisper"
    except RuntimeError as error:  # a user without a home, as containers have them
        raise ModelError("There is no home folder to keep models in: set MODEL_DIR to a folder.") from error


def find_model(name: str | os.PathLike[str], directory: Path | None = None) -> Path | None:
    """Return the path of the checkpoint if it is there with the right SHA-256, None if it is not there.

    Never uses the network. Raises ModelError when the file cannot be read or has other contents (it is not
    replaced: it may be the user's own), and UnknownModel.
    """
    wanted = checkpoint(name)
    path = wanted.path(directory)
    try:
        if wanted.url and not path.exists():
            return None
        found = _sha256(path) if wanted.sha256 else None
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
    """Return the path of the checkpoint, after downloading it if it is not there yet.

    `timeout` (seconds) limits the connection and every wait for more bytes. `progress` draws a bar on stderr when that
    is a terminal. The file appears under its name whole and with the right SHA-256, or not at all; of several processes
    that fetch the same model at once, each downloads it, and the last one's file stays.

    Raises ModelError, which names the alternatives, when it cannot be had, and UnknownModel.
    """
    found = find_model(name, directory)
    if found is not None:
        return found
    wanted = checkpoint(name)
    path = wanted.path(directory)
    # A name of its own for each process; made with the usual umask, since the server may run as another user.
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


def load_model(name: str | os.PathLike[str], directory: Path | None = None) -> "Whisper":
    """Load a model into memory: on the CPU, float32, in evaluation mode, with its alignment heads if known.

    The checkpoint is downloaded if it is not there. It is read with weights-only unpickling, which runs no code of the
    file's.

    Raises ModelError when the checkpoint cannot be had or does not load, and UnknownModel.
    """
    wanted = checkpoint(name)
    path = fetch_model(name, directory)
    import whisper

    try:
        model = whisper.load_model(str(path), device="cpu")
        heads = whisper._ALIGNMENT_HEADS.get(wanted.name)  # noqa: SLF001 - given a path, whisper leaves them out
        if heads is not None:
            model.set_alignment_heads(heads)
    except Exception as error:  # unpickling what may be any bytes raises nearly anything
        problem = f"{path} does not load as a Whisper checkpoint ({type(error).__name__}: {_reason(error)})"
        raise ModelError(f"{problem}: give a `.pt` file in openai-whisper's format.") from error
    return model.eval()


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
            while block := response.read1(1 << 20):  # returns what one wait brings, so that a trickle is noticed
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


def _get(url: str, timeout: float) -> http.client.HTTPResponse:
    try:
        return urllib.request.urlopen(url, timeout=timeout)  # type: ignore[no-any-return]  # noqa: S310 - from the table
    except urllib.error.HTTPError as error:
        error.close()
        raise _DownloadFailed(f"HTTP status {error.code}") from error


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _reason(error: Exception) -> str:
    """Return the first sentence of an error: torch goes on with advice that is not safe here."""
    inner = getattr(error, "reason", error)  # what a URLError wraps
    text = getattr(inner, "strerror", None) or str(inner) or "no reason given"
    return text.splitlines()[0].partition(". ")[0].rstrip(".:")


def _alternatives(wanted: Checkpoint, path: Path) -> str:
    return (
        f"connect to the network and run `whisper-byoc preload --model {wanted.name}`, or copy {path.name} "
        f"from another machine to {path}, or set MODEL_DIR to a folder that has it, or use the bundled model "
        "`demo`, which knows only 321 words of synthetic speech"
    )
