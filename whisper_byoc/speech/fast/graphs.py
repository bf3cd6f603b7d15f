"""Whisper's encoder and decoder as OpenVINO graphs, built operation by operation from the weights.

Both follow openai-whisper's `model.py`. The differences are for speed and change no value: the encoder ends with the
keys and values of the decoder's cross attention, which the decoder takes as inputs, and the decoder keeps those of its
own tokens as state between calls. Masks are inputs, added to attention before its softmax.

B is the number of sequences, I of sounds (B / I sequences each), n of new tokens, P of tokens in the state, T of mel
frames, S of positions of sound, H of heads and D of values per head.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from whisper_byoc.speech.fast.weights import Weights
from whisper_byoc.speech.runtime import ints, ov

op = ov.opset13
LAYER_NORM_EPSILON = 1e-5
"""torch's default, which openai-whisper uses."""
INT8_MAX = 127


def encoder_graph(weights: Weights) -> ov.Model:
    """Build the encoder.

    Input `mel` (B, mels, T) float32, T even. Outputs, for each decoder layer i, `key<i>` and `value<i>` (B, H, T/2, D).
    """
    dims = weights.dims
    build = _Builder(weights, int8=False)
    mel = _input("mel", ov.Type.f32, [-1, dims.n_mels, -1])
    x = op.gelu(build.convolution(mel, "encoder.conv1", stride=1), "erf")
    x = op.gelu(build.convolution(x, "encoder.conv2", stride=2), "erf")
    x = op.transpose(x, ints([0, 2, 1]))
    length = op.gather(op.shape_of(x), ints([1]), ints(0))
    places = op.slice(build.constant("encoder.positional_embedding"), ints([0]), length, ints([1]), ints([0]))
    x = op.add(x, places)
    for layer in range(dims.n_audio_layer):
        block = f"encoder.blocks.{layer}"
        normal = build.norm(x, f"{block}.attn_ln")
        heads = dims.n_audio_head
        query, key, value = (build.heads(normal, f"{block}.attn.{part}", heads) for part in ("query", "key", "value"))
        x = op.add(x, build.linear(_joined(op.scaled_dot_product_attention(query, key, value)), f"{block}.attn.out"))
        x = op.add(x, build.mlp(x, block))
    x = build.norm(x, "encoder.ln_post")
    results = []
    for layer in range(dims.n_text_layer):
        for part in ("key", "value"):
            found = build.heads(x, f"decoder.blocks.{layer}.cross_attn.{part}", dims.n_text_head)
            results.append(_output(found, f"{part}{layer}"))
    return ov.Model(results, [mel], "encoder")


def decoder_graph(weights: Weights, *, int8: bool) -> ov.Model:
    """Build the decoder; `int8` keeps its matrices as int8 with a scale for each row.

    Inputs:
        tokens (B, n) int64
        positions (B, n) int64: places in the text, from 0
        rows (B) int32: which sequence of the state each one continues
        wanted (k) int64: new tokens whose logits are wanted: the token `at` of sequence `row` is row * n + at
        text_mask (B, 1, n, P + n) float32: added to attention to the text
        sound_mask (I, 1, 1, S) float32: added to attention to the sound
        key<i>, value<i> (I, H, S, D) float32: what the encoder found, for each layer
    Outputs:
        logits (k, vocabulary) float32
        query<i> (B, n, H * D) float32: what attends to `key<i>`, for each layer with alignment heads
    """
    dims = weights.dims
    build = _Builder(weights, int8=int8)
    heads, size = dims.n_text_head, dims.n_text_state // dims.n_text_head
    tokens = _input("tokens", ov.Type.i64, [-1, -1])
    positions = _input("positions", ov.Type.i64, [-1, -1])
    rows = _input("rows", ov.Type.i32, [-1])
    wanted = _input("wanted", ov.Type.i64, [-1])
    text_mask = _input("text_mask", ov.Type.f32, [-1, 1, -1, -1])
    sound_mask = _input("sound_mask", ov.Type.f32, [-1, 1, 1, -1])
    sounds = op.gather(op.shape_of(sound_mask), ints([0]), ints(0))
    inputs = [tokens, positions, rows, wanted, text_mask, sound_mask]
    batch = op.shape_of(rows)
    embedding = build.matrix("decoder.token_embedding.weight")
    x = op.add(
        op.gather(embedding, tokens, ints(0)),
        op.gather(build.constant("decoder.positional_embedding"), positions, ints(0)),
    )
    results, sinks = [], []
    aligned = {layer for layer, _ in weights.aligned}
    for layer in range(dims.n_text_layer):
        block = f"decoder.blocks.{layer}"
        normal = build.norm(x, f"{block}.attn_ln")
        query, key, value = (build.heads(normal, f"{block}.attn.{part}", heads) for part in ("query", "key", "value"))
        past = [_State(f"{part}{layer}", batch, heads, size) for part in ("key", "value")]
        key, value = past[0].extend(key, rows), past[1].extend(value, rows)
        sinks += [each.sink for each in past]
        mixed = op.scaled_dot_product_attention(query, key, value, text_mask)
        x = op.add(x, build.linear(_joined(mixed), f"{block}.attn.out"))
        query = build.linear(build.norm(x, f"{block}.cross_attn_ln"), f"{block}.cross_attn.query")
        if layer in aligned:
            results.append(_output(query, f"query{layer}"))
        # the sequences of one sound attend to it as if they were one, so it is in memory only once
        together = op.reshape(query, op.concat([sounds, ints([-1, heads, size])], 0), special_zero=False)
        key, value = (_input(f"{part}{layer}", ov.Type.f32, [-1, heads, -1, size]) for part in ("key", "value"))
        inputs += [key, value]
        scaled = op.multiply(op.transpose(together, ints([0, 2, 1, 3])), op.constant(np.float32(size**-0.5)))
        shares = op.softmax(op.add(op.matmul(scaled, key, False, True), sound_mask), -1)
        mixed = op.matmul(shares, value, False, False)
        mixed = op.reshape(_joined(mixed), op.shape_of(query), special_zero=False)
        x = op.add(x, build.linear(mixed, f"{block}.cross_attn.out"))
        x = op.add(x, build.mlp(x, block))
    flat = op.reshape(build.norm(x, "decoder.ln"), ints([-1, dims.n_text_state]), special_zero=False)
    x = op.gather(flat, wanted, ints(0))
    results.insert(0, _output(op.matmul(x, embedding, False, True), "logits"))
    return ov.Model(results, sinks, inputs, "decoder")


