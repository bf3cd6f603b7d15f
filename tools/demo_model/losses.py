"""What the training minimises."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from tools.demo_model.batches import Batch
from tools.demo_model.corpus import UNKNOWN
from tools.demo_model.network import Network

PHONEMES, WORDS, ONSETS, AHEAD, BEHIND = 0.3, 0.5, 0.2, 0.3, 0.2
"""The weights of the auxiliary losses, beside 1 for the tokens."""


@dataclass(frozen=True)
class Loss:
    """A batch's loss and what it consists of."""

    total: Tensor
    parts: dict[str, float]
    """By name, and `right`: the share of pieces of words that are right."""


def guided_layers(decoder_layers: int) -> tuple[int, range]:
    """Return the layer whose cross-attention is led to the token just read, and those led to the next one.

    The latter are the second half of the layers, which openai-whisper takes word times from by default.
    """
    return decoder_layers // 2 - 1, range(decoder_layers // 2, decoder_layers)


def loss(network: Network, batch: Batch, *, half: bool = True) -> Loss:
    """Return the loss of a batch; `half` computes the network in bfloat16 where that is safe (torch.autocast)."""
    behind, ahead = guided_layers(network.shape.decoder_layers)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
        sound, middle = network.encode(batch.mel, batch.offset)
        heads = (network.phoneme_head(middle), network.word_head(sound), network.onset_head(sound))
        text, spreads = network.decode(batch.read, batch.positions, sound, range(behind, ahead.stop))
    counted = batch.write != UNKNOWN
    written = batch.write[counted]
    logits = (text[counted].float() @ network.embedding().float().t()).float()
    logits = torch.cat([logits, torch.full_like(logits[:, :1], network.tokens.unused_logit)], 1)
    parts = {
        "tokens": functional.cross_entropy(logits, written),
        "phonemes": _labels(heads[0], batch.phonemes) * PHONEMES,
        "words": _labels(heads[1], batch.words) * WORDS,
        "onsets": _labels(heads[2], batch.onsets) * ONSETS,
        "behind": _outside(spreads[0], batch.behind) * BEHIND,
        "ahead": torch.stack([_outside(spread, batch.ahead) for spread in spreads[1:]]).mean() * AHEAD,
    }
    pieces = written < network.tokens.texts
    right = (logits.argmax(1) == written)[pieces].float().mean()
    total = torch.stack(list(parts.values())).sum()
    return Loss(total, {**{name: float(part.detach()) for name, part in parts.items()}, "right": float(right)})


def _labels(logits: Tensor, labels: Tensor) -> Tensor:
    sums = functional.cross_entropy(
        logits.float().flatten(0, 1), labels.flatten(), ignore_index=UNKNOWN, reduction="sum"
    )
    return sums / max(1, int((labels != UNKNOWN).sum()))


def _outside(spread: Tensor, spans: Tensor) -> Tensor:
    """Return -log of the attention inside the spans, the mean over those there are."""
    there = spans[..., 0] >= 0
    spread, spans = spread[there], spans[there]
    position = torch.arange(spread.shape[-1])
    inside = (position >= spans[:, :1]) & (position <= spans[:, 1:])
    return -(spread * inside).sum(-1).clamp(min=1e-4).log().sum() / max(1, len(spans))
