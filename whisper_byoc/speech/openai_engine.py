"""The reference engine: openai-whisper itself, greedy, no text carried from one window to the next."""

from __future__ import annotations

import copy
import string
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import whisper
from numpy.typing import NDArray
from torch.nn.functional import gelu
from whisper.audio import CHUNK_LENGTH, HOP_LENGTH, N_FRAMES, N_SAMPLES
from whisper.decoding import DecodingOptions, DecodingTask
from whisper.tokenizer import Tokenizer, get_tokenizer

from audio.pcm import SAMPLE_RATE
from whisper_byoc.speech.attention import collected, shown, stay_fused
from whisper_byoc.speech.engine import DecodeOptions, Draft, DraftWord, Dropped, never
from whisper_byoc.speech.rules import Score, is_echo, token_cap, without_loops
from whisper_byoc.speech.transcript import TextSegment, Transcription, Word

if TYPE_CHECKING:
    from whisper.decoding import DecodingResult
    from whisper.model import Whisper

__all__ = ["OpenAIEngine"]

SECOND_TRY = 0.4
"""Temperature of the one retry; openai-whisper's own ladder has five, and some sound then takes ten times as long."""
SECONDS_PER_POSITION = 0.02
"""Two hops of 10 ms make one position of the encoder."""
DRAFT_MARGIN = 2.0
"""Seconds of nothing that are left behind the sound of a draft …"""
SHORTEST_DRAFT = 10.0
"""… and the least that the encoder is given, rather than its 30 s. Whisper was trained on 30 s and loops on much less:
with these two transcribe.cpp#149 saw no change of text on short clips at a third of the time, and whisper.cpp#1117 has
the loops begin below three tenths. A text that counts is made of the whole 30 s."""
CUT_CHARACTER = "\ufffd"
"""Stands where a text ends in the middle of a character."""


