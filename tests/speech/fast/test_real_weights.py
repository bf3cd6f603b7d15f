"""OpenAI's weights on real speech, against openai-whisper: `pytest -m real_weights`, as CI runs it.

The weights are fetched as `preload` fetches them. Speech is what `fixtures/` has for whisper-tiny, and recordings of
people in the folder `speech` of SHARED (by default `shared` beside the project), where there is one: a few, or with
`--all-speech` all of them, which takes minutes. `--real-model` takes another model than tiny.en.
"""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from audio.pcm import FULL_SCALE
from audio.quiet import quietest_point
from benchmarks.scoring import compare, total, words
from whisper_byoc.cli.sources import load_sound
from whisper_byoc.errors import ModelError
from whisper_byoc.speech import models
from whisper_byoc.speech.catalogue import alignment_heads
from whisper_byoc.speech.engine import Before, DecodeOptions, Samples
from whisper_byoc.speech.fast import model as fast
from whisper_byoc.speech.fast.decoding import Wish, decode
from whisper_byoc.speech.fast.engine import FastEngine
from whisper_byoc.speech.fast.mel import log_mel

ROOT = Path(__file__).resolve().parents[3]
SPEECH = Path(os.environ.get("SHARED") or ROOT.parent / "shared") / "speech"
MODELS = ROOT / "build" / "models"
EVERY, LONGEST = 16, 15.0
"""Without `--all-speech`, one in so many recordings of SHARED is taken, of those that have at most so many seconds."""

pytestmark = [pytest.mark.real_weights, pytest.mark.timeout(1800)]


@dataclass(frozen=True)
class Clip:
    name: str
    samples: Samples
    language: str
    text: str


@pytest.fixture(scope="module")
def name(request):
    return request.config.getoption("--real-model")


@pytest.fixture(scope="module")
def path(name):
    try:
        return models.fetch_model(name, MODELS)
    except ModelError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def clips(request, texts, fixtures_dir):
    found = [
        Clip(file, load_sound(fixtures_dir / file), "en", about["text"])
        for file, about in texts.items()
        if about["model"] == "tiny"
    ]
    manifest = json.loads((SPEECH / "manifest.json").read_text()) if SPEECH.is_dir() else []
    if not request.config.getoption("--all-speech"):
        manifest = [each for each in manifest if each["seconds"] <= LONGEST][::EVERY]
    for each in manifest:
        found.append(Clip(each["name"], load_sound(SPEECH / each["file"]), each["language"], each["reference"] or ""))
    return found


@pytest.fixture(scope="module")
def weights(path):
    return fast.read_weights(path)


@pytest.fixture(scope="module")
def heads(name, weights):
    return alignment_heads(Path(name).stem if Path(name).exists() else name, *sizes(weights.dims))


@pytest.fixture(scope="module")
def exact(path, weights, heads):
    return fast.build(weights, path, heads, exact=True)


@pytest.fixture(scope="module")
def reference(path, clips, weights, tmp_path_factory):
    """Give what openai-whisper writes of each clip, by its name."""
    folder = tmp_path_factory.mktemp("clips")
    languages = {clip.name: clip.language if weights.dims.multilingual else "en" for clip in clips}
    (folder / "languages.json").write_text(json.dumps(languages))
    for clip in clips:
        np.save(folder / f"{clip.name}.npy", clip.samples)
    command = (sys.executable, Path(__file__).with_name("reference.py"), path, folder)
    run = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False
    )
    assert run.returncode == 0, run.stderr
    return {each["clip"]: each for each in map(json.loads, run.stdout.splitlines())}


def sizes(dims):
    return dims.n_text_layer, dims.n_text_head


def engine_of(model, **options):
    engine = FastEngine(model, **options)
    engine.use_threads(2)
    return engine


def test_the_second_source_knows_its_alignment_heads(path, heads, weights):
    if not path.is_dir():
        pytest.skip(f"{path} is not in CTranslate2's form")
    assert weights.alignment_heads == heads


def test_in_float32_the_tokens_are_openai_whispers(exact, clips, reference):
    network, tokenizer, context = exact.network(2), exact.tokenizer, exact.dims.n_text_ctx
    for clip in clips:
        language = clip.language if exact.dims.multilingual else "en"
        encoded = network.encode(log_mel(clip.samples[: 30 * 16_000], exact.dims.n_mels), 30)
        for timestamps, expected in zip((True, False), reference[clip.name]["window"], strict=True):
            wish = Wish(tokenizer.start(language, "transcribe"), 224, timestamps=timestamps)
            found = network.run(decode(encoded, tokenizer, context, wish))
            assert found.tokens == expected["tokens"], clip.name
            assert [found.logprob, found.no_speech] == pytest.approx(expected["scores"], abs=1e-3)


def test_short_windows_are_as_right_as_whole_ones(path, weights, heads, clips):
    model = fast.build(weights, path, heads)
    spoken = [clip for clip in clips if clip.text and clip.language == "en"]

    def errors(engine):
        score = total(
            compare(words(clip.text), words(engine.transcribe(clip.samples, DecodeOptions()).result().text))
            for clip in spoken
        )
        return score.error_rate, 100 / score.said

    (short, word), (whole, _) = errors(engine_of(model)), errors(engine_of(model, full_windows=True))
    assert short <= whole + max(1.0, word)
    assert whole < 20


@pytest.mark.parametrize("clip", ["tiny-weather.wav", "tiny-garden.wav"])
def test_a_sentence_goes_on_behind_a_pause(path, weights, heads, clips, clip):
    """Alone, each half is a sentence of its own, in whatever words that takes."""
    engine = engine_of(fast.build(weights, path, heads))
    (clip,) = (each for each in clips if each.name == clip)
    third = len(clip.samples) // 3
    cut = third + quietest_point((clip.samples[third : 2 * third] * (FULL_SCALE - 1)).astype(np.int16))
    first = engine.transcribe(clip.samples[:cut], DecodeOptions()).result().text.removesuffix(".")
    alone = engine.transcribe(clip.samples[cut:], DecodeOptions()).result().text
    behind = engine.transcribe(clip.samples[cut:], DecodeOptions(before=Before(clip.samples[:cut], first))).result()
    assert behind.goes_on
    assert not behind.text[0].isupper()
    wrong = [compare(words(clip.text), words(f"{first} {text}")).error_rate for text in (behind.text, alone)]
    assert wrong[0] <= wrong[1]


def test_words_are_where_the_reference_finds_them(exact, clips, reference):
    mine = engine_of(exact, full_windows=True)
    distances = []
    for clip in clips:
        found = mine.transcribe(clip.samples, DecodeOptions(words=True)).result()
        if found.text == reference[clip.name]["text"]:
            times = [(word.start, word.end) for segment in found.segments for word in segment.words]
            distances.append(np.abs(np.array(times) - np.array(reference[clip.name]["words"])).ravel())
    found = np.concatenate(distances)
    assert len(found) > 80
    assert np.mean(found <= 0.021) > 0.98
