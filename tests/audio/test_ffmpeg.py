import subprocess
import sys

import numpy as np
import pytest

from audio.errors import MediaError
from audio.ffmpeg import (
    CONTAINERS,
    ffmpeg_environment,
    ffmpeg_path,
    frames_from_ts,
    pcm_from_device,
    ts_from_frames,
    wav_from_feed,
    wav_from_file,
)
from audio.media import decode_media

QUIET = ["-hide_banner", "-loglevel", "error", "-nostdin"]


def run(command, data=b""):
    return subprocess.run(command, input=data, capture_output=True, timeout=30, env=ffmpeg_environment(), check=True)


@pytest.fixture(scope="module")
def ts():
    """Two seconds of a tone of 1 kHz, with video."""
    tone, video = ["-f", "lavfi", "-i", "sine=f=1000:d=2"], ["-f", "lavfi", "-i", "testsrc=size=64x64:d=2"]
    return run([ffmpeg_path(), *QUIET, *tone, *video, "-c:a", "aac", "-c:v", "mpeg2video", "-f", "mpegts", "-"]).stdout


def inputs(command):
    """The options of each input with their values, and `-i`."""
    found, words = [{}], command[1:]
    while words[0].startswith("-") and len(words) > 1:
        found[-1][words[0]] = words[1]
        if words[0] == "-i":
            found.append({})
        words = words[2:]
    return found[:-1]


def test_what_reads_bytes_from_outside_is_confined():
    file, *_ = inputs(wav_from_file())
    assert (file["-protocol_whitelist"], file["-format_whitelist"]) == ("file", CONTAINERS)
    feed, *_ = inputs(wav_from_feed("ogg"))
    assert (feed["-protocol_whitelist"], feed["-format_whitelist"], feed["-f"]) == ("pipe", "ogg", "ogg")
    for command in (wav_from_feed(), frames_from_ts(25), ts_from_frames(25)):
        for each in inputs(command):
            if each["-i"].startswith("color="):  # ours
                continue
            assert each["-protocol_whitelist"] == "pipe"
            assert each["-f"] in ("mpegts", "image2pipe")


def test_no_playlist_is_among_the_containers():
    assert not {"hls", "dash", "concat", "imf", "sdp", "lavfi", "image2"} & set(CONTAINERS.split(","))


@pytest.mark.parametrize(
    "command", [wav_from_file(), wav_from_feed(), pcm_from_device("pulse", "default", "/bin/f"), frames_from_ts(30)]
)
def test_errors_only_and_no_keys(command):
    assert command[-len(QUIET) :] == QUIET


PICTURE = ["-f", "lavfi", "-i", "testsrc=size=64x64:d=6"]
TONE = ["-f", "lavfi", "-i", "sine=f=1000:d=2"]
TRACKS = {
    "mpegts": ("mpeg2video", "aac"),
    "mpeg": ("mpeg2video", "mp2"),
    "ogg": ("libtheora", "libvorbis"),
    "matroska": ("libvpx", "libvorbis"),
    "mp4": ("mpeg4", "aac"),
    "flv": ("flv", "aac"),
}


@pytest.mark.parametrize("late", [0.7, 3.5])
@pytest.mark.parametrize("container", TRACKS)
def test_sound_that_begins_late_keeps_its_place(tmp_path, container, late):
    video, audio = TRACKS[container]
    codecs = ["-c:v", video, "-c:a", audio, "-ar", "44100", "-f", container]
    path = tmp_path / "late"
    run([ffmpeg_path(), *QUIET, *PICTURE, "-itsoffset", str(late), *TONE, *codecs, str(path)])
    commands = [wav_from_file()] + [wav_from_feed(container)] * (container not in ("mp4", "mpeg"))
    for command in commands:
        samples = decoded(command, path)
        begins = np.flatnonzero(np.abs(samples) > 1000)[0] / 16_000
        assert begins == pytest.approx(late, abs=0.1)
        assert len(samples) / 16_000 == pytest.approx(late + 2, abs=0.2)


