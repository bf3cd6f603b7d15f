"""Other programs for the same models, to measure ours against: `pip install -e .[bench]` brings them."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import partial
from pathlib import Path

from whisper_byoc.speech.engine import Samples
from whisper_byoc.speech.transcript import TextSegment

__all__ = ["Peer", "faster_whisper", "trouble", "whisper_cpp"]

Peer = Callable[[Samples], list[TextSegment]]


def trouble(package: str, model: Path) -> str:
    """Say why a peer cannot run, empty if it can: faster_whisper needs a CTranslate2 folder."""
    if importlib.util.find_spec(package) is None:
        return f"{package} is not installed: pip install -e .[bench]"
    if package == "faster_whisper" and not (model / "model.bin").is_file():
        return f"{model} is not a CTranslate2 folder, which faster_whisper needs"
    return ""


def faster_whisper(folder: Path, threads: int, beam: int = 1, batch: int = 0, *, context: bool = False) -> Peer:
    """Load a model as int8; the text is English, and each call is on its own.

    With a `batch` it cuts by voice activity, and decodes so many stretches at once. With `context`, its default, a
    window has the text before it as a prompt.
    """
    from faster_whisper import BatchedInferencePipeline, WhisperModel

    model = WhisperModel(str(folder), device="cpu", compute_type="int8", cpu_threads=threads)
    options = {"beam_size": beam, "condition_on_previous_text": context}
    decode = partial(BatchedInferencePipeline(model).transcribe, batch_size=batch) if batch else model.transcribe

    def transcribe(samples: Samples) -> list[TextSegment]:
        segments, _ = decode(samples, language="en", **options)
        return [TextSegment(each.start, each.end, each.text.strip()) for each in segments]

    return transcribe


def whisper_cpp(file: Path, threads: int) -> Peer:
    """Load a file in whisper.cpp's form; the text is English, and each call is on its own."""
    from pywhispercpp.model import Model

    options = {"language": "en", "no_context": True, "print_progress": False, "print_realtime": False}
    model = Model(str(file), redirect_whispercpp_logs_to=None, n_threads=threads, **options)

    def transcribe(samples: Samples) -> list[TextSegment]:
        return [TextSegment(each.t0 / 100, each.t1 / 100, each.text.strip()) for each in model.transcribe(samples)]

    return transcribe
