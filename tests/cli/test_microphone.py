"""Command lines for microphones, for every platform, on any platform."""

import subprocess

import pytest

from audio.ffmpeg import ffmpeg_environment, ffmpeg_path
from whisper_byoc.cli.microphone import ffmpeg_devices, recorders

LINUX = """\
Devices:
 D. = Demuxing supported
 .E = Muxing supported
 ---
 DE alsa            ALSA audio output
  E caca            caca (color ASCII art) output device
 D  lavfi           Libavfilter virtual input device
 DE pulse           Pulse audio output
 D  x11grab         X11 screen capture, using XCB
"""


NEWER = "Devices:\n D.. = Demuxing supported\n ..d = Is a device\n ---\n DEd alsa   ALSA\n D d v4l2,video4linux2 x\n"


def everything(name):
    return f"/bin/{name}"


def names(*args, **options):
    return list(recorders(*args, **options))


def test_best_first_on_linux():
    found = recorders("/bin/ffmpeg", {"alsa", "pulse"}, platform="linux", which=everything)
    assert list(found) == ["parec", "arecord", "rec", "sox", "ffmpeg (pulse)", "ffmpeg (alsa)"]
    assert found["arecord"] == ("/bin/arecord", "-q", "-t", "raw", "-f", "S16_LE", "-c", "1", "-r", "16000")
    assert found["ffmpeg (pulse)"] == (
        "/bin/ffmpeg", "-f", "pulse", "-i", "default",
        "-f", "s16le", "-ac", "1", "-acodec", "pcm_s16le", "-ar", "16000", "-flush_packets", "1", "pipe:1",
        "-hide_banner", "-loglevel", "error", "-nostdin",
    )  # fmt: skip


def test_elsewhere():
    assert names("f", {"avfoundation"}, platform="darwin", which=everything) == ["rec", "sox", "ffmpeg (avfoundation)"]


@pytest.mark.parametrize("ffmpeg", [None, "/bin/ffmpeg"])
def test_none(ffmpeg):
    assert names(ffmpeg, {"v4l2"}, platform="linux", which=lambda _: None) == []
    assert names(ffmpeg, {"alsa"}, platform="sunos5", which=lambda _: None) == []


def test_devices_of_ffmpeg():
    assert ffmpeg_devices(LINUX) == {"alsa", "lavfi", "pulse", "x11grab"}
    assert ffmpeg_devices(NEWER) == {"alsa", "v4l2", "video4linux2"}
    assert ffmpeg_devices("") == frozenset()


def test_devices_of_this_ffmpeg():
    listing = subprocess.run(
        [ffmpeg_path(), "-hide_banner", "-devices"],
        env=ffmpeg_environment(),
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "lavfi" in ffmpeg_devices(listing)
