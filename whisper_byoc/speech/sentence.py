"""Sentences that span several utterances of a live stream.

What was said last is the context of what comes next. The model ends nearly every text with a full stop, and final text
never changes; so the stop is held back for as long as the speaker may go on. It then leads the next text, is dropped if
that continues the sentence, or is sent alone once the pause has become long.
"""

from dataclasses import replace

import numpy as np

from audio import pcm
from audio.pcm import SAMPLE_RATE
from audio.utterances import Utterance
from whisper_byoc.speech.engine import Before
from whisper_byoc.speech.transcript import Transcription

PAUSE = SAMPLE_RATE
"""Samples without speech that end a sentence."""
LONGEST_PAUSE = 3 * SAMPLE_RATE // 2
"""Samples without speech after which what was said before is no longer context."""
LONGEST = 26 * SAMPLE_RATE
"""Most samples in both utterances and the pause between them: they share a window, which should be short."""


class Sentence:
    """What was said last in one stream, and the full stop being held back."""

    def __init__(self) -> None:
        self._last: tuple[Utterance, Transcription] | None = None
        self._held = ""

    def before(self, utterance: Utterance, language: str | None) -> Before | None:
        """Return what an utterance in a language may continue, if anything."""
        if self._last is None:
            return None
        last, said = self._last
        pause, length = utterance.speech_start - last.speech_end, utterance.end - last.first
        if pause >= LONGEST_PAUSE or length > LONGEST or language != said.language:
            return None
        text = said.text.removesuffix(self._held) if pause < PAUSE else said.text
        silence = np.zeros(utterance.first - last.end, np.float32)
        samples = np.concatenate((pcm.decode(last.samples.data), silence))
        return Before(samples, text)

    def add(self, utterance: Utterance, found: Transcription, *, hold: bool) -> Transcription:
        """Take in the text of the next utterance, and return the part of it to send.

        `hold` says whether a full stop at its end may have to be dropped.
        """
        if not found.text:
            return found
        leading, self._last = "" if found.goes_on else self._held, (utterance, found)
        told, self._held = found.without_stop()
        if not hold or not told.text:
            told, self._held = found, ""
        return replace(told.led_by(leading), is_open=bool(self._held))

    def lose(self) -> None:
        """Note that an utterance has no text, so that the next one cannot continue what is known."""
        self._last, self._held = None, ""

    def end(self, position: int | None = None) -> tuple[Utterance, Transcription] | None:
        """Return the full stop that was held back, if no speech came before a position in the stream, or at its end.

        It belongs to no sound, so it has no segment, only the place after the last utterance.
        """
        if self._last is None or not self._held:
            return None
        last, said = self._last
        if position is not None and position - last.speech_end < PAUSE:
            return None
        stop, self._held = self._held, ""
        place = Utterance(last.number, last.end, last.samples[:0], last.end, last.end, last.ended_by)
        return place, Transcription(stop, said.language)
