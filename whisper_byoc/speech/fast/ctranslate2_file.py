"""Reads a model in CTranslate2's format, without ctranslate2: a folder such as faster-whisper keeps its models in.

`model.bin` is, all little-endian (CTranslate2, `python/ctranslate2/specs/model_spec.py`, `_serialize`, version 6):

    uint32 version   string name of the spec   uint32 revision
    uint32 number of variables, and for each:
        string name   uint8 rank   uint32 size * rank   uint8 type   uint32 bytes   values
    uint32 number of aliases, and for each:
        string alias   string name of the variable

where a string is a uint16 length and as many bytes, of which the last is NUL.
"""

import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from whisper_byoc.errors import ModelError
from whisper_byoc.speech.fast.weights import Dimensions, Weights

VERSIONS = (5, 6)
"""Versions of the container that have this layout."""
SPEC = "WhisperSpec"
TYPES: tuple[np.dtype[Any], ...] = tuple(np.dtype(code) for code in ("<f4", "i1", "<i2", "<i4", "<f2"))
"""Type number -> values (CTranslate2, `include/ctranslate2/types.h`); numpy has no bfloat16 (number 5)."""
MAX_VARIABLES = 20_000
"""large-v3 has 1700."""
MAX_RANK = 4
MAX_CONFIG_BYTES = 1 << 20

Variables = dict[str, NDArray[Any]]


def read_ctranslate2(folder: Path) -> Weights:
    """Read the model of a folder. Raises `ModelError` when it is not a Whisper model, and `OSError`."""
    path = folder / "model.bin"
    try:
        with path.open("rb") as file:
            variables = _variables(file, path.stat().st_size)
        return _weights(variables, _alignment_heads(folder / "config.json"))
    except ModelError as error:
        raise ModelError(f"{path} does not load as a Whisper model in CTranslate2's form: {error}") from error


def _variables(file: BinaryIO, size: int) -> Variables:
    reader = _Reader(file, size)
    version = reader.number("<I")
    if version not in VERSIONS:
        raise ModelError(f"It has version {version}; versions {VERSIONS[0]} and {VERSIONS[1]} are read.")
    if (spec := reader.string()) != SPEC:
        raise ModelError(f"It is a {spec[:40]!r}, not a {SPEC}.")
    reader.number("<I")  # the revision of the spec; only the variables matter
    count = reader.number("<I")
    if count > MAX_VARIABLES:
        raise ModelError(f"It claims {count} variables.")
    found: Variables = {}
    for _ in range(count):
        name = reader.string()
        found[name] = reader.array(name)
    for _ in range(reader.number("<I") if version >= 6 else 0):
        alias, name = reader.string(), reader.string()
        if name not in found:
            raise ModelError(f"Its alias {alias[:80]!r} has no variable {name[:80]!r}.")
        found[alias] = found[name]
    return found


