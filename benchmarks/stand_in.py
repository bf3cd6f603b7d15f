"""Which model a benchmark runs; among them a stand-in of whisper-tiny's exact shape, for machines without its weights.

`tiny-shape` is a checkpoint of random weights with the dimensions, number types and file size of `tiny.pt`. Random
weights alone would ramble up to the token limit, so the positions of the decoder are set to recite one sentence,
whatever is heard. Loading, memory, the encoder and each decoding step cost what they cost with whisper-tiny; the
text is the same for every sound but digital silence.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from whisper_byoc.speech.models import find_model

__all__ = ["TINY_SHAPE", "Subject", "subject", "tiny_or_stand_in", "write_tiny_shape"]

TINY_SHAPE = "tiny-shape"
SENTENCE = " The weather will be sunny in the morning, with light rain in the evening."
EMBEDDING_STD = 0.05
"""Makes the recited token win clearly: its logit is about sqrt(384) * 0.05 * sqrt(384) = 19, the others' about 1."""
LOUDNESS = 100.0
"""How far the positions drown what the blocks add."""


@dataclass(frozen=True)
class Subject:
    """A model under test."""

    name: str
    model: str
    """What `WhisperProcessor` takes: a name or the path of a checkpoint."""
    pipeline: str
    """What `whisper-byoc serve --pipeline` takes."""


def subject(name: str, folder: Path) -> Subject:
    """Look up a model by name or path; `tiny-shape` is written to `folder`."""
    if name == TINY_SHAPE:
        path = folder / f"{TINY_SHAPE}.pt"
        if not path.exists():
            write_tiny_shape(path)
        return Subject(f"{name} (random weights)", str(path), str(path))
    return Subject(name, name, name if name.endswith(".pt") else f"whisper-{name}")


def tiny_or_stand_in() -> str:
    """Name whisper-tiny if its checkpoint is on this machine, else its stand-in."""
    return TINY_SHAPE if find_model("tiny") is None else "tiny"


def write_tiny_shape(path: Path) -> None:
    """Write the stand-in, 72 MB."""
    import torch
    from whisper.model import ModelDimensions, Whisper
    from whisper.tokenizer import get_tokenizer

    # the `dims` of OpenAI's tiny.pt
    dims = ModelDimensions(80, 1500, 384, 6, 4, 51865, 448, 384, 6, 4)
    tokenizer = get_tokenizer(multilingual=True, language="en", task="transcribe")
    start, end = tokenizer.timestamp_begin, tokenizer.timestamp_begin + 50  # <|0.00|> and <|1.00|>
    script = [start, *tokenizer.encode(SENTENCE), end, tokenizer.eot]
    torch.manual_seed(0)
    weights = Whisper(dims).state_dict()  # norms and biases stay as torch initialises them
    for name, tensor in weights.items():
        if tensor.ndim > 1 and name != "encoder.positional_embedding":  # that one is sinusoids
            tensor.normal_(0, EMBEDDING_STD if "token_embedding" in name else 0.02)
    embedding, positions = weights["decoder.token_embedding.weight"], weights["decoder.positional_embedding"]
    first = len(tokenizer.sot_sequence) - 1  # the output at the last token of the prompt is the first one sampled
    positions[first : first + len(script)] = embedding[script] * LOUDNESS
    halves = {name: tensor.half() for name, tensor in weights.items()}
    torch.save({"dims": vars(dims), "model_state_dict": halves}, path)
