"""Speech to text: PCM16 segments of one job in, one transcript for each out."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from audio import pcm
from whisper_byoc.cpu import available_cpus
from whisper_byoc.errors import UsageError
from whisper_byoc.processors.base import JobInfo, Media
from whisper_byoc.processors.whisper_session import WhisperSession, decode_segment, refused
from whisper_byoc.speech.engine import DecodeOptions, Engine
from whisper_byoc.speech.language import LanguageChoice
from whisper_byoc.speech.live import LiveOptions, LiveText
from whisper_byoc.speech.scheduler import Scheduler, Timed
from whisper_byoc.speech.transcript import Transcription

__all__ = ["WhisperProcessor", "WhisperSettings"]

MAX_THREADS = 4
"""The tiny model gains nothing from more torch threads than this; further CPUs become workers."""


MAX_PROMPT = 1000
"""Characters; the model itself looks at the last 223 tokens only (openai-whisper, `n_text_ctx // 2 - 1`)."""


PAUSES = (0.2, 3.0)
LONGEST = (3.0, 28.0)
"""Seconds that a client may ask for."""


@dataclass(frozen=True)
class WhisperSettings:
    """How to run the model. `workers` and `threads` default to what the CPU quota allows."""

    language: str = "en"
    """ISO 639-1 code, or `auto`."""
    workers: int | None = None
    threads: int | None = None
    model_dir: Path | None = None
    policy: str = "attention"
    """Which words of an utterance that goes on are shown (`speech.partials.POLICIES`)."""

    def sizes(self) -> tuple[int, int]:
        """Number of worker threads, and of torch threads in each."""
        cpus = available_cpus()
        threads = self.threads or min(MAX_THREADS, cpus)
        return self.workers or max(1, cpus // threads), threads


class WhisperProcessor:
    """Segments of 16 kHz mono PCM16 (little endian) to UTF-8 text."""

    media: Media = "audio"
    live = True
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
        self.options()

    async def process(self, frame: bytes) -> bytes:
        """Transcribe one segment on its own; the server uses sessions, which keep the job's clock."""
        if not frame:
            return b""
        heard = await self.hear(decode_segment(frame), self.options())
        return heard.value.text.encode()

    def open_session(self, job: JobInfo) -> WhisperSession:
        """Begin a job.

        Raises `RequestRefused` (400) for parameters that cannot be, such as a language that the model does not know.
        """
        decoding, live = refused(lambda: (self.options(job.params), self.live_options(job.params)))
        return WhisperSession(self, decoding, live)

    def listen(
        self, decoding: DecodeOptions, options: LiveOptions, tell: Callable[[], None], language: LanguageChoice
    ) -> LiveText:
        """Begin to make text of a live feed; `tell` is called when a draft is done."""
        return LiveText(self._scheduler, decoding, options, tell=tell, language=language)

    def trouble(self) -> str | None:
        """One sentence when a worker is stuck, else None."""
        return self._scheduler.trouble()

    async def shutdown(self) -> None:
        """Let the workers go."""
        self._scheduler.stop()

    async def hear(
        self, samples: NDArray[np.float32], options: DecodeOptions, language: LanguageChoice | None = None
    ) -> Timed[Transcription]:
        """Transcribe samples (n,); digital silence is not worth a model's time.

        `language` is what is known of the language of the job that they are part of.
        """
        if pcm.is_silence(samples):
            known = language.present if language is not None else options.language
            return Timed(Transcription("", known or "en"), 0.0, 0.0)
        if language is not None:
            seconds = len(samples) / pcm.SAMPLE_RATE
            chosen = await language.choose(lambda: self._scheduler.language_of(samples), object(), seconds)
            options = replace(options, language=chosen)
        return await self._scheduler.transcribe(samples, options)

    def options(self, params: Mapping[str, Any] | None = None, base: DecodeOptions | None = None) -> DecodeOptions:
        """Make decoding options of a job's parameters: `language`, `task`, `prompt`, `hotwords`, `words`.

        What `params` does not name stays as in `base`, or as the processor was set up. Raises `UsageError` for a value
        that cannot be.
        """
        params = params or {}
        base = base or DecodeOptions(self._language(self._settings.language))
        language = self._language(params["language"]) if params.get("language") else base.language
        task = params.get("task") or base.task
        if task not in ("transcribe", "translate"):
            raise UsageError(f"unknown task {task!r}: use transcribe or translate")
        if task == "translate" and not self._multilingual:
            raise UsageError(f"model {self._model} knows English only and cannot translate")
        prompt = text_of(params, "prompt", base.prompt)
        hotwords = text_of(params, "hotwords", base.hotwords)
        return DecodeOptions(language, task, prompt, hotwords, switch(params, "words", base.words))

    def live_options(self, params: Mapping[str, Any] | None = None, base: LiveOptions | None = None) -> LiveOptions:
        """Make options for live text of a job's parameters: `partials`, `pause`, `longest`.

        Raises `UsageError` for a value that cannot be.
        """
        params, base = params or {}, base or LiveOptions(policy=self._settings.policy)
        listening = base.listening
        pause = number(params, "pause", listening.pause, PAUSES)
        longest = number(params, "longest", listening.longest, LONGEST)
        try:
            listening = replace(listening, pause=pause, longest=longest)
        except ValueError as error:  # each is possible, but not both
            raise UsageError(str(error)) from None
        return replace(base, partials=switch(params, "partials", base.partials), listening=listening)

    def _language(self, language: Any) -> str | None:
        """Check a language code; None stands for `auto`."""
        from whisper.tokenizer import LANGUAGES

        if language == "auto":
            return None if self._multilingual else "en"
        if not isinstance(language, str) or language not in LANGUAGES:
            raise UsageError(f"unknown language {language!r}: use an ISO 639-1 code such as en, or auto")
        if language != "en" and not self._multilingual:
            raise UsageError(f"model {self._model} knows English only, not {language!r}")
        return str(language)

    @property
    def _multilingual(self) -> bool:
        assert self._engine is not None, "initialize() comes first"
        return self._engine.multilingual

    def _load(self) -> Engine:
        from whisper_byoc.speech.models import load_model
        from whisper_byoc.speech.openai_engine import OpenAIEngine

        return OpenAIEngine(load_model(self._model, self._settings.model_dir))


def switch(params: Mapping[str, Any], name: str, default: bool) -> bool:
    """Read a parameter that is on or off, as JSON or as a query has it.

    Raises `UsageError` for anything else.
    """
    value = params.get(name, default)
    if isinstance(value, bool):
        return value
    text = str(value).lower()
    if text not in ("true", "false", "1", "0", "on", "off"):
        raise UsageError(f"{name} must be true or false, not {value!r}")
    return text in ("true", "1", "on")


def text_of(params: Mapping[str, Any], name: str, default: str) -> str:
    """Read a parameter that is text.

    Raises `UsageError`.
    """
    value = params.get(name, default)
    if not isinstance(value, str) or len(value) > MAX_PROMPT:
        raise UsageError(f"{name} must be text of at most {MAX_PROMPT} characters")
    return value


def number(params: Mapping[str, Any], name: str, default: float, bounds: tuple[float, float]) -> float:
    """Read a parameter that is a number of seconds within bounds, as JSON or as a query has it.

    Raises `UsageError`.
    """
    given = params.get(name, default)
    try:
        value = math.nan if isinstance(given, bool) else float(given)
    except (TypeError, ValueError, OverflowError):
        value = math.nan
    if not bounds[0] <= value <= bounds[1]:
        raise UsageError(f"{name} must be from {bounds[0]:g} to {bounds[1]:g} seconds, not {given!r:.40}")
    return value
