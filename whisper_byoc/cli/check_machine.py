"""What `doctor` finds on this machine: ffmpeg, engine, CPUs, model, microphone."""

import asyncio
import math
import re
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from audio import pcm
from audio.errors import MediaError
from audio.ffmpeg import ffmpeg_environment, ffmpeg_path
from whisper_byoc.cli.microphone import microphone
from whisper_byoc.errors import ModelError
from whisper_byoc.process import output_of
from whisper_byoc.processors.machine import available_cpus
from whisper_byoc.processors.whisper import WhisperSettings
from whisper_byoc.speech import models

FFMPEG_SECONDS = 10.0
HEARD_BYTES = pcm.SAMPLE_RATE // 2 * pcm.SAMPLE_WIDTH


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    check: str
    state: Literal["ok", "--", "FAIL"]
    detail: str
    advice: str = ""
    """What to do, in one sentence."""


async def check_ffmpeg() -> Finding:
    install = "install ffmpeg on PATH, or `pip install imageio-ffmpeg`"
    try:
        path = ffmpeg_path()
    except MediaError:
        return Finding("ffmpeg", "FAIL", "not found: only WAV and raw PCM16 can be read", f"{install}.")
    try:
        code, text = await output_of((path, "-version"), FFMPEG_SECONDS, ffmpeg_environment())
    except (TimeoutError, OSError) as error:
        problem = str(error) or "no answer"
    else:
        version = re.match(r"ffmpeg version (\S+)", text)
        if version and not code:
            return Finding("ffmpeg", "ok", f"{version[1]} ({path})")
        problem = f"exit code {code}"
    return Finding("ffmpeg", "FAIL", f"{path} does not run: {problem}", f"Remove it, then {install}.")


def check_engine() -> Finding:
    """See what would run a model, and how it computes. Blocks."""
    reference = "openai (torch)" if models.reference_engine_installed() else ""
    if not models.fast_engine_installed():
        advice = "Run `pip install openvino` for the fast engine, which live speech needs."
        return Finding("engine", "FAIL", f"{reference} only" if reference else "none is installed", advice)
    try:
        from whisper_byoc.speech.runtime import has_bfloat16, ov  # here, as it takes a tenth of a second

        kind = "bfloat16" if has_bfloat16() else "float32, as this CPU has no bfloat16 (AVX512-BF16, AMX)"
    except (ImportError, RuntimeError) as error:
        return Finding(
            "engine",
            "FAIL",
            f"OpenVINO does not run: {error}",
            "Reinstall it: `pip install --force-reinstall openvino`.",
        )
    version = ov.get_version().partition("-")[0]
    return Finding(
        "engine", "ok", f"fast (OpenVINO {version}), in {kind}" + (f"; also {reference}" if reference else "")
    )


async def check_cpus() -> Finding:
    """See how many CPUs a server would compute with."""
    sizes, cpus = WhisperSettings().sizes(), available_cpus()
    others = "".join(f", or {workers} of {threads}" for workers, threads in WhisperSettings().other_sizes())
    return Finding("cpus", "ok", f"{cpus} by quota and affinity: {sizes[0]} workers of {sizes[1]} threads{others}")


def check_model(directory: Path | None) -> Finding:
    """Look for whisper-tiny and tiny.en, then for the bundled model, and check their hashes. Blocks."""
    try:
        folder = directory or models.default_model_dir()
        for name in ("tiny", "tiny.en"):
            found = models.find_model(name, directory)
            converted = models.kept_folder(models.checkpoint(name), directory)
            if found is not None or converted.is_dir():
                return Finding("model", "ok", f"whisper-{name} ({found or converted})")
        models.find_model("demo")
    except ModelError as error:
        problem, _, advice = str(error).rstrip(".").partition("; ")
        advice = advice or "make the file readable, or set MODEL_DIR to another folder"
        return Finding("model", "FAIL", problem, f"{advice}.")
    return Finding(
        "model",
        "--",
        f"neither whisper-tiny nor tiny.en is in {folder}; the bundled whisper-demo is there",
        "Run `whisper-byoc preload --model tiny`, or serve 321 words with `--pipeline whisper-demo`.",
    )


async def check_microphone() -> Finding:
    """Record the default microphone for half a second."""
    sound = b""
    try:
        async with microphone(asyncio.Event()) as chunks, aclosing(chunks):
            async for chunk in chunks:
                sound += chunk
                if len(sound) >= HEARD_BYTES:
                    break
    except MediaError as error:
        problem, _, advice = str(error).rpartition("; ")
        return Finding("microphone", "--", problem, f"For `send --microphone`, {advice}.")
    samples = pcm.decode(sound[: len(sound) // pcm.SAMPLE_WIDTH * pcm.SAMPLE_WIDTH])
    level = float(np.sqrt(np.mean(samples**2)))
    if not level:
        advice = "Turn it on, or choose another one in the sound settings."
        return Finding("microphone", "--", "it records digital silence: is it muted?", advice)
    detail = f"heard at {_decibels(level)} dBFS, {_decibels(float(np.abs(samples).max()))} at the loudest"
    return Finding("microphone", "ok", detail)


def _decibels(level: float) -> int:
    return round(20 * math.log10(level))
