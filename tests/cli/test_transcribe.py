"""`whisper-byoc transcribe`, and the models that it and `preload` find."""

import io
import json
import os
import shutil
import subprocess
import sys
import threading

import pytest

from audio import pcm
from audio.ffmpeg import ffmpeg_environment, ffmpeg_path
from audio.media import load_audio
from tests.cli.conftest import refused
from whisper_byoc.cli import sources
from whisper_byoc.processors.whisper_session import WhisperSession
from whisper_byoc.speech.models import DEMO_NOTICE


def test_transcribe_writes_every_format(run, fixtures_dir, tmp_path, texts):
    name = "demo-hello-world.wav"
    code, out, _ = run(
        "transcribe",
        fixtures_dir / name,
        "--model",
        "whisper-demo",
        "--format",
        "txt,json,srt,vtt",
        "--output",
        tmp_path,
    )
    assert code == 0
    assert sorted(out.split()) == sorted(
        str(tmp_path / f"demo-hello-world.{kind}") for kind in ("txt", "json", "srt", "vtt")
    )
    assert (tmp_path / "demo-hello-world.txt").read_text() == texts[name]["text"] + "\n"
    assert json.loads((tmp_path / "demo-hello-world.json").read_text())["text"] == texts[name]["text"]
    assert " --> " in (tmp_path / "demo-hello-world.srt").read_text()
    assert (tmp_path / "demo-hello-world.vtt").read_text().startswith("WEBVTT\n")


def test_transcribe_takes_the_width_of_a_line(run, fixtures_dir):
    words = ("transcribe", fixtures_dir / "demo-numbers.wav", "--model", "demo", "--format", "srt", "--max-line-width")
    code, out, _ = run(*words, "12")
    assert (code, "seven three\nnine zero\n" in out) == (0, True)
    refused(run(*words, "9"), 2, "from 10 to 200")


def test_transcribe_long_file_and_silence_to_stdout(run, fixtures_dir, texts):
    code, out, err = run(
        "transcribe", fixtures_dir / "demo-long-40s.wav", fixtures_dir / "silence-3s.wav", "--model", "demo"
    )
    assert code == 0
    assert out.split() == texts["demo-long-40s.wav"]["text"].split()
    assert err.splitlines()[1:] == ["whisper-byoc: silence-3s.wav: no speech was found in 3 s of sound"]


def test_transcribe_reads_raw_pcm_as_send_does(run, fixtures_dir, tmp_path):
    path = tmp_path / "hello.pcm"
    path.write_bytes(pcm.encode(load_audio(fixtures_dir / "demo-hello-world.wav")))
    assert run("transcribe", path, "--model", "demo") == (0, "hello world\n", f"whisper-byoc: {DEMO_NOTICE}\n")


@pytest.mark.parametrize(
    "options",
    [("-f", "s16le"), ("-c:a", "aac", "-f", "ipod"), ("-c:a", "adpcm_ms", "-f", "wav"), ("-c:a", "g722", "-f", "g722")],
)
@pytest.mark.parametrize("way", ["stdin", "pipe", "file"])
def test_transcribe_reads_any_sound_from_stdin_pipes_and_files(run, fixtures_dir, tmp_path, monkeypatch, options, way):
    ending = {"s16le": ".raw", "g722": ".g722"}.get(options[-1], "")
    if way != "file" and ending == ".g722":
        pytest.skip("nothing tells what it is")
    path, source = tmp_path / f"sound{ending}", fixtures_dir / "demo-hello-world.wav"
    command = [ffmpeg_path(), "-nostdin", "-loglevel", "error", "-i", source, *options, path]
    subprocess.run(command, check=True, env=ffmpeg_environment())
    if way == "stdin":
        monkeypatch.setattr(sources, "STDIN_FILE", path)
        monkeypatch.setattr(sys, "stdin", io.StringIO())
        path = "-"
    elif way == "pipe":
        data, path = path.read_bytes(), tmp_path / "pipe"
        os.mkfifo(path)
        threading.Thread(target=path.write_bytes, args=(data,)).start()
    code, out, _ = run("transcribe", path, "--model", "demo")
    assert (code, out) == (0, "hello world\n")


