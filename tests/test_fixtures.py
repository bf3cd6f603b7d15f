"""The speech fixtures: format, level, and that their texts are what a model hears."""

import json
import os
import shutil
import subprocess
import sys
import wave
from pathlib import Path

import numpy as np
import pytest
import whisper

from audio.quiet import QuietCutter
from tools import make_fixtures
from tools.demo_model.scoring import word_errors, words

ROOT = Path(__file__).resolve().parent.parent
FIXTURES = ROOT / "fixtures"
TINY_MODEL = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "whisper" / "tiny.pt"

TEXTS = json.loads((FIXTURES / "texts.json").read_text("utf-8"))
SPOKEN = [name for name, entry in TEXTS.items() if entry["text"]]
DEMO = [name for name, entry in TEXTS.items() if entry["model"] in ("demo", "any")]
TINY = [name for name, entry in TEXTS.items() if entry["model"] == "tiny"]
# A guess, not measured: room for one misheard word in four.
TINY_WORD_ERROR_LIMIT = 0.25

# openai-whisper leaves its vocabulary file for the garbage collector to close.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed file .*tiktoken:ResourceWarning")


@pytest.fixture(scope="module")
def tiny_model() -> whisper.Whisper:
    if not TINY_MODEL.exists():
        pytest.skip("whisper-tiny's weights are not in openai-whisper's cache")
    return whisper.load_model(str(TINY_MODEL), device="cpu")


def transcribe(model: whisper.Whisper, samples: np.ndarray) -> str:
    return model.transcribe(samples, language="en", temperature=0.0, condition_on_previous_text=False, fp16=False)[
        "text"
    ]


def dbfs(amplitude: float) -> float:
    return 20 * np.log10(amplitude)


def rms(samples: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(samples, dtype=np.float64))))


def test_every_file_is_listed_and_every_listed_file_is_there():
    assert set(TEXTS) == {path.name for path in FIXTURES.glob("*.wav")}


def test_there_is_something_for_every_model():
    assert len(DEMO) >= 8
    assert len(TINY) >= 4
    assert len(TEXTS) == len(DEMO) + len(TINY)


def test_the_listing_is_that_of_the_table():
    """A text changed in the table and not made anew, or changed by hand, is found here."""
    assert {name: (entry["text"], entry["model"], entry["note"]) for name, entry in TEXTS.items()} == {
        fixture.name: (fixture.text, fixture.model, fixture.note) for fixture in make_fixtures.FIXTURE_TABLE
    }


def test_the_fixtures_are_small():
    assert sum(path.stat().st_size for path in FIXTURES.iterdir()) < 5_000_000


@pytest.mark.parametrize("name", TEXTS)
def test_format(name):
    with wave.open(str(FIXTURES / name)) as file:
        form = (file.getframerate(), file.getnchannels(), file.getsampwidth())
        seconds = file.getnframes() / file.getframerate()
    assert form == ((48_000, 2, 2) if "stereo-48k" in name else (16_000, 1, 2))
    assert seconds == pytest.approx(TEXTS[name]["seconds"], abs=0.005)


@pytest.mark.parametrize("name", SPOKEN)
def test_level(name):
    samples, _ = make_fixtures.read_wav(FIXTURES / name)
    assert dbfs(np.abs(samples).max()) == pytest.approx(-3.0, abs=0.05)
    assert dbfs(rms(samples)) > -30
    assert abs(samples.mean()) < 0.01


@pytest.mark.parametrize("name", SPOKEN)
def test_utterances_hold_the_text_and_all_of_the_sound(name):
    samples = make_fixtures.hearable(FIXTURES / name)
    entry = TEXTS[name]
    assert " ".join(utterance["text"] for utterance in entry["utterances"]) == entry["text"]
    outside = np.ones(len(samples), bool)
    for utterance in entry["utterances"]:
        start, end = round(utterance["start"] * 16_000), round(utterance["end"] * 16_000)
        assert 0 <= start < end <= len(samples)
        assert dbfs(rms(samples[start:end])) > -25
        outside[max(start - 160, 0) : end + 160] = False  # times are rounded to 10 ms
    assert dbfs(np.abs(samples[outside]).max() + 1e-9) < (-20 if "noise" in name else -60)


def test_silence_is_digital_silence():
    samples, rate = make_fixtures.read_wav(FIXTURES / "silence-3s.wav")
    assert not samples.any()
    assert len(samples) == 3 * rate


