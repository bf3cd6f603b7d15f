"""ffmpeg: where it is, the environment it runs in, and every command line it is run with.

ffmpeg-python builds the command lines; running them is left to the caller. What reads bytes from outside names the
one protocol that it may use. All of them raise `DecoderFailed` when there is no ffmpeg.
"""

import os
import re
import shutil
from collections.abc import Iterable
from typing import Any

import ffmpeg

from audio import pcm
from audio.errors import DecoderFailed

CONTAINERS = (
    "aac,ac3,aiff,amr,amrnb,amrwb,ape,asf,au,avi,caf,dsf,dts,eac3,flac,flv,gsm,loas,matroska,mov,mp3,mpc,mpc8,mpeg,"
    "mpegts,mxf,nistsphere,nut,ogg,rm,tak,truehd,tta,voc,w64,wav,webm,wv"
)
"""The demuxers that may read a file, by ffmpeg's names. Each reads only the file it is given. Playlists and scripts
(hls, dash, concat, imf, sdp, lavfi …) are left out because they open other files and addresses."""

STDIN_FILE = "file:/dev/stdin"
"""stdin opened as a file, so that ffmpeg can seek in it: an MP4 may have its index (moov) at the end."""

BEGINNING = {"probesize": 256 * 1024, "analyzeduration": 1_000_000}
"""The bytes and microseconds of a feed in which ffmpeg must find what is in it: sound may begin well after pictures."""

NO_AUDIO = "there is no audio track in it"
NOISE = ("Error opening", "input: Invalid data", "Last message repeated")
"""How lines begin that say nothing about the media, with ffmpeg 6 and newer, and with 5."""

ON_TIME = f"aresample={pcm.SAMPLE_RATE}:async=1:first_pts=0"
"""Sound keeps its place in the file: silence stands where its track begins late, and where time stamps have a gap."""

WAV = {"format": "wav", "acodec": "pcm_s16le", "af": f"{ON_TIME},aformat=channel_layouts=mono|stereo"}
"""At most two channels, whose mix is left to `audio.downmix`: ffmpeg's own loses those in opposite phase."""

SOUND_ONLY = {"vn": None, "sn": None, "dn": None, "map_metadata": -1}

LONGEST_GAP = 60
"""Seconds of a gap in the time stamps of MPEG-TS or of a live feed that become silence: a few bytes can claim years."""

FLUSHED = {"flush_packets": 1}
"""Write each packet at once."""


def ffmpeg_path() -> str:
    """Return the ffmpeg to run: the one on PATH, or else the one in the imageio-ffmpeg wheel.

    Raises:
        DecoderFailed: there is neither.
    """
    on_path = shutil.which("ffmpeg")
    if on_path:
        return on_path
    try:
        import imageio_ffmpeg  # only here: an image with its own ffmpeg can leave the wheel out

        return str(imageio_ffmpeg.get_ffmpeg_exe())
    except (ImportError, RuntimeError):
        raise DecoderFailed(
            "There is no ffmpeg to decode this with: install ffmpeg on PATH or the Python package imageio-ffmpeg, "
            "or send WAV or raw PCM16, which need neither."
        ) from None


def ffmpeg_environment() -> dict[str, str]:
    """Return the environment to run ffmpeg in: ours, with a safeguard for the binary in the wheel.

    That binary is static and built on Debian 10. Where it converts text (the service name in MPEG-TS) it loads the
    system's gconv modules, and crashes with signal 11 when glibc is newer. Setting GCONV_PATH turns off the cache that
    leads it there; an ffmpeg that fits the system still finds its modules.
    """
    return {**os.environ, "GCONV_PATH": ""}


def complaints(lines: Iterable[str]) -> list[str]:
    """Return what ffmpeg's errors say about the media.

    The addresses of its objects are left out, and what only says that it gives up. Where there is no sound to decode,
    that is `NO_AUDIO`.
    """
    texts = [re.sub(r"^(\[[^\]]* @ 0x[0-9a-f]+\] )+", "", line).strip() for line in lines]
    texts = [re.sub(f"(subfile,[^:]*:)?{STDIN_FILE}", "input", text) for text in texts]
    if any("does not contain any stream" in text or "matches no streams" in text for text in texts):
        return [NO_AUDIO]
    return [text[:300] for text in texts if text and not text.startswith(NOISE)]


