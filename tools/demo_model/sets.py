"""What is measured: sets of recordings, and how the model is asked about them."""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import whisper
from whisper.model import Whisper

from tools.demo_model import grammar, scenes
from tools.demo_model.scenes import Recording
from tools.demo_model.speech import RATE, Speaker
from tools.demo_model.vocabulary import CORE_WORDS, WORDS

Listen = Callable[[Whisper, Recording], list[dict[str, Any]]]
"""Returns the segments that a model hears."""
Make = Callable[[Speaker, random.Random], Iterator[Recording]]

_TEXTS: tuple[tuple[str, scenes.Text], ...] = (
    ("105 words", scenes.core_words),
    ("all words", scenes.all_words),
    ("sentences", grammar.sentence),
)
_VOICES: tuple[tuple[str, scenes.Voice, int], ...] = (
    ("espeak-ng, voices heard", scenes.espeak_heard, 100),
    ("flite, voices heard", scenes.flite_heard, 60),
    ("espeak-ng, other voices", scenes.espeak_held_out, 100),
    ("espeak-ng, other voices and accent", scenes.espeak_held_out_accent, 100),
    ("flite, another voice", scenes.flite_held_out, 60),
)
"""With how many utterances of 105 words each is measured."""


@dataclass(frozen=True)
class Set:
    """Recordings of one kind, and how the model is asked about them."""

    name: str
    make: Make
    listen: Listen
    vocabulary: tuple[str, ...] = CORE_WORDS
    """What the texts are made of: a model that does not know all of it is not asked."""
    needs_flite: bool = False
    key: str = ""
    """What the recordings are drawn by, so that sets can share them; the name by default."""


def transcribe(**options: Any) -> Listen:
    """Return a way to ask through `model.transcribe(samples, language="en")`, with these options besides."""

    def listen(model: Whisper, recording: Recording) -> list[dict[str, Any]]:
        # fp16=False is what it falls back to on a CPU, with a warning.
        segments = model.transcribe(recording.samples, language="en", fp16=False, **options)["segments"]
        return [dict(segment) for segment in segments]

    return listen


def decode_shortened(seconds: float) -> Listen:
    """Return a way to ask with an audio context of that length, for a model that is to be fast on short clips."""

    def listen(model: Whisper, recording: Recording) -> list[dict[str, Any]]:
        samples = whisper.pad_or_trim(recording.samples, round(seconds * RATE))
        mel = whisper.log_mel_spectrogram(samples)
        whole = model.encoder.positional_embedding
        try:
            model.encoder.positional_embedding = whole[: mel.shape[-1] // 2]
            options = whisper.DecodingOptions(language="en", temperature=0.0, fp16=False)
            result = whisper.decode(model, mel, options)
        finally:
            model.encoder.positional_embedding = whole
        return [{"text": result.text, "start": 0.0, "end": seconds, "seek": 0}]

    return listen


def sets(scale: float) -> Iterator[Set]:
    """Yield what is measured; `scale` multiplies the number of recordings."""
    for voice_name, voice, count in _VOICES:
        for text_name, text in _TEXTS:
            core = text is scenes.core_words
            for snr in (None, 15.0) if core or voice is scenes.espeak_heard else (None,):
                yield Set(
                    f"{voice_name}; {text_name}; {'clean' if snr is None else '15 dB'}",
                    _singles(voice, text, count if core else count // 2, snr, scale),
                    transcribe(),
                    CORE_WORDS if core else WORDS,
                    needs_flite="flite" in voice_name,
                )
    yield from _several(scale)
    for length in range(1, 13):
        text = scenes.core_words_of(length)
        yield Set(f"{length} words", _singles(scenes.espeak_heard, text, 20, None, scale), transcribe())
    yield Set("clips of 0.4 s", _tiny(40, scale), transcribe())
    yield Set("one utterance anywhere in 30 s", _anywhere(40, scale), transcribe())
    for seconds in (3, 6, 10, 15):
        yield Set(f"audio context of {seconds} s", _fitting(seconds, 40, scale), decode_shortened(seconds))
    plain = _singles(scenes.espeak_heard, scenes.core_words, 40, None, scale)
    yield Set("without timestamps", plain, transcribe(without_timestamps=True))
    yield Set("nothing said", lambda _, rng: scenes.without_speech(round(200 * scale), rng), transcribe())


def _several(scale: float) -> Iterator[Set]:
    for name, seconds, pauses, count in (
        ("30 s, several utterances", 30.0, (0.5, 2.0), 12),
        ("75 s with pauses", 75.0, (0.8, 2.0), 6),
        ("75 s with long pauses", 75.0, (0.5, 6.0), 6),
    ):
        for text_name, text in (_TEXTS[0], _TEXTS[2]):
            for condition in (False, True):
                full = f"{name}; {text_name}; condition_on_previous_text={condition}"
                make = _conversations(text, seconds, pauses, count, scale)
                listen = transcribe(condition_on_previous_text=condition)
                vocabulary = CORE_WORDS if text is scenes.core_words else WORDS
                yield Set(full, make, listen, vocabulary, key=f"{name}; {text_name}")


def _count(count: int, scale: float) -> range:
    return range(max(1, round(count * scale)))


def _singles(voice: scenes.Voice, text: scenes.Text, count: int, snr: float | None, scale: float) -> Make:
    def make(speaker: Speaker, rng: random.Random) -> Iterator[Recording]:
        for _ in _count(count, scale):
            yield scenes.alone(scenes.say(speaker, voice, text, rng), rng, snr)

    return make


def _conversations(text: scenes.Text, seconds: float, pauses: tuple[float, float], count: int, scale: float) -> Make:
    def make(speaker: Speaker, rng: random.Random) -> Iterator[Recording]:
        for _ in _count(count, scale):
            yield scenes.conversation(speaker, scenes.espeak_heard, text, seconds, pauses, rng)

    return make


def _tiny(count: int, scale: float) -> Make:
    def make(speaker: Speaker, rng: random.Random) -> Iterator[Recording]:
        for _ in _count(count, scale):
            spoken = scenes.say(speaker, scenes.espeak_heard, scenes.core_words_of(1), rng, longest=0.4)
            yield scenes.placed(spoken, 0.0, 0.4)

    return make


def _anywhere(count: int, scale: float) -> Make:
    def make(speaker: Speaker, rng: random.Random) -> Iterator[Recording]:
        for _ in _count(count, scale):
            spoken = scenes.say(speaker, scenes.espeak_heard, scenes.core_words, rng)
            yield scenes.placed(spoken, rng.uniform(0, 29.9 - len(spoken.samples) / RATE), 30.0)

    return make


def _fitting(seconds: float, count: int, scale: float) -> Make:
    def make(speaker: Speaker, rng: random.Random) -> Iterator[Recording]:
        for _ in _count(count, scale):
            spoken = scenes.say(speaker, scenes.espeak_heard, scenes.core_words, rng, longest=seconds - 0.5)
            room = seconds - len(spoken.samples) / RATE
            yield scenes.placed(spoken, rng.uniform(0.1, room - 0.3), seconds, rng.uniform(0.1, 1.5))

    return make
