"""The reference engine: openai-whisper itself, greedy, with no text carried over between windows."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from itertools import pairwise
from typing import Any, Self, TypeVar

import numpy as np
import torch
import whisper
from torch.nn.functional import gelu
from whisper.audio import CHUNK_LENGTH, HOP_LENGTH, N_FRAMES, N_SAMPLES
from whisper.decoding import DecodingOptions, DecodingTask
from whisper.model import Whisper
from whisper.tokenizer import Tokenizer, get_tokenizer

from audio.pcm import SAMPLE_RATE
from whisper_byoc.languages import LANGUAGES
from whisper_byoc.speech.attention import alignment_weights, attention_weights, fuse_attention
from whisper_byoc.speech.engine import (
    SECONDS_PER_POSITION,
    Cancelled,
    DecodeOptions,
    Draft,
    DraftWord,
    Inference,
    IsCancelled,
    Samples,
    Scores,
    draft_words,
    never,
)
from whisper_byoc.speech.hallucination import RETRY_TEMPERATURE, Score, is_prompt_echo, max_tokens, remove_loops
from whisper_byoc.speech.language import SHORTEST_PART, labelled, parted, piece_of, runs
from whisper_byoc.speech.transcript import LanguagePiece, TextSegment, Transcription, Word, join

T = TypeVar("T")

DRAFT_MARGIN = 2.0
"""Seconds of silence appended to the sound of a draft …"""
SHORTEST_DRAFT = 10.0
"""… and the least that the encoder gets, rather than its 30 s. Whisper was trained on 30 s and loops on much less: with
these two values, transcribe.cpp#149 saw no change of text on short clips in a third of the time, and in
whisper.cpp#1117 the loops begin below three tenths. Final text always gets the whole 30 s."""
POSITION = round(SAMPLE_RATE * SECONDS_PER_POSITION)
REPLACEMENT = "\ufffd"
"""Marks where a text ends in the middle of a character."""


