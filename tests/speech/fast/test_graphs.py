"""Encoder and decoder against openai-whisper's modules, with the same random weights."""

import numpy as np
import pytest
import torch

from whisper_byoc.speech.fast.graphs import decoder_graph, encoder_graph, quantized
from whisper_byoc.speech.runtime import core, ov

EXACT = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}


@pytest.fixture(scope="module")
def features():
    return torch.randn(1, 80, 3000, generator=torch.Generator().manual_seed(2)) / 2


@pytest.fixture(scope="module")
def encoded(small, features):
    with torch.no_grad():
        return small.encoder(features)


@pytest.fixture(scope="module")
def cross(small_weights, features):
    request = core().compile_model(encoder_graph(small_weights), "CPU", EXACT).create_infer_request()
    request.infer([features.numpy()])
    names = [f"{part}{layer}" for layer in range(3) for part in ("key", "value")]
    return {name: request.get_tensor(name).data.copy() for name in names}


def test_the_encoder_ends_with_keys_and_values_of_the_decoder(small, encoded, cross):
    for layer, block in enumerate(small.decoder.blocks):
        for part, project in (("key", block.cross_attn.key), ("value", block.cross_attn.value)):
            with torch.no_grad():
                expected = project(encoded).view(1, 1500, 2, 24).permute(0, 2, 1, 3)
            np.testing.assert_allclose(cross[f"{part}{layer}"], expected, atol=2e-4)


class Decoder:
    """One sequence or several, that go on from call to call."""

    def __init__(self, weights, cross, *, int8=False, batch=1, sounds=1):
        self.request = core().compile_model(decoder_graph(weights, int8=int8), "CPU", EXACT).create_infer_request()
        for name, values in cross.items():
            self.request.set_tensor(name, ov.Tensor(np.repeat(values, sounds, 0)))
        self.length, self.batch, self.sounds = 0, batch, sounds

    def __call__(self, tokens, wanted=None, rows=None, sound_mask=None):
        """`tokens` is (batch, n)."""
        tokens = np.array(tokens, np.int64)
        count, length = tokens.shape[1], self.length
        places = np.arange(length, length + count)
        mask = np.where(np.arange(length + count) <= places[:, None], 0, -np.inf).astype(np.float32)
        if sound_mask is None:
            sound_mask = np.zeros((self.sounds, 1, 1, 1500), np.float32)
        chosen = [row * count + at for row in range(len(tokens)) for at in wanted or range(count)]
        inputs = {
            "tokens": tokens,
            "positions": np.repeat(places[None], len(tokens), 0),
            "rows": np.array(rows or range(self.batch), np.int32),
            "wanted": np.array(chosen, np.int64),
            "text_mask": np.repeat(mask[None, None], len(tokens), 0),
            "sound_mask": sound_mask,
        }
        for name, values in inputs.items():
            self.request.set_tensor(name, ov.Tensor(values))
        self.request.infer()
        self.length += count
        return self.request.get_tensor("logits").data.copy().reshape(len(tokens), len(chosen) // len(tokens), -1)


TOKENS = [50258, 50259, 50359, 50363, 11, 22, 33, 44, 55]


@pytest.fixture(scope="module")
def expected(small, encoded):
    with torch.no_grad():
        return small.decoder(torch.tensor([TOKENS]), encoded).numpy()


@pytest.mark.parametrize("parts", [[9], [4, 1, 1, 1, 1, 1], [1] * 9, [2, 5, 2]])
def test_the_decoder_goes_on_from_its_state(small_weights, cross, expected, parts):
    decoder = Decoder(small_weights, cross)
    found = [decoder([part]) for part in np.split(TOKENS, np.cumsum(parts)[:-1])]
    np.testing.assert_allclose(np.concatenate(found, 1), expected, atol=2e-3, rtol=1e-4)


def test_only_logits_that_are_wanted_are_computed(small_weights, cross, expected):
    found = Decoder(small_weights, cross)([TOKENS], wanted=[0, 8])
    np.testing.assert_allclose(found, expected[:, [0, 8]], atol=2e-3, rtol=1e-4)


def test_a_reset_forgets_the_text(small_weights, cross, expected):
    decoder = Decoder(small_weights, cross)
    decoder([[1, 2, 3]])
    decoder.request.reset_state()
    decoder.length = 0
    np.testing.assert_allclose(decoder([TOKENS]), expected, atol=2e-3, rtol=1e-4)


@pytest.mark.parametrize("sounds", [1, 2])
def test_rows_say_whose_text_goes_on(small_weights, cross, expected, sounds):
    """As in beam search: both go on from the second one. They share a sound, or have one each."""
    decoder = Decoder(small_weights, cross, batch=2, sounds=sounds)
    decoder([[*TOKENS[:3], 7], TOKENS[:4]])
    found = decoder([TOKENS[4:], [9, 9, 9, 9, 9]], rows=[1, 1])
    np.testing.assert_allclose(found[0], expected[0, 4:], atol=2e-3, rtol=1e-4)
    assert np.abs(found[1] - found[0]).max() > 0.1


def test_a_position_that_counts_for_two_is_as_good_as_two(small_weights, cross):
    doubled = {name: np.concatenate([values, values[:, :, -1:]], 2) for name, values in cross.items()}
    mask = np.zeros((1, 1, 1, 1500), np.float32)
    mask[..., -1] = np.log(2)
    one = Decoder(small_weights, cross)([TOKENS], sound_mask=mask)
    two = Decoder(small_weights, doubled)([TOKENS], sound_mask=np.zeros((1, 1, 1, 1501), np.float32))
    np.testing.assert_allclose(one, two, atol=2e-3, rtol=1e-4)


def test_int8_rounds_each_row_to_its_largest_value(small_weights):
    values = small_weights.tensors["decoder.blocks.0.mlp.0.weight"].copy()
    values[3] = 0
    numbers, scales = quantized(values)
    assert (numbers.dtype, scales.shape) == (np.int8, (len(values), 1))
    assert (np.abs(numbers[np.arange(len(values)) != 3]).max(1) == 127).all()
    assert (np.abs(numbers * scales - values) <= scales / 2 * 1.0001).all()


def test_with_int8_the_logits_are_nearly_the_same(small_weights, cross, expected):
    found = Decoder(small_weights, cross, int8=True)([TOKENS])
    correlation = np.corrcoef(found.ravel(), expected.ravel())[0, 1]
    assert correlation > 0.99
