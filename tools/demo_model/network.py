"""The model in training: Whisper's own blocks, run so that their attention can be guided, and extra heads."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

import torch
import whisper.model
from torch import Tensor, nn
from torch.nn import functional
from whisper.model import AudioEncoder, LayerNorm, ModelDimensions, MultiHeadAttention, ResidualAttentionBlock

from tools.demo_model.tokens import TIMESTAMP_STEP, VOCABULARY_SIZE, Tokens
from tools.demo_model.vocabulary import WORDS
from tools.demo_model.windows import ONSET_CLASSES

_OFFSET = 4.0
"""What each used row of the embedding has in its first dimension, and the last norm's bias there: together they
lift the logits of used rows above the zeros of unused ones from the start."""
_SCORES = 2_000_000
"""How many attention weights are computed at once, so that they stay in the processor's cache."""


@dataclass(frozen=True)
class Shape:
    """The network's dimensions."""

    width: int = 128
    heads: int = 4
    encoder_layers: int = 4
    decoder_layers: int = 4
    phonemes: int = 0
    """How many the phoneme head tells apart, silence not counted."""

    def dimensions(self) -> ModelDimensions:
        """Return them as openai-whisper writes them into a checkpoint."""
        return ModelDimensions(
            n_mels=80,
            n_audio_ctx=1500,
            n_audio_state=self.width,
            n_audio_head=self.heads,
            n_audio_layer=self.encoder_layers,
            n_vocab=VOCABULARY_SIZE,
            n_text_ctx=448,
            n_text_state=self.width,
            n_text_head=self.heads,
            n_text_layer=self.decoder_layers,
        )