def wav_from_file(containers: str = CONTAINERS, track: str = "a", span: tuple[int, int] | None = None) -> list[str]:
    """Decode the file on stdin, in one of these containers (ffmpeg's names), to 16 kHz WAV (see `WAV`).

    `track` is `a:N` for a certain one, or `a` for the one that ffmpeg thinks best. Of the file, only the bytes from
    the beginning to the end of `span` are read.
    """
    name, protocols = STDIN_FILE, "file"
    if span is not None:
        name, protocols = f"subfile,,start,{span[0]},end,{span[1]},,:{STDIN_FILE}", "file,subfile"
    source = ffmpeg.input(name, protocol_whitelist=protocols, **_confined(containers))
    sound = (source if track == "a" else source[track]).output("pipe:1", **WAV, **SOUND_ONLY)
    return _command(_at_its_time(sound, source))


def wav_from_feed(containers: str = "mpegts") -> list[str]:
    """Decode what arrives on stdin, in one of these containers (ffmpeg's names), as it arrives, to 16 kHz WAV.

    Pictures are not decoded; broken packets of MPEG-TS are dropped. Sound keeps its place: there is silence where it
    begins after the pictures, and where time stamps have a gap, such as a lost segment leaves.
    """
    lenient = {"fflags": "+discardcorrupt", "err_detect": "ignore_err"} if containers == "mpegts" else {}
    source = ffmpeg.input("pipe:0", protocol_whitelist="pipe", **_confined(containers), **BEGINNING, **lenient)
    sound = source["a:0"].output("pipe:1", **WAV, **SOUND_ONLY, **FLUSHED)
    nowhere = "mpegts" if containers == "mpegts" else "null"
    return _command(_at_its_time(sound, source, nowhere).global_args("-dts_error_threshold", str(LONGEST_GAP)))


def _at_its_time(sound: Any, source: Any, nowhere: str = "null") -> Any:
    """Have time begin with the first track, be it of pictures.

    Of MPEG-TS, MPEG-PS and Ogg, ffmpeg counts from the first of those tracks that it writes. So it writes pictures to
    nowhere, undecoded, and among them one of ours, as it refuses an output without any. Pictures whose size is not
    known yet are refused by its format "null", and taken by "mpegts".
    """
    ours = ffmpeg.input("color=size=16x16:duration=0.04", format="lavfi")
    pictures = ffmpeg.output(source["V?"], ours["v"], os.devnull, format=nowhere, vcodec="copy", y=None)
    return ffmpeg.merge_outputs(sound, pictures).global_args("-dts_delta_threshold", str(LONGEST_GAP))


def _confined(containers: str) -> dict[str, str]:
    """Return the options by which ffmpeg reads these containers only."""
    known = {} if "," in containers else {"format": containers}
    return {"format_whitelist": containers, **known}


def pcm_from_device(device: str, source: str, path: str) -> list[str]:
    """Record `source` of an input device (`pulse`, `alsa` …) as 16 kHz mono PCM16, with the ffmpeg at `path`."""
    pcm16 = {"format": "s16le", "acodec": "pcm_s16le", "ac": 1, "ar": pcm.SAMPLE_RATE}
    return _command(ffmpeg.input(source, format=device).output("pipe:1", **pcm16, **FLUSHED), path)


def frames_from_ts(rate: int) -> list[str]:
    """Decode live MPEG-TS to PPM pictures, `rate` of them a second."""
    beginning = {**BEGINNING, "probesize": "1M"}
    source = ffmpeg.input("pipe:0", format="mpegts", protocol_whitelist="pipe", **beginning, fflags="+discardcorrupt")
    ppm = {"format": "image2pipe", "vcodec": "ppm", "pix_fmt": "rgb24", "vf": f"fps={rate}"}
    return _command(source["v:0"].output("pipe:1", **ppm, **FLUSHED, an=None, sn=None, dn=None))


def ts_from_frames(rate: int, start: float = 0.0) -> list[str]:
    """Encode the PPM pictures on stdin, `rate` of them a second, as H.264 in MPEG-TS whose time begins at `start` s."""
    pictures = ffmpeg.input("pipe:0", format="image2pipe", vcodec="ppm", framerate=rate, protocol_whitelist="pipe")
    h264 = {"vcodec": "libx264", "preset": "ultrafast", "tune": "zerolatency", "pix_fmt": "yuv420p", "g": rate}
    mpegts = {"format": "mpegts", "pat_period": 0.5, "output_ts_offset": f"{start:.6f}"}
    return _command(ffmpeg.output(pictures["v"], "pipe:1", **h264, **mpegts, **FLUSHED))


def _command(output: Any, path: str | None = None) -> list[str]:
    quiet = output.global_args("-hide_banner", "-loglevel", "error", "-nostdin")
    words: list[str] = quiet.compile(cmd=path or ffmpeg_path())
    return words
