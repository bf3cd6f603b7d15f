"""Texts decoded token by token, as in openai-whisper: by the likeliest token, by sampling, or by beam search."""

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from whisper_byoc.speech.engine import Cancelled, IsCancelled, never
from whisper_byoc.speech.fast.batch import Pass, Sound, Step
from whisper_byoc.speech.fast.rules import Rules, log_sum_exp
from whisper_byoc.speech.fast.tokenizer import Tokenizer

CHECKED = 16
"""Guessed tokens in one pass; the logits of more would take too much memory when many texts are decoded together."""

T = TypeVar("T")
Steps: TypeAlias = Generator[Pass, Step, T]
"""Work that requests decoder passes as it goes, so that several pieces of work can share each pass."""
Together: TypeAlias = Generator[dict[int, Pass], Mapping[int, Step], T]
"""Work that requests several passes at once, each by its number."""


@dataclass(frozen=True)
class Wish:
    """How to decode a text."""

    start: Sequence[int]
    """`Tokenizer.start`."""
    limit: int
    """Most tokens."""
    prompt: Sequence[int] = ()
    """Tokens of the preceding text, of which the last 223 count."""
    timestamps: bool = True
    may_be_empty: bool = False
    """Whether the text may have no words."""
    temperature: float = 0.0
    """Above 0, tokens are sampled, reproducibly."""
    beam: int = 1
    """Sequences that a search keeps; with 1, each token is the likeliest."""
    guess: Sequence[int] = ()
    """Tokens that the text may begin with: as far as it does, they cost one pass per 16 tokens. A search uses none."""
    prefix: Sequence[int] = ()
    """Tokens with which the text begins; decoding continues after them."""


@dataclass(frozen=True)
class Decoded:
    """One text."""

    tokens: list[int]
    """Without the tokens that it began with, and without the end token."""
    logprob: float
    """Mean log-probability of the tokens and the end token."""
    no_speech: float
    """Probability of no speech at all, before the first token."""
    ended: bool
    """Whether the model ended it; otherwise it was cut off at the token limit."""
    queries: dict[int, NDArray[np.float32]]
    """Layer -> (heads, tokens + 1, values): where in the sound each token was found (`alignment.attention`)."""
    temperature: float = 0.0
    """Temperature at which the tokens were sampled."""


