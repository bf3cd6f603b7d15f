"""OpenAI's weights on real speech, against openai-whisper: run with `-m real_weights`.

Speech and weights are not part of the project; they are looked for in the folder SHARED, by default `shared`
beside it.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import whisper
from whisper.decoding import DecodingOptions

from benchmarks.scoring import compare, total, words
from whisper_byoc.cli.sources import load_sound
from whisper_byoc.speech import models
from whisper_byoc.speech.catalogue import alignment_heads
from whisper_byoc.speech.engine import DecodeOptions
from whisper_byoc.speech.fast import model as fast
from whisper_byoc.speech.fast.decoding import decode
from whisper_byoc.speech.fast.engine import FastEngine
from whisper_byoc.speech.fast.mel import log_mel
from whisper_byoc.speech.openai_engine import OpenAIEngine

ROOT = Path(__file__).resolve().parents[3]
SHARED = Path(os.environ.get("SHARED") or ROOT.parent / "shared")
SPEECH, TOOL = SHARED / "speech", SHARED / "tools" / "real-models"
MODELS = ROOT / "build" / "models"

pytestmark = [
    pytest.mark.real_weights,
    pytest.mark.timeout(1800),
    pytest.mark.filterwarnings("ignore:unclosed file.*tiktoken:ResourceWarning"),
    pytest.mark.skipif(not (SPEECH.is_dir() and TOOL.is_file()), reason=f"no real speech in {SPEECH}"),
]


@pytest.fixture(scope="module", params=["tiny.en", "base"])
def name(request):
    subprocess.run([sys.executable, TOOL, MODELS, request.param], check=True, timeout=600)
    return request.param


@pytest.fixture(scope="module")
def clips():
    manifest = json.loads((SPEECH / "manifest.json").read_text())
    return [(each, load_sound(SPEECH / each["file"])) for each in manifest]


@pytest.fixture(scope="module")
def model(name):
    model = models.load_fast_model(MODELS / f"{name}.pt")
    heads = alignment_heads(name, model.dims.n_text_layer, model.dims.n_text_head)
    return fast.build(fast.read_weights(MODELS / f"{name}.pt"), MODELS / f"{name}.pt", heads)


def engine_of(model, **options):
    engine = FastEngine(model, **options)
    engine.use_threads(2)
    return engine


def test_both_forms_have_the_same_weights(name):
    one, other = fast.read_weights(MODELS / f"{name}.pt"), fast.read_weights(MODELS / name)
    assert one.dims == other.dims
    assert one.tensors.keys() == other.tensors.keys()
    for key, values in one.tensors.items():
        np.testing.assert_array_equal(values, other.tensors[key])
    assert other.alignment_heads == alignment_heads(name, one.dims.n_text_layer, one.dims.n_text_head)


@pytest.mark.parametrize("timestamps", [True, False])
def test_in_float32_the_tokens_are_openai_whispers_on_all_speech(name, clips, timestamps):
    path = MODELS / f"{name}.pt"
    reference, mine = whisper.load_model(str(path)).eval(), fast.build(fast.read_weights(path), path, exact=True)
    network, tokenizer = mine.network(2), mine.tokenizer
    for clip, samples in clips:
        language = clip["language"] if mine.dims.multilingual else "en"
        mel = log_mel(samples[: 30 * 16_000], mine.dims.n_mels)
        options = DecodingOptions(language=language, without_timestamps=not timestamps, fp16=False)
        padded = torch.from_numpy(np.pad(mel, ((0, 0), (0, 3000 - mel.shape[1]))))
        expected = reference.decode(padded, options)
        found = decode(
            network, network.encode(mel, 30), tokenizer, tokenizer.start(language, "transcribe"),
            timestamps=timestamps, limit=224,
        )  # fmt: skip
        assert found.tokens == expected.tokens, clip["name"]
        assert found.logprob == pytest.approx(expected.avg_logprob, abs=1e-3)
        assert found.no_speech == pytest.approx(expected.no_speech_prob, abs=1e-3)


def test_short_windows_are_as_right_as_whole_ones(model, clips):
    spoken = [
        each for each in clips if each[0]["kind"] == "read" and each[0]["language"] == "en" and each[0]["reference"]
    ]

    def errors(engine):
        found = [
            compare(words(clip["reference"]), words(engine.transcribe(samples, DecodeOptions()).result().text))
            for clip, samples in spoken
        ]
        return total(found).error_rate

    assert errors(engine_of(model)) <= errors(engine_of(model, full_windows=True)) + 1.0


def test_words_are_where_the_reference_finds_them(name, model, clips):
    reference, mine = OpenAIEngine(models.load_model(MODELS / f"{name}.pt")), engine_of(model, full_windows=True)
    heads = model.alignment_heads
    mask = torch.zeros(model.dims.n_text_layer, model.dims.n_text_head, dtype=torch.bool)
    mask[tuple(zip(*heads, strict=True))] = True
    reference.model.register_buffer("alignment_heads", mask.to_sparse(), persistent=False)
    distances = []
    for _, samples in clips[:20]:
        one, other = (each.transcribe(samples, DecodeOptions(words=True)).result() for each in (mine, reference))
        if one.text == other.text:
            pairs = zip(
                *([word for segment in each.segments for word in segment.words] for each in (one, other)), strict=True
            )
            distances += [abs(getattr(a, end) - getattr(b, end)) for a, b in pairs for end in ("start", "end")]
    assert len(distances) > 200
    assert np.mean(np.array(distances) <= 0.021) > 0.9
