"""A model ready to compute: features in, encoded sound out; tokens in, logits out."""

import math
from collections.abc import Hashable, Mapping
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from whisper_byoc.speech.engine import Cancelled, IsCancelled, never
from whisper_byoc.speech.fast.batch import Batch, Pass, Sound, Step
from whisper_byoc.speech.fast.decoding import Steps
from whisper_byoc.speech.fast.silence import STRIDE
from whisper_byoc.speech.fast.weights import Dimensions
from whisper_byoc.speech.runtime import core, has_bfloat16, ov

T = TypeVar("T")

STEPS = ((640, 32), (1280, 64), (3000, 128))
"""(frames, step): up to that many frames, a window's length is a multiple of the step, itself one of 2 * STRIDE.
OpenVINO keeps some 4 MB of kernels for every length it has seen; this makes 35 lengths."""
KERNELS = 50
"""Kernels that OpenVINO keeps for shapes that may recur. With its default of 5000, texts of all lengths together took
100 MB more, and no less time."""
POLL_MS = 20
"""How often to check that the encoding, which takes a third of a second for a large window, is still wanted."""


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
            "CPU_RUNTIME_CACHE_CAPACITY": KERNELS,
        }
        if self.half:
            encoder, decoder = _in_half(encoder, outputs=True), _in_half(decoder, outputs=False)
        self.encoder = core().compile_model(encoder, "CPU", options)
        self.decoder = core().compile_model(decoder, "CPU", options)


class Network:
    """One thread's view of a model: encodes sound, and decodes several texts together."""

    def __init__(self, compiled: Compiled, dims: Dimensions, tail: NDArray[np.float32], stride: int = STRIDE) -> None:
        """`tail` is the result of `silence.encoded_silence` for this model and stride."""
        self._stride = stride
        self._compiled = compiled
        self.dims = dims
        self._encoder = compiled.encoder.create_infer_request()
        self._tail = _narrowed(tail) if compiled.half else tail
        self._batches: list[Batch] = []

    def encode(self, mel: NDArray[np.float32], seconds: float, is_cancelled: IsCancelled = never) -> Sound:
        """Encode the features of one window, (mels, frames), followed by silence.

        `seconds` is how much of it is computed; the precomputed silence follows. With 30 or more, the whole window is
        computed. Raises `Cancelled` soon after `is_cancelled` is true.
        """
        whole = 2 * self.dims.n_audio_ctx
        frames = min(whole, window_frames(seconds * 100))
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

    def decode(self, passes: Mapping[Hashable, Pass]) -> dict[Hashable, Step]:
        """Make one pass of each text, identified by its key. Texts without a pass are forgotten."""
        shares: list[dict[Hashable, Pass]] = [
            {key: passes[key] for key in batch.texts if key in passes and passes[key].kept} for batch in self._batches
        ]
        for key, each in passes.items():
            if not any(key in share for share in shares):
                self._share_of(each, shares)[key] = each
        found: dict[Hashable, Step] = {}
        for batch, share in zip(self._batches, shares, strict=True):
            found |= batch.decode(share)
        return found

    def run(self, work: Steps[T]) -> T:
        """Do some work by itself, to its end; raises what it raises."""
        try:
            asked = next(work)
            while True:
                asked = work.send(self.decode({"": asked})[""])
        except StopIteration as end:
            result: T = end.value
            return result

    def _share_of(self, new: Pass, shares: list[dict[Hashable, Pass]]) -> dict[Hashable, Pass]:
        """Find a batch for a new text: its texts have as many sequences each, and it has not gone on for too long."""
        for batch, share in zip(self._batches, shares, strict=True):
            if not share or batch.admits(new, share):
                return share
        self._batches.append(Batch(self._compiled.decoder.create_infer_request(), self.dims))
        shares.append({})
        return shares[-1]

    def _infer_encoder(self, window: NDArray[np.float32], is_cancelled: IsCancelled) -> list[NDArray[np.generic]]:
        """Return keys and values (1, heads, positions, values) of each layer, key first."""
        if is_cancelled():
            raise Cancelled
        request = self._encoder
        request.wait()  # for cancelled work: OpenVINO's own cancellation leaves a graph that fails later
        request.set_tensor("mel", ov.Tensor(window))
        request.start_async()
        while not request.wait_for(POLL_MS):
            if is_cancelled():
                raise Cancelled
        names = [f"{part}{layer}" for layer in range(self.dims.n_text_layer) for part in ("key", "value")]
        found = [request.get_tensor(name).data for name in names]
        return [each.view(np.uint16) for each in found] if self._compiled.half else found


def window_frames(wanted: float) -> int:
    """Return the length of the window for `wanted` frames."""
    step = next((step for most, step in STEPS if wanted <= most), STEPS[-1][1])
    return math.ceil(wanted / step) * step


def _in_half(model: ov.Model, *, outputs: bool) -> ov.Model:
    """Have a graph output or take keys and values in bfloat16, so that they are never converted."""
    model = model.clone()  # what follows changes it
    adapted = ov.preprocess.PrePostProcessor(model)
    for port in model.outputs if outputs else model.inputs:
        name = port.get_any_name()
        if name.startswith(("key", "value")):
            side = adapted.output(name) if outputs else adapted.input(name)
            side.tensor().set_element_type(ov.Type.bf16)
    return adapted.build()


def _narrowed(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Round float32 to bfloat16, its upper half: to nearest, ties to even."""
    bits = values.view(np.uint32)
    return ((bits + np.uint32(0x7FFF) + (bits >> 16 & 1)) >> 16).astype(np.uint16)
