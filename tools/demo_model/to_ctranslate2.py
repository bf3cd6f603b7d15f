"""Convert a checkpoint of openai-whisper's format for CTranslate2 (and faster-whisper, which is built on it).

    python -m tools.demo_model.to_ctranslate2 whisper_byoc/speech/assets/demo.pt FOLDER

Needs the packages `ctranslate2` and `tokenizers`, which are no dependency of this project. CTranslate2's own converter
reads Whisper models in the format of Hugging Face's transformers only, which is why there is this one. Written for an
English-only checkpoint, as the demo model is.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ctranslate2.specs
import numpy as np
import numpy.typing as npt
import torch
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from whisper.tokenizer import get_tokenizer

Weights = dict[str, npt.NDArray[np.float32]]


def convert(checkpoint: Path, folder: Path) -> None:
    """Write CTranslate2's `model.bin` and `config.json`, and the `tokenizer.json` that faster-whisper reads."""
    loaded = torch.load(checkpoint, weights_only=True)
    weights = {name: value.float().numpy() for name, value in loaded["model_state_dict"].items()}
    dims = loaded["dims"]
    spec = ctranslate2.specs.WhisperSpec(
        dims["n_audio_layer"], dims["n_audio_head"], dims["n_text_layer"], dims["n_text_head"]
    )
    _fill_encoder(spec.encoder, weights)
    _fill_decoder(spec.decoder, weights)
    tokenizer = _tokenizer()
    names = {number: name for name, number in tokenizer.get_vocab().items()}
    spec.register_vocabulary([names.get(number, f"<|unused{number}|>") for number in range(dims["n_vocab"])])
    _configure(spec.config, dims)
    spec.validate()
    spec.optimize(quantization="float32")
    folder.mkdir(parents=True, exist_ok=True)
    spec.save(str(folder))
    tokenizer.save(str(folder / "tokenizer.json"))


def _fill_encoder(encoder: Any, weights: Weights) -> None:
    for name in ("conv1", "conv2"):
        convolution = getattr(encoder, name)
        convolution.weight, convolution.bias = weights[f"encoder.{name}.weight"], weights[f"encoder.{name}.bias"]
    encoder.position_encodings.encodings = weights["encoder.positional_embedding"]
    _fill_norm(encoder.layer_norm, weights, "encoder.ln_post")
    for index, layer in enumerate(encoder.layer):
        block = f"encoder.blocks.{index}"
        _fill_self_attention(layer.self_attention, weights, block)
        _fill_feed_forward(layer.ffn, weights, block)


def _fill_decoder(decoder: Any, weights: Weights) -> None:
    decoder.embeddings.weight = decoder.projection.weight = weights["decoder.token_embedding.weight"]
    decoder.position_encodings.encodings = weights["decoder.positional_embedding"]
    _fill_norm(decoder.layer_norm, weights, "decoder.ln")
    for index, layer in enumerate(decoder.layer):
        block = f"decoder.blocks.{index}"
        _fill_self_attention(layer.self_attention, weights, block)
        _fill_norm(layer.attention.layer_norm, weights, f"{block}.cross_attn_ln")
        cross = f"{block}.cross_attn"
        _fill_linear(layer.attention.linear[0], weights, f"{cross}.query")
        _fill_linear(layer.attention.linear[1], weights, f"{cross}.key", f"{cross}.value")
        _fill_linear(layer.attention.linear[2], weights, f"{cross}.out")
        _fill_feed_forward(layer.ffn, weights, block)


def _fill_self_attention(attention: Any, weights: Weights, block: str) -> None:
    _fill_norm(attention.layer_norm, weights, f"{block}.attn_ln")
    _fill_linear(attention.linear[0], weights, *(f"{block}.attn.{part}" for part in ("query", "key", "value")))
    _fill_linear(attention.linear[1], weights, f"{block}.attn.out")


