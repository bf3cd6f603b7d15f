"""Speech to text: PCM16 segments of a job in, one transcript per segment out."""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from whisper_byoc import params as read
from whisper_byoc.errors import BadParam, UsageError
from whisper_byoc.languages import language_code
from whisper_byoc.processors.base import Capacity, JobInfo, Media
from whisper_byoc.processors.machine import available_cpus
from whisper_byoc.processors.whisper_session import SpeechOptions, WhisperSession, decode_segment, transcribe_segment
from whisper_byoc.speech import models, pages
from whisper_byoc.speech.capacity import UTTERANCE_SECONDS, Kind
from whisper_byoc.speech.engine import MOST_BEAM, DecodeOptions, Engine, Samples
from whisper_byoc.speech.live import RECORDING, LiveOptions
from whisper_byoc.speech.scheduler import Scheduler
from whisper_byoc.speech.transcript import Transcription
from whisper_byoc.speech.voice_activity import Model, VoiceActivity
from whisper_byoc.speech.workers import Timed

log = logging.getLogger(__name__)

MAX_THREADS = 4
"""The tiny model gains nothing from more threads than this; further CPUs become workers. With no more CPUs than this
there is one worker, whose batches are larger than those of several would be."""
OTHER_THREADS = (2, 8)
"""Numbers of threads per worker that are also tried when there are more CPUs: for small models, and for large ones."""

MAX_PROMPT = 10_000
"""Only this many characters at the end of a prompt are read: the model takes 223 tokens, which are hardly ever
longer."""
MAX_HOTWORDS = 1000
"""Characters."""

PAUSE_SECONDS = (0.2, 3.0)
LONGEST_SECONDS = (3.0, 28.0)
"""Smallest and largest value a client may ask for."""