def test_noise_is_15_db_below_the_speech():
    name = "demo-numbers-noise-15db.wav"
    samples = make_fixtures.hearable(FIXTURES / name)
    (utterance,) = TEXTS[name]["utterances"]
    start, end = (round(utterance[edge] * 16_000) for edge in ("start", "end"))
    noise_power = rms(np.concatenate([samples[: start - 160], samples[end + 160 :]])) ** 2
    speech_power = rms(samples[start:end]) ** 2 - noise_power
    assert 10 * np.log10(speech_power / noise_power) == pytest.approx(15, abs=1.5)


def test_stereo_channels_differ_by_6_db():
    samples, _ = make_fixtures.read_wav(FIXTURES / "demo-stereo-48k.wav")
    assert dbfs(rms(samples[:, 0]) / rms(samples[:, 1])) == pytest.approx(6.02, abs=0.05)


@pytest.mark.parametrize("name", DEMO)
def test_demo_texts_keep_to_the_vocabulary(name):
    vocabulary = (FIXTURES / "demo-vocabulary.txt").read_text("utf-8").split()
    assert len(vocabulary) == len(set(vocabulary)) == 321
    assert set(words(TEXTS[name]["text"])) <= set(vocabulary)


@pytest.mark.parametrize("name", DEMO)
def test_the_demo_model_hears_the_text(name, demo_model):
    heard = transcribe(demo_model, make_fixtures.hearable(FIXTURES / name))
    assert words(heard) == words(TEXTS[name]["text"])


def test_the_long_file_cut_live_has_one_utterance_in_each_segment(demo_model):
    with wave.open(str(FIXTURES / "demo-long-40s.wav")) as file:
        pcm = file.readframes(file.getnframes())
    utterances = TEXTS["demo-long-40s.wav"]["utterances"]
    cutter = QuietCutter(max_seconds=15)
    segments = [np.frombuffer(segment, "<i2") for segment in [*cutter.feed(pcm), *cutter.finish()]]
    cuts = np.cumsum([len(segment) for segment in segments[:-1]]) / 16_000
    assert len(cuts) == 3
    for before, cut, after in zip(utterances, cuts, utterances[1:], strict=False):
        assert before["end"] + 0.3 < cut < after["start"] - 0.3
    heard = [transcribe(demo_model, segment.astype(np.float32) / 32768) for segment in segments]
    assert [words(text) for text in heard] == [words(utterance["text"]) for utterance in utterances]


@pytest.mark.parametrize("name", TINY)
def test_whisper_tiny_hears_about_the_text(name, tiny_model):
    wanted = words(TEXTS[name]["text"])
    heard = words(transcribe(tiny_model, make_fixtures.hearable(FIXTURES / name)))
    assert word_errors(wanted, heard) <= TINY_WORD_ERROR_LIMIT * len(wanted), " ".join(heard)


@pytest.mark.skipif(not shutil.which("espeak-ng"), reason="espeak-ng is not installed")
def test_making_a_fixture_is_repeatable(tmp_path, capsys):
    noisy = [fixture for fixture in make_fixtures.FIXTURE_TABLE if "noise" in fixture.name]
    for folder in ("first", "second"):
        make_fixtures.make(noisy, tmp_path / folder)
    assert noisy[0].name in capsys.readouterr().out
    for name in (noisy[0].name, "texts.json"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()
    assert json.loads((tmp_path / "first" / "texts.json").read_text())[noisy[0].name]["text"] == noisy[0].text


@pytest.mark.skipif(not shutil.which("espeak-ng"), reason="espeak-ng is not installed")
def test_an_unknown_voice_is_one_clear_sentence():
    with pytest.raises(make_fixtures.EspeakFailed, match="could not say 'yes' with voice 'xyz'"):
        make_fixtures.speak(make_fixtures.Utterance("yes", "xyz"), 16_000)


def test_without_espeak_it_says_what_to_install(tmp_path):
    command = [sys.executable, make_fixtures.__file__, "--folder", str(tmp_path)]
    result = subprocess.run(command, env={"PATH": str(tmp_path)}, capture_output=True, text=True, timeout=30)
    assert result.returncode == 1
    assert result.stderr == "espeak-ng is not installed: apt-get install espeak-ng, then run this again.\n"
    assert not list(tmp_path.iterdir())


def test_check_finds_a_wrong_text(tmp_path, capsys):
    name = "demo-yes.wav"
    shutil.copy(FIXTURES / "demo-stop.wav", tmp_path / name)
    yes = [fixture for fixture in make_fixtures.FIXTURE_TABLE if fixture.name == name]
    assert not make_fixtures.check(yes, tmp_path)
    assert "WRONG  demo-yes.wav" in capsys.readouterr().out
    assert make_fixtures.check(yes, FIXTURES)
