"""Small models with random weights, as openai-whisper's modules and as the fast engine's arrays."""

import importlib.util

import numpy as np
import pytest
import torch
from whisper.model import ModelDimensions, Whisper

from audio.wav import read_wav
from whisper_byoc.speech.fast.weights import Dimensions, Weights
from whisper_byoc.speech.models import DEMO_FILE

if importlib.util.find_spec("openvino") is None:  # the reference engine works without
    collect_ignore_glob = ["test_*"]

SMALL = ModelDimensions(80, 1500, 48, 4, 2, 51865, 448, 48, 2, 3)
"""Multilingual; encoder and decoder differ in heads and layers."""


@pytest.fixture(scope="session")
def small():
    torch.manual_seed(1)
    model = Whisper(SMALL).eval()
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, 1.0 if name.endswith("ln.weight") else 0.0, 0.2)
    return model.half().float()  # values that a checkpoint in half precision can have


@pytest.fixture(scope="session")
def small_weights(small):
    return weights_of(small)


def weights_of(model):
    tensors = {name: each.numpy() for name, each in model.state_dict().items()}
    return Weights(Dimensions.parse(vars(model.dims)), tensors)


@pytest.fixture(scope="session")
def exact_demo():
    """The demo model in float32 throughout, for comparison with openai-whisper."""
    from whisper_byoc.speech.fast.model import build, read_weights  # here, as OpenVINO may be missing

    return build(read_weights(DEMO_FILE), DEMO_FILE, exact=True)


@pytest.fixture(scope="module")
def model():
    """The demo model as it is served; modules with another one have their own."""
    from whisper_byoc.speech.models import load_fast_model

    return load_fast_model("demo")


@pytest.fixture(scope="module")
def engine(model):
    from whisper_byoc.speech.fast.engine import FastEngine  # here, as OpenVINO may be missing

    engine = FastEngine(model)
    engine.use_threads(1)
    return engine


@pytest.fixture(scope="session")
def sound(fixtures_dir):
    return lambda name: read_wav((fixtures_dir / name).read_bytes())


@pytest.fixture(scope="session")
def noise():
    return np.random.default_rng(0).standard_normal(4 * 16_000).astype(np.float32) / 50
