"""Several texts decoded together: each pass of the decoder adds tokens to all of them."""

import math
import operator
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from whisper_byoc.speech.fast.weights import Dimensions
from whisper_byoc.speech.runtime import ov

NEVER = np.float32(-np.inf)
STEP = 128
"""Positions: sounds batched together are a multiple of this long. OpenVINO keeps kernels for each length it has
seen."""
LONGEST = 256
"""Once the state has this many places, a batch takes no new texts, so that it comes to an end."""


@dataclass(frozen=True)
class Sound:
    """The encoder's output for one window, for the decoder to attend to."""

    keys: tuple[NDArray[np.generic], ...]
    """For each decoder layer (1, heads, S, values): float32, or bfloat16 as uint16."""
    values: tuple[NDArray[np.generic], ...]
    mask: NDArray[np.float32]
    """(1, 1, 1, S), added to attention: 0 for a position of the window, log(n) for one of silence that represents n."""
    positions: int
    """How many of S belong to the window; the rest are silence."""

    def part(self, first: int, last: int) -> "Sound":
        """Return only some positions of the window."""
        keys = tuple(np.ascontiguousarray(key[:, :, first:last]) for key in self.keys)
        values = tuple(np.ascontiguousarray(value[:, :, first:last]) for value in self.values)
        return Sound(keys, values, np.ascontiguousarray(self.mask[..., first:last]), last - first)

    def key(self, layer: int) -> NDArray[np.float32]:
        """Return the keys of the window itself, (heads, positions, values) float32."""
        key = self.keys[layer][0, :, : self.positions]
        return _widened(key) if key.dtype == np.uint16 else key.astype(np.float32, copy=False)


@dataclass(frozen=True)
class Pass:
    """What one text asks of the decoder next: one sequence, or those of a search, which all have one length."""

    sound: Sound
    tokens: Sequence[Sequence[int]]
    """New tokens of each sequence, the same number for all."""
    wanted: Sequence[int]
    """Indices of the new tokens after which logits are wanted."""
    kept: int = 0
    """Tokens before the new ones that stay; with 0 a new text begins."""
    parents: Sequence[int] = (0,)
    """Which of the text's sequences in its last pass each sequence continues."""


@dataclass(frozen=True)
class Step:
    """What the decoder found."""

    logits: NDArray[np.float32]
    """(sequences, wanted, vocabulary); valid until the next pass."""
    queries: dict[int, NDArray[np.float32]]
    """Layer -> (sequences, heads, new tokens, values), for layers with alignment heads: what attends to `Sound.key`."""


