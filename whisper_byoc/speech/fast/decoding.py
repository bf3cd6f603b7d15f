"""Openai-whisper's decoding rules, one text at a time: what may be written next, and how sure the model is."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from whisper_byoc.speech.engine import Cancelled, IsCancelled, never
from whisper_byoc.speech.fast.network import Network, Sound
from whisper_byoc.speech.fast.tokenizer import Tokenizer

LAST_FIRST_TIMESTAMP = 50
"""A text begins within the first second: 50 steps of 0.02 s (openai-whisper, `max_initial_timestamp`)."""
NEVER = np.float32(-np.inf)


@dataclass(frozen=True)
class Decoded:
    """One text."""

    tokens: list[int]
    """Without those that it began with, and without the end token."""
    logprob: float
    """Mean log-probability of the tokens and the end token."""
    no_speech: float
    """Probability of no speech at all, before the first token."""
    ended: bool
    """Whether the model ended it; else it was cut off at the most tokens allowed."""
    queries: dict[int, NDArray[np.float32]]
    """Layer -> (heads, tokens + 1, values): where in the sound each token was found (`alignment.attention`)."""


class Rules:
    """Masks logits (vocabulary,) in place, as openai-whisper's filters do."""

    def __init__(self, tokenizer: Tokenizer, *, timestamps: bool) -> None:
        self._tokenizer = tokenizer
        self._timestamps = timestamps
        self._suppressed = np.array(tokenizer.suppressed)
        self._blank = np.array(tokenizer.blank)

    def apply(self, logits: NDArray[np.float32], written: Sequence[int]) -> None:
        """Forbid what cannot follow the tokens `written`."""
        if not written:
            logits[self._blank] = NEVER
        logits[self._suppressed] = NEVER
        if self._timestamps:
            self._apply_timestamps(logits, written)

    def _apply_timestamps(self, logits: NDArray[np.float32], written: Sequence[int]) -> None:
        """Timestamps come in pairs, never go back, and come when they are likelier than any word.

        openai-whisper, `ApplyTimestampRules`.
        """
        begin, eot = self._tokenizer.timestamp_begin, self._tokenizer.eot
        logits[self._tokenizer.no_timestamps] = NEVER
        last = bool(written) and written[-1] >= begin
        before_last = len(written) < 2 or written[-2] >= begin
        if last:
            if before_last:
                logits[begin:] = NEVER
            else:
                logits[:eot] = NEVER
        newest = next((token for token in reversed(written) if token >= begin), None)
        if newest is not None:  # a segment may begin where the last one ended, and has a length
            logits[begin : newest if last and not before_last else newest + 1] = NEVER
        if not written:
            logits[:begin] = NEVER
            logits[begin + LAST_FIRST_TIMESTAMP + 1 :] = NEVER
        if _log_sum_exp(logits[begin:]) > logits[:begin].max():
            logits[:begin] = NEVER


def decode(
    network: Network,
    sound: Sound,
    tokenizer: Tokenizer,
    start: Sequence[int],
    *,
    prompt: Sequence[int] = (),
    timestamps: bool = True,
    limit: int,
    temperature: float = 0.0,
    is_cancelled: IsCancelled = never,
) -> Decoded:
    """Write the likeliest text token by token, at most `limit`; above temperature 0 tokens are drawn, always alike.

    `start` is `Tokenizer.start`; `prompt` is text before it, of which the last 223 tokens count. Raises `Cancelled`.
    """
    initial = [*start] if timestamps else [*start, tokenizer.no_timestamps]
    if prompt:
        initial = [tokenizer.sot_prev, *prompt[-(network.dims.n_text_ctx // 2 - 1) :], *initial]
    at_sot = initial.index(tokenizer.sot)
    rules = Rules(tokenizer, timestamps=timestamps)
    dice = np.random.default_rng(0)
    written: list[int] = []
    queries: list[dict[int, NDArray[np.float32]]] = []
    total, no_speech, ended = 0.0, 0.0, False
    network.listen(sound)
    new = initial
    for _ in range(limit):
        if is_cancelled():
            raise Cancelled
        step = network.step(new, [at_sot, len(new) - 1] if new is initial else [0])
        if new is initial:
            no_speech = float(np.exp(step.logits[0, tokenizer.no_speech] - _log_sum_exp(step.logits[0])))
        logits = step.logits[-1]
        rules.apply(logits, written)
        token = _choose(logits, temperature, dice)
        total += float(logits[token] - _log_sum_exp(logits))
        queries.append({layer: query[:, -1:] for layer, query in step.queries.items()})
        ended = token == tokenizer.eot
        if ended:
            break
        written.append(token)
        new = [token]
        if len(initial) + len(written) > network.dims.n_text_ctx:
            break
    joined = {layer: np.concatenate([each[layer] for each in queries], 1) for layer in queries[0]}
    return Decoded(written, total / (len(written) + 1), no_speech, ended, joined)


def language_probabilities(network: Network, sound: Sound, tokenizer: Tokenizer) -> dict[str, float]:
    """Return how probable each language is (openai-whisper, `detect_language`)."""
    network.listen(sound)
    logits = network.step([tokenizer.sot], [0]).logits[0, list(tokenizer.languages.values())]
    shares = np.exp(logits - _log_sum_exp(logits))
    return dict(zip(tokenizer.languages, shares.tolist(), strict=True))


def _choose(logits: NDArray[np.float32], temperature: float, dice: np.random.Generator) -> int:
    """Return the likeliest token, or one drawn with the probabilities of softmax(logits / temperature)."""
    if temperature:
        logits = logits / np.float32(temperature) + dice.gumbel(size=logits.shape).astype(np.float32)
    return int(logits.argmax())


def _log_sum_exp(values: NDArray[np.float32]) -> np.float32:
    highest = values.max()
    if highest == NEVER:
        return NEVER
    found: np.float32 = np.log(np.exp(values - highest).sum()) + highest
    return found
