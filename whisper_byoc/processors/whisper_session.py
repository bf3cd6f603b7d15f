"""One job's side of the speech pipeline: keeps the job's clock, which counts the samples received."""

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from audio import pcm
from whisper_byoc.errors import BadSegment, ByocError
from whisper_byoc.processors.base import Result
from whisper_byoc.speech.capacity import Kind
from whisper_byoc.speech.engine import DecodeOptions, Samples
from whisper_byoc.speech.language import LanguageChoice
from whisper_byoc.speech.live import LiveOptions, LiveTranscriber, Update
from whisper_byoc.speech.scheduler import Scheduler
from whisper_byoc.speech.transcript import Transcription, TranscriptRecord
from whisper_byoc.speech.voice_activity import VoiceActivity
from whisper_byoc.speech.workers import Timed

BEHIND_SECONDS = 1.0
"""A piece that has waited this long arrived faster than it could be transcribed."""


@dataclass(frozen=True)
class SpeechOptions:
    """What a client can choose for its job."""

    decoding: DecodeOptions
    live: LiveOptions


class ArrivalTimes:
    """When the samples of a live feed arrived, to 10 ms of sound, for the last minute."""

    RESOLUTION = pcm.SAMPLE_RATE // 100
    KEPT = 60 * pcm.SAMPLE_RATE
    """Twice the longest utterance."""

    def __init__(self) -> None:
        self._times: deque[tuple[int, float]] = deque()

    def add(self, position: int, arrived: float) -> None:
        """Note that all samples before `position` had arrived by the time `arrived`."""
        if len(self._times) > 1 and position - self._times[-2][0] < self.RESOLUTION:
            self._times.pop()
        self._times.append((position, arrived))
        while self._times[0][0] < position - self.KEPT:
            self._times.popleft()

    def at(self, position: int) -> float | None:
        """Return when the sample before `position` arrived, and forget those before it."""
        while len(self._times) > 1 and self._times[0][0] < position:
            self._times.popleft()
        return self._times[0][1] if self._times else None

    def __len__(self) -> int:
        return len(self._times)


