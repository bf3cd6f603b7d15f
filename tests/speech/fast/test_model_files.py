"""Checkpoints of torch and of CTranslate2, read without either: every value, and every way in which a file can lie."""

import json
import re
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from whisper_byoc.errors import ModelError
from whisper_byoc.speech.fast.ctranslate2_file import read_ctranslate2
from whisper_byoc.speech.fast.torch_file import read_torch_file
from whisper_byoc.speech.fast.weights import Dimensions, Weights
from whisper_byoc.speech.models import DEMO_FILE

KINDS = {np.dtype(code): number for number, code in enumerate(("<f4", "i1", "<i2", "<i4", "<f2"))}


def text(value):
    data = value.encode() + b"\0"
    return struct.pack("<H", len(data)) + data


def packed(variables, *, version=6, spec="WhisperSpec", aliases=()):
    """A model.bin."""
    out = [struct.pack("<I", version), text(spec), struct.pack("<II", 3, len(variables))]
    for name, values in variables.items():
        kind = KINDS[values.dtype]
        out += [text(name), struct.pack(f"<B{values.ndim}I", values.ndim, *values.shape)]
        out += [struct.pack("<BI", kind, values.nbytes), values.tobytes()]
    out.append(struct.pack("<I", len(aliases)))
    out += [text(alias) + text(name) for alias, name in aliases]
    return b"".join(out)


def as_ctranslate2(weights):
    """The variables that CTranslate2 has for a model."""
    tensors, dims = weights.tensors, weights.dims
    found = {
        "encoder/num_heads": np.array(dims.n_audio_head, np.int16),
        "decoder/num_heads": np.array(dims.n_text_head, np.int16),
        "encoder/position_encodings/encodings": tensors["encoder.positional_embedding"],
        "decoder/position_encodings/encodings": tensors["decoder.positional_embedding"],
        "decoder/embeddings/weight": tensors["decoder.token_embedding.weight"],
    }

    def linear(there, *here):
        width = len(tensors[f"{here[0]}.weight"])
        zeros = np.zeros(width, np.float32)
        found[f"{there}/weight"] = np.concatenate([tensors[f"{name}.weight"] for name in here])
        found[f"{there}/bias"] = np.concatenate([tensors.get(f"{name}.bias", zeros) for name in here])

    def norm(there, here):
        found[f"{there}/gamma"], found[f"{there}/beta"] = tensors[f"{here}.weight"], tensors[f"{here}.bias"]

    linear("encoder/conv1", "encoder.conv1")
    linear("encoder/conv2", "encoder.conv2")
    norm("encoder/layer_norm", "encoder.ln_post")
    norm("decoder/layer_norm", "decoder.ln")
    for side, layers in (("encoder", dims.n_audio_layer), ("decoder", dims.n_text_layer)):
        for layer in range(layers):
            there, here = f"{side}/layer_{layer}", f"{side}.blocks.{layer}"
            norm(f"{there}/self_attention/layer_norm", f"{here}.attn_ln")
            linear(f"{there}/self_attention/linear_0", *(f"{here}.attn.{part}" for part in ("query", "key", "value")))
            linear(f"{there}/self_attention/linear_1", f"{here}.attn.out")
            if side == "decoder":
                norm(f"{there}/attention/layer_norm", f"{here}.cross_attn_ln")
                linear(f"{there}/attention/linear_0", f"{here}.cross_attn.query")
                linear(f"{there}/attention/linear_1", *(f"{here}.cross_attn.{part}" for part in ("key", "value")))
                linear(f"{there}/attention/linear_2", f"{here}.cross_attn.out")
            norm(f"{there}/ffn/layer_norm", f"{here}.mlp_ln")
            linear(f"{there}/ffn/linear_0", f"{here}.mlp.0")
            linear(f"{there}/ffn/linear_1", f"{here}.mlp.2")
    return found


def narrowed(variables, kind):
    """The same variables as float16, or as int8 with a scale for each row of a matrix."""
    found = {}
    for name, values in variables.items():
        if values.dtype != np.float32:
            found[name] = values
        elif kind == "int8" and name.endswith("/weight"):
            rows = values.reshape(len(values), -1)
            scale = 127 / np.abs(rows).max(1)
            found[name] = np.rint(rows * scale[:, None]).astype(np.int8).reshape(values.shape)
            found[f"{name}_scale"] = scale.astype(np.float32)
        else:
            found[name] = values.astype(np.float16)
    return found


def write(folder, data, config=None):
    (folder / "model.bin").write_bytes(data)
    if config is not None:
        (folder / "config.json").write_text(config)
    return folder


def refused(read, path, *parts):
    with pytest.raises(ModelError) as failure:
        read(path)
    message = str(failure.value)
    assert str(path) in message
    assert message.endswith(".")
    for part in parts:
        assert part in message