class _Builder:
    def __init__(self, weights: Weights, *, int8: bool) -> None:
        self._tensors = weights.tensors
        self._int8 = int8

    def constant(self, name: str, shape: Sequence[int] | None = None) -> ov.Node:
        values = self._tensors[name]
        return _constant(values if shape is None else values.reshape(shape))

    def matrix(self, name: str) -> ov.Node:
        """Return weights (rows, columns); int8 weights are widened to float32 where they are used."""
        values = self._tensors[name]
        if not self._int8:
            return _constant(values)
        numbers, scales = quantized(values)
        return op.multiply(op.convert(op.constant(numbers), "f32"), op.constant(scales))

    def linear(self, x: ov.Node, name: str) -> ov.Node:
        found = op.matmul(x, self.matrix(f"{name}.weight"), False, True)
        bias = f"{name}.bias"
        return op.add(found, self.constant(bias)) if bias in self._tensors else found

    def heads(self, x: ov.Node, name: str, heads: int) -> ov.Node:
        """Project (B, n, H * D) and split it into heads: (B, H, n, D)."""
        size = self._tensors[f"{name}.weight"].shape[0] // heads
        parted = op.reshape(self.linear(x, name), ints([0, 0, heads, size]), special_zero=True)
        return op.transpose(parted, ints([0, 2, 1, 3]))

    def norm(self, x: ov.Node, name: str) -> ov.Node:
        normal = op.mvn(x, ints([-1]), True, LAYER_NORM_EPSILON, "inside_sqrt")
        return op.add(op.multiply(normal, self.constant(f"{name}.weight")), self.constant(f"{name}.bias"))

    def mlp(self, x: ov.Node, block: str) -> ov.Node:
        inner = op.gelu(self.linear(self.norm(x, f"{block}.mlp_ln"), f"{block}.mlp.0"), "erf")
        return self.linear(inner, f"{block}.mlp.2")

    def convolution(self, x: ov.Node, name: str, stride: int) -> ov.Node:
        found = op.convolution(x, self.constant(f"{name}.weight"), [stride], [1], [1], [1])
        return op.add(found, self.constant(f"{name}.bias", (1, -1, 1)))


class _State:
    """Keys or values (B, H, P, D) kept between calls; empty at first."""

    def __init__(self, name: str, batch: ov.Node, heads: int, size: int) -> None:
        info = ov.op.util.VariableInfo()
        info.data_shape = ov.PartialShape([-1, heads, -1, size])
        info.data_type = ov.Type.f32
        info.variable_id = f"text_{name}"
        self._variable = ov.op.util.Variable(info)
        empty = op.concat([batch, ints([heads]), ints([0]), ints([size])], 0)
        initial = op.broadcast(op.constant(np.float32(0)), empty)
        self._read = ov.opset6.read_value(initial, self._variable)
        self.sink: ov.Node | None = None

    def extend(self, new: ov.Node, rows: ov.Node) -> ov.Node:
        """Return the state of `rows` with the new tokens appended, and keep it."""
        whole = op.concat([op.gather(self._read, rows, ints(0)), new], 2)
        self.sink = ov.opset6.assign(whole, self._variable)
        return whole


def quantized(values: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Round a matrix (rows, columns) to int8; return it with the scales (rows, 1) to multiply it by."""
    scales = np.abs(values).max(1, keepdims=True) / np.float32(INT8_MAX)
    scales[scales == 0] = 1
    return np.rint(values / scales).astype(np.int8), scales.astype(np.float32)


def _input(name: str, kind: ov.Type, shape: list[int]) -> ov.Node:
    node = op.parameter(ov.PartialShape(shape), kind, name)
    node.output(0).get_tensor().set_names({name})
    return node


def _output(node: ov.Node, name: str) -> ov.Node:
    result = op.result(node, name)
    result.output(0).get_tensor().set_names({name})
    return result


def _joined(x: ov.Node) -> ov.Node:
    """Put heads (B, H, n, D) side by side: (B, n, H * D)."""
    heads, size = x.get_output_partial_shape(0)[1].get_length(), x.get_output_partial_shape(0)[3].get_length()
    return op.reshape(op.transpose(x, ints([0, 2, 1, 3])), ints([0, 0, heads * size]), special_zero=True)


def _constant(values: NDArray[np.float32]) -> ov.Node:
    return op.constant(np.ascontiguousarray(values))