class WhisperSession:
    """Each whole segment gives a transcript; a live feed gives text as it is spoken, and nothing for silence."""

    def __init__(
        self,
        scheduler: Scheduler,
        voice_activity: VoiceActivity,
        options: SpeechOptions,
        read_options: Callable[[Mapping[str, Any], SpeechOptions], SpeechOptions],
        model: str,
    ) -> None:
        """`read_options` applies a client's parameters to options; it raises `BadParam`. Records name the `model`."""
        self.options = options
        self._scheduler = scheduler
        self._voice_activity = voice_activity
        self._read_options = read_options
        self._model = model
        self._language = LanguageChoice(options.decoding.language)  # shared by all segments and live feeds
        self._samples = 0
        self._transcripts = 0
        self._speech_ms = 0  # in final text
        self._live: LiveTranscriber | None = None
        self._live_start = 0  # the job's clock when the live feed began
        self._told = 0  # the job's clock up to which the scheduler knows about live sound
        self._arrivals = ArrivalTimes()
        self._on_ready: Callable[[], None] = lambda: None

    def update(self, params: Mapping[str, Any]) -> None:
        """Change options from the next segment on.

        Raises `BadParam` for an impossible value, and then changes nothing.
        """
        options = self._read_options(params, self.options)
        if options.decoding.language != self.options.decoding.language:
            self._language = LanguageChoice(options.decoding.language)
        self.options = options
        if self._live is not None:
            self._live.update(options.decoding, options.live, self._language)

    async def feed(self, frame: bytes) -> list[Result]:
        """Transcribe one segment of PCM16.

        Raises `BadSegment` when it is not whole samples.
        """
        first = self._samples
        self._samples += len(frame) // pcm.SAMPLE_WIDTH
        samples = decode_segment(frame)
        if not await self._voice_activity.stream().has_speech(np.frombuffer(frame, "<i2")):
            samples = np.zeros_like(samples)  # the model is not run where nobody speaks
        result = await transcribe_segment(self._scheduler, samples, self.options.decoding, self._language)
        self._transcripts += 1
        costs = result.queue_ms, result.inference_ms
        record = TranscriptRecord(result.value, first, len(samples), *costs, beam=result.beam)
        return [Result(result.value.text.encode(), self._final_fields(record))]

    async def feed_live(self, piece: bytes, arrived: float) -> list[Result]:
        if self._live is None:
            self._live = LiveTranscriber(
                self._scheduler,
                self.options.decoding,
                self.options.live,
                self._language,
                self._voice_activity.stream(),
                self._on_ready,
            )
            self._live_start = self._told = self._samples
        live = self._live
        behind = asyncio.get_running_loop().time() - arrived > BEHIND_SECONDS
        try:
            updates = await live.feed(piece, behind=behind)
        finally:
            self._samples = self._live_start + live.received
            self._arrivals.add(self._samples, arrived)
        return self._results(updates)

    def when_ready(self, callback: Callable[[], None]) -> None:
        self._on_ready = callback

    async def ready(self) -> list[Result]:
        return self._results(self._live.ready()) if self._live is not None else []

    async def flush(self) -> list[Result]:
        return self._results(await self._live.flush()) if self._live is not None else []

    async def end_feed(self) -> list[Result]:
        """Return the text of the rest of a live feed; half a sample at its end is an error."""
        live, self._live = self._live, None
        if live is None:
            return []
        try:
            results = self._results(await live.finish())
        finally:
            self._samples = self._live_start + live.received
            live.close()
        if live.pending:
            results.append(Result(b"", error="the feed ended in the middle of a 16-bit sample: one byte was left over"))
        return results

    async def finish(self) -> list[Result]:
        return await self.end_feed()

    def close(self) -> None:
        if self._live is not None:
            self._live.close()

    def summary(self) -> Mapping[str, Any]:
        """Return how much sound and speech there was; `warnings` says so if there is no text."""
        audio_ms = pcm.duration_ms(self._samples)
        found = {"audio_ms": audio_ms, "speech_ms": self._speech_ms, "transcripts": self._transcripts}
        if self._speech_ms:
            return found
        silent = f"no speech was found in {audio_ms / 1000:g} s of sound" if self._samples else "no sound came"
        return {**found, "warnings": [silent]}

    def _results(self, updates: list[Update]) -> list[Result]:
        return [self._result(update) for update in updates]

    def _result(self, update: Update) -> Result:
        utterance = update.utterance
        first, length = self._live_start + utterance.first, len(utterance.samples)
        if update.result is None:
            error = update.error
            reason = str(error) if isinstance(error, ByocError) else repr(error)
            where = f"{pcm.duration_ms(length)} ms of speech at {pcm.duration_ms(first)} ms"
            return Result(b"", error=f"no text for {where}: {reason}")
        text, body = update.result.value, b""
        timed = length and not self.options.live.recording  # a held-back mark waited for the pause
        lag_ms = self._lag_ms(first + length) if timed else None
        if update.is_final:
            self._transcripts += 1
            self._tell_scheduler(first + length)
            body = text.text.encode()
            text = text.within(
                (utterance.speech_start - utterance.first) / pcm.SAMPLE_RATE,
                (utterance.speech_end - utterance.first) / pcm.SAMPLE_RATE,
            )
        costs = update.result.queue_ms, update.result.inference_ms
        beam = update.result.beam if update.is_final else None
        record = TranscriptRecord(text, first, length, *costs, lag_ms, update.is_final, beam)
        fields = self._final_fields(record) if update.is_final else self._fields(record)
        return Result(body, fields, partial=not update.is_final, lag_ms=lag_ms)

    def _tell_scheduler(self, position: int) -> None:
        """Have it count the live sound up to the end of a final text; recordings it counts itself."""
        if not self.options.live.recording:
            self._scheduler.workload.heard(Kind.LIVE, (position - self._told) / pcm.SAMPLE_RATE)
        self._told = position

    def _lag_ms(self, position: int) -> float:
        arrived = self._arrivals.at(position)
        return 0.0 if arrived is None else (asyncio.get_running_loop().time() - arrived) * 1000

    def _final_fields(self, record: TranscriptRecord) -> dict[str, Any]:
        fields = self._fields(record)
        self._speech_ms += sum(each["end_ms"] - each["start_ms"] for each in fields["segments"])
        return fields

    def _fields(self, record: TranscriptRecord) -> dict[str, Any]:
        return {**record.fields(), "model": self._model}


async def transcribe_segment(
    scheduler: Scheduler, samples: Samples, options: DecodeOptions, language: LanguageChoice | None = None
) -> Timed[Transcription]:
    """Transcribe a segment; digital silence is not worth a model's time.

    `language` is what is known about the language of the segment's job.
    """
    if pcm.is_silence(samples):
        known = language.likely if language is not None else options.language
        return Timed(Transcription("", known or "en"), 0.0, 0.0)
    if language is None:
        return await scheduler.transcribe(samples, options)
    result = await scheduler.transcribe(samples, language.asked(options))
    language.heard(result.value)
    return result


def decode_segment(frame: bytes) -> Samples:
    """Decode PCM16; raises `BadSegment` if a sample is cut in half."""
    if len(frame) % pcm.SAMPLE_WIDTH:
        raise BadSegment(f"a segment of {len(frame)} bytes is not whole 16-bit samples; send an even number of bytes")
    return pcm.decode(frame)
