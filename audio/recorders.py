"""Command lines that record the default microphone as PCM16 mono 16 kHz on stdout.

Only the command lines, as in `audio.ffmpeg`: running them is left to the caller.
"""

import re
import shutil
import sys
from collections.abc import Callable, Collection
from dataclasses import dataclass

from audio import pcm
from audio.ffmpeg import pcm_from_device

RATE = str(pcm.SAMPLE_RATE)
SOX_RAW = ("-t", "raw", "-e", "signed-integer", "-b", "16", "-L", "-c", "1", "-r", RATE)
PLATFORM_DEVICES = {"linux": ("pulse", "alsa"), "darwin": ("avfoundation",), "win32": ("dshow",)}
"""ffmpeg's names of the devices that may have a microphone, best first."""


@dataclass(frozen=True)
class Recorder:
    """One way to record."""

    name: str
    """What to call it in a message."""
    command: tuple[str, ...]


def recorders(
    ffmpeg: str | None,
    devices: Collection[str],
    *,
    dshow: str | None = None,
    platform: str = sys.platform,
    which: Callable[[str], str | None] = shutil.which,
) -> list[Recorder]:
    """Return the programs on PATH that can record on this platform, best first. Any of them may still fail.

    `ffmpeg` is the path of ffmpeg if there is one, `devices` the result of `ffmpeg_devices`, and `dshow` the name of
    the microphone on Windows (see `dshow_microphone`).
    """
    candidates = {
        "parec": ("--raw", "--format=s16le", f"--rate={RATE}", "--channels=1", "--latency-msec=100"),
        "arecord": ("-q", "-t", "raw", "-f", "S16_LE", "-c", "1", "-r", RATE),
        "rec": ("-q", *SOX_RAW, "-"),
        "sox": ("-q", "-d", *SOX_RAW, "-"),
    }
    if platform != "linux":  # PulseAudio and ALSA belong there
        del candidates["parec"], candidates["arecord"]
    found = [Recorder(name, (path, *options)) for name, options in candidates.items() if (path := which(name))]
    sources = {"pulse": "default", "alsa": "default", "avfoundation": ":default"}
    if dshow:
        sources["dshow"] = f"audio={dshow}"
    usable = [each for each in PLATFORM_DEVICES.get(platform, ()) if each in devices and each in sources]
    if ffmpeg:
        found += [Recorder(f"ffmpeg ({each})", tuple(pcm_from_device(each, sources[each], ffmpeg))) for each in usable]
    return found


def ffmpeg_devices(listing: str) -> frozenset[str]:
    """Parse the output of `ffmpeg -hide_banner -devices`: the devices that it can record from."""
    rows = re.findall(r"^ D[ E]d? +(\S+)", listing, re.MULTILINE)
    return frozenset(name for row in rows for name in row.split(","))


def dshow_listing(ffmpeg: str) -> tuple[str, ...]:
    """Return the command that lists the devices of Windows, on stderr."""
    return (ffmpeg, "-hide_banner", "-list_devices", "true", "-f", "dshow", "-i", "dummy")


def dshow_microphone(listing: str) -> str | None:
    """Find the first sound device in that list; older ffmpegs write headings, newer ones the kind behind each name."""
    in_audio = False
    for line in listing.splitlines():
        if "DirectShow" in line and "devices" in line:
            in_audio = "DirectShow audio" in line
        elif "Alternative name" not in line and (found := re.search(r'"(.+)"( \((.+)\))?\s*$', line)):
            kind = found[3]
            if (kind and "audio" in kind) or (not kind and in_audio):
                return found[1]
    return None