# torch


def saved(path, model, **change):
    torch.save({"dims": vars(model.dims), "model_state_dict": model.state_dict()} | change, path)
    return path


@pytest.mark.parametrize("half", [True, False])
def test_a_torch_file_is_read_without_loss(small, small_weights, tmp_path, half):
    tensors = {name: each.half() if half else each for name, each in small.state_dict().items()}
    weights = read_torch_file(saved(tmp_path / "small.pt", small, model_state_dict=tensors))
    assert weights.dims == small_weights.dims
    assert weights.tensors.keys() == small_weights.tensors.keys()
    for name, values in small_weights.tensors.items():
        assert weights.tensors[name].dtype == np.float32
        np.testing.assert_array_equal(weights.tensors[name], values)


def test_the_demo_model_is_read_as_torch_reads_it():
    expected = torch.load(DEMO_FILE, weights_only=True)
    weights = read_torch_file(DEMO_FILE)
    assert vars(weights.dims) == expected["dims"]
    for name, values in expected["model_state_dict"].items():
        np.testing.assert_array_equal(weights.tensors[name], values.float().numpy())


class Hostile:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


def test_a_pickle_that_would_run_code_is_refused(tmp_path):
    torch.save({"dims": Hostile(tmp_path / "ran")}, tmp_path / "hostile.pt")
    refused(read_torch_file, tmp_path / "hostile.pt", "getattr", "no Whisper checkpoint needs")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"dims": 3}, "not a dictionary"),
        ({"model_state_dict": {}}, "no tensor"),
        ({"dims": {"n_mels": 80}}, "n_audio_ctx is None"),
    ],
)
def test_a_torch_file_without_what_it_needs_is_refused(small, tmp_path, change, reason):
    refused(read_torch_file, saved(tmp_path / "other.pt", small, **change), reason)


