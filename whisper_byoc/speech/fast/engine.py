"""`Engine` on OpenVINO."""

from collections.abc import Hashable, Sequence
from dataclasses import replace
from itertools import accumulate, pairwise
from typing import Any, Self, TypeVar

import numpy as np

from audio.pcm import SAMPLE_RATE
from whisper_byoc.speech.engine import (
    SECONDS_PER_POSITION,
    Before,
    DecodeOptions,
    Draft,
    DraftWord,
    Inference,
    IsCancelled,
    Pauses,
    Samples,
    Scores,
    draft_words,
    never,
)
from whisper_byoc.speech.fast.alignment import token_ends
from whisper_byoc.speech.fast.batch import Pass
from whisper_byoc.speech.fast.continuation import agree, transcribe_behind
from whisper_byoc.speech.fast.decoding import Steps, Together, Wish, decode, language_probabilities, together
from whisper_byoc.speech.fast.mel import FRAMES_PER_SECOND, log_mel
from whisper_byoc.speech.fast.model import FastModel
from whisper_byoc.speech.fast.network import Network
from whisper_byoc.speech.fast.tokenizer import CUT_CHARACTER, Tokenizer
from whisper_byoc.speech.fast.windows import (
    LONGEST_SHORT,
    Request,
    Scored,
    Windows,
    attempts_at,
    score_of,
    transcribe,
)
from whisper_byoc.speech.hallucination import is_prompt_echo, max_tokens, remove_loops
from whisper_byoc.speech.language import SHORTEST_PART, labelled, likeliest, parted, piece_of, runs
from whisper_byoc.speech.transcript import LanguagePiece, TextSegment, Transcription, Word, join

T = TypeVar("T")

SAMPLES_PER_POSITION = round(SAMPLE_RATE * SECONDS_PER_POSITION)
LONGEST_DRAFT = 30 * SAMPLE_RATE
"""Samples."""
BEAM = 5
"""openai-whisper's and faster-whisper's usual number."""
BATCH = 8
"""Eight texts together cost 2.7 times one; with more, a pass takes so long that each of them is late."""