class _Reader:
    """Reads no further than the file's end, and allocates nothing larger than the file."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self._left = size

    def number(self, layout: str) -> int:
        (value,) = struct.unpack(layout, self._bytes(struct.calcsize(layout)))
        return int(value)

    def string(self) -> str:
        data = self._bytes(self.number("<H"))
        if not data.endswith(b"\0"):
            raise ModelError("It has a string without an end.")
        try:
            return data[:-1].decode()
        except UnicodeDecodeError:
            raise ModelError("It has a string that is not UTF-8.") from None

    def array(self, name: str) -> NDArray[Any]:
        rank = self.number("<B")
        if rank > MAX_RANK:
            raise ModelError(f"Its variable {name[:80]!r} has {rank} dimensions.")
        shape = tuple(self.number("<I") for _ in range(rank))
        kind, size = self.number("<B"), self.number("<I")
        if kind >= len(TYPES):
            raise ModelError(f"Its variable {name[:80]!r} is of type {kind}: convert to float32, float16 or int8.")
        if size != math.prod(shape) * TYPES[kind].itemsize:
            raise ModelError(f"Its variable {name[:80]!r} of shape {shape} has {size} bytes.")
        return np.frombuffer(self._bytes(size), TYPES[kind]).reshape(shape)

    def _bytes(self, count: int) -> bytes:
        if count > self._left:
            raise ModelError("It ends too early.")
        self._left -= count
        data = self._file.read(count)
        if len(data) != count:
            raise ModelError("It ends too early.")
        return data


def _weights(variables: Variables, heads: tuple[tuple[int, int], ...]) -> Weights:
    take = _Taker(variables)
    width, mels, _ = take.shape("encoder/conv1/weight", 3)
    audio_positions, _ = take.shape("encoder/position_encodings/encodings", 2)
    text_positions, _ = take.shape("decoder/position_encodings/encodings", 2)
    vocabulary, _ = take.shape("decoder/embeddings/weight", 2)
    dims = Dimensions.parse(
        {
            "n_mels": mels,
            "n_audio_ctx": audio_positions,
            "n_audio_state": width,
            "n_audio_head": take.heads("encoder", width),
            "n_audio_layer": take.layers("encoder"),
            "n_vocab": vocabulary,
            "n_text_ctx": text_positions,
            "n_text_state": width,
            "n_text_head": take.heads("decoder", width),
            "n_text_layer": take.layers("decoder"),
        }
    )
    tensors: dict[str, NDArray[np.float32]] = {
        "encoder.positional_embedding": take.floats("encoder/position_encodings/encodings"),
        "decoder.positional_embedding": take.floats("decoder/position_encodings/encodings"),
        "decoder.token_embedding.weight": take.floats("decoder/embeddings/weight"),
        **take.linear("encoder/conv1", "encoder.conv1"),
        **take.linear("encoder/conv2", "encoder.conv2"),
        **take.norm("encoder/layer_norm", "encoder.ln_post"),
        **take.norm("decoder/layer_norm", "decoder.ln"),
    }
    for side, layers in (("encoder", dims.n_audio_layer), ("decoder", dims.n_text_layer)):
        for layer in range(layers):
            there, here = f"{side}/layer_{layer}", f"{side}.blocks.{layer}"
            tensors |= take.norm(f"{there}/self_attention/layer_norm", f"{here}.attn_ln")
            tensors |= take.split(f"{there}/self_attention/linear_0", f"{here}.attn", ("query", "key", "value"))
            tensors |= take.linear(f"{there}/self_attention/linear_1", f"{here}.attn.out")
            if side == "decoder":
                tensors |= take.norm(f"{there}/attention/layer_norm", f"{here}.cross_attn_ln")
                tensors |= take.linear(f"{there}/attention/linear_0", f"{here}.cross_attn.query")
                tensors |= take.split(f"{there}/attention/linear_1", f"{here}.cross_attn", ("key", "value"))
                tensors |= take.linear(f"{there}/attention/linear_2", f"{here}.cross_attn.out")
            tensors |= take.norm(f"{there}/ffn/layer_norm", f"{here}.mlp_ln")
            tensors |= take.linear(f"{there}/ffn/linear_0", f"{here}.mlp.0")
            tensors |= take.linear(f"{there}/ffn/linear_1", f"{here}.mlp.2")
    return Weights(dims, tensors, heads)


class _Taker:
    """Takes variables out under openai-whisper's names, as float32."""

    def __init__(self, variables: Variables) -> None:
        self._variables = variables

    def shape(self, name: str, rank: int) -> tuple[int, ...]:
        shape = self._get(name).shape
        if len(shape) != rank:
            raise ModelError(f"Its variable {name} has shape {shape}.")
        return shape

    def layers(self, side: str) -> int:
        count = 0
        while f"{side}/layer_{count}/ffn/linear_0/weight" in self._variables:
            count += 1
        return count

    def heads(self, side: str, width: int) -> int:
        """Number of heads; models converted before CTranslate2 2.0 do not say, and Whisper's have 64 values each."""
        stated = self._variables.get(f"{side}/num_heads")
        return width // 64 if stated is None or stated.ndim else int(stated)

    def floats(self, name: str) -> NDArray[np.float32]:
        """Return a variable; an int8 one is divided by the scales of its rows (CTranslate2, `_quantize`)."""
        values = self._get(name)
        floats = values.astype(np.float32)
        if values.dtype != np.int8:
            return floats
        scales = self._get(f"{name}_scale").astype(np.float32).reshape(-1)
        if len(scales) not in (1, len(values)) or not (scales > 0).all():
            raise ModelError(f"Its variable {name}_scale does not fit the rows of {name}.")
        return floats / scales.reshape(-1, *[1] * (values.ndim - 1))

    def linear(self, there: str, here: str) -> Mapping[str, NDArray[np.float32]]:
        return {f"{here}.weight": self.floats(f"{there}/weight"), f"{here}.bias": self.floats(f"{there}/bias")}

    def norm(self, there: str, here: str) -> Mapping[str, NDArray[np.float32]]:
        return {f"{here}.weight": self.floats(f"{there}/gamma"), f"{here}.bias": self.floats(f"{there}/beta")}

    def split(self, there: str, here: str, parts: tuple[str, ...]) -> Mapping[str, NDArray[np.float32]]:
        """Return the parts of a fused projection; CTranslate2 gives keys a zero bias, which Whisper does not have."""
        weight, bias = self.floats(f"{there}/weight"), self.floats(f"{there}/bias")
        if len(weight) % len(parts) or bias.shape != weight.shape[:1]:
            raise ModelError(f"Its variable {there}/weight cannot be cut into {len(parts)} parts.")
        found = {}
        for part, rows, shift in zip(parts, np.split(weight, len(parts)), np.split(bias, len(parts)), strict=True):
            found[f"{here}.{part}.weight"] = rows
            if part != "key":
                found[f"{here}.{part}.bias"] = shift
        return found

    def _get(self, name: str) -> NDArray[Any]:
        if name not in self._variables:
            raise ModelError(f"It has no variable {name}.")
        return self._variables[name]


def _alignment_heads(path: Path) -> tuple[tuple[int, int], ...]:
    """Read `alignment_heads` from `config.json`; empty if it has none."""
    try:
        with path.open("rb") as file:
            config = json.loads(file.read(MAX_CONFIG_BYTES))
    except FileNotFoundError:
        return ()
    except (ValueError, RecursionError):
        raise ModelError(f"{path.name} beside it is not JSON.") from None
    heads = config.get("alignment_heads") or [] if isinstance(config, dict) else []
    if not isinstance(heads, list) or not all(
        isinstance(pair, list) and len(pair) == 2 and all(type(each) is int for each in pair) for pair in heads
    ):
        raise ModelError(f"`alignment_heads` in {path.name} beside it is not a list of pairs.")
    return tuple((layer, head) for layer, head in heads)