def repacked(source, target, change):
    """Copy an archive; `change` gives the new bytes of a member, or None to leave it out."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            data = change(name, old.read(name))
            if data is not None:
                new.writestr(name, data)
    return target


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda name, data: None if name.endswith("data.pkl") else data, "without a data.pkl"),
        (lambda name, data: None if name.endswith("data/0") else data, "no member"),
        (lambda name, data: data[:-2] if name.endswith("data/0") else data, "bytes"),
        (lambda name, data: data + b"\0" * 100 if name.endswith("data/0") else data, "more than"),
        (lambda name, data: b"(" * 100 if name.endswith("data.pkl") else data, "does not load"),
    ],
)
def test_an_archive_that_was_tampered_with_is_refused(tmp_path, change, reason):
    refused(read_torch_file, repacked(DEMO_FILE, tmp_path / "bad.pt", change), reason)


def test_a_compression_bomb_is_refused_before_it_is_inflated(tmp_path, monkeypatch):
    monkeypatch.setattr("whisper_byoc.speech.fast.torch_file.MAX_INFLATED_BYTES", 1 << 20)
    refused(read_torch_file, repacked(DEMO_FILE, tmp_path / "bomb.pt", lambda _, data: data), "1 MB of compressed")


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=200), length=st.integers(0, 4_000_000))
def test_any_bytes_and_any_beginning_of_a_file_are_refused(tmp_path, data, length):
    path = tmp_path / "any.pt"
    for contents in (data, DEMO_FILE.read_bytes()[:length]):
        path.write_bytes(contents)
        refused(read_torch_file, path)


# CTranslate2


@pytest.mark.parametrize("kind", ["float32", "float16", "int8"])
def test_a_ctranslate2_folder_is_read(small_weights, tmp_path, kind):
    variables = as_ctranslate2(small_weights)
    data = packed(
        variables if kind == "float32" else narrowed(variables, kind),
        aliases=[("decoder/projection/weight", "decoder/embeddings/weight")],
    )
    weights = read_ctranslate2(write(tmp_path, data, json.dumps({"alignment_heads": [[1, 0], [2, 1]]})))
    assert weights.dims == small_weights.dims
    assert weights.alignment_heads == weights.aligned == ((1, 0), (2, 1))
    assert weights.tensors.keys() == small_weights.tensors.keys()
    for name, values in small_weights.tensors.items():
        matrix = kind == "int8" and name.endswith("weight") and values.ndim > 1
        np.testing.assert_allclose(weights.tensors[name], values, atol=np.abs(values).max() / 250 if matrix else 0)


def test_without_a_config_all_heads_of_the_upper_layers_are_taken(small_weights, tmp_path):
    weights = read_ctranslate2(write(tmp_path, packed(as_ctranslate2(small_weights))))
    assert weights.alignment_heads == ()
    assert weights.aligned == ((1, 0), (1, 1), (2, 0), (2, 1))


def changed(name, values):
    return lambda variables: variables | {name: values}


def without(name):
    return lambda variables: {key: values for key, values in variables.items() if key != name}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (without("encoder/conv2/weight"), "no variable encoder/conv2/weight"),
        (changed("decoder/num_heads", np.array(5, np.int16)), "multiple of its number of heads"),
        (changed("decoder/num_heads", np.array(-1, np.int16)), "n_text_head is -1"),
        (changed("encoder/conv1/weight", np.zeros((48, 81, 3), np.float32)), "81 mel bands"),
        (changed("encoder/conv1/weight", np.zeros(48, np.float32)), "shape"),
        (changed("decoder/layer_norm/gamma", np.full(48, np.nan, np.float32)), "not finite"),
        (changed("decoder/layer_norm/gamma", np.ones(47, np.float32)), "shape (47,) instead of (48,)"),
        (changed("encoder/layer_0/self_attention/linear_0/weight", np.zeros((10, 48), np.float32)), "3 parts"),
    ],
)
def test_variables_that_make_no_whisper_are_refused(small_weights, tmp_path, change, reason):
    data = packed(change(as_ctranslate2(small_weights)))
    refused(lambda folder: read_ctranslate2(folder), write(tmp_path, data), reason)


@pytest.mark.parametrize("scale", [np.zeros(48, np.float32), np.ones(47, np.float32), None])
def test_scales_that_do_not_fit_are_refused(small_weights, tmp_path, scale):
    variables = narrowed(as_ctranslate2(small_weights), "int8")
    name = "encoder/layer_0/self_attention/linear_1/weight_scale"
    variables = without(name)(variables) if scale is None else variables | {name: scale}
    refused(read_ctranslate2, write(tmp_path, packed(variables)), "weight_scale")


ONE = {"a": np.zeros(2, np.float32)}


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (packed(ONE, version=7), "version 7"),
        (packed(ONE, spec="TransformerSpec"), "'TransformerSpec'"),
        (packed(ONE, aliases=[("b", "c")]), "no variable 'c'"),
        (packed(ONE)[:-1], "ends too early"),
        (struct.pack("<I", 6) + text("WhisperSpec") + struct.pack("<II", 3, 1 << 31), "variables"),
        (packed(ONE).replace(text("a") + b"\1", text("a") + b"\x7f"), "127 dimensions"),
        (packed(ONE).replace(struct.pack("<BI", 1, 2), struct.pack("<BI", 1, 3)), "shape (3,) has 8 bytes"),
        (packed({"a": np.zeros(2, np.float32)}).replace(b"\0\x08\0\0\0", b"\5\x08\0\0\0"), "type 5"),
        (struct.pack("<I", 6) + struct.pack("<H", 3) + b"abc", "without an end"),
        (struct.pack("<I", 6) + struct.pack("<H", 2) + b"\xff\0", "not UTF-8"),
        (b"", "ends too early"),
    ],
)
def test_a_file_of_another_form_is_refused(tmp_path, data, reason):
    refused(read_ctranslate2, write(tmp_path, data), reason)


@pytest.mark.parametrize("config", ["no json", '{"alignment_heads": 3}', '{"alignment_heads": [[9, 9]]}', "[" * 9999])
def test_a_config_that_makes_no_sense_is_refused(small_weights, tmp_path, config):
    refused(read_ctranslate2, write(tmp_path, packed(as_ctranslate2(small_weights)), config))


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=300), at=st.integers(0, 200), flipped=st.integers(1, 255))
def test_no_bytes_do_anything_but_load_or_be_refused(tmp_path, data, at, flipped):
    good = bytearray(packed(ONE))
    good[at % len(good)] ^= flipped
    for contents in (data, bytes(good)):
        refused(read_ctranslate2, write(tmp_path, contents))


# Sizes


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"n_vocab": 1 << 20}, "at most 65536"),
        ({"n_audio_state": 4096, "n_text_state": 4096}, "at most 2048"),
        ({"n_text_layer": 0}, "n_text_layer is 0"),
        ({"n_text_layer": True}, "True"),
        ({"n_text_layer": "4"}, "'4'"),
        ({"n_text_state": 96}, "differ in width"),
    ],
)
def test_sizes_that_cannot_be_are_refused(small_weights, change, reason):
    with pytest.raises(ModelError) as failure:
        Dimensions.parse(vars(small_weights.dims) | change)
    assert reason in str(failure.value)


def test_alignment_heads_that_are_not_there_are_refused(small_weights):
    with pytest.raises(ModelError, match=re.escape("(0, 2)")):
        Weights(small_weights.dims, small_weights.tensors, ((0, 2),))
