"""Silero VAD 6.2 for 16 kHz, built for OpenVINO from its weights, for many streams at once.

`assets/silero_vad.npz` holds the weights of `silero_vad_openvino_16k.onnx` (MIT; SHA-256 7776b81ad1b0350c15d7f1555943b9
232eb53e9ca5d989c6d0cea9ebc8664d87) in the wheel of silero-vad 6.2.3; `tools/silero_weights.py` wrote it.
"""

from pathlib import Path

import numpy as np

from audio.utterances import CHUNK
from whisper_byoc.speech.runtime import core, ints, ov
from whisper_byoc.speech.voice_activity import CONTEXT, STATE, Floats, Memory

WINDOW = CONTEXT + CHUNK
WEIGHTS = Path(__file__).parent / "assets" / "silero_vad.npz"

_FFT, _HOP = 256, 128
_STRIDES = {"conv1": 1, "conv2": 2, "conv3": 2, "conv4": 1}

op = ov.opset13


class Silero:
    """The model; to be used by one thread at a time. One CPU thread computes."""

    def __init__(self) -> None:
        with np.load(WEIGHTS) as tensors:
            graph = silero_graph(dict(tensors))
        options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1}
        self._request = core().compile_model(graph, "CPU", options).create_infer_request()

    def __call__(self, windows: Floats, memory: Memory) -> tuple[Floats, Memory]:
        """Rate the next T chunks of each of B streams.

        Args:
            windows: float32, shape (B, T, WINDOW), in [-1, 1): each chunk preceded by the last CONTEXT samples before
            it. memory: as returned for the previous chunk; zeros at the beginning of a stream.

        Returns:
            The probability of speech, float32, shape (B, T), and the memory for the next call.
        """
        # tensor by tensor: given a list, OpenVINO's Python takes as long as the model
        for place, values in enumerate((windows, memory.hidden, memory.cell)):
            self._request.set_input_tensor(place, ov.Tensor(values, shared_memory=True))
        self._request.infer()
        probabilities, hidden, cell = (self._request.get_output_tensor(place).data.copy() for place in range(3))
        return probabilities, Memory(hidden, cell)


def silero_graph(weights: dict[str, Floats]) -> ov.Model:
    """Build the graph.

    Inputs `windows` (B, T, WINDOW), `hidden` and `cell` (B, 1, STATE), outputs `probabilities` (B, T), `hidden` and
    `cell`; all float32.
    """
    windows = op.parameter(ov.PartialShape([-1, -1, WINDOW]), ov.Type.f32, "windows")
    hidden, cell = (op.parameter(ov.PartialShape([-1, 1, STATE]), ov.Type.f32, name) for name in ("hidden", "cell"))
    sound = op.pad(op.reshape(windows, ints([-1, 1, WINDOW]), False), ints([0, 0, 0]), ints([0, 0, 64]), "reflect")
    spectrum = op.convolution(sound, op.constant(fourier_basis()[:, None]), [_HOP], [0], [0], [1])
    real, imaginary = op.split(spectrum, ints(1), 2).outputs()
    x = op.sqrt(op.add(op.multiply(real, real), op.multiply(imaginary, imaginary)))
    for name, stride in _STRIDES.items():
        x = op.convolution(x, op.constant(weights[f"{name}.weight"]), [stride], [1], [1], [1])
        x = op.relu(op.add(x, op.constant(weights[f"{name}.bias"].reshape(1, -1, 1))))
    shape = op.shape_of(windows)
    streams, chunks = (op.gather(shape, ints([axis]), ints(0)) for axis in (0, 1))
    x = op.reshape(x, op.concat([streams, chunks, ints([STATE])], 0), False)
    lengths = op.broadcast(chunks, streams)
    inner, outer = (op.constant(_gates(weights[f"lstm.weight_{part}"])) for part in ("ih", "hh"))
    bias = op.constant(_gates(weights["lstm.bias_ih"] + weights["lstm.bias_hh"]))
    lstm = op.lstm_sequence(x, hidden, cell, lengths, inner, outer, bias, STATE, "forward")
    x = op.relu(op.squeeze(lstm.output(0), ints([1])))
    x = op.add(
        op.matmul(x, op.constant(weights["output.weight"][0]), False, False), op.constant(weights["output.bias"])
    )
    results = [op.result(each) for each in (op.squeeze(op.sigmoid(x), ints([2])), lstm.output(1), lstm.output(2))]
    return ov.Model(results, [windows, hidden, cell], "silero")


def fourier_basis() -> Floats:
    """Return the matrix that turns 256 samples into their Hann-windowed spectrum: 129 real rows, 129 imaginary."""
    samples, frequencies = np.arange(_FFT), np.arange(_FFT // 2 + 1)[:, None]
    angles = 2 * np.pi * samples / _FFT
    waves = np.concatenate((np.cos(frequencies * angles), -np.sin(frequencies * angles)))
    return (waves * (0.5 - 0.5 * np.cos(angles))).astype(np.float32)


def _gates(values: Floats) -> Floats:
    """Reorder torch's gates (input, forget, cell, output) as OpenVINO's (forget, input, cell, output)."""
    first, second, *rest = np.split(values, 4)
    return np.concatenate((second, first, *rest))[None]