class Network(nn.Module):
    """A Whisper whose embedding has only the rows that are used."""

    def __init__(self, shape: Shape, tokens: Tokens) -> None:
        super().__init__()
        self.shape = shape
        self.tokens = tokens
        width, heads = shape.width, shape.heads
        self.encoder = AudioEncoder(80, 1500, width, heads, shape.encoder_layers)
        blocks = [ResidualAttentionBlock(width, heads, cross_attention=True) for _ in range(shape.decoder_layers)]
        self.decoder = nn.ModuleList(blocks)
        self.norm = LayerNorm(width)
        self.positions = nn.Parameter(torch.randn(448, width) * 0.02)
        self.pieces = nn.Parameter(torch.randn(tokens.first_timestamp, width) * 0.06)
        self.timestamps = nn.Linear(width, width)
        """Makes the timestamps' rows out of the encoder's own sinusoids of their positions."""
        self.times: Tensor
        self.register_buffer("times", whisper.model.sinusoids(1501, width)[::TIMESTAMP_STEP].clone())
        self.phoneme_head = nn.Linear(width, shape.phonemes + 1)
        self.word_head = nn.Linear(width, len(WORDS) + 1)
        self.onset_head = nn.Linear(width, ONSET_CLASSES)
        self._initialise()

    @torch.no_grad()
    def _initialise(self) -> None:
        nn.init.normal_(self.timestamps.weight, std=0.06 / math.sqrt(self.shape.width / 2))
        self.pieces[:, 0] = _OFFSET
        self.timestamps.weight[0] = 0
        self.timestamps.bias.zero_()
        self.timestamps.bias[0] = _OFFSET
        self.norm.bias[0] = _OFFSET
        self.norm.weight[0] = 0.1
        for block in (*self.encoder.blocks, *self.decoder):
            outputs = [block.attn.out, block.mlp[2], *([block.cross_attn.out] if block.cross_attn else [])]
            for output in outputs:
                output.weight.mul_(0.5)

    def embedding(self) -> Tensor:
        """Return the used rows of the embedding, shape (compact tokens, width)."""
        return torch.cat([self.pieces, self.timestamps(self.times)])

    def encode(self, mel: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
        """Return the encoder's output and that of its middle layer, shape (windows, frames / 2, width).

        `mel` has Whisper's scaled log-mel, shape (windows, 80, frames), `offset` each window's first position.
        """
        encoder = self.encoder
        x = functional.gelu(encoder.conv1(mel))
        x = functional.gelu(encoder.conv2(x)).transpose(1, 2)
        x = x + encoder.positional_embedding[offset[:, None] + torch.arange(x.shape[1])]
        middle = x
        for index, block in enumerate(encoder.blocks):
            x = x + self._attend(block.attn, block.attn_ln(x))
            x = x + block.mlp(block.mlp_ln(x))
            if index + 1 == len(encoder.blocks) // 2:
                middle = x
        return encoder.ln_post(x), middle

    def decode(self, read: Tensor, positions: Tensor, sound: Tensor, guided: range) -> tuple[Tensor, list[Tensor]]:
        """Return the last layer's output, and how the `guided` layers spread their attention over the sound.

        `read` and `positions` have shape (windows, tokens); the spreads, one for each guided layer, have shape
        (windows, tokens, frames / 2), the mean of the heads, with sum 1.
        """
        x = functional.embedding(read, self.embedding()) + self.positions[positions]
        spreads = []
        for index, block in enumerate(cast("Iterable[ResidualAttentionBlock]", self.decoder)):
            x = x + self._attend(block.attn, block.attn_ln(x), causal=True)
            y = block.cross_attn_ln(x)
            if index in guided:
                y, spread = self._attend_and_tell(block.cross_attn, y, sound)
                spreads.append(spread)
            else:
                y = self._attend(block.cross_attn, y, sound)
            x = x + y
            x = x + block.mlp(block.mlp_ln(x))
        return self.norm(x), spreads

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], self.shape.heads, -1).transpose(1, 2)

    def _attend(
        self, attention: MultiHeadAttention, x: Tensor, xa: Tensor | None = None, *, causal: bool = False
    ) -> Tensor:
        source = x if xa is None else xa
        query, key, value = attention.query(x), attention.key(source), attention.value(source)
        mixed = _mix(self._heads(query), self._heads(key), self._heads(value), causal=causal)
        output: Tensor = attention.out(mixed.transpose(1, 2).flatten(2))
        return output

    def _attend_and_tell(self, attention: MultiHeadAttention, x: Tensor, xa: Tensor) -> tuple[Tensor, Tensor]:
        query, key = self._heads(attention.query(x)), self._heads(attention.key(xa))
        value = self._heads(attention.value(xa))
        weights = (query @ key.transpose(-1, -2)).float().mul(query.shape[-1] ** -0.5).softmax(-1)
        mixed = weights.to(value.dtype) @ value
        return attention.out(mixed.transpose(1, 2).flatten(2)), weights.mean(1)

    def checkpoint(self) -> dict[str, object]:
        """Return what `whisper.load_model` reads: dimensions, and the weights in half precision."""
        embedding = torch.zeros(VOCABULARY_SIZE, self.shape.width)
        embedding[self.tokens.rows] = self.embedding().detach().float()
        state = {f"encoder.{name}": value for name, value in self.encoder.state_dict().items()}
        state["decoder.token_embedding.weight"] = embedding
        state["decoder.positional_embedding"] = self.positions
        state |= {f"decoder.blocks.{name}": value for name, value in self.decoder.state_dict().items()}
        state |= {f"decoder.ln.{name}": value for name, value in self.norm.state_dict().items()}
        halves = {name: value.detach().half().clone() for name, value in state.items()}
        return {"dims": asdict(self.shape.dimensions()), "model_state_dict": halves}

    @torch.no_grad()
    def adopt(self, state: Mapping[str, Tensor]) -> None:
        """Take the weights of a checkpoint over (its `model_state_dict`); the three extra heads are not in there."""
        state = {name: value.float() for name, value in state.items()}

        def of(prefix: str) -> dict[str, Tensor]:
            return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}

        self.encoder.load_state_dict(of("encoder."))
        self.decoder.load_state_dict(of("decoder.blocks."))
        self.norm.load_state_dict(of("decoder.ln."))
        self.positions.copy_(state["decoder.positional_embedding"])
        rows = state["decoder.token_embedding.weight"][self.tokens.rows]
        self.pieces.copy_(rows[: self.tokens.first_timestamp])
        # the layer that made the timestamps' rows: the smallest one that does
        times = torch.cat([self.times, torch.ones(len(self.times), 1)], 1)
        solved = torch.linalg.lstsq(times, rows[self.tokens.first_timestamp :], rcond=1e-4, driver="gelsd").solution
        self.timestamps.weight.copy_(solved[:-1].T)
        self.timestamps.bias.copy_(solved[-1])

    def export(self, path: Path) -> None:
        """Write the model as a checkpoint of openai-whisper's."""
        unfinished = path.with_suffix(".part")
        torch.save(self.checkpoint(), unfinished)
        unfinished.replace(path)


def _mix(query: Tensor, key: Tensor, value: Tensor, *, causal: bool) -> Tensor:
    """Return the attention's mixture of values; all have shape (windows, heads, length, width of a head).

    Some windows at a time, or some queries of one: with its backward pass a third faster than torch's fused attention.
    """
    _, heads, length, width = query.shape
    scores = heads * key.shape[2]
    hidden = torch.full((length, length), -torch.inf, dtype=query.dtype).triu(1) if causal else None
    windows, queries = max(1, _SCORES // (scores * length)), min(length, max(1, _SCORES // scores))
    scaled = query.contiguous() * width**-0.5
    parts = []
    for q, k, v in zip(
        *(torch.split(each, windows) for each in (scaled, key.contiguous(), value.contiguous())), strict=True
    ):
        mixed = []
        for first in range(0, length, queries):
            weights = q[:, :, first : first + queries] @ k.transpose(-1, -2)
            if hidden is not None:
                weights = weights + hidden[first : first + queries]
            mixed.append(weights.softmax(-1) @ v)
        parts.append(torch.cat(mixed, 2))
    return torch.cat(parts)
