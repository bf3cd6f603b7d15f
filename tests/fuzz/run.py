"""Give the code that meets bytes from outside a million inputs (atheris, libFuzzer), which grow out of good ones.

usage: python tests/fuzz/run.py [--runs N] [--seconds N] [--target NAME]

An input that raises what it must not is written to build/fuzz/TARGET-crash-…, and `--target TARGET FILE` runs it again.
"""

import argparse
import json
import logging
import subprocess
import sys
import tempfile
from pathlib import Path

import atheris
import imageio_ffmpeg

ROOT = Path(__file__).resolve().parent.parent.parent
FOUND = ROOT / "build" / "fuzz"
LONGEST = 4096
"""Bytes of an input."""

sys.path.insert(0, str(ROOT))
with atheris.instrument_imports(include=["audio", "whisper_byoc"]):
    from tests.fuzz.targets import TARGETS


def seeds() -> list[bytes]:
    """Return good inputs, behind the byte that says how they are cut."""
    sound = (ROOT / "fixtures" / "demo-yes.wav").read_bytes()[: LONGEST - 1]
    media = (
        "-f",
        "lavfi",
        "-i",
        "sine=d=0.2",
        "-f",
        "lavfi",
        "-i",
        "color=s=16x16:d=0.2",
        "-b:a",
        "32k",
        "-f",
        "mpegts",
    )
    ffmpeg = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", *media, "pipe:1"]
    stream = subprocess.run(ffmpeg, capture_output=True, check=True).stdout[: LONGEST - 1]
    job = {"request": "{}", "parameters": "{}", "capability": "x", "timeout_seconds": 1}
    urls = {"gateway_request_id": "a", "subscribe_url": "http://a/b", "params": {"width": 2, "height": 2}}
    speech = {"language": "de", "words": True, "beam": 2, "prompt": "a", "pause": 0.5, "longest": 12, "rate": 8000}
    texts = [json.dumps(each).encode() for each in (job, urls, speech)]
    return [sound, stream, b"audio/L16;rate=48000;channels=2", b"http://user:word@host:80/a?b", *texts]


def fuzz(target: str, runs: int, seconds: int, files: list[str]) -> None:
    """Never return: libFuzzer ends the process, with an exit code that says whether something was found."""
    logging.disable()  # a WAV that is cut off is told there
    FOUND.mkdir(parents=True, exist_ok=True)
    limits = [f"-runs={runs}", f"-max_total_time={seconds}", f"-max_len={LONGEST}", "-timeout=20", "-rss_limit_mb=4096"]
    with tempfile.TemporaryDirectory() as folder:
        for number, seed in enumerate(seeds()):
            Path(folder, str(number)).write_bytes(b"\x03" + seed)
        words = [
            sys.argv[0],
            *limits,
            f"-artifact_prefix={FOUND}/{target}-",
            "-print_final_stats=1",
            *(files or [folder]),
        ]
        atheris.Setup(words, TARGETS[target])
        atheris.Fuzz()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=1_000_000, help="of all targets together")
    parser.add_argument("--seconds", type=int, default=0, help="longest time for all targets together; 0 is no limit")
    parser.add_argument("--target", choices=TARGETS)
    parser.add_argument("files", nargs="*", help="inputs to run instead")
    args = parser.parse_args()
    if args.target:
        fuzz(args.target, args.runs, args.seconds, args.files)
    share = ("--runs", str(args.runs // len(TARGETS)), "--seconds", str(args.seconds // len(TARGETS)))
    codes = {
        target: subprocess.run([sys.executable, __file__, "--target", target, *share], check=False).returncode
        for target in TARGETS
    }
    print(*(f"{target}: {'failed' if code else 'nothing found'}" for target, code in codes.items()), sep="\n")
    return int(any(codes.values()))


if __name__ == "__main__":
    sys.exit(main())