def _fill_feed_forward(feed_forward: Any, weights: Weights, block: str) -> None:
    _fill_norm(feed_forward.layer_norm, weights, f"{block}.mlp_ln")
    _fill_linear(feed_forward.linear_0, weights, f"{block}.mlp.0")
    _fill_linear(feed_forward.linear_1, weights, f"{block}.mlp.2")


def _fill_norm(norm: Any, weights: Weights, name: str) -> None:
    norm.gamma, norm.beta = weights[f"{name}.weight"], weights[f"{name}.bias"]


def _fill_linear(linear: Any, weights: Weights, *names: str) -> None:
    """Fill in one layer, or several side by side; Whisper's keys have no bias, which is a bias of zeros."""
    matrices = [weights[f"{name}.weight"] for name in names]
    biases = [
        weights.get(f"{name}.bias", np.zeros(len(matrix), np.float32))
        for name, matrix in zip(names, matrices, strict=True)
    ]
    linear.weight, linear.bias = np.concatenate(matrices), np.concatenate(biases)


def _configure(config: Any, dims: dict[str, int]) -> None:
    """Say which tokens are never written, as whisper.decoding.DecodingTask does, and where word times come from."""
    tokenizer = get_tokenizer(multilingual=False)
    never = (
        tokenizer.transcribe,
        tokenizer.translate,
        tokenizer.sot,
        tokenizer.sot_prev,
        tokenizer.sot_lm,
        tokenizer.no_speech,
    )
    config.suppress_ids = sorted({*tokenizer.non_speech_tokens, *never})
    config.suppress_ids_begin = [tokenizer.encode(" ")[0], tokenizer.eot]
    config.lang_ids = []
    layers, heads = dims["n_text_layer"], dims["n_text_head"]
    config.alignment_heads = [(layer, head) for layer in range(layers // 2, layers) for head in range(heads)]


def _tokenizer() -> Any:
    """Return Whisper's English-only tokenizer as one of the package `tokenizers`."""
    english = get_tokenizer(multilingual=False)
    ranks: dict[bytes, int] = english.encoding._mergeable_ranks  # noqa: SLF001 - tiktoken shows them nowhere else
    letter = _byte_letters()
    spell: Callable[[bytes], str] = lambda piece: "".join(letter[byte] for byte in piece)  # noqa: E731
    pairs = [_merge(piece, rank, ranks) for piece, rank in sorted(ranks.items(), key=lambda item: item[1])]
    merges = [(spell(pair[0]), spell(pair[1])) for pair in pairs if pair]
    made = Tokenizer(BPE(vocab={spell(piece): rank for piece, rank in ranks.items()}, merges=merges))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    special = sorted(english.special_tokens.items(), key=lambda item: item[1])
    # CTranslate2 finds the token by this older name.
    names = ["<|nocaptions|>" if name == "<|nospeech|>" else name for name, _ in special]
    made.add_special_tokens([AddedToken(name, special=True) for name in names])
    assert made.token_to_id("<|0.00|>") == english.timestamp_begin
    return made


def _merge(piece: bytes, rank: int, ranks: dict[bytes, int]) -> tuple[bytes, bytes] | None:
    """Return the two pieces whose merge makes this one, None for a single byte: what merging by lower ranks leaves."""
    parts = [bytes([byte]) for byte in piece]
    while len(parts) > 2:
        best = min(range(len(parts) - 1), key=lambda i: ranks.get(parts[i] + parts[i + 1], rank))
        if ranks.get(parts[best] + parts[best + 1], rank) >= rank:
            break
        parts[best : best + 2] = [parts[best] + parts[best + 1]]
    return (parts[0], parts[1]) if len(parts) == 2 else None


def _byte_letters() -> dict[int, str]:
    """Return the letter that GPT-2's vocabulary writes each byte as (openai/gpt-2, encoder.py, bytes_to_unicode)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + index) for index, byte in enumerate(others)}


def main() -> int:
    """Run the command line; 0 is success."""
    parser = argparse.ArgumentParser(description="Convert a checkpoint for CTranslate2.")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    convert(arguments.checkpoint, arguments.folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
