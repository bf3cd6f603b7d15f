"""A Whisper model as plain arrays, whatever its file format; names and shapes are openai-whisper's."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Self

import numpy as np
from numpy.typing import NDArray

from whisper_byoc.errors import ModelError

MAX_WIDTH = 2048
MAX_LAYERS = 64
MAX_VOCABULARY = 65536
MAX_POSITIONS = 4096
"""Bounds on what a file may claim; large-v3, the largest Whisper, has 1280, 32, 51866 and 1500."""
MELS = (80, 128)
"""Mel bands that openai-whisper has filters for."""
FIRST_MULTILINGUAL_VOCABULARY = 51865
"""Smallest vocabulary with language tokens (openai-whisper, `Whisper.is_multilingual`)."""

Tensors = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Dimensions:
    """Sizes of a model, named as in an openai-whisper checkpoint."""

    n_mels: int
    n_audio_ctx: int
    n_audio_state: int
    n_audio_head: int
    n_audio_layer: int
    n_vocab: int
    n_text_ctx: int
    n_text_state: int
    n_text_head: int
    n_text_layer: int

    @classmethod
    def parse(cls, values: Mapping[str, object]) -> Self:
        """Read sizes that came from a file; raises `ModelError` unless they describe a model that can be built."""
        names = [each.name for each in fields(cls)]
        numbers = {name: values.get(name) for name in names}
        wrong = [name for name, value in numbers.items() if type(value) is not int or value < 1]
        if wrong:
            raise ModelError(f"The model's dimension {wrong[0]} is {numbers[wrong[0]]!r}, not a positive integer.")
        dims = cls(**numbers)  # type: ignore[arg-type]  # checked just now
        limits = {
            **dict.fromkeys(("n_audio_state", "n_text_state"), MAX_WIDTH),
            **dict.fromkeys(("n_audio_layer", "n_text_layer"), MAX_LAYERS),
            **dict.fromkeys(("n_audio_ctx", "n_text_ctx"), MAX_POSITIONS),
            "n_vocab": MAX_VOCABULARY,
        }
        for name, limit in limits.items():
            if getattr(dims, name) > limit:
                raise ModelError(f"The model's dimension {name} is {getattr(dims, name)}; at most {limit} is read.")
        if dims.n_mels not in MELS:
            raise ModelError(f"The model takes {dims.n_mels} mel bands; only {MELS[0]} and {MELS[1]} are known.")
        if dims.n_audio_state != dims.n_text_state:
            raise ModelError("The model's encoder and decoder differ in width, which Whisper does not have.")
        if dims.n_audio_state % dims.n_audio_head or dims.n_text_state % dims.n_text_head:
            raise ModelError("The model's width is not a multiple of its number of heads.")
        return dims

    @property
    def multilingual(self) -> bool:
        """Whether the vocabulary has language tokens."""
        return self.n_vocab >= FIRST_MULTILINGUAL_VOCABULARY

    @property
    def num_languages(self) -> int:
        """Number of language tokens (openai-whisper, `Whisper.num_languages`)."""
        return self.n_vocab - 51765 - int(self.multilingual)


@dataclass(frozen=True)
class Weights:
    """A whole model."""

    dims: Dimensions
    tensors: Tensors
    """openai-whisper's state dict, such as `decoder.blocks.0.attn.query.weight`, all float32."""
    alignment_heads: tuple[tuple[int, int], ...] = ()
    """(layer, head) of the decoder's cross attention that follows the sound; empty when the file does not say."""

    def __post_init__(self) -> None:
        """Raise `ModelError` unless every tensor is there, in its shape, and finite."""
        for name, shape in expected_shapes(self.dims):
            tensor = self.tensors.get(name)
            if tensor is None:
                raise ModelError(f"The model has no tensor {name}.")
            if tensor.shape != shape:
                raise ModelError(f"The model's tensor {name} has shape {tensor.shape} instead of {shape}.")
            if not np.isfinite(tensor).all():
                raise ModelError(f"The model's tensor {name} has values that are not finite.")
        for layer, head in self.alignment_heads:
            if not (0 <= layer < self.dims.n_text_layer and 0 <= head < self.dims.n_text_head):
                raise ModelError(f"The model names an alignment head ({layer}, {head}) that it does not have.")

    @property
    def aligned(self) -> tuple[tuple[int, int], ...]:
        """Alignment heads; if unknown, all heads in the upper half of the layers, as in openai-whisper."""
        layers = range(self.dims.n_text_layer // 2, self.dims.n_text_layer)
        return self.alignment_heads or tuple((layer, head) for layer in layers for head in range(self.dims.n_text_head))


def expected_shapes(dims: Dimensions) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield the name and shape of every tensor of a model."""
    width = dims.n_audio_state
    yield "encoder.conv1.weight", (width, dims.n_mels, 3)
    yield "encoder.conv1.bias", (width,)
    yield "encoder.conv2.weight", (width, width, 3)
    yield "encoder.conv2.bias", (width,)
    yield "encoder.positional_embedding", (dims.n_audio_ctx, width)
    yield "decoder.token_embedding.weight", (dims.n_vocab, width)
    yield "decoder.positional_embedding", (dims.n_text_ctx, width)
    yield from _norm("encoder.ln_post", width)
    yield from _norm("decoder.ln", width)
    for side, layers in (("encoder", dims.n_audio_layer), ("decoder", dims.n_text_layer)):
        for layer in range(layers):
            block = f"{side}.blocks.{layer}"
            for attention in ("attn", "cross_attn") if side == "decoder" else ("attn",):
                yield from _norm(f"{block}.{attention}_ln", width)
                for part in ("query", "key", "value", "out"):
                    yield f"{block}.{attention}.{part}.weight", (width, width)
                    if part != "key":  # Whisper's keys have no bias
                        yield f"{block}.{attention}.{part}.bias", (width,)
            yield from _norm(f"{block}.mlp_ln", width)
            for part, shape in (("0", (4 * width, width)), ("2", (width, 4 * width))):
                yield f"{block}.mlp.{part}.weight", shape
                yield f"{block}.mlp.{part}.bias", shape[:1]


def _norm(name: str, width: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", (width,)
    yield f"{name}.bias", (width,)
