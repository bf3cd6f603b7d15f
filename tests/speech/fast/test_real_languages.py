"""A model of many languages on sound that goes from one to another: `pytest -m real_weights`.

The weights are OpenAI's base, or what `--real-model` names. The sound is a fixture, what espeak-ng speaks, and
recordings of people in the folder `speech` of SHARED, where there is one.
"""

import itertools
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from audio import pcm
from whisper_byoc.cli.sources import load_sound
from whisper_byoc.errors import ModelError
from whisper_byoc.processors.base import JobInfo
from whisper_byoc.processors.whisper import WhisperProcessor, WhisperSettings
from whisper_byoc.speech import models

ROOT = Path(__file__).resolve().parents[3]
SPEECH = Path(os.environ.get("SHARED") or ROOT.parent / "shared") / "speech"
MODELS = ROOT / "build" / "models"
SPOKEN = {
    "es": "Buenos días a todos. Hoy vamos a hablar del tiempo y de la comida en España, que es muy buena.",
    "it": "Buongiorno a tutti. Oggi parliamo del tempo e del cibo in Italia, che è molto buono.",
}
RECORDED = {"de": "xx-de.wav", "fr": "xx-fr.wav"}
SAID = {"es": "comida", "it": "tempo", "de": "Leichenhal", "fr": "consulat", "en": ""}
"""What the text of each has."""

pytestmark = [
    pytest.mark.real_weights,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="espeak-ng is not installed"),
]


@pytest.fixture(scope="module")
def path(request):
    name = request.config.getoption("--real-model")
    try:
        return models.fetch_model("base" if name == "tiny.en" else name, MODELS)
    except ModelError as error:
        pytest.skip(str(error))


@pytest.fixture
async def processor(path, tmp_path):
    settings = WhisperSettings(language="auto", model_dir=tmp_path, workers=1)
    processor = WhisperProcessor(str(path), settings)
    await processor.initialize()
    yield processor
    await processor.shutdown()


@pytest.fixture(scope="module")
def clips(tmp_path_factory, fixtures_dir):
    folder = tmp_path_factory.mktemp("spoken")
    for language, text in SPOKEN.items():
        command = ("espeak-ng", "-v", language, "-s", "150", "-w", folder / f"{language}.wav", text)
        subprocess.run(command, check=True)
    english = "tiny-weather.wav"
    paths = {"en": fixtures_dir / english, **{language: folder / f"{language}.wav" for language in SPOKEN}}
    paths |= {language: SPEECH / name for language, name in RECORDED.items() if (SPEECH / name).is_file()}
    return {language: load_sound(path) for language, path in paths.items()}


@pytest.mark.parametrize("way", ["live", "recording", "segment"])
async def test_every_stretch_is_in_its_own_language(processor, clips, way):
    order = [*(each for each in ("en", "de", "fr", "it", "es") if each in clips), "en"]
    gap = np.random.default_rng(0).normal(0, 1e-3, pcm.SAMPLE_RATE).astype(np.float32)
    sound = pcm.encode(np.concatenate([part for each in order for part in (clips[each], gap)]))
    session = processor.open_session(JobInfo("job", "speech", recording=way == "recording"))
    if way == "segment":
        results = await session.feed(sound)
    else:
        results = []
        for at in range(0, len(sound), 32_000):
            results += await session.feed_live(sound[at : at + 32_000], 0.0)
        results += await session.finish()
    segments = [segment for each in results for segment in each.record["segments"]]
    texts = [
        (language, " ".join(each["text"] for each in group))
        for language, group in itertools.groupby(segments, key=lambda each: each["language"])
    ]
    assert [language for language, _ in texts] == order
    for language, text in texts:
        assert SAID[language] in text