def decoded(command, path):
    """Decode a file that is a program's stdin."""
    with path.open("rb") as file:
        sound = subprocess.run(
            command, stdin=file, capture_output=True, timeout=30, env=ffmpeg_environment(), check=True
        ).stdout
    header = sound.index(b"data") + 8 if sound.startswith(b"RIFF") else 0
    return np.frombuffer(sound[header:], "<i2").astype(int)


def test_pictures_of_unknown_size_do_not_matter():
    """A feed that begins between two key frames; a broken picture in the tag of an MP3."""
    video = ["-f", "lavfi", "-i", "testsrc=size=320x240:d=3", "-c:v", "libx264", "-preset", "ultrafast", "-g", "999"]
    feed = run([ffmpeg_path(), *QUIET, *video[:4], *TONE, *video[4:], "-c:a", "aac", "-f", "mpegts", "-"]).stdout
    assert len(run(wav_from_feed(), feed[188 * 100 :]).stdout) > 32_000
    sound = run([ffmpeg_path(), *QUIET, *TONE, "-c:a", "libmp3lame", "-id3v2_version", "0", "-f", "mp3", "-"]).stdout
    frame = b"APIC" + (2000).to_bytes(4) + b"\0\0\0image/jpeg\0\3\0" + bytes(range(1, 251)) * 8
    tag = b"ID3\3\0\0\0\0\x0f\x5a" + frame[:2010]
    assert len(decode_media(tag + sound)) / 16_000 == pytest.approx(2, abs=0.1)


@pytest.mark.parametrize("command", [wav_from_feed(), wav_from_file()])
def test_a_gap_in_mpeg_ts_is_silence(tmp_path, command):
    gap = "asetpts='if(gt(T,1),PTS+15/TB,PTS)'"
    path = tmp_path / "gap.ts"
    run([ffmpeg_path(), *QUIET, *TONE, "-af", gap, "-c:a", "aac", str(path)])
    assert len(decoded(command, path)) / 16_000 == pytest.approx(17, abs=0.2)


@pytest.mark.parametrize("damaged", [False, True])
def test_sound_of_a_live_stream(ts, damaged):
    data = ts[:20_000] + b"\xff" * 3000 + ts[23_000:] if damaged else ts
    samples = np.frombuffer(run(wav_from_feed(), data).stdout, "<i2")[100:]
    assert len(samples) / 16_000 == pytest.approx(2.0, abs=0.5 if damaged else 0.15)
    assert np.abs(np.fft.rfft(samples[:16_000])).argmax() == pytest.approx(1000, abs=2)


def test_the_ffmpeg_on_path_wins(tmp_path, monkeypatch):
    path = tmp_path / "ffmpeg"
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert ffmpeg_path() == wav_from_feed()[0] == str(path)


def test_else_the_one_in_the_wheel(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "imageio_ffmpeg" in ffmpeg_path()


def test_neither_names_the_ways_out(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(MediaError, match="install ffmpeg on PATH or the Python package imageio-ffmpeg"):
        ffmpeg_path()


def test_the_package_alone_does_not_load_ffmpeg():
    code = "import sys, audio, audio.pcm, audio.quiet; sys.exit('ffmpeg' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)


@pytest.mark.parametrize(("gap", "seconds"), [(20, 22), (7200, 2)])
def test_a_live_feed_has_silence_for_its_gaps_but_not_for_hours(gap, seconds):
    late = f"asetpts='if(gt(T,1),PTS+{gap}/TB,PTS)'"
    sound = ["-f", "lavfi", "-i", "sine=f=1000:d=2", "-af", late, "-c:a", "libopus", "-f", "webm", "-"]
    decoded = run(wav_from_feed("matroska"), run([ffmpeg_path(), *QUIET, *sound]).stdout).stdout
    assert len(decoded) / 32_000 == pytest.approx(seconds, abs=0.2)