class OpenAIEngine:
    """`Engine` on openai-whisper. Sound over 30 s goes through openai-whisper's own windows."""

    batch = 1
    beam = 1
    continues = False

    def __init__(self, model: Whisper, random_lock: threading.Lock | None = None) -> None:
        """`random_lock` is shared by all replicas, since torch's random generator belongs to the whole process."""
        fuse_attention(model)
        self.model = model
        self._random_lock = random_lock or threading.Lock()

    @property
    def languages(self) -> Sequence[str]:
        return list(LANGUAGES)[: self.model.num_languages] if self.model.is_multilingual else ("en",)

    def replica(self) -> Self:
        """Return an engine for another thread. Only the weights are shared, as decoding hangs hooks on the modules."""
        tensors = [*self.model.parameters(), *self.model.buffers()]
        model = copy.deepcopy(self.model, {id(tensor): tensor for tensor in tensors})
        return type(self)(model, self._random_lock)

    fresh = replica  # thread settings belong to the calling thread

    def rehearse(self, samples: Samples, tokens: int, texts: int = 1) -> Inference[None]:
        """Decode a window of 30 s greedily, but do not let its text end before `tokens` tokens."""
        return Inference(self, _at_once(lambda: self._rehearse(samples, tokens)))

    def use_threads(self, number: int) -> None:
        """Set torch's threads for the calling thread; OpenMP keeps the number per thread."""
        torch.set_num_threads(number)

    def transcribe(
        self, samples: Samples, options: DecodeOptions, is_cancelled: IsCancelled = never
    ) -> Inference[Transcription]:
        """Transcribe sound of any length."""
        return Inference(self, _at_once(lambda: self._transcribe(samples, options, is_cancelled)))

    def draft(self, samples: Samples, options: DecodeOptions, is_cancelled: IsCancelled = never) -> Inference[Draft]:
        """Decode at most 30 s of an unfinished utterance, and find where each word ends."""
        return Inference(self, _at_once(lambda: self._draft(samples, options, is_cancelled)))

    def advance(self, inferences: Sequence[Inference[Any]]) -> None:
        """Run each inference from beginning to end."""
        for each in inferences:
            each.send()

    def _rehearse(self, samples: Samples, tokens: int) -> None:
        end = self._tokenizer("en", "transcribe").eot
        wanted = DecodingOptions(
            language="en", without_timestamps=True, sample_len=tokens, suppress_tokens=[end], fp16=False
        )
        with torch.no_grad():
            whisper.decode(self.model, self._mel(samples), wanted)

    def _transcribe(self, samples: Samples, options: DecodeOptions, is_cancelled: IsCancelled) -> Transcription:
        """Transcribe each stretch in its language."""
        with torch.no_grad(), self._cancellable(is_cancelled), self._encoder_cached():
            if options.language is not None:
                return self._transcribe_in(options.language, samples, options)
            pieces = self._languages(samples, options.spoken)
            stretches, found = runs(pieces), list[Transcription]()
            for start, end, language in stretches:
                sound = samples[round(start * SAMPLE_RATE) : round(end * SAMPLE_RATE)]
                found.append(self._transcribe_in(language, sound, options).shifted(start))
        return replace(join(found, stretches[-1][2]), pieces=pieces)

    def _transcribe_in(self, language: str, samples: Samples, options: DecodeOptions) -> Transcription:
        """Decode a second time what looks wrong (see `hallucination`), and return the better text."""
        options = replace(options, language=language)
        weights = attention_weights(self.model) if options.words else nullcontext()
        with weights:
            found = self._decode(samples, options, 0.0)
            if is_prompt_echo(found["text"], options.initial_prompt):
                options = replace(options, prompt="", hotwords="")
                found = self._decode(samples, options, 0.0)
            if any(_score(each).doubtful for each in found["segments"]):
                again = self._decode(samples, options, RETRY_TEMPERATURE)
                if not is_prompt_echo(again["text"], options.initial_prompt):
                    found = max(found, again, key=_confidence)
        return _transcription(found, len(samples) / SAMPLE_RATE)

    def _draft(self, samples: Samples, options: DecodeOptions, is_cancelled: IsCancelled) -> Draft:
        seconds = len(samples) / SAMPLE_RATE
        with torch.no_grad(), self._cancellable(is_cancelled):
            language = options.language or runs(self._languages(samples, options.spoken))[-1][2]
            encoded = self._encode(samples, max(SHORTEST_DRAFT, seconds + DRAFT_MARGIN))
            wanted = DecodingOptions(
                task=options.task, language=language, prompt=options.initial_prompt or None,
                without_timestamps=True, sample_len=max_tokens(seconds), fp16=False,
            )  # fmt: skip
            found = _EncodedTask(self.model, wanted).run(encoded)[0]
            score = Score(found.avg_logprob, found.no_speech_prob, found.compression_ratio)
            if score.invented or score.repetitive or is_prompt_echo(found.text, options.initial_prompt):
                return Draft((), found.language)
            tokenizer = self._tokenizer(found.language, options.task)
            tokens = _whole_characters([token for token in found.tokens if token < tokenizer.eot], tokenizer)
            ends = self._token_ends(encoded, tokens, tokenizer, seconds) if tokens else []
        return Draft(_draft_words(tokens, ends, tokenizer), found.language, confidence=score.confidence)

    def _languages(self, samples: Samples, spoken: Scores) -> tuple[LanguagePiece, ...]:
        """Find the language of each piece of the sound, from the encoded window around it."""
        model, found = self.model, list[LanguagePiece]()
        if len(self.languages) == 1:
            return (LanguagePiece(0.0, len(samples) / SAMPLE_RATE, {}, "en"),)
        tokenizer = self._tokenizer("en", "transcribe")
        tokens = [tokenizer.to_language_token(language) for language in self.languages]
        for first, last in pairwise(parted(samples, CHUNK_LENGTH - 3, SHORTEST_PART)):
            window = model.encoder(self._mel(samples[first:last])[None])
            for start, end in pairwise(parted(samples[first:last])):
                sound = window if end - start == len(samples) else window[:, start // POSITION : end // POSITION]
                logits = model.decoder(torch.tensor([[tokenizer.sot]]), sound)[0, 0, tokens]
                chances = dict(zip(self.languages, logits.softmax(0).tolist(), strict=True))
                found.append(piece_of(first + start, first + end, chances))
        return labelled(found, spoken)[0]

    def _decode(self, samples: Samples, options: DecodeOptions, temperature: float) -> dict[str, Any]:
        with self._random_lock if temperature else nullcontext():
            if temperature:
                torch.manual_seed(0)  # the same sound gives the same text, even when retried
            found: dict[str, Any] = whisper.transcribe(
                self.model,
                samples,
                language=options.language,
                task=options.task,
                initial_prompt=options.initial_prompt or None,
                word_timestamps=options.words,
                temperature=temperature,
                beam_size=options.beam if not temperature and (options.beam or 1) > 1 else None,
                condition_on_previous_text=False,
                sample_len=max_tokens(len(samples) / SAMPLE_RATE),
                fp16=False,  # a CPU has no half-precision kernels for this
                verbose=None,
            )
        return found

    @contextmanager
    def _cancellable(self, is_cancelled: IsCancelled) -> Iterator[None]:
        """Raise `Cancelled` between two blocks of the model once `is_cancelled` is true.

        But not in the decoder without its cache, where openai-whisper finds word times: it would leave its hooks
        behind.
        """

        def check(*_: object) -> None:
            if is_cancelled():
                raise Cancelled

        def check_decoding(block: object, inputs: object, options: dict[str, Any]) -> None:
            if options.get("kv_cache") is not None:
                check()

        with ExitStack() as stack:
            for block in self.model.encoder.blocks:
                stack.callback(block.register_forward_pre_hook(check).remove)
            for block in self.model.decoder.blocks:
                stack.callback(block.register_forward_pre_hook(check_decoding, with_kwargs=True).remove)
            yield

    @contextmanager
    def _encoder_cached(self) -> Iterator[None]:
        """Encode a window only once, though it may be needed for its language, a retry and word times."""
        encoder = self.model.encoder
        forward: Callable[[torch.Tensor], torch.Tensor] = encoder.forward
        last: list[tuple[torch.Tensor, torch.Tensor]] = []

        def cached(mel: torch.Tensor) -> torch.Tensor:
            if not last or not torch.equal(last[0][0], mel):
                last[:] = [(mel, forward(mel))]
            return last[0][1]

        encoder.forward = cached
        try:
            yield
        finally:
            del encoder.forward  # uncovers the method of the class

    def _encode(self, samples: Samples, seconds: float) -> torch.Tensor:
        """Return the encoder's output, (1, positions, width), for a window of `seconds` instead of 30."""
        encoder = self.model.encoder
        positions = min(int(seconds / SECONDS_PER_POSITION), len(encoder.positional_embedding))
        x = self._mel(samples)[None, :, : 2 * positions]
        x = gelu(encoder.conv2(gelu(encoder.conv1(x)))).permute(0, 2, 1)
        x = x + encoder.positional_embedding[:positions]
        for block in encoder.blocks:
            x = block(x)
        encoded: torch.Tensor = encoder.ln_post(x)
        return encoded

    def _mel(self, samples: Samples) -> torch.Tensor:
        """Return the log-mel of one window as `whisper.transcribe` makes it: (mels, 3000) float32, zero-padded."""
        mel = whisper.log_mel_spectrogram(samples, self.model.dims.n_mels, padding=N_SAMPLES)
        frames = min(len(samples) // HOP_LENGTH, N_FRAMES)
        window: torch.Tensor = whisper.pad_or_trim(mel[:, :frames], N_FRAMES)
        return window

    def _tokenizer(self, language: str, task: str) -> Tokenizer:
        return get_tokenizer(
            self.model.is_multilingual, num_languages=self.model.num_languages, language=language, task=task
        )

    def _token_ends(
        self, encoded: torch.Tensor, tokens: list[int], tokenizer: Tokenizer, seconds: float
    ) -> list[float]:
        """Return for each token the time in the sound, in seconds, that the alignment heads attend to most.

        The times never decrease, since words are written in the order in which they were spoken.
        """
        sequence = torch.tensor([[*tokenizer.sot_sequence_including_notimestamps, *tokens]])
        positions = max(1, min(int(seconds / SECONDS_PER_POSITION), encoded.shape[1]))
        with alignment_weights(self.model) as found:
            self.model.decoder(sequence, encoded)
        weights = torch.cat(found)[:, :, :positions].softmax(-1).mean(0)
        first = len(tokenizer.sot_sequence_including_notimestamps) - 1  # its output is the first token
        attended = weights[first : first + len(tokens)].argmax(-1).cummax(0).values
        return [(position + 1) * SECONDS_PER_POSITION for position in attended.tolist()]


class _EncodedTask(DecodingTask):  # type: ignore[misc]  # openai-whisper has no types
    """openai-whisper's decoding of encoder output of any length; its own `decode` takes 1500 positions only."""

    def _get_audio_features(self, mel: torch.Tensor) -> torch.Tensor:
        return mel


def _draft_words(tokens: list[int], ends: list[float], tokenizer: Tokenizer) -> tuple[DraftWord, ...]:
    try:
        pieces, groups = tokenizer.split_to_word_tokens(tokens)
    except IndexError:  # `split_tokens_on_unicode` trips over a cut-off character made of several tokens
        pieces, groups = [tokenizer.decode(tokens)], [tokens]
    last_tokens = np.cumsum([len(group) for group in groups]) - 1
    return draft_words(map(_without_cut_characters, pieces), (ends[token] for token in last_tokens))


def _whole_characters(tokens: list[int], tokenizer: Tokenizer) -> list[int]:
    while tokens and tokenizer.decode(tokens).endswith(REPLACEMENT):
        tokens = tokens[:-1]
    return tokens


def _without_cut_characters(text: str) -> str:
    return text.replace(REPLACEMENT, "")


def _score(segment: dict[str, Any]) -> Score:
    numbers = ("avg_logprob", "no_speech_prob", "compression_ratio", "temperature")
    return Score(*(float(segment[name]) for name in numbers))


def _confidence(found: dict[str, Any]) -> tuple[bool, float]:
    """Rank attempts: those without doubt first, then by log-probability."""
    scores = [_score(each) for each in found["segments"]]
    mean = sum(score.logprob for score in scores) / len(scores) if scores else -10.0
    return not any(score.doubtful for score in scores), mean


def _transcription(found: dict[str, Any], length: float) -> Transcription:
    segments = []
    for each in found["segments"]:
        spoken = _without_cut_characters(each["text"]).strip()
        text = remove_loops(spoken, each["end"] - each["start"])
        if not text or _score(each).invented:
            continue
        words = tuple(map(_word, each.get("words", ()))) if text == spoken else ()
        start, end = float(each["start"]), float(each["end"])
        segments.append(TextSegment(start, end, text, words, _score(each).confidence, str(found["language"])))
    text = " ".join(each.text for each in segments)
    return Transcription(text, str(found["language"]), tuple(segments)).within(0.0, length)


def _word(word: dict[str, Any]) -> Word:
    text = _without_cut_characters(word["word"]).strip()
    return Word(float(word["start"]), float(word["end"]), text, float(word["probability"]))


def _at_once(work: Callable[[], T]) -> Generator[None, None, T]:
    """Make a generator from work that has no steps."""
    yield from ()
    return work()