class Batch:
    """Texts with the same number of sequences each, whose passes are made as one.

    The sequences share the places of the decoder's state, each with gaps where others had tokens, so that any may
    begin, go back or end at any time. The state grows until all have ended.
    """

    def __init__(self, request: ov.InferRequest, dims: Dimensions) -> None:
        self._request = request
        self._dims = dims
        self._outputs = [name for name in (port.get_any_name() for port in request.model_outputs) if name != "logits"]
        self._memory = _Memory()
        self._sounds: list[Sound] = []
        self._heard: Sound | None = None  # all sounds; the decoder reads its arrays in place
        self._seen = np.zeros((0, 0), bool)  # (sequences, places): which tokens of the state are a sequence's own
        self.texts: list[Hashable] = []
        self.width = 0
        """Sequences of each text."""

    @property
    def length(self) -> int:
        """Places in the state."""
        return self._seen.shape[1]

    def admits(self, new: Pass, beside: Mapping[Hashable, Pass]) -> bool:
        """Whether a new text may be decoded along with those that make these passes next."""
        going_on = any(each.kept for each in beside.values())
        alike = all(len(each.tokens) == len(new.tokens) for each in beside.values())
        return alike and not (going_on and self.length >= LONGEST)

    def decode(self, passes: Mapping[Hashable, Pass]) -> dict[Hashable, Step]:
        """Make one pass of each text; texts without one are forgotten."""
        if not passes:
            self.texts, self._sounds, self._heard, self._seen = [], [], None, self._seen[:0, :0]
            return {}
        if not any(each.kept for each in passes.values()):
            self.texts, self._seen = [], self._seen[:0, :0]
            self._request.reset_state()
        self._take_sounds([each.sound for each in passes.values()])
        self._continue(passes)
        self._infer(passes)
        return self._parted(passes)

    def _take_sounds(self, sounds: list[Sound]) -> None:
        if len(sounds) == len(self._sounds) and all(map(operator.is_, sounds, self._sounds)):
            return
        self._sounds = sounds
        self._heard = sounds[0] if len(sounds) == 1 else self._memory.joined(sounds)
        for layer, (key, value) in enumerate(zip(self._heard.keys, self._heard.values, strict=True)):
            self._request.set_tensor(f"key{layer}", _tensor(key))
            self._request.set_tensor(f"value{layer}", _tensor(value))
        self._request.set_tensor("sound_mask", ov.Tensor(self._heard.mask))

    def _continue(self, passes: Mapping[Hashable, Pass]) -> None:
        """Choose which sequence each one continues, and how much of that it keeps."""
        rows: list[int] = []
        for key, each in passes.items():
            first = self.texts.index(key) * self.width if each.kept else 0  # a new one sees nothing of any
            rows += (first + parent for parent in each.parents)
        seen = self._seen[rows] if self.length else np.zeros((len(rows), 0), bool)
        self.texts, self.width = list(passes), len(rows) // len(passes)
        kept = np.repeat([each.kept for each in passes.values()], self.width)
        self._seen = seen & (np.cumsum(seen, 1) <= kept[:, None])
        self._request.set_tensor("rows", ov.Tensor(np.array(rows if self.length else range(len(rows)), np.int32)))

    def _infer(self, passes: Mapping[Hashable, Pass]) -> None:
        sequences = [(row, each.kept) for each in passes.values() for row in each.tokens]
        longest = max(len(row) for row, _ in sequences)
        tokens = np.zeros((len(sequences), longest), np.int64)
        for at, (row, _) in enumerate(sequences):
            tokens[at, : len(row)] = row
        places = np.array([[kept] for _, kept in sequences]) + np.arange(longest)
        mask = np.full((len(sequences), 1, longest, self.length + longest), NEVER, np.float32)
        mask[:, 0, :, : self.length][np.repeat(self._seen[:, None], longest, 1)] = 0
        mask[:, 0, :, self.length :] = np.triu(np.full((longest, longest), NEVER, np.float32), 1)
        wanted = [
            (text * self.width + row) * longest + at
            for text, each in enumerate(passes.values())
            for row in range(self.width)
            for at in each.wanted
        ]
        self._request.set_tensor("tokens", ov.Tensor(tokens))
        self._request.set_tensor("positions", ov.Tensor(np.minimum(places, self._dims.n_text_ctx - 1)))
        self._request.set_tensor("wanted", ov.Tensor(np.array(wanted, np.int64)))
        self._request.set_tensor("text_mask", ov.Tensor(mask))
        self._request.infer()
        own = np.arange(longest) < np.array([[len(row)] for row, _ in sequences])
        self._seen = np.concatenate([self._seen, own], 1)

    def _parted(self, passes: Mapping[Hashable, Pass]) -> dict[Hashable, Step]:
        logits = self._request.get_tensor("logits").data
        queries = {}
        for name in self._outputs:
            found = self._request.get_tensor(name).data  # (sequences, tokens, heads * values)
            heads = found.reshape(*found.shape[:2], self._dims.n_text_head, -1)
            queries[int(name.removeprefix("query"))] = heads.transpose(0, 2, 1, 3).copy()
        steps, first = {}, 0
        for at, (key, each) in enumerate(passes.items()):
            last = first + self.width * len(each.wanted)
            rows = slice(at * self.width, (at + 1) * self.width)
            own = {layer: query[rows, :, : len(each.tokens[0])] for layer, query in queries.items()}
            steps[key] = Step(logits[first:last].reshape(self.width, len(each.wanted), -1), own)
            first = last
        return steps


class _Memory:
    """Holds several sounds side by side; reused, because malloc keeps what is freed.

    With new arrays for every change of the batch, a busy server grew by some 250 MB.
    """

    def __init__(self) -> None:
        self._arrays: dict[int, NDArray[np.generic]] = {}

    def joined(self, sounds: Sequence[Sound]) -> Sound:
        """Return sounds as one, all padded to one length; padding is not attended to."""
        longest = math.ceil(max(sound.mask.shape[-1] for sound in sounds) / STEP) * STEP
        mask = np.full((len(sounds), 1, 1, longest), NEVER, np.float32)
        for row, sound in zip(mask, sounds, strict=True):
            row[..., : sound.mask.shape[-1]] = sound.mask[0]
        arrays = [
            self._beside(at, each, longest)
            for at, each in enumerate(zip(*((*sound.keys, *sound.values) for sound in sounds), strict=True))
        ]
        layers = len(arrays) // 2
        return Sound(tuple(arrays[:layers]), tuple(arrays[layers:]), mask, 0)

    def _beside(self, at: int, arrays: Sequence[NDArray[np.generic]], longest: int) -> NDArray[np.generic]:
        _, heads, _, size = arrays[0].shape
        joined = self._array(at, (len(arrays), heads, longest, size), arrays[0].dtype)
        for row, array in zip(joined, arrays, strict=True):
            row[:, : array.shape[2]] = array[0]
            row[:, array.shape[2] :] = 0
        return joined

    def _array(self, at: int, shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> NDArray[np.generic]:
        size = math.prod(shape)
        if at not in self._arrays or len(self._arrays[at]) < size:
            self._arrays[at] = np.empty(size, dtype)
        return self._arrays[at][:size].reshape(shape)


def _tensor(values: NDArray[np.generic]) -> ov.Tensor:
    if values.dtype == np.uint16:
        return ov.Tensor(values, ov.Shape(values.shape), ov.Type.bf16)
    return ov.Tensor(values)


def _widened(values: NDArray[np.generic]) -> NDArray[np.float32]:
    """Read bfloat16 as float32."""
    return (values.astype(np.uint32) << 16).view(np.float32)
