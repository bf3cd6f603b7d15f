"""The attention of one model: always computed by torch's fused kernel, yet open to inspection for word times.

openai-whisper chooses between two kernels by a process-wide switch (`whisper.model.disable_sdpa`), which it flips to
find word times, because only one of the two returns weights. Threads would flip it for each other.
"""

import functools
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from whisper.model import MultiHeadAttention, Whisper


def fuse_attention(model: Whisper) -> None:
    """Make all attention of a model use the fused kernel from now on, whatever the switch says."""
    for module in model.modules():
        if isinstance(module, MultiHeadAttention):
            _fuse(module)


@contextmanager
def attention_weights(model: Whisper) -> Iterator[None]:
    """Make the decoder's cross-attention return its weights before softmax: (1, heads, tokens, positions)."""
    modules = [block.cross_attn for block in model.decoder.blocks]
    for module in modules:
        _fuse(module, weights=True)
    try:
        yield
    finally:
        for module in modules:
            _fuse(module)


@contextmanager
def alignment_weights(model: Whisper) -> Iterator[list[torch.Tensor]]:
    """Collect these weights for each layer's alignment heads, (heads, tokens, positions), in one pass."""
    heads: dict[int, list[int]] = {}
    for layer, head in model.alignment_heads.indices().T.tolist():
        heads.setdefault(layer, []).append(head)
    found: list[torch.Tensor] = []

    def add(chosen: list[int], _module: object, _inputs: object, output: tuple[torch.Tensor, torch.Tensor]) -> None:
        found.append(output[1][0, chosen])

    with attention_weights(model), ExitStack() as stack:
        for layer, chosen in heads.items():
            collect = functools.partial(add, chosen)
            stack.callback(model.decoder.blocks[layer].cross_attn.register_forward_hook(collect).remove)
        yield found


def _fuse(module: Any, *, weights: bool = False) -> None:
    module.qkv_attention = functools.partial(_attend, module.n_head, weights=weights)


def _attend(
    heads: int,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: object = None,
    *,
    weights: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Replace `MultiHeadAttention.qkv_attention`; all tensors are (windows, length, width).

    `mask` means that a token attends only to those before it, as in openai-whisper; its values are not read.
    """
    query, key, value = (each.view(*each.shape[:2], heads, -1).transpose(1, 2) for each in (query, key, value))
    mixed = scaled_dot_product_attention(query, key, value, is_causal=mask is not None and query.shape[2] > 1)
    found = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5 if weights else None
    return mixed.transpose(1, 2).flatten(2), found