def test_transcribe_looks_at_its_folder_before_it_works(run, tmp_path):
    taken, talk, again = tmp_path / "taken", tmp_path / "talk.wav", tmp_path / "talk.mp3"
    for path in (taken, talk, again):
        path.write_bytes(b"")
    refused(run("transcribe", talk, "--output", taken), 2, f"cannot make the folder {taken}")
    refused(run("transcribe", talk, again, "--output", tmp_path / "out"), 2, str(talk), str(again), "both")
    assert not (tmp_path / "out").exists()


def test_transcribe_what_is_no_sound(run, tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("not sound")
    refused(run("transcribe", path, "--model", "demo"), 1, "notes.txt")


def test_files_that_cannot_be_read_do_not_keep_others_from_being_transcribed(run, fixtures_dir, tmp_path):
    broken, cut = tmp_path / "broken.mp3", tmp_path / "cut.wav"
    broken.write_bytes(bytes(100))
    cut.write_bytes((fixtures_dir / "demo-hello-world.wav").read_bytes()[:40])
    code, out, err = run("transcribe", "--model", "demo", broken, cut, fixtures_dir / "demo-hello-world.wav")
    assert code == 1
    assert out == "hello world\n"
    assert err.splitlines()[-1] == f"whisper-byoc: 2 of 3 failed: {broken}, {cut}"
    assert "no data chunk" in err


def test_preload_of_the_demo_model_says_where_it_is(run):
    code, out, _ = run("preload", "-model", "whisper-demo")
    assert code == 0
    assert out.startswith("demo: ")
    assert "demo.pt (4.2 MB)" in out


@pytest.mark.parametrize("command", ["preload", "transcribe"])
def test_pipelines_of_other_models_are_known_by_their_names_too(run, monkeypatch, tmp_path, command):
    """As `serve --pipeline whisper-base` knows them; here the file is there, and is none."""
    monkeypatch.setenv("MODEL_DIR", str(tmp_path))
    (tmp_path / "base.pt").mkdir()
    sound = tmp_path / "sound.pcm"
    sound.write_bytes(bytes(3200))
    code, out, err = run(command, "--model", "whisper-base", *([sound] if command == "transcribe" else []))
    assert (code, out) == (1, ""), err
    assert "base.pt" in err


def test_a_name_that_is_no_text_is_printed_as_it_is(monkeypatch, fixtures_dir, tmp_path):
    monkeypatch.setenv("PYTHONIOENCODING", "utf-8:strict")  # as in a locale such as en_US.UTF-8
    name = os.fsdecode(b"t\xe9st.wav")
    shutil.copy(fixtures_dir / "demo-yes.wav", tmp_path / name)
    words = ("transcribe", tmp_path / name, "--model", "demo", "--output", tmp_path)
    command = (sys.executable, "-m", "whisper_byoc.cli.main", *map(str, words))
    ended = subprocess.run(command, capture_output=True, timeout=50, check=False)
    assert (ended.returncode, ended.stderr) == (0, f"whisper-byoc: {DEMO_NOTICE}\n".encode())
    assert ended.stdout == os.fsencode(tmp_path) + b"/t\xe9st.txt\n"


def test_text_is_written_before_the_rest_of_the_recording_has_been_heard(
    run, fixtures_dir, tmp_path, monkeypatch, capsys
):
    written, feed = [], WhisperSession.feed_live

    async def feed_live(self, piece, arrived):
        written.append(capsys.readouterr().out)
        return await feed(self, piece, arrived)

    (tmp_path / "long.raw").write_bytes(pcm.encode(load_audio(fixtures_dir / "demo-long-40s.wav")) * 6)
    monkeypatch.setattr(WhisperSession, "feed_live", feed_live)
    assert run("transcribe", tmp_path / "long.raw", "--model", "demo")[0] == 0
    assert any(written)


def test_a_file_that_is_cut_off_is_named_once(run, tmp_path):
    path = tmp_path / "half.pcm"
    path.write_bytes(bytes(3))
    code, _, err = run("transcribe", path, "--model", "demo")
    assert (code, err.count(str(path))) == (1, 1), err
