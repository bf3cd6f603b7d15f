"""Write `speech/assets/silero_vad.npz` and the probabilities that its test expects, from Silero's own release.

    pip download --no-deps silero-vad==6.2.3
    pip install onnxruntime==1.23.2          # runs the original, to tell what is right
    python -m tools.silero_weights silero_vad-6.2.3-py3-none-any.whl

Nothing is rounded or reordered. The basis of the Fourier transform is left out; `speech/silero.py` computes it.
"""

import argparse
import hashlib
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from audio.utterances import CHUNK
from audio.wav import read_wav
from whisper_byoc.speech.runtime import core
from whisper_byoc.speech.voice_activity import CONTEXT

ROOT = Path(__file__).resolve().parent.parent
WEIGHTS = ROOT / "whisper_byoc" / "speech" / "assets" / "silero_vad.npz"
EXPECTED = ROOT / "fixtures" / "silero-probabilities.npz"
RATED = ("demo-numbers", "demo-numbers-noise-15db", "demo-directions-slow", "tiny-weather")
"""Fixtures whose probabilities are kept."""

MEMBER = "silero_vad/data/silero_vad_openvino_16k.onnx"
SHA256 = "7776b81ad1b0350c15d7f1555943b9232eb53e9ca5d989c6d0cea9ebc8664d87"
NAMES = (
    *("stft", "conv1.weight", "conv1.bias", "conv2.weight", "conv2.bias", "conv3.weight", "conv3.bias"),
    *("conv4.weight", "conv4.bias", "lstm.weight_ih", "lstm.weight_hh", "lstm.bias_ih", "lstm.bias_hh"),
    *("output.weight", "output.bias"),
)
"""Its weights in the order in which the graph uses them."""


def main() -> None:
    """Read the command line and write both files."""
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=Path, help="silero_vad-6.2.3-py3-none-any.whl")
    onnx = zipfile.ZipFile(parser.parse_args().wheel).read(MEMBER)
    if (found := hashlib.sha256(onnx).hexdigest()) != SHA256:
        raise SystemExit(f"{MEMBER} has the SHA-256 {found}, not {SHA256}: take the wheel of silero-vad 6.2.3")
    weights = read_weights(onnx)
    del weights["stft"]
    np.savez(WEIGHTS, **weights)  # type: ignore[arg-type]
    expected = {name: probabilities(onnx, read_wav((ROOT / "fixtures" / f"{name}.wav").read_bytes())) for name in RATED}
    np.savez_compressed(EXPECTED, **expected)  # type: ignore[arg-type]


def read_weights(onnx: bytes) -> dict[str, NDArray[np.float32]]:
    """Return the file's weights by our names: float32, in the shapes of the file."""
    nodes = core().read_model(onnx, b"").get_ordered_ops()
    named = [node for node in nodes if node.get_type_name() == "Constant" and "::anon" in node.get_friendly_name()]
    return {name: node.get_data() for name, node in zip(NAMES, named, strict=True)}


def probabilities(onnx: bytes, samples: NDArray[np.float32]) -> NDArray[np.float32]:
    """Have the original rate a recording, shape (n,): one probability for each whole chunk."""
    import onnxruntime  # only here: nothing else needs it

    session: Any = onnxruntime.InferenceSession(onnx)
    state, context, found = np.zeros((2, 1, 128), np.float32), np.zeros(CONTEXT, np.float32), []
    for chunk in samples[: len(samples) // CHUNK * CHUNK].reshape(-1, CHUNK):
        probability, state = session.run(None, {"input": np.concatenate((context, chunk))[None], "state": state})
        context = chunk[-CONTEXT:]
        found.append(float(probability[0, 0]))
    return np.array(found, np.float32)


if __name__ == "__main__":
    main()
