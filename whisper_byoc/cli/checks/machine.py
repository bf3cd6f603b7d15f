"""What this machine has: ffmpeg, a model, free ports, something to record with."""

from __future__ import annotations

import asyncio
import errno
import os
import re
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

from audio.errors import MediaError
from audio.ffmpeg import ffmpeg_environment, ffmpeg_path
from whisper_byoc.cli.checks.finding import Finding, absent, fail, ok
from whisper_byoc.cli.microphone import find_recorders
from whisper_byoc.errors import ModelError
from whisper_byoc.process import output_of

__all__ = ["ffmpeg", "microphone", "model", "port"]

RUN_SECONDS = 10.0
UNREADABLE = "make the file readable, or set MODEL_DIR to another folder"


async def ffmpeg() -> Finding:
    """Find ffmpeg, and run it."""
    install = "install ffmpeg on PATH, or `pip install imageio-ffmpeg`"
    try:
        path = ffmpeg_path()
    except MediaError:
        return fail("ffmpeg", "there is none: only WAV and raw PCM16 can be read", f"{install}.")
    try:
        code, text = await output_of((path, "-version"), RUN_SECONDS, ffmpeg_environment())
    except (TimeoutError, OSError) as error:
        return fail("ffmpeg", f"{path} does not run: {str(error) or 'no answer'}", f"Remove it, then {install}.")
    version = re.match(r"ffmpeg version (\S+)", text)
    if code or version is None:
        return fail("ffmpeg", f"{path} does not run: it ends with {code}", f"Remove it, then {install}.")
    return ok("ffmpeg", f"{version[1]} ({path})")


async def model(directory: Path | None) -> Finding:
    """Look for whisper-tiny, then for the bundled model, and check their hashes."""
    return await asyncio.to_thread(find_models, directory)


def find_models(directory: Path | None) -> Finding:
    """Do the work of `model`, which reads files and imports torch."""
    try:
        from whisper_byoc.speech.models import find_model, model_dir

        tiny, folder = find_model("tiny", directory), directory or model_dir()
        if tiny is not None:
            return ok("model", f"whisper-tiny ({tiny})")
        find_model("demo")
    except ModelError as error:
        problem, _, advice = str(error).rstrip(".").partition("; ")
        return fail("model", problem, f"{advice or UNREADABLE}.")
    except ImportError as error:
        return fail("model", f"openai-whisper is not installed: {error}", "Run `pip install whisper-byoc` anew.")
    return absent(
        "model", f"whisper-tiny is not in {folder}; the bundled whisper-demo is there",
        "Run `whisper-byoc preload --model tiny`, or serve 321 words with `--pipeline whisper-demo`.",
    )  # fmt: skip


async def port(number: int, role: str, identify: Callable[[str], Awaitable[str]]) -> Finding:
    """See whether a port is free for the `role` that listens there by default, or who has it."""
    check = f"port {number}"
    try:
        with socket.socket() as listener:
            if os.name == "posix":  # as servers do; elsewhere it would let two have the same port
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("", number))
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            return fail(check, f"it cannot be bound: {error.strerror}", f"Let the {role} listen on another port.")
    else:
        return ok(check, f"free for the {role}")
    found = await identify(f"http://127.0.0.1:{number}")
    if found == role:
        return ok(check, f"the {role} listens there")
    owner = f"another whisper-byoc, the {found}" if found else "another program"
    return fail(check, f"taken by {owner}", f"Stop it, or let the {role} listen on another port.")


async def microphone() -> Finding:
    """List what could record."""
    found = await find_recorders()
    if found:
        return ok("microphone", f"can be recorded with {', '.join(each.name for each in found)}")
    advice = "For `send --microphone`, install alsa-utils, sox, or an ffmpeg that knows this machine's sound system."
    return absent("microphone", "nothing here can record one", advice)