@dataclass(frozen=True)
class WhisperSettings:
    """How to run the model. By default, `workers` and `threads` are what the CPU quota allows."""

    language: str = "en"
    """A tag that `languages.language_code` accepts, or `auto`."""
    workers: int | None = None
    threads: int | None = None
    """CPU threads of each worker."""
    model_dir: Path | None = None
    policy: str = "attention"
    """Which words of an unfinished utterance are shown (`speech.live.POLICIES`)."""
    engine: str = "auto"
    """`fast` (OpenVINO), `openai` (openai-whisper, the reference), or `auto`: the first that is installed."""
    audio_context: str = "short"
    """How much of a window with less than 27 s of sound the fast engine computes: what is needed, or `full`, all 30
    s."""

    beam: int | None = None
    """`DecodeOptions.beam` of jobs that do not set it."""
    live: int | None = None
    """How many live jobs at once; None means as many as fit, by measurement."""

    def sizes(self) -> tuple[int, int]:
        """Return the number of workers, and of CPU threads in each."""
        cpus = available_cpus()
        threads = self.threads or min(MAX_THREADS, cpus)
        return self.workers or max(1, cpus // threads), threads

    def other_sizes(self) -> list[tuple[int, int]]:
        """Return what to try besides `sizes`: nothing if either number is given, or if all CPUs fit in one worker."""
        cpus = available_cpus()
        if self.workers or self.threads or cpus <= MAX_THREADS:
            return []
        return [(cpus // threads, threads) for threads in OTHER_THREADS if threads <= cpus]


class WhisperProcessor:
    """Segments of 16 kHz mono PCM16 (little endian) to UTF-8 text."""

    media: Media = "audio"
    live = True
    content_type = "text/plain; charset=utf-8"
    params = frozenset(
        {"beam", "hotwords", "language", "longest", "partials", "pause", "prompt", "sentences", "task", "words"}
    )

    def __init__(self, model: str = "tiny", settings: WhisperSettings | None = None) -> None:
        self._model = model
        self._settings = settings or WhisperSettings()
        self._scheduler = Scheduler(*self._settings.sizes(), self._settings.other_sizes())
        self._voice_activity = VoiceActivity(load_silero)
        self._engine: Engine | None = None
        self._kept: Path | None = None
        """The folder with the weights of the fast engine."""

    @property
    def notice(self) -> str:
        """What its users should know, in one sentence; may be empty."""
        return models.DEMO_NOTICE if self._model == "demo" else ""

    async def initialize(self) -> None:
        """Load the model, and measure what work costs each worker.

        Raises `ModelError`, `UnknownModel` or `UsageError` (language, or an engine that is not installed).
        """
        self._engine = await self._scheduler.start(self.load_engine)
        await self._voice_activity.start()
        if self._kept is not None:  # kernels keep copies in their own format, made at the first inference
            await asyncio.to_thread(pages.release, self._kept)
        self.options()
        log.info("model %s: %s", self._model, self._choice())

    async def process(self, frame: bytes) -> bytes:
        """Transcribe one segment on its own; the server uses sessions, which keep the job's clock."""
        if not frame:
            return b""
        result = await self.transcribe(decode_segment(frame), self.options().decoding)
        return result.value.text.encode()

    async def transcribe(self, samples: Samples, options: DecodeOptions) -> Timed[Transcription]:
        """Transcribe samples of any length; digital silence gives an empty text at no cost."""
        return await transcribe_segment(self._scheduler, samples, options)

    def open_session(self, job: JobInfo) -> WhisperSession:
        """Begin a job.

        Raises `BadParam` for an impossible value, such as a language that the model does not know.
        """
        model = Path(self._model).name
        base = self._defaults()
        if job.recording:
            base = replace(base, live=replace(RECORDING, share=job.share))
        options = self.options(job.params, base)
        return WhisperSession(self._scheduler, self._voice_activity, options, self.options, model)

    def trouble(self) -> str | None:
        return self._scheduler.trouble() or self._voice_activity.trouble()

    def capacity(self) -> Capacity:
        """Return how much work fits; `--max-live` takes precedence over the measurement."""
        load, live = self._scheduler.workload, self._settings.live
        return Capacity(
            live or max(load.streams, 1),
            load.recording_rate,
            self._scheduler.late and live is None,
            load.lag,
            load.cost(Kind.LIVE),
            load.share(Kind.LIVE),
            *self._scheduler.size,
        )

    def _choice(self) -> str:
        """Say what was chosen, and why."""
        (workers, threads), costs = self._scheduler.size, self._scheduler.costs[0]
        chosen = f"workers: {workers}, threads of each: {threads}, CPUs: {available_cpus()}"
        speed = f"{1000 * costs.window:.0f} ms for {UTTERANCE_SECONDS:g} s of speech"
        if costs.token:
            speed += f" and {1000 * costs.token:.1f} ms a token alone, {1000 * costs.token_together:.1f} ms in a batch"
        fits = self._scheduler.workload.streams
        slow = "" if fits else ": it is slower than speech, one live stream is taken and will fall behind"
        limit = f", --max-live {self._settings.live}" if self._settings.live else ""
        return f"{chosen}; {speed}; live streams that fit: {fits}{limit}{slow}"

    async def shutdown(self) -> None:
        """Release the workers, and the memory of the model with them."""
        self._engine = None
        await self._voice_activity.stop()
        await self._scheduler.stop()

    def options(self, params: Mapping[str, Any] | None = None, base: SpeechOptions | None = None) -> SpeechOptions:
        """Read a job's parameters from `params`.

        Anything missing in `params` stays as in `base`, or else as the processor was configured. Raises `BadParam`.
        """
        params, base = params or {}, base or self._defaults()
        return SpeechOptions(self._decoding(params, base.decoding), _live_options(params, base.live))

    def load_engine(self) -> Engine:
        """Load the model; runs in a thread."""
        if self._chosen_engine() == "fast":
            from whisper_byoc.speech.fast.engine import BEAM, FastEngine

            model = models.load_fast_model(self._model, self._settings.model_dir)
            self._kept = models.kept_folder(models.checkpoint(self._model), self._settings.model_dir)
            beam = 1 if self._model == "demo" else BEAM  # the demo model rates longer texts too likely
            full = self._settings.audio_context == "full"
            return FastEngine(
                model, full_windows=full, beam=beam, continues=self._model != "demo"
            )  # it writes no marks
        from whisper_byoc.speech.openai_engine import OpenAIEngine

        return OpenAIEngine(models.load_model(self._model, self._settings.model_dir))

    def _chosen_engine(self) -> str:
        """Return the name of the engine to load. Raises `UsageError` when it is not installed."""
        engine = self._settings.engine
        if models.fast_engine_installed() and engine in ("auto", "fast"):
            return "fast"
        if models.reference_engine_installed() and engine in ("auto", "openai"):
            return "openai"
        if engine == "openai":
            raise UsageError(
                "the engine `openai` needs torch and openai-whisper, which are not installed: use `--engine fast`, "
                "or an image built with `--build-arg ENGINE=openai`"
            )
        raise UsageError("no engine is installed: `pip install openvino`")

    def _defaults(self) -> SpeechOptions:
        return SpeechOptions(
            DecodeOptions(self._language(self._settings.language), beam=self._settings.beam),
            LiveOptions(policy=self._settings.policy),
        )

    def _decoding(self, params: Mapping[str, Any], base: DecodeOptions) -> DecodeOptions:
        language = self._language(params["language"]) if params.get("language") else base.language
        task: Any = read.choice("task", params.get("task") or base.task, ("transcribe", "translate"))
        if task == "translate" and len(self._languages) == 1:
            raise BadParam("task", f"model {self._model} knows English only and cannot translate")
        hotwords = _text("hotwords", params.get("hotwords", base.hotwords))
        if len(hotwords) > MAX_HOTWORDS:
            raise BadParam("hotwords", f"hotwords must be of at most {MAX_HOTWORDS} characters, not {len(hotwords)}")
        return replace(
            base,
            language=language,
            task=task,
            prompt=_text("prompt", params.get("prompt", base.prompt))[-MAX_PROMPT:],
            hotwords=hotwords,
            words=read.switch("words", params.get("words", base.words)),
            beam=read.whole("beam", params["beam"], 1, MOST_BEAM) if "beam" in params else base.beam,
        )

    def _language(self, language: Any) -> str | None:
        """Read a language tag or name; None stands for `auto`."""
        known = self._languages
        if isinstance(language, str) and language.strip().lower() == "auto":
            return None if len(known) > 1 else known[0]
        code = language_code(language) if isinstance(language, str) else None
        if code is None:
            raise BadParam("language", f"unknown language {language!r:.40}: use a tag such as en or pt-BR, or auto")
        if code not in known:
            what = f"does not know {code}" if len(known) > 1 else f"knows English only, not {code!r}"
            raise BadParam("language", f"model {self._model} {what}")
        return code

    @property
    def _languages(self) -> Sequence[str]:
        assert self._engine is not None, "initialize() comes first"
        return self._engine.languages


def load_silero() -> Model:
    """Load the model that finds speech in live streams, and OpenVINO with it; runs in a thread."""
    from whisper_byoc.speech.silero import Silero

    return Silero()


def _live_options(params: Mapping[str, Any], base: LiveOptions) -> LiveOptions:
    partials = read.switch("partials", params.get("partials", base.partials))
    pause = read.number("pause", params.get("pause", base.splitter.pause), *PAUSE_SECONDS)
    longest = read.number("longest", params.get("longest", base.splitter.longest), *LONGEST_SECONDS)
    try:
        splitter = replace(base.splitter, pause=pause, longest=longest)
    except ValueError as error:  # each is possible, but not both
        raise BadParam("longest", str(error)) from None
    sentences = read.switch("sentences", params.get("sentences", base.sentences))
    return replace(base, partials=partials, sentences=sentences, splitter=splitter)


def _text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise BadParam(name, f"{name} must be text, not {value!r:.40}")
    return value
