"""Which model a benchmark runs; among them a stand-in of whisper-tiny's exact shape, for machines without its weights.

`tiny-shape` is the demo model, written into a checkpoint with the dimensions, number types and file size of
`tiny.en.pt`: it hears what the demo model hears, and loading, memory, the encoder and each decoding step cost what they
cost with whisper-tiny.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from whisper_byoc.speech.models import find_model, load_model

if TYPE_CHECKING:
    from torch import Tensor
    from whisper.model import ModelDimensions

__all__ = ["Subject", "subject", "tiny_or_stand_in", "write_tiny_shape"]

TINY_SHAPE = "tiny-shape"


@dataclass(frozen=True)
class Subject:
    """A model under test."""

    name: str
    model: str
    """What `WhisperProcessor` takes: a name or the path of a checkpoint."""
    pipeline: str
    """What `whisper-byoc serve --pipeline` takes."""
    vocabulary: str
    """Whose words it knows, demo's or tiny's: what `model` is in fixtures/texts.json."""


def subject(name: str, folder: Path) -> Subject:
    """Look up a model by name or path; `tiny-shape` is written to `folder`."""
    if name == TINY_SHAPE:
        path = folder / f"{TINY_SHAPE}.pt"
        if not path.exists():
            write_tiny_shape(path)
        return Subject(f"{name} (what demo hears, at whisper-tiny's cost)", str(path), str(path), "demo")
    pipeline = name if name.endswith(".pt") else f"whisper-{name}"
    return Subject(name, name, pipeline, "demo" if name == "demo" else "tiny")


def tiny_or_stand_in() -> str:
    """Name whisper-tiny or tiny.en if its weights are on this machine, else the stand-in."""
    return next((name for name in ("tiny", "tiny.en") if find_model(name) is not None), TINY_SHAPE)


def write_tiny_shape(path: Path) -> None:
    """Write the stand-in, 76 MB."""
    import torch
    from whisper.model import ModelDimensions

    # the `dims` of OpenAI's tiny.en.pt
    dims = ModelDimensions(80, 1500, 384, 6, 4, 51864, 448, 384, 6, 4)
    demo = load_model("demo")
    with torch.no_grad():
        weights = widened(demo.state_dict(), demo.dims, dims)
    torch.save({"dims": vars(dims), "model_state_dict": {name: each.half() for name, each in weights.items()}}, path)


def widened(weights: dict[str, Tensor], narrow: ModelDimensions, wide: ModelDimensions) -> dict[str, Tensor]:
    """Give the weights of a wider Whisper with as many layers that computes the same; for those that know embeddings.

    The wider one carries the narrow one's states several times side by side, for then layer norms see the same mean
    and variance; whatever reads a state reads the first copy. What is left of heads and layers is zero.
    """
    import torch

    copies = wide.n_audio_state // narrow.n_audio_state
    assert copies * narrow.n_audio_state == wide.n_audio_state
    assert (narrow.n_audio_layer, narrow.n_text_layer) == (wide.n_audio_layer, wide.n_text_layer)
    heads, width = narrow.n_audio_head, narrow.n_audio_state // narrow.n_audio_head
    wide_width = wide.n_audio_state // wide.n_audio_head

    def copied(tensor: Tensor, axis: int = 0) -> Tensor:
        return torch.cat([tensor] * copies, axis)

    def padded(tensor: Tensor, axis: int, size: int) -> Tensor:
        missing = [*tensor.shape]
        missing[axis] = size - tensor.shape[axis]
        return torch.cat([tensor, tensor.new_zeros(missing)], axis)

    def into_heads(tensor: Tensor, axis: int) -> Tensor:
        """Put each head's share of an axis to where the wide model has that head."""
        parts = [padded(part, axis, wide_width) for part in torch.split(tensor, width, axis)]
        return padded(torch.cat(parts, axis), axis, wide.n_audio_state)

    def read(tensor: Tensor) -> Tensor:
        return padded(tensor, 1, wide.n_audio_state) if tensor.ndim > 1 else tensor

    def query(tensor: Tensor) -> Tensor:
        return into_heads(read(tensor), 0) * math.sqrt(wide_width / width)  # attention is scaled by a head's width

    rules: dict[str, Callable[[Tensor], Tensor]] = {
        "decoder.ln.": lambda each: padded(each, 0, wide.n_text_state),  # for the logits a single copy counts
        "decoder.token_embedding.": lambda each: copied(each, 1),
        "positional_embedding": lambda each: copied(each, 1),
        "conv1.": copied,
        "conv2.": lambda each: copied(read(each)),
        "attn.query.": query,
        "attn.key.": lambda each: into_heads(read(each), 0),
        "attn.value.": lambda each: into_heads(read(each), 0),
        "attn.out.weight": lambda each: copied(into_heads(each, 1)),
        "mlp.0.": lambda each: padded(read(each), 0, 4 * wide.n_audio_state),
        "mlp.2.weight": lambda each: copied(padded(each, 1, 4 * wide.n_audio_state)),
    }  # what a rule's name is part of; all else, norms and the biases of what writes a state, is copied
    assert heads <= wide.n_audio_head
    return {
        name: next((rule for part, rule in rules.items() if part in name), copied)(tensor)
        for name, tensor in weights.items()
    }
