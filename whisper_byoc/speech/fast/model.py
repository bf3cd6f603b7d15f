"""A model that the fast engine can run: graphs, tokenizer and silence; built from weights, kept on disk, compiled."""

import errno
import hashlib
import json
import logging
import secrets
import shutil
import threading
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from whisper_byoc.errors import ModelError
from whisper_byoc.speech.catalogue import file_sha256
from whisper_byoc.speech.fast.ctranslate2_file import read_ctranslate2
from whisper_byoc.speech.fast.graphs import decoder_graph, encoder_graph
from whisper_byoc.speech.fast.network import Compiled, Network
from whisper_byoc.speech.fast.silence import STRIDE, encoded_silence
from whisper_byoc.speech.fast.tokenizer import Tokenizer, find_vocabulary, read_tiktoken, write_tiktoken
from whisper_byoc.speech.fast.torch_file import read_torch_file
from whisper_byoc.speech.fast.weights import Dimensions, Weights
from whisper_byoc.speech.runtime import core, ov

log = logging.getLogger(__name__)

FORMAT = 2
"""Incremented whenever what is kept changes: graphs, files, or the meaning of either."""
MANIFEST = "model.json"
MAX_MANIFEST_BYTES = 1 << 20
FILES = ("encoder.xml", "encoder.bin", "decoder.xml", "decoder.bin", "silence.npy", "vocabulary.tiktoken")


@dataclass
class FastModel:
    """Everything about one model; shared by the engines of all threads."""

    dims: Dimensions
    alignment_heads: tuple[tuple[int, int], ...]
    tokenizer: Tokenizer
    encoder: ov.Model
    decoder: ov.Model
    tail: NDArray[np.float32]
    """The result of `silence.encoded_silence`."""
    exact: bool = False
    """Whether to compute in float32 throughout; for comparison with the reference."""
    users: int = 1
    """How many engines will compute at once."""

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._compiled: Compiled | None = None

    @property
    def follows_sound(self) -> bool:
        """Whether the alignment heads are known, so that attention shows which sound a text belongs to."""
        layers = range(self.dims.n_text_layer // 2, self.dims.n_text_layer)
        return len(self.alignment_heads) < len(layers) * self.dims.n_text_head

    def network(self, threads: int, tail: NDArray[np.float32] | None = None, stride: int = STRIDE) -> Network:
        """Return a network for the calling thread; the first one compiles the graphs, for all users.

        A `tail` for another `stride` replaces the model's, for comparison.
        """
        with self._lock:
            if self._compiled is None:
                self._compiled = Compiled(
                    self.encoder, self.decoder, threads=threads, workers=self.users, exact=self.exact
                )
        return Network(self._compiled, self.dims, self.tail if tail is None else tail, stride)


def read_weights(source: Path) -> Weights:
    """Read a `.pt` file or a CTranslate2 folder. Raises `ModelError`."""
    try:
        return read_ctranslate2(source) if source.is_dir() else read_torch_file(source)
    except OSError as error:
        raise ModelError(f"The model {source} cannot be read ({error.strerror or error}).") from error


def build(weights: Weights, source: Path, heads: tuple[tuple[int, int], ...] = (), *, exact: bool = False) -> FastModel:
    """Build a model in memory, with the vocabulary that goes with the source of its weights.

    `heads` are the alignment heads, if better known than from the weights. Raises `ModelError`.
    """
    weights = Weights(weights.dims, weights.tensors, heads or weights.alignment_heads)
    vocabulary = find_vocabulary(source if source.is_dir() else None, weights.dims)
    encoder, decoder = encoder_graph(weights), decoder_graph(weights, int8=not exact)
    tail = encoded_silence(encoder, weights.dims)
    return FastModel(
        weights.dims, weights.aligned, Tokenizer(vocabulary, weights.dims), encoder, decoder, tail, exact=exact
    )


def load_kept(folder: Path, sources: set[str]) -> FastModel | None:
    """Load a model that `keep` wrote for one of the sources (SHA-256); None if missing, stale or damaged."""
    try:
        manifest = _read_manifest(folder)
        if manifest["made_by"] != _made_by() or manifest["source"] not in sources:
            log.info("%s was made from another model or by another version", folder)
            return None
        for name in FILES:
            if manifest["sha256"][name] != file_sha256(folder / name):
                log.warning("%s is damaged: %s has another SHA-256 than it had", folder, name)
                return None
        dims = Dimensions.parse(manifest["dims"])
        return FastModel(
            dims,
            tuple((layer, head) for layer, head in manifest["alignment_heads"]),
            Tokenizer(read_tiktoken(folder / "vocabulary.tiktoken"), dims),
            core().read_model(folder / "encoder.xml"),
            core().read_model(folder / "decoder.xml"),
            np.load(folder / "silence.npy", allow_pickle=False),
        )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, RecursionError, ModelError) as error:
        log.warning("%s is damaged (%s)", folder, error)
        return None


def keep(model: FastModel, folder: Path, source: str) -> None:
    """Write a model to a folder, replacing its contents; `source` is the SHA-256 of what it was made from.

    The folder appears whole or not at all. Raises `OSError`.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = folder.with_name(f".{folder.name}.{secrets.token_hex(8)}.part")
    part.mkdir()
    try:
        ov.save_model(model.encoder, part / "encoder.xml", compress_to_fp16=True)  # as OpenAI's weights are
        ov.save_model(model.decoder, part / "decoder.xml", compress_to_fp16=False)
        np.save(part / "silence.npy", model.tail)
        write_tiktoken(model.tokenizer.text_tokens, part / "vocabulary.tiktoken")
        manifest = {
            "made_by": _made_by(),
            "source": source,
            "dims": asdict(model.dims),
            "alignment_heads": model.alignment_heads,
            "sha256": {name: file_sha256(part / name) for name in FILES},
        }
        (part / MANIFEST).write_text(json.dumps(manifest, indent=1))
        _replace(folder, part)
    except RuntimeError as error:  # OpenVINO's for a full disk
        raise OSError(str(error)) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def source_digest(source: Path) -> str:
    """Return the identity of a `.pt` file or a CTranslate2 folder: a SHA-256 of everything in it that is used."""
    if not source.is_dir():
        return file_sha256(source)
    names = ("model.bin", "config.json", "tokenizer.json", "vocabulary.json", "vocabulary.txt")
    hashes = {name: file_sha256(source / name) for name in names if (source / name).is_file()}
    return hashlib.sha256(json.dumps(hashes).encode()).hexdigest()


def _replace(folder: Path, new: Path) -> None:
    """Replace a folder, which others may be reading, with a new one."""
    old = new.with_suffix(".old")
    with suppress(FileNotFoundError):
        folder.rename(old)
    try:
        new.rename(folder)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):  # else another process was faster, with the same
            raise
    finally:
        shutil.rmtree(old, ignore_errors=True)


def _read_manifest(folder: Path) -> dict[str, Any]:
    with (folder / MANIFEST).open("rb") as file:
        found = json.loads(file.read(MAX_MANIFEST_BYTES))
    if not isinstance(found, dict):
        raise TypeError(f"{MANIFEST} is not an object")
    return found


def _made_by() -> str:
    return f"format {FORMAT}, OpenVINO {ov.get_version()}"