def decode(
    sound: Sound, tokenizer: Tokenizer, context: int, wish: Wish, is_cancelled: IsCancelled = never
) -> Steps[Decoded]:
    """Decode one text. `context` is how many tokens the decoder has places for. Raises `Cancelled`."""
    initial = [*wish.start] if wish.timestamps else [*wish.start, tokenizer.no_timestamps]
    if wish.prompt:
        initial = [tokenizer.sot_prev, *wish.prompt[-(context // 2 - 1) :], *initial]
    initial += wish.prefix
    room = min(wish.limit, context - len(initial) + 1)
    way = _search if wish.beam > 1 and not wish.temperature else _write
    found = yield from way(sound, tokenizer, initial, room, wish, is_cancelled)
    return replace(found, temperature=wish.temperature)


def together(*works: Steps[T]) -> Together[list[T]]:
    """Do several pieces of work at once, and return their results. Requests a pass of each that is not done yet."""
    results: dict[int, T] = {}
    steps: Mapping[int, Step | None] = dict.fromkeys(range(len(works)))
    while True:
        asked = {}
        for at, step in steps.items():
            try:
                asked[at] = works[at].send(step)  # type: ignore[arg-type]  # None begins it
            except StopIteration as end:
                results[at] = end.value
        if not asked:
            return [results[at] for at in range(len(works))]
        steps = yield asked


def language_probabilities(sound: Sound, tokenizer: Tokenizer) -> Steps[dict[str, float]]:
    """Return how probable each language is (openai-whisper, `detect_language`)."""
    step = yield Pass(sound, [[tokenizer.sot]], [0])
    logits = step.logits[0, 0, list(tokenizer.languages.values())]
    shares = np.exp(logits - log_sum_exp(logits))
    return dict(zip(tokenizer.languages, shares.tolist(), strict=True))


class _Text(NamedTuple):
    tokens: list[int]
    total: float
    """Sum of log-probabilities."""
    queries: list[dict[int, NDArray[np.float32]]]
    """Of each token, layer -> (heads, values)."""

    def and_then(self, token: int, logprob: float, query: dict[int, NDArray[np.float32]]) -> "_Text":
        return _Text([*self.tokens, token], self.total + logprob, [*self.queries, query])

    def decoded(self, end: int, no_speech: float) -> Decoded:
        ended = self.tokens[-1] == end
        tokens = self.tokens[:-1] if ended else self.tokens
        queries = {layer: np.stack([each[layer] for each in self.queries], 1) for layer in self.queries[0]}
        return Decoded(tokens, self.total / (len(tokens) + 1), no_speech, ended, queries)


def _write(
    sound: Sound, tokenizer: Tokenizer, initial: list[int], room: int, wish: Wish, is_cancelled: IsCancelled
) -> Steps[Decoded]:
    """Take the likeliest token each time, or sample one, after first checking the guess."""
    rules = Rules(tokenizer, timestamps=wish.timestamps, may_be_empty=wish.may_be_empty)
    dice = np.random.default_rng(0)
    text, guess = _Text([], 0.0, []), list(wish.guess)
    checked, last = guess[: min(CHECKED, room - 1)], len(initial) - 1
    wanted = [initial.index(tokenizer.sot), *range(last, last + len(checked) + 1)]
    step = yield from _step(Pass(sound, [[*initial, *checked]], wanted), is_cancelled)
    no_speech, logits = _no_speech(step, tokenizer), step.logits[0, 1:]
    while True:
        for at, scores in enumerate(logits):
            rules.apply(scores, text.tokens)
            token = _choose(scores, wish.temperature, dice)
            text = text.and_then(token, float(scores[token] - log_sum_exp(scores)), _queries(step, 0, last + at))
            if token == tokenizer.eot or len(text.tokens) == room:
                return text.decoded(tokenizer.eot, no_speech)
            if at < len(checked) and token != checked[at]:
                break
        known = len(text.tokens)
        checked = guess[known : min(known + CHECKED, room - 1)] if text.tokens == guess[:known] else []
        new = Pass(sound, [[text.tokens[-1], *checked]], range(len(checked) + 1), len(initial) + known - 1)
        step = yield from _step(new, is_cancelled)
        logits, last = step.logits[0], 0


def _search(
    sound: Sound, tokenizer: Tokenizer, initial: list[int], room: int, wish: Wish, is_cancelled: IsCancelled
) -> Steps[Decoded]:
    """Keep the likeliest `beam` texts until that many have ended (openai-whisper, `BeamSearchDecoder`)."""
    rules = Rules(tokenizer, timestamps=wish.timestamps, may_be_empty=wish.may_be_empty)
    at_sot, last = initial.index(tokenizer.sot), len(initial) - 1
    step = yield from _step(Pass(sound, [initial] * wish.beam, [at_sot, last], 0, [0] * wish.beam), is_cancelled)
    no_speech, logits = _no_speech(step, tokenizer), step.logits[:1, 1]  # all still alike
    going = [_Text([], 0.0, [])]
    ended: list[_Text] = []
    while True:
        found: list[tuple[int, _Text]] = []
        for at, (scores, text) in enumerate(zip(logits, going, strict=False)):
            rules.apply(scores, text.tokens)
            scores -= log_sum_exp(scores)
            query = _queries(step, at, last)
            likeliest = np.argpartition(-scores, wish.beam)[: wish.beam + 1]
            found += ((at, text.and_then(token, float(scores[token]), query)) for token in likeliest.tolist())
        found.sort(key=lambda each: each[1].total, reverse=True)
        parents, going = [], []
        for parent, text in found:
            if text.tokens[-1] != tokenizer.eot:
                parents.append(parent)
                going.append(text)
            elif len(ended) < wish.beam:
                ended.append(text)
            if len(going) == wish.beam:
                break
        written = len(going[0].tokens)
        if len(ended) == wish.beam or written == room:
            return _best([*ended, *going][: wish.beam], tokenizer.eot).decoded(tokenizer.eot, no_speech)
        tokens = [text.tokens[-1:] for text in going]
        step = yield from _step(Pass(sound, tokens, [0], len(initial) + written - 1, parents), is_cancelled)
        logits, last = step.logits[:, 0], 0


def _best(texts: list[_Text], end: int) -> _Text:
    """Return the text with the highest log-probability for its length (openai-whisper, `MaximumLikelihoodRanker`)."""
    return max(texts, key=lambda text: text.total / max(1, len(text.tokens) - (text.tokens[-1] == end)))


def _step(asked: Pass, is_cancelled: IsCancelled) -> Steps[Step]:
    if is_cancelled():
        raise Cancelled
    return (yield asked)


def _queries(step: Step, row: int, at: int) -> dict[int, NDArray[np.float32]]:
    return {layer: query[row, :, at] for layer, query in step.queries.items()}


def _no_speech(step: Step, tokenizer: Tokenizer) -> float:
    at_sot = step.logits[0, 0]
    return float(np.exp(at_sot[tokenizer.no_speech] - log_sum_exp(at_sot)))


def _choose(scores: NDArray[np.float32], temperature: float, dice: np.random.Generator) -> int:
    """Return the likeliest token, or one sampled with the probabilities softmax(scores / temperature)."""
    if temperature:
        scores = scores / np.float32(temperature) + dice.gumbel(size=scores.shape).astype(np.float32)
    return int(scores.argmax())
