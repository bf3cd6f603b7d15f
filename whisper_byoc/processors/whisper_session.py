"""One job's side of the speech pipeline: keeps the job's clock, which counts the samples received."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from audio import pcm
from whisper_byoc.errors import BadSegment, ByocError, RequestRefused, UsageError
from whisper_byoc.processors.base import Result
from whisper_byoc.speech.engine import DecodeOptions
from whisper_byoc.speech.language import LanguageChoice
from whisper_byoc.speech.live import LiveOptions, LiveText, Update
from whisper_byoc.speech.transcript import partial_record, transcript_record

if TYPE_CHECKING:
    from whisper_byoc.processors.whisper import WhisperProcessor

__all__ = ["WhisperSession", "decode_segment", "refused"]

T = TypeVar("T")

BEHIND_SECONDS = 1.0
"""A piece that has waited for so long came faster than it can be listened to."""
CLOSEST_ARRIVALS = pcm.SAMPLE_RATE // 100
OLDEST_ARRIVAL = 60 * pcm.SAMPLE_RATE
"""Samples: twice the longest utterance."""


class WhisperSession:
    """Whole segments give a transcript each; a live feed gives text as it is spoken, and none for silence."""

    def __init__(self, processor: WhisperProcessor, decoding: DecodeOptions, live: LiveOptions) -> None:
        self._processor = processor
        self._decoding = decoding
        self._options = live
        self._language = LanguageChoice(decoding.language)  # one for all segments and live feeds of the job
        self._samples = 0
        self._transcripts = 0
        self._live: LiveText | None = None
        self._began = 0  # the job's clock when the live feed began
        self._arrivals: deque[tuple[int, float]] = deque()  # position behind each piece, and when it came
        self._tell: Callable[[], None] = lambda: None

    def update(self, params: Mapping[str, Any]) -> None:
        """Change options from the next segment on.

        Raises `RequestRefused` (400) for a value that cannot be, and changes nothing then.
        """
        before = self._decoding.language
        self._decoding, self._options = refused(
            lambda: (
                self._processor.options(params, self._decoding),
                self._processor.live_options(params, self._options),
            )
        )
        if self._decoding.language != before:
            self._language = LanguageChoice(self._decoding.language)
        if self._live is not None:
            self._live.update(self._decoding, self._options, self._language)

    async def feed(self, frame: bytes) -> list[Result]:
        """Transcribe one segment of PCM16.

        Raises `BadSegment` when it is not whole samples.
        """
        first = self._samples
        self._samples += len(frame) // pcm.SAMPLE_WIDTH
        samples = decode_segment(frame)
        heard = await self._processor.hear(samples, self._decoding, self._language)
        self._transcripts += 1
        record = transcript_record(heard.value, first, len(samples), heard.queue_ms, heard.inference_ms)
        return [Result(heard.value.text.encode(), record)]

    async def feed_live(self, piece: bytes, arrived: float) -> list[Result]:
        """Take the next piece of a live feed, and give the text that is ready."""
        if self._live is None:
            self._live = self._processor.listen(self._decoding, self._options, self._tell, self._language)
            self._began = self._samples
        live = self._live
        behind = asyncio.get_running_loop().time() - arrived > BEHIND_SECONDS
        try:
            updates = await live.feed(piece, behind=behind)
        finally:
            self._samples = self._began + live.splitter.received
            self._note_arrival(arrived)
        return [self._result(update) for update in updates]

    def when_ready(self, tell: Callable[[], None]) -> None:
        """Call `tell` each time that `ready` has something."""
        self._tell = tell

    async def ready(self) -> list[Result]:
        """Give the partial text that is ready between two pieces."""
        return [self._result(update) for update in self._live.ready()] if self._live is not None else []

    async def lull(self) -> list[Result]:
        """Give the text of an utterance that is open: nothing has come for a while."""
        return [self._result(update) for update in await self._live.lull()] if self._live is not None else []

    async def end_feed(self) -> list[Result]:
        """Give the text of what is left of a live feed; half a sample at its end is an error."""
        live, self._live = self._live, None
        if live is None:
            return []
        try:
            results = [self._result(update) for update in await live.finish()]
        finally:
            self._samples = self._began + live.splitter.received
            live.close()
        if live.splitter.pending:
            results.append(Result(b"", error="the feed ended in the middle of a 16-bit sample: one byte was left over"))
        return results

    async def finish(self) -> list[Result]:
        """Give the text of what is left."""
        return await self.end_feed()

    def close(self) -> None:
        """Drop what is at work."""
        if self._live is not None:
            self._live.close()

    def summary(self) -> Mapping[str, Any]:
        """Length of the job's sound and number of transcripts."""
        return {"audio_ms": pcm.duration_ms(self._samples), "transcripts": self._transcripts}

    def _result(self, update: Update) -> Result:
        """Put an update on the job's clock."""
        utterance = update.utterance
        first, length = self._began + utterance.first, len(utterance.samples)
        if update.error is not None:
            at = pcm.duration_ms(first)
            reason = str(update.error) if isinstance(update.error, ByocError) else repr(update.error)
            return Result(b"", error=f"no text for {pcm.duration_ms(length)} ms of speech at {at} ms: {reason}")
        lag_ms = self._lag_ms(self._began + utterance.end)
        if not update.final:
            record = partial_record(
                update.partial, update.language, first, length, update.queue_ms, update.inference_ms
            )
            record["stats"]["lag_ms"] = round(lag_ms)
            return Result(b"", record, partial=True, lag_ms=lag_ms)
        assert update.heard is not None
        heard = update.heard
        self._transcripts += 1
        text = heard.value.within(
            (utterance.speech_start - utterance.first) / pcm.SAMPLE_RATE,
            (utterance.speech_end - utterance.first) / pcm.SAMPLE_RATE,
        )
        record = transcript_record(text, first, length, heard.queue_ms, heard.inference_ms)
        record["stats"]["lag_ms"] = round(lag_ms)
        return Result(heard.value.text.encode(), record, lag_ms=lag_ms)

    def _note_arrival(self, arrived: float) -> None:
        """Remember when the newest sample came, to 10 ms of sound, for as long as an utterance can be."""
        if len(self._arrivals) > 1 and self._samples - self._arrivals[-2][0] < CLOSEST_ARRIVALS:
            self._arrivals.pop()
        self._arrivals.append((self._samples, arrived))
        while self._arrivals[0][0] < self._samples - OLDEST_ARRIVAL:
            self._arrivals.popleft()

    def _lag_ms(self, position: int) -> float:
        """Milliseconds since the sample before a position arrived."""
        while len(self._arrivals) > 1 and self._arrivals[0][0] < position:
            self._arrivals.popleft()
        return (asyncio.get_running_loop().time() - self._arrivals[0][1]) * 1000 if self._arrivals else 0.0


def refused(check: Callable[[], T]) -> T:
    """Answer the client's mistakes with 400."""
    try:
        return check()
    except UsageError as error:
        raise RequestRefused(400, str(error)) from None


def decode_segment(frame: bytes) -> NDArray[np.float32]:
    """PCM16 to float32 samples (n,).

    Raises `BadSegment` when a sample is cut in half.
    """
    if len(frame) % pcm.SAMPLE_WIDTH:
        raise BadSegment(f"a segment of {len(frame)} bytes is not whole 16-bit samples; send an even number of bytes")
    return pcm.decode(frame)
