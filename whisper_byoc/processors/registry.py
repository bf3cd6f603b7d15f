"""The pipelines that a container can serve, by the names that clients use."""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from whisper_byoc.errors import UnknownPipeline
from whisper_byoc.processors.base import Processor
from whisper_byoc.processors.tint import GrayscaleProcessor, GreenTintProcessor, PassthroughProcessor
from whisper_byoc.processors.whisper import WhisperProcessor, WhisperSettings
from whisper_byoc.speech.models import model_names

RGB_FRAMES = "RGB24 frames"


@dataclass(frozen=True)
class PipelineSpec:
    """One line of the table that `whisper-byoc pipelines` prints."""

    name: str
    reads: str
    gives: str
    summary: str
    make: Callable[[WhisperSettings], Processor]
    model: str | None = None


def _speech(name: str, model: str, summary: str) -> PipelineSpec:
    return PipelineSpec(
        name, "PCM16 16 kHz mono", "UTF-8 text", summary, lambda settings: WhisperProcessor(model, settings), model
    )


def _video(name: str, processor: Callable[[], Processor], summary: str) -> PipelineSpec:
    return PipelineSpec(name, RGB_FRAMES, RGB_FRAMES, summary, lambda _: processor())


PIPELINES: Mapping[str, PipelineSpec] = MappingProxyType(
    {
        spec.name: spec
        for spec in (
            _speech("whisper-tiny", "tiny", "OpenAI's Whisper tiny, 39 M parameters"),
            _speech("whisper-demo", "demo", "bundled demo model, 321 words of synthetic speech only"),
            _video("green-tint-cpu", GreenTintProcessor, "green + 80, saturating"),
            _video("grayscale-cpu", GrayscaleProcessor, "BT.601 luma on all three channels"),
            PipelineSpec("passthrough", "any bytes", "the same bytes", "unchanged", lambda _: PassthroughProcessor()),
        )
    }
)


def find(name: str) -> PipelineSpec:
    """Look up a pipeline: one in the table, `whisper-MODEL` for any model of openai-whisper, a `.pt` file or a folder.

    A folder holds a model in CTranslate2's format.

    Raises `UnknownPipeline`, which lists the names there are.
    """
    if name in PIPELINES:
        return PIPELINES[name]
    if name.endswith(".pt") or Path(name, "model.bin").is_file():
        return _speech(f"whisper-{Path(name).stem}", name, f"Whisper checkpoint {name}")
    model = name.removeprefix("whisper-")
    if model in model_names():
        return _speech(f"whisper-{model}", model, f"Whisper {model}")
    known = (*PIPELINES, *(f"whisper-{model}" for model in model_names()))
    similar = difflib.get_close_matches(name, known, 1)
    hint = f", did you mean {similar[0]}?" if similar else ""
    raise UnknownPipeline(f"model not found: there is no pipeline {name!r}{hint}; there are: {', '.join(PIPELINES)}")


def model_of(name: str) -> str:
    """Return the model of a speech pipeline, or else the name unchanged: for commands that take either name."""
    try:
        return find(name).model or name
    except UnknownPipeline:
        return name