class FastEngine:
    """`Engine` on OpenVINO; for sound shorter than 27 s only its own length is computed, followed by silence."""

    def __init__(
        self, model: FastModel, *, full_windows: bool = False, beam: int = BEAM, continues: bool = True
    ) -> None:
        """`full_windows` computes all 30 s for every sound, as openai-whisper does."""
        self._model = model
        self._full_windows = full_windows
        self.batch, self.beam, self.continues = BATCH, beam, continues
        self._loaded: Network | None = None

    @property
    def languages(self) -> Sequence[str]:
        """Codes of the languages that the model knows."""
        return tuple(self._model.tokenizer.languages) if self._model.dims.multilingual else ("en",)

    def replica(self) -> Self:
        """Return an engine for another thread, on the same graphs."""
        self._model.users += 1
        return type(self)(self._model, full_windows=self._full_windows, beam=self.beam, continues=self.continues)

    def fresh(self) -> Self:
        """Return an engine on the same graphs, to be compiled again."""
        model = replace(self._model, users=1)
        return type(self)(model, full_windows=self._full_windows, beam=self.beam, continues=self.continues)

    def use_threads(self, number: int) -> None:
        """Compile for `number` threads; the graphs are compiled once, for this engine and its replicas."""
        self._loaded = self._model.network(number)

    def rehearse(self, samples: Samples, tokens: int, texts: int = 1) -> Inference[None]:
        """Encode sound, and decode tokens that mean nothing."""
        return Inference(self, _alone(self._rehearse(samples, tokens, texts)))

    def transcribe(
        self, samples: Samples, options: DecodeOptions, is_cancelled: IsCancelled = never
    ) -> Inference[Transcription]:
        """Transcribe sound of any length.

        Text that looks wrong is decoded again, on all 30 s of its window, and the best attempt is returned. Sound that
        may continue the preceding text is also decoded after that text, at the same time.
        """
        return Inference(self, self._transcribe(samples, options, is_cancelled))

    def draft(self, samples: Samples, options: DecodeOptions, is_cancelled: IsCancelled = never) -> Inference[Draft]:
        """Decode at most 30 s of an unfinished utterance, and find where each word ends."""
        return Inference(self, _alone(self._draft(samples[:LONGEST_DRAFT], options, is_cancelled)))

    def advance(self, inferences: Sequence[Inference[Any]]) -> None:
        """Begin the new inferences, and make one decoder pass for all."""
        for each in inferences:
            if each.asked is None:
                each.send()
        going = [each for each in inferences if not each.done]
        try:
            passes: dict[Hashable, Pass] = {(id(each), at): asked for each in going for at, asked in each.asked.items()}
            steps = self._network.decode(passes)
        except Exception as error:  # OpenVINO's
            for each in going:
                each.fail(error)
        else:
            for each in going:
                each.send({at: steps[id(each), at] for at in each.asked})

    def _rehearse(self, samples: Samples, tokens: int, texts: int) -> Steps[None]:
        sound = self._windows(samples, never).sound(0, full=self._full_windows)
        for at in range(tokens):
            yield Pass(sound, [[0]] * texts, [0], kept=at, parents=range(texts) if at else [0] * texts)

    def _transcribe(
        self, samples: Samples, options: DecodeOptions, is_cancelled: IsCancelled
    ) -> Together[Transcription]:
        windows = self._windows(samples, is_cancelled, options.pauses)
        if options.language is not None:
            return (yield from self._transcribe_in(options.language, windows, samples, options, is_cancelled))
        pieces = yield from _alone(self._languages(windows, samples, options.spoken))
        stretches, found = runs(pieces), list[Transcription]()
        if stretches[0][2] != likeliest(options.spoken):
            options = replace(options, before=None)
        for start, end, language in stretches:
            sound = samples[round(start * SAMPLE_RATE) : round(end * SAMPLE_RATE)]
            if len(stretches) > 1:
                windows = self._windows(sound, is_cancelled, _shifted(options.pauses, -start))
            text = yield from self._transcribe_in(language, windows, sound, options, is_cancelled)
            found.append(text.shifted(start))
            options = replace(options, guess=(), before=None)
        return replace(join(found, stretches[-1][2]), goes_on=found[0].goes_on, pieces=pieces)

    def _transcribe_in(
        self, language: str, windows: Windows, samples: Samples, options: DecodeOptions, is_cancelled: IsCancelled
    ) -> Together[Transcription]:
        options = replace(options, language=language)
        alone = self._transcribe_alone(language, windows, samples, options, is_cancelled)
        if options.before is None or not self.continues:
            return (yield from _alone(alone))
        found, behind = yield from together(
            alone, self._transcribe_behind(language, options.before, samples, options, is_cancelled)
        )
        return behind if agree(found.text, behind.text) else found

    def _transcribe_behind(
        self, language: str, before: Before, samples: Samples, options: DecodeOptions, is_cancelled: IsCancelled
    ) -> Steps[Transcription]:
        begin, seconds = len(before.samples) / SAMPLE_RATE, len(samples) / SAMPLE_RATE
        windows = self._windows(
            np.concatenate((before.samples, samples)), is_cancelled, _shifted(options.pauses, begin)
        )
        request = self._request(options, seconds)
        found = yield from transcribe_behind(self._model, windows, before, begin, request, is_cancelled)
        return replace(_transcription(found, language), goes_on=True).shifted(-begin).within(0.0, seconds)

    def _transcribe_alone(
        self, language: str, windows: Windows, samples: Samples, options: DecodeOptions, is_cancelled: IsCancelled
    ) -> Steps[Transcription]:
        seconds = len(samples) / SAMPLE_RATE
        found = yield from transcribe(self._model, windows, self._request(options, seconds), is_cancelled)
        return _transcription(found, language).within(0.0, seconds)

    def _draft(self, samples: Samples, options: DecodeOptions, is_cancelled: IsCancelled) -> Steps[Draft]:
        seconds, tokenizer = len(samples) / SAMPLE_RATE, self._model.tokenizer
        windows = self._windows(samples, is_cancelled)
        language = options.language
        if language is None:
            language = runs((yield from self._languages(windows, samples, options.spoken)))[-1][2]
        sound, prompt = windows.sound(0, full=self._full_windows), options.initial_prompt
        wish = Wish(
            tokenizer.start(language, options.task),
            max_tokens(seconds),
            tokenizer.prompt(options.context, options.glossary),
            timestamps=False,
            may_be_empty=True,
            guess=options.guess,
        )
        decoded = yield from decode(sound, tokenizer, self._model.dims.n_text_ctx, wish, is_cancelled)
        score = score_of(decoded, tokenizer)
        if score.invented or score.repetitive or is_prompt_echo(tokenizer.decode(decoded.tokens), prompt):
            return Draft((), language)
        positions = len(samples) // SAMPLES_PER_POSITION
        if not decoded.tokens:
            return Draft((), language)
        ends = token_ends(sound, decoded.queries, self._model.alignment_heads, positions)
        words = _draft_words(decoded.tokens, ends, tokenizer, language)
        return Draft(words, language, tuple(decoded.tokens), score.confidence)

    def _request(self, options: DecodeOptions, seconds: float) -> Request:
        return Request(
            options,
            max_tokens(seconds),
            timestamps=self._full_windows or seconds >= LONGEST_SHORT,
            attempts=attempts_at(full=self._full_windows, patient=(options.beam or 1) > 1),
        )

    @property
    def _network(self) -> Network:
        assert self._loaded is not None, "use_threads() comes first"
        return self._loaded

    def _windows(self, samples: Samples, is_cancelled: IsCancelled, pauses: Pauses | None = None) -> Windows:
        return Windows(self._network, log_mel(samples, self._model.dims.n_mels), is_cancelled, pauses=pauses)

    def _languages(self, windows: Windows, samples: Samples, spoken: Scores) -> Steps[tuple[LanguagePiece, ...]]:
        """Find the language of each piece of the sound, from the encoded window around it."""
        tokenizer, found = self._model.tokenizer, list[LanguagePiece]()
        if len(self.languages) == 1:
            return (LanguagePiece(0.0, len(samples) / SAMPLE_RATE, {}, "en"),)
        for first, last in pairwise(parted(samples, LONGEST_SHORT, SHORTEST_PART)):
            window = windows.sound(first * FRAMES_PER_SECOND // SAMPLE_RATE, full=self._full_windows)
            for start, end in pairwise(parted(samples[first:last])):
                whole = end - start == len(samples)
                sound = window if whole else window.part(start // SAMPLES_PER_POSITION, end // SAMPLES_PER_POSITION)
                chances = yield from language_probabilities(sound, tokenizer)
                found.append(piece_of(first + start, first + end, chances))
        return labelled(found, spoken)[0]


def _alone(work: Steps[T]) -> Together[T]:
    """Have work request its passes as `together` does."""
    (result,) = yield from together(work)
    return result


def _shifted(pauses: Pauses | None, seconds: float) -> Pauses | None:
    """Return the same pauses on a clock that began `seconds` earlier."""
    return None if pauses is None else [(begin + seconds, end + seconds) for begin, end in pauses]


def _transcription(found: Sequence[Scored], language: str) -> Transcription:
    segments = tuple(filter(None, (_text_segment(each, language) for each in found)))
    return Transcription(" ".join(segment.text for segment in segments), language, segments)


def _text_segment(found: Scored, language: str) -> TextSegment | None:
    """Convert a segment; None for one that the hallucination filter rejects."""
    spoken = found.text.replace(CUT_CHARACTER, "").strip()
    text = remove_loops(spoken, found.segment.end - found.segment.start)
    if not text or found.score.invented:
        return None
    words = tuple(
        Word(word.start, word.end, word.text.replace(CUT_CHARACTER, "").strip(), word.probability)
        for word in (found.segment.words if text == spoken else ())
    )
    return TextSegment(found.segment.start, found.segment.end, text, words, found.score.confidence, language)


def _draft_words(tokens: list[int], ends: list[float], tokenizer: Tokenizer, language: str) -> tuple[DraftWord, ...]:
    """Split tokens into words with their punctuation, dropping a character that is cut off at the end."""
    while tokens and tokenizer.decode(tokens).endswith(CUT_CHARACTER):
        tokens = tokens[:-1]
    pieces, groups = tokenizer.words(tokens, language)
    last_tokens = (count - 1 for count in accumulate(map(len, groups)))
    return draft_words((piece.replace(CUT_CHARACTER, "") for piece in pieces), (ends[token] for token in last_tokens))
