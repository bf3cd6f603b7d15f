"""Writes a model in whisper.cpp's form, from whatever this project reads: `python benchmarks/ggml.py MODEL FILE`.

The form is that of whisper.cpp's `models/convert-pt-to-ggml.py` and `whisper_model_load`, little-endian throughout:

    uint32 magic   11 int32: the model's dimensions, and the type of its matrices
    int32 mels   int32 bins   float32 mel filters
    int32 number of text tokens, and for each: int32 length, bytes
    tensors to the end: int32 rank, length of name, type; int32 sizes, the last one first; name; values
"""

from __future__ import annotations

import argparse
import struct
from dataclasses import astuple
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from whisper_byoc.speech.fast.mel import mel_filters
from whisper_byoc.speech.fast.model import read_weights
from whisper_byoc.speech.fast.tokenizer import find_vocabulary
from whisper_byoc.speech.fast.weights import Dimensions
from whisper_byoc.speech.models import fetch_model

__all__ = ["write_ggml"]

MAGIC = 0x67676D6C
FLOAT32, FLOAT16, Q8_0 = 0, 1, 8
"""Types of tensors (ggml.h, `ggml_type`)."""
MOSTLY_Q8_0 = 2 * 1000 + 7
"""Type of the matrices: version 2 of the quantised forms, `GGML_FTYPE_MOSTLY_Q8_0`."""
BLOCK = 32
"""Values of Q8_0 that share a scale."""
ALWAYS_FLOAT32 = ("encoder.positional_embedding", "decoder.positional_embedding")


def write_ggml(source: Path, target: Path) -> None:
    """Write a model with its matrices in Q8_0 (int8, a scale for every 32 values), and convolutions in float16."""
    weights = read_weights(source)
    vocabulary = find_vocabulary(source if source.is_dir() else None, weights.dims)
    with target.open("wb") as file:
        file.write(struct.pack("<I11i", MAGIC, *sizes(weights.dims), MOSTLY_Q8_0))
        filters = mel_filters(weights.dims.n_mels)
        file.write(struct.pack("<2i", *filters.shape) + filters.astype("<f4").tobytes())
        file.write(struct.pack("<i", len(vocabulary)))
        for token in vocabulary:
            file.write(struct.pack("<i", len(token)) + token)
        for name, values in weights.tensors.items():
            write_tensor(file, name, values)


def sizes(dims: Dimensions) -> tuple[int, ...]:
    """Return a model's dimensions in the order of the file."""
    mels, *audio_and_text = astuple(dims)
    audio, vocabulary, text = audio_and_text[:4], audio_and_text[4], audio_and_text[5:]
    return (vocabulary, *audio, *text, mels)


def write_tensor(file: BinaryIO, name: str, values: NDArray[np.float32]) -> None:
    """Write one tensor; the biases of convolutions are columns."""
    if name in ("encoder.conv1.bias", "encoder.conv2.bias"):
        values = values[:, None]
        kind, data = FLOAT32, values.astype("<f4").tobytes()
    elif values.ndim == 1 or name in ALWAYS_FLOAT32:
        kind, data = FLOAT32, values.astype("<f4").tobytes()
    elif values.ndim == 2:
        kind, data = Q8_0, q8_0(values)
    else:
        kind, data = FLOAT16, values.astype("<f2").tobytes()
    shape = values.shape[::-1]
    file.write(struct.pack(f"<3i{len(shape)}i", len(shape), len(name), kind, *shape) + name.encode() + data)


def q8_0(values: NDArray[np.float32]) -> bytes:
    """Pack values into blocks of a float16 scale and 32 int8."""
    blocks = values.reshape(-1, BLOCK)
    scales = np.abs(blocks).max(1, keepdims=True) / 127
    numbers = np.round(blocks / np.where(scales > 0, scales, 1)).astype(np.int8)
    return np.concatenate([scales.astype("<f2").view(np.int8), numbers], 1).tobytes()


def main() -> None:
    """Read the options, convert."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="name, .pt file or CTranslate2 folder")
    parser.add_argument("file", type=Path, help="what is written")
    options = parser.parse_args()
    write_ggml(fetch_model(options.model), options.file)


if __name__ == "__main__":
    main()
