"""A converted model is kept, and made anew when what is kept is not what it should be."""

import json
import shutil
import subprocess
import sys
import threading

import numpy as np
import pytest

from whisper_byoc.speech import models
from whisper_byoc.speech.engine import DecodeOptions
from whisper_byoc.speech.fast import model as module
from whisper_byoc.speech.fast.engine import FastEngine
from whisper_byoc.speech.fast.model import FILES, MANIFEST, load_kept


@pytest.fixture
def folder(converted, tmp_path):
    """A copy of a folder of models in which the demo model has been converted."""
    return shutil.copytree(converted, tmp_path / "models")


@pytest.fixture(scope="module")
def built(small_weights):
    """A small model, built in memory."""
    return module.build(small_weights, models.DEMO_FILE)


@pytest.fixture
def small_folder(built, tmp_path):
    """A folder of models in which the small model is kept as if it were the demo model."""
    module.keep(built, tmp_path / "models" / "demo.pt.fast", models.DEMO_SHA256)
    return tmp_path / "models"


@pytest.fixture
def conversions(built, small_weights, monkeypatch):
    """One entry for each conversion, which always makes the small model: what `build` does is tested elsewhere."""
    made = []

    def counted(*_):
        made.append(1)
        return built

    monkeypatch.setattr(module, "read_weights", lambda _: small_weights)
    monkeypatch.setattr(module, "build", counted)
    return made


def names(folder):
    return [path.name for path in folder.iterdir()]


def text_of(model, samples):
    engine = FastEngine(model)
    engine.use_threads(1)
    return engine.transcribe(samples, DecodeOptions()).result().text


def test_the_second_time_nothing_is_converted(folder, conversions, sound):
    first = models.load_fast_model("demo", folder)
    assert conversions == []
    assert names(folder) == ["demo.pt.fast"]
    assert text_of(first, sound("demo-stop.wav")) == "stop"


def test_the_checkpoint_itself_is_not_needed_then(folder, monkeypatch, tmp_path):
    monkeypatch.setattr(models, "DEMO_FILE", tmp_path / "gone.pt")
    assert models.load_fast_model("demo", folder).dims.n_audio_layer == 4


def damage(name):
    def change(kept):
        data = bytearray((kept / name).read_bytes())
        data[len(data) // 2] ^= 1
        (kept / name).write_bytes(data)

    return change


def edit(**values):
    def change(kept):
        manifest = json.loads((kept / MANIFEST).read_text())
        (kept / MANIFEST).write_text(json.dumps(manifest | values))

    return change


@pytest.mark.parametrize(
    "change",
    [
        *(damage(name) for name in FILES),
        *(lambda kept, name=name: (kept / name).unlink() for name in (*FILES, MANIFEST)),
        lambda kept: (kept / MANIFEST).write_text("no json"),
        lambda kept: (kept / MANIFEST).write_text("[]"),
        lambda kept: (kept / MANIFEST).write_text("[" * 9999),
        edit(made_by="format 0, OpenVINO 1"),
        edit(source="0" * 64),
        edit(dims={}),
        edit(alignment_heads=3),
        edit(sha256={}),
        shutil.rmtree,
    ],
)
def test_what_is_damaged_stale_or_gone_is_made_anew(small_folder, conversions, change):
    folder, kept = small_folder, small_folder / "demo.pt.fast"
    before = {name: (kept / name).read_bytes() for name in FILES if name.endswith("bin")}
    change(kept)
    assert load_kept(kept, {models.DEMO_SHA256}) is None
    models.load_fast_model("demo", folder)
    assert len(conversions) == 1
    assert names(folder) == ["demo.pt.fast"]
    assert {name: (kept / name).read_bytes() for name in before} == before
    assert load_kept(kept, {models.DEMO_SHA256}) is not None


def test_a_checkpoint_of_the_users_own_that_changed_is_converted_again(tmp_path, conversions):
    path = tmp_path / "mine.pt"
    path.write_bytes(models.DEMO_FILE.read_bytes())
    models.load_fast_model(path)
    models.load_fast_model(path)
    assert len(conversions) == 1
    assert sorted(names(tmp_path)) == ["mine.pt", "mine.pt.fast"]
    path.write_bytes(models.DEMO_FILE.read_bytes() + b"\0")  # a zip archive may have something behind it
    models.load_fast_model(path)
    assert len(conversions) == 2


def test_where_nothing_can_be_written_the_model_runs_all_the_same(tmp_path, sound, caplog):
    (tmp_path / "file").write_text("in the way")
    model = models.load_fast_model("demo", tmp_path / "file")
    assert "cannot be kept" in caplog.text
    assert text_of(model, sound("demo-stop.wav")) == "stop"


def test_two_that_convert_at_once_do_not_harm_each_other(converted, tmp_path):
    found = []
    both = [
        threading.Thread(target=lambda: found.append(models.load_fast_model("demo", tmp_path)), daemon=True)
        for _ in range(2)
    ]
    for each in both:
        each.start()
    for each in both:
        each.join(50)
    assert len(found) == 2
    assert names(tmp_path) == ["demo.pt.fast"]
    assert load_kept(tmp_path / "demo.pt.fast", {models.DEMO_SHA256}) is not None
    for name in ("encoder.bin", "decoder.bin"):
        assert (tmp_path / "demo.pt.fast" / name).read_bytes() == (converted / "demo.pt.fast" / name).read_bytes()


def test_silence_is_kept_as_it_was_computed(converted):
    tail = models.load_fast_model("demo", converted).tail
    assert (tail.shape, tail.dtype) == ((8, 1, 4, 187, 32), np.float32)
    assert np.isfinite(tail).all()


RUN = """
import sys, numpy
from pathlib import Path
from audio.wav import read_wav
from whisper_byoc.speech import models
from whisper_byoc.speech.engine import DecodeOptions
from whisper_byoc.speech.fast.engine import FastEngine

engine = FastEngine(models.load_fast_model("demo", Path(sys.argv[1])))
engine.use_threads(1)
samples = read_wav(Path(sys.argv[2]).read_bytes())
text = engine.transcribe(samples, DecodeOptions(words=True)).result().text
assert "tiktoken" not in sys.modules, "only a prompt needs byte-pair encoding, which takes 20 MB"
print(text, engine.draft(samples, DecodeOptions(prompt="go on")).result().text)
heavy = ("torch", "whisper", "numba", "nncf", "openvino_telemetry", "openvino.tools.ovc", "requests")
print([name for name in heavy if name in sys.modules])
"""


@pytest.mark.parametrize("kept", [True, False], ids=["kept", "converting"])
def test_neither_torch_nor_openai_whisper_nor_telemetry_is_imported(converted, tmp_path, fixtures_dir, kept):
    command = [sys.executable, "-c", RUN, converted if kept else tmp_path, fixtures_dir / "demo-stop.wav"]
    run = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True, timeout=50)
    assert run.stdout == "stop stop\n[]\n"
