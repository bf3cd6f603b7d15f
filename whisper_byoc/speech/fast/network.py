"""A model ready to compute: features in, the encoder's view of the sound out; tokens in, logits out."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from whisper_byoc.speech.engine import Cancelled, IsCancelled, never
from whisper_byoc.speech.fast.runtime import core, has_bfloat16, ov
from whisper_byoc.speech.fast.silence import STRIDE
from whisper_byoc.speech.fast.weights import Dimensions

WINDOW_FRAMES = 32
"""Windows are multiples of it, so that kernels for one length serve many sounds; a multiple of 2 * STRIDE."""
POLL_MS = 20
"""How often the encoder, which takes a third of a second for a large window, is asked whether it is still wanted."""


@dataclass(frozen=True)
class Sound:
    """What the encoder made of one window, for the decoder to attend to."""

    keys: tuple[NDArray[np.generic], ...]
    """For each decoder layer (1, heads, S, values): float32, or bfloat16 as uint16."""
    values: tuple[NDArray[np.generic], ...]
    mask: NDArray[np.float32]
    """(1, 1, 1, S), added to attention: 0 for a position of the window, log(n) for one of silence that stands for n."""
    positions: int
    """How many of S are of the window; those behind are of silence."""

    def key(self, layer: int) -> NDArray[np.float32]:
        """Return the keys of the window itself, (heads, positions, values) float32."""
        key = self.keys[layer][0, :, : self.positions]
        return _widened(key) if key.dtype == np.uint16 else key.astype(np.float32, copy=False)


@dataclass(frozen=True)
class Step:
    """What one call of the decoder gave."""

    logits: NDArray[np.float32]
    """(wanted, vocabulary); valid until the next call."""
    queries: dict[int, NDArray[np.float32]]
    """Layer -> (heads, n, values), for layers with alignment heads: what attends to `Sound.key`."""


class Compiled:
    """Both graphs of a model, compiled for this CPU; shared by any number of `Network`s."""

    def __init__(
        self, encoder: ov.Model, decoder: ov.Model, *, threads: int, workers: int = 1, exact: bool = False
    ) -> None:
        """Compile for `workers` networks that compute at once, with `threads` each; `exact` keeps to float32."""
        self.half = has_bfloat16() and not exact
        precision = "bf16" if self.half else "f32"
        options = {
            "INFERENCE_PRECISION_HINT": precision,
            "INFERENCE_NUM_THREADS": threads * workers,
            "NUM_STREAMS": workers,
            "ENABLE_CPU_PINNING": False,  # other processes may be on these CPUs
            "KV_CACHE_PRECISION": precision,  # its default is int8
        }
        if self.half:
            encoder, decoder = _in_half(encoder, outputs=True), _in_half(decoder, outputs=False)
        self.encoder = core().compile_model(encoder, "CPU", options)
        self.decoder = core().compile_model(decoder, "CPU", options)


class Network:
    """One thread's view of a model: has the state of one text at a time."""

    def __init__(self, compiled: Compiled, dims: Dimensions, tail: NDArray[np.float32], stride: int = STRIDE) -> None:
        """`tail` is what `silence.encoded_silence` returned for this model and stride."""
        self._stride = stride
        self._compiled = compiled
        self.dims = dims
        self._encoder = compiled.encoder.create_infer_request()
        self._decoder = compiled.decoder.create_infer_request()
        self._outputs = [
            output.get_any_name() for output in compiled.decoder.outputs if output.get_any_name() != "logits"
        ]
        self._tail = _narrowed(tail) if compiled.half else tail
        self._length = 0
        self._sound: Sound | None = None

    def encode(self, mel: NDArray[np.float32], seconds: float, is_cancelled: IsCancelled = never) -> Sound:
        """Encode the features of one window, (mels, frames), followed by silence.

        `seconds` is how much of it is computed; what is behind that is the silence that was computed once. With 30 or
        more the whole window is computed. Raises `Cancelled` soon after `is_cancelled` is true.
        """
        whole = 2 * self.dims.n_audio_ctx
        frames = min(whole, math.ceil(seconds * 100 / WINDOW_FRAMES) * WINDOW_FRAMES)
        window = np.zeros((1, self.dims.n_mels, frames), np.float32)
        kept = min(frames, mel.shape[1])
        window[0, :, :kept] = mel[:, :kept]
        found = self._infer_encoder(window, is_cancelled)
        positions = frames // 2
        skipped = -(-(positions - self._stride // 2) // self._stride)
        tail = self._tail[:, :, :, skipped:]
        length = tail.shape[3]
        mask = np.zeros((1, 1, 1, positions + length), np.float32)
        if length:
            mask[..., positions:] = math.log((self.dims.n_audio_ctx - positions) / length)
        joined = [np.concatenate([each, silent], 2) for each, silent in zip(found, tail, strict=True)]
        return Sound(tuple(joined[0::2]), tuple(joined[1::2]), mask, positions)

    def listen(self, sound: Sound) -> None:
        """Begin a new text, for this sound."""
        self._decoder.reset_state()
        self._length = 0
        self._sound = sound  # the decoder reads its arrays where they are
        for layer, (key, value) in enumerate(zip(sound.keys, sound.values, strict=True)):
            self._decoder.set_tensor(f"key{layer}", _tensor(key))
            self._decoder.set_tensor(f"value{layer}", _tensor(value))
        self._decoder.set_tensor("sound_mask", ov.Tensor(sound.mask))
        self._decoder.set_tensor("rows", ov.Tensor(np.zeros(1, np.int32)))

    def step(self, tokens: Sequence[int], wanted: Sequence[int]) -> Step:
        """Append tokens to the text, and compute logits behind those at the indices `wanted` among them."""
        count, before = len(tokens), self._length
        places = np.arange(before, before + count, dtype=np.int64)
        mask = np.zeros((1, 1, count, before + count), np.float32)
        if count > 1:
            mask[0, 0, np.arange(before + count) > places[:, None]] = -np.inf
        request = self._decoder
        request.set_tensor("tokens", ov.Tensor(np.array([tokens], np.int64)))
        request.set_tensor("positions", ov.Tensor(places[None]))
        request.set_tensor("wanted", ov.Tensor(np.array(wanted, np.int64)))
        request.set_tensor("text_mask", ov.Tensor(mask))
        request.infer()
        self._length += count
        queries = {int(name.removeprefix("query")): request.get_tensor(name).data[0].copy() for name in self._outputs}
        return Step(request.get_tensor("logits").data[0], queries)

    def _infer_encoder(self, window: NDArray[np.float32], is_cancelled: IsCancelled) -> list[NDArray[np.generic]]:
        """Return keys and values (1, heads, positions, values) of each layer, key first."""
        if is_cancelled():
            raise Cancelled
        request = self._encoder
        request.wait()  # for what was cancelled: OpenVINO's own cancellation leaves a graph that fails later
        request.set_tensor("mel", ov.Tensor(window))
        request.start_async()
        while not request.wait_for(POLL_MS):
            if is_cancelled():
                raise Cancelled
        names = [f"{part}{layer}" for layer in range(self.dims.n_text_layer) for part in ("key", "value")]
        found = [request.get_tensor(name).data for name in names]
        return [each.view(np.uint16) for each in found] if self._compiled.half else found


def _in_half(model: ov.Model, *, outputs: bool) -> ov.Model:
    """Have a graph give or take keys and values in bfloat16, so that they are never converted."""
    model = model.clone()  # what follows changes it
    adapted = ov.preprocess.PrePostProcessor(model)
    for port in model.outputs if outputs else model.inputs:
        name = port.get_any_name()
        if name.startswith(("key", "value")):
            side = adapted.output(name) if outputs else adapted.input(name)
            side.tensor().set_element_type(ov.Type.bf16)
    return adapted.build()


def _tensor(values: NDArray[np.generic]) -> ov.Tensor:
    if values.dtype == np.uint16:
        return ov.Tensor(values, ov.Shape(values.shape), ov.Type.bf16)
    return ov.Tensor(values)


def _narrowed(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Round float32 to bfloat16: its upper half, to the nearest even."""
    bits = values.view(np.uint32)
    return ((bits + np.uint32(0x7FFF) + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def _widened(values: NDArray[np.generic]) -> NDArray[np.float32]:
    """Read bfloat16 as float32."""
    return (values.astype(np.uint32) << 16).view(np.float32)