class OpenAIEngine:
    """Defines what is right. Sound over 30 s goes through openai-whisper's own windows."""

    def __init__(self, model: Whisper, alone: threading.Lock | None = None) -> None:
        stay_fused(model)
        self._model = model
        self._alone = alone or threading.Lock()

    @property
    def multilingual(self) -> bool:
        """Whether the model knows languages other than English."""
        return bool(self._model.is_multilingual)

    def transcribe(
        self, samples: NDArray[np.float32], options: DecodeOptions, dropped: Callable[[], bool] = never
    ) -> Transcription:
        """Turn 16 kHz mono float32 samples (n,) into text; segment times never leave the sound.

        What looks wrong (`rules`) is decoded a second time, and the better text is taken.
        """
        with self._broken_off(dropped), self._encoded_once(), shown(self._model) if options.words else nullcontext():
            found = self._decode(samples, options, 0.0)
            if is_echo(found["text"], options.expected):
                options = replace(options, prompt="", hotwords="")
                found = self._decode(samples, options, 0.0)
            if any(score_of(each).doubtful for each in found["segments"]):
                again = self._decode(samples, options, SECOND_TRY)
                if not is_echo(again["text"], options.expected):
                    found = max(found, again, key=confidence)
        return transcription_of(found, len(samples) / SAMPLE_RATE)

    def draft(self, samples: NDArray[np.float32], options: DecodeOptions, dropped: Callable[[], bool] = never) -> Draft:
        """Turn at most 30 s of an utterance that is still going on into words, and tell where each was heard."""
        seconds = len(samples) / SAMPLE_RATE
        with torch.no_grad(), self._broken_off(dropped):
            # to find the language, openai-whisper wants all 30 s
            window = max(SHORTEST_DRAFT, seconds + DRAFT_MARGIN) if options.language else CHUNK_LENGTH
            encoded = self._encode(samples, window)
            wanted = DecodingOptions(
                task=options.task, language=options.language, prompt=options.expected or None, without_timestamps=True,
                sample_len=token_cap(seconds), fp16=False,
            )  # fmt: skip
            found = EncodedTask(self._model, wanted).run(encoded)[0]
            if misleading(found, options.expected):
                return Draft((), found.language)
            tokenizer = self._tokenizer(found.language, options.task)
            tokens = whole_characters([token for token in found.tokens if token < tokenizer.eot], tokenizer)
            until = self._heard_until(encoded, tokens, tokenizer, seconds) if tokens else []
        pieces, groups = words_of(tokens, tokenizer)
        ends = np.cumsum([len(group) for group in groups]) - 1
        words: list[DraftWord] = []
        for piece, end in zip(map(whole, pieces), ends, strict=True):
            if words and piece.strip() in string.punctuation:
                words[-1] = DraftWord(words[-1].text + piece, until[end])
            elif piece.strip():
                words.append(DraftWord(piece, until[end]))
        return Draft(tuple(words), found.language)

    def language_of(self, samples: NDArray[np.float32]) -> tuple[str, float]:
        """Give the language of the first 30 s, and its probability."""
        if not self.multilingual:
            return "en", 1.0
        with torch.no_grad():
            _, probabilities = self._model.detect_language(self._mel(samples))
        language = max(probabilities, key=probabilities.__getitem__)
        return str(language), float(probabilities[language])

    def replica(self) -> OpenAIEngine:
        """Give an engine for another thread. Decoding hangs hooks on the modules, so only the weights are shared."""
        tensors = [*self._model.parameters(), *self._model.buffers()]
        model = copy.deepcopy(self._model, {id(tensor): tensor for tensor in tensors})
        return OpenAIEngine(model, self._alone)

    def _decode(self, samples: NDArray[np.float32], options: DecodeOptions, temperature: float) -> dict[str, Any]:
        with self._alone if temperature else nullcontext():  # torch's dice are the process's own
            if temperature:
                torch.manual_seed(0)  # the same sound gives the same text, at the second try too
            found: dict[str, Any] = whisper.transcribe(
                self._model,
                samples,
                language=options.language,
                task=options.task,
                initial_prompt=options.expected or None,
                word_timestamps=options.words,
                temperature=temperature,
                condition_on_previous_text=False,
                sample_len=token_cap(len(samples) / SAMPLE_RATE),
                fp16=False,  # a CPU has no half-precision kernels for this
                verbose=None,
            )
        return found

    @contextmanager
    def _broken_off(self, dropped: Callable[[], bool]) -> Iterator[None]:
        """Raise `Dropped` between two blocks of the model once `dropped` is true.

        Not in the decoder without its cache, where openai-whisper looks for the times of words: it would leave its
        hooks behind.
        """

        def check(*_: object) -> None:
            if dropped():
                raise Dropped

        def check_decoding(block: object, inputs: object, options: dict[str, Any]) -> None:
            if options.get("kv_cache") is not None:
                check()

        with ExitStack() as stack:
            for block in self._model.encoder.blocks:
                stack.callback(block.register_forward_pre_hook(check).remove)
            for block in self._model.decoder.blocks:
                stack.callback(block.register_forward_pre_hook(check_decoding, with_kwargs=True).remove)
            yield

    @contextmanager
    def _encoded_once(self) -> Iterator[None]:
        """Encode a window once that is asked for several times: for its language, a second try, its words' times."""
        encoder = self._model.encoder
        forward: Callable[[torch.Tensor], torch.Tensor] = encoder.forward
        last: list[tuple[torch.Tensor, torch.Tensor]] = []

        def remembered(mel: torch.Tensor) -> torch.Tensor:
            if not last or not torch.equal(last[0][0], mel):
                last[:] = [(mel, forward(mel))]
            return last[0][1]

        encoder.forward = remembered
        try:
            yield
        finally:
            del encoder.forward  # the class's own stands behind it

    def _encode(self, samples: NDArray[np.float32], seconds: float) -> torch.Tensor:
        """Give the encoder's output, (1, positions, width), for a window of so many seconds instead of 30."""
        encoder = self._model.encoder
        positions = min(int(seconds / SECONDS_PER_POSITION), len(encoder.positional_embedding))
        x = self._mel(samples)[None, :, : 2 * positions]
        x = gelu(encoder.conv2(gelu(encoder.conv1(x)))).permute(0, 2, 1)
        x = x + encoder.positional_embedding[:positions]
        for block in encoder.blocks:
            x = block(x)
        encoded: torch.Tensor = encoder.ln_post(x)
        return encoded

    def _mel(self, samples: NDArray[np.float32]) -> torch.Tensor:
        """Log-mel of one window as `whisper.transcribe` makes it: (mels, 3000) float32, zeros behind the sound."""
        mel = whisper.log_mel_spectrogram(samples, self._model.dims.n_mels, padding=N_SAMPLES)
        frames = min(len(samples) // HOP_LENGTH, N_FRAMES)
        window: torch.Tensor = whisper.pad_or_trim(mel[:, :frames], N_FRAMES)
        return window

    def _tokenizer(self, language: str, task: str) -> Tokenizer:
        return get_tokenizer(self.multilingual, num_languages=self._model.num_languages, language=language, task=task)

    def _heard_until(
        self, encoded: torch.Tensor, tokens: list[int], tokenizer: Tokenizer, seconds: float
    ) -> list[float]:
        """Give for each token the second of the sound that the decoder attends to most, by its alignment heads.

        Times never go back: what was written before was heard before.
        """
        sequence = torch.tensor([[*tokenizer.sot_sequence_including_notimestamps, *tokens]])
        positions = max(1, min(int(seconds / SECONDS_PER_POSITION), encoded.shape[1]))
        with collected(self._model) as found:
            self._model.decoder(sequence, encoded)
        weights = torch.cat(found)[:, :, :positions].softmax(-1).mean(0)
        first = len(tokenizer.sot_sequence_including_notimestamps) - 1  # the output there is the first token
        attended = weights[first : first + len(tokens)].argmax(-1).cummax(0).values
        return [(position + 1) * SECONDS_PER_POSITION for position in attended.tolist()]


class EncodedTask(DecodingTask):  # type: ignore[misc]  # openai-whisper has no types
    """openai-whisper's decoding of what has been encoded, however long; its own `decode` takes 1500 positions only."""

    def _get_audio_features(self, mel: torch.Tensor) -> torch.Tensor:
        return mel


def whole_characters(tokens: list[int], tokenizer: Tokenizer) -> list[int]:
    """Give tokens without those at the end that are a part of a character."""
    while tokens and tokenizer.decode(tokens).endswith(CUT_CHARACTER):
        tokens = tokens[:-1]
    return tokens


def words_of(tokens: list[int], tokenizer: Tokenizer) -> tuple[list[str], list[list[int]]]:
    """Give words and the tokens of each, as openai-whisper parts them; all as one where it trips over half a character.

    Its `split_tokens_on_unicode` raises IndexError when one such character was made of several tokens.
    """
    try:
        pieces, groups = tokenizer.split_to_word_tokens(tokens)
    except IndexError:
        pieces, groups = [tokenizer.decode(tokens)], [tokens]
    return pieces, groups


def whole(text: str) -> str:
    """Give a text without the character that its end cut in half."""
    return text.replace(CUT_CHARACTER, "")


def misleading(found: DecodingResult, prompt: str) -> bool:
    """Whether a draft is not to be shown: the prompt itself, a loop, or text for sound that has none."""
    score = Score(found.avg_logprob, found.no_speech_prob, found.compression_ratio)
    return score.invented or score.repetitive or is_echo(found.text, prompt)


def score_of(segment: dict[str, Any]) -> Score:
    """Read openai-whisper's numbers."""
    return Score(segment["avg_logprob"], segment["no_speech_prob"], segment["compression_ratio"])


def confidence(found: dict[str, Any]) -> tuple[bool, float]:
    """Rank two tries: one without doubt first, then by log-probability."""
    scores = [score_of(each) for each in found["segments"]]
    mean = sum(score.logprob for score in scores) / len(scores) if scores else -10.0
    return not any(score.doubtful for score in scores), mean


def transcription_of(found: dict[str, Any], length: float) -> Transcription:
    """Make a transcription of what openai-whisper gave, without what the rules do not let through."""

    def at(seconds: float) -> float:
        return min(float(seconds), length)

    segments = []
    for each in found["segments"]:
        spoken = whole(each["text"]).strip()
        text = without_loops(spoken, each["end"] - each["start"])
        if not text or score_of(each).invented:
            continue
        words = tuple(
            Word(at(word["start"]), at(word["end"]), whole(word["word"]).strip(), float(word["probability"]))
            for word in (each.get("words", ()) if text == spoken else ())
        )
        segments.append(TextSegment(at(each["start"]), at(each["end"]), text, words))
    return Transcription(" ".join(each.text for each in segments), str(found["language"]), tuple(segments))
