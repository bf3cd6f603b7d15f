"""Speech to text: PCM16 segments of one job in, one transcript for each out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from audio import pcm
from whisper_byoc.cpu import available_cpus
from whisper_byoc.errors import BadSegment, RequestRefused, UsageError
from whisper_byoc.processors.base import JobInfo, Media, Result
from whisper_byoc.speech.engine import DecodeOptions, Engine
from whisper_byoc.speech.scheduler import Heard, Scheduler
from whisper_byoc.speech.transcript import Transcription, transcript_record

__all__ = ["WhisperProcessor", "WhisperSession", "WhisperSettings"]

MAX_THREADS = 4
"""The tiny model gains nothing from more torch threads than this; further CPUs become workers."""


@dataclass(frozen=True)
class WhisperSettings:
    """How to run the model. `workers` and `threads` default to what the CPU quota allows."""

    language: str = "en"
    """ISO 639-1 code, or `auto`."""
    engine: str = "auto"
    workers: int | None = None
    threads: int | None = None
    model_dir: Path | None = None

    def sizes(self) -> tuple[int, int]:
        """Number of worker threads, and of torch threads in each."""
        cpus = available_cpus()
        threads = self.threads or min(MAX_THREADS, cpus)
        return self.workers or max(1, cpus // threads), threads


class WhisperProcessor:
    """Segments of 16 kHz mono PCM16 (little endian) to UTF-8 text."""

    media: Media = "audio"
    content_type = "text/plain; charset=utf-8"

    def __init__(self, model: str = "tiny", settings: WhisperSettings | None = None) -> None:
        self._model = model
        self._settings = settings or WhisperSettings()
        workers, threads = self._settings.sizes()
        self._scheduler = Scheduler(workers, threads)
        self._engine: Engine | None = None

    async def initialize(self) -> None:
        """Load the model and make one inference in each worker.

        Raises `ModelError`, `UnknownModel` or `UsageError` (language).
        """
        self._engine = await self._scheduler.start(self._load)
        self.check_language(self._settings.language)

    async def process(self, frame: bytes) -> bytes:
        """Transcribe one segment on its own; the server uses sessions, which keep the job's clock."""
        if not frame:
            return b""
        heard = await self.hear(decode_segment(frame), self.check_language(self._settings.language))
        return heard.transcription.text.encode()

    def open_session(self, job: JobInfo) -> WhisperSession:
        """Begin a job; `?language=` overrides the default.

        Raises `RequestRefused` (400) for a language that the model does not know.
        """
        try:
            options = self.check_language(job.params.get("language", self._settings.language))
        except UsageError as error:
            raise RequestRefused(400, str(error)) from None
        return WhisperSession(self, options)

    def trouble(self) -> str | None:
        """One sentence when a worker is stuck, else None."""
        return self._scheduler.trouble()

    async def shutdown(self) -> None:
        """Let the workers go."""
        self._scheduler.stop()

    async def hear(self, samples: NDArray[np.float32], options: DecodeOptions) -> Heard:
        """Transcribe samples (n,); digital silence is not worth a model's time."""
        if pcm.is_silence(samples):
            return Heard(Transcription("", options.language or "en"), 0.0, 0.0)
        return await self._scheduler.transcribe(samples, options)

    def check_language(self, language: str) -> DecodeOptions:
        """Make decoding options of a language code or `auto`.

        Raises `UsageError` when the loaded model does not know the language.
        """
        from whisper.tokenizer import LANGUAGES

        assert self._engine is not None, "initialize() comes first"
        if language == "auto":
            return DecodeOptions(None if self._engine.multilingual else "en")
        if language not in LANGUAGES:
            raise UsageError(f"unknown language {language!r}: use an ISO 639-1 code such as en, or auto")
        if language != "en" and not self._engine.multilingual:
            raise UsageError(f"model {self._model} knows English only, not {language!r}")
        return DecodeOptions(language)

    def _load(self) -> Engine:
        from whisper_byoc.speech.models import load_model
        from whisper_byoc.speech.openai_engine import OpenAIEngine

        return OpenAIEngine(load_model(self._model, self._settings.model_dir))


class WhisperSession:
    """One job: keeps its clock, which counts the samples received."""

    def __init__(self, processor: WhisperProcessor, options: DecodeOptions) -> None:
        self._processor = processor
        self._options = options
        self._samples = 0
        self._transcripts = 0

    async def feed(self, frame: bytes) -> list[Result]:
        """Transcribe one segment of PCM16.

        Raises `BadSegment` when it is not whole samples.
        """
        first = self._samples
        self._samples += len(frame) // pcm.SAMPLE_WIDTH
        samples = decode_segment(frame)
        heard = await self._processor.hear(samples, self._options)
        self._transcripts += 1
        record = transcript_record(heard.transcription, first, len(samples), heard.queue_ms, heard.inference_ms)
        return [Result(heard.transcription.text.encode(), record)]

    async def finish(self) -> list[Result]:
        """Nothing is held back between segments."""
        return []

    def summary(self) -> Mapping[str, Any]:
        """Length of the job's sound and number of transcripts."""
        return {"audio_ms": self._samples * 1000 // pcm.SAMPLE_RATE, "transcripts": self._transcripts}


def decode_segment(frame: bytes) -> NDArray[np.float32]:
    """PCM16 to float32 samples (n,).

    Raises `BadSegment` when a sample is cut in half.
    """
    if len(frame) % pcm.SAMPLE_WIDTH:
        raise BadSegment(f"a segment of {len(frame)} bytes is not whole 16-bit samples; send an even number of bytes")
    return pcm.decode(frame)
