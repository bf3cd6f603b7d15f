"""Reads an openai-whisper checkpoint (`.pt`) without torch.

The file is a zip archive, as `torch.save` has written since 1.6: `<folder>/data.pkl` is a pickle of
`{"dims": ..., "model_state_dict": ...}` in which each tensor names a storage, `<folder>/data/<key>`, that holds its
values. Unpickling can look up only three names, so a file cannot run code.
"""

import collections
import io
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from whisper_byoc.errors import ModelError
from whisper_byoc.speech.fast.weights import Dimensions, Weights

MAX_PICKLE_BYTES = 1 << 20
"""Names and shapes of tensors; those of large-v3 take 150 KB."""
MAX_INFLATED_BYTES = 256 << 20
"""Total of all compressed members: torch compresses none, and the demo model's are 14 MB."""
STORAGES = {
    "FloatStorage": np.dtype("<f4"),
    "HalfStorage": np.dtype("<f2"),
}
"""The torch storage classes used in Whisper checkpoints, and their value types, written by little-endian machines."""


def read_torch_file(path: Path) -> Weights:
    """Read a checkpoint. Raises `ModelError` when it is not one, and `OSError`."""
    try:
        with zipfile.ZipFile(path) as archive:
            found = _Unpickler(archive).load()
    except OSError:
        raise
    except ModelError as error:
        raise _refusal(path, error) from error
    except Exception as error:  # unpickling arbitrary bytes may raise nearly anything
        raise _refusal(path, f"{type(error).__name__}: {error}") from error
    if not isinstance(found, dict) or not {"dims", "model_state_dict"} <= found.keys():
        raise _refusal(path, "it has no `dims` and `model_state_dict`")
    dims, tensors = found["dims"], found["model_state_dict"]
    if not isinstance(dims, Mapping) or not isinstance(tensors, Mapping):
        raise _refusal(path, "its `dims` or `model_state_dict` is not a dictionary")
    try:
        arrays = {name: each.astype(np.float32) for name, each in tensors.items() if isinstance(each, np.ndarray)}
        return Weights(Dimensions.parse(dims), arrays)
    except ModelError as error:
        raise _refusal(path, error) from error


def _refusal(path: Path, reason: object) -> ModelError:
    text = str(reason).splitlines()[0].rstrip(".") if str(reason) else "no reason given"
    return ModelError(f"{path} does not load as a Whisper checkpoint ({text}).")


class _Unpickler(pickle.Unpickler):
    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive
        self._inflated = 0
        self._members = {info.filename: info for info in archive.infolist()}
        pickles = [name for name in self._members if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise ModelError("it is a zip archive without a data.pkl; was it saved by torch before 1.6?")
        self._folder = pickles[0].removesuffix("data.pkl")
        super().__init__(io.BytesIO(self._read(pickles[0], MAX_PICKLE_BYTES)))

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _tensor
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        raise ModelError(f"it wants {module}.{name}, which no Whisper checkpoint needs")

    def persistent_load(self, pid: Any) -> NDArray[Any]:
        """Return a storage, as a read-only vector; `pid` is ("storage", class, key, device, number of values)."""
        kind, dtype, key, _, count = pid
        if kind != "storage" or not isinstance(dtype, np.dtype) or not isinstance(key, str):
            raise ModelError("it refers to something that is no tensor")
        size = count * dtype.itemsize
        data = self._read(f"{self._folder}data/{key}", size)
        if len(data) != size:
            raise ModelError(f"its storage {key} has {len(data)} bytes instead of {size}")
        return np.frombuffer(data, dtype)

    def _read(self, name: str, limit: int) -> bytes:
        info = self._members.get(name)
        if info is None:
            raise ModelError(f"it has no member {name}")
        if info.file_size > limit:
            raise ModelError(f"its member {name} has {info.file_size} bytes, more than {limit}")
        if info.compress_type != zipfile.ZIP_STORED:
            self._inflated += info.file_size
            if self._inflated > MAX_INFLATED_BYTES:
                raise ModelError(f"it has more than {MAX_INFLATED_BYTES >> 20} MB of compressed data")
        return self._archive.read(info)


def _tensor(storage: object, offset: object, shape: object, strides: object, *_: object) -> NDArray[Any]:
    """Return the values of a contiguous tensor, as `torch._utils._rebuild_tensor_v2` would."""
    if not isinstance(storage, np.ndarray) or not isinstance(shape, tuple) or type(offset) is not int:
        raise ModelError("it has a malformed tensor")
    if not all(type(each) is int and each >= 0 for each in shape):
        raise ModelError(f"it has a tensor of shape {shape}")
    count = int(np.prod([int(each) for each in shape], dtype=object)) if shape else 1
    contiguous = tuple(int(np.prod(shape[axis + 1 :], dtype=object)) for axis in range(len(shape)))
    if strides != contiguous or offset < 0 or offset + count > len(storage):
        raise ModelError(f"it has a tensor of shape {shape} that does not fit its storage")
    return storage[offset : offset + count].reshape(shape)
