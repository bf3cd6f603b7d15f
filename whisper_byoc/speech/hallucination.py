"""Hallucination filter: finds text that is invented, repeats itself endlessly, or merely echoes the prompt.

It works on the scores and text of any engine.
"""

import re
from dataclasses import dataclass

from whisper_byoc.speech.transcript import Confidence

MAX_COMPRESSION = 2.4
"""Text that gzip compresses by more than this is repetitive (openai-whisper, `compression_ratio_threshold`)."""
MIN_LOGPROB = -1.0
"""Mean log-probability of a text's tokens below which it is a guess (openai-whisper, `logprob_threshold`)."""
MAX_NO_SPEECH = 0.6
"""Probability of no speech above which a guess is dropped (openai-whisper, `no_speech_threshold`)."""
UNLIKELY_SPEECH = 0.7
UNSURE_LOGPROB = -0.7
"""Above the former and below the latter, a text is dropped. With tiny.en, laughter and animals that voice activity
hears as speech reach 0.76 and -0.83; of 109 words said alone, none that it knows comes near both."""
RETRY_TEMPERATURE = 0.4
"""Temperature of the last attempt at doubtful text; openai-whisper has five, and some sound then takes ten times as
long."""
TOKENS_PER_SECOND = 12
MIN_TOKENS = 16
MAX_TOKENS = 224
"""Tokens of one window (openai-whisper, `n_text_ctx // 2`)."""
WORD_SECONDS = 1 / 6
"""Nobody speaks faster for long: auctioneers reach 4 to 5 words per second."""
HAN_OR_KANA = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
HAN_OR_KANA_SECONDS = 1 / 12
"""The fastest Japanese reaches some 10 morae per second."""
SOUTH_EAST_ASIAN = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"
SOUTH_EAST_ASIAN_SECONDS = 1 / 24
"""Thai, Lao, Burmese and Khmer: up to 7 syllables per second, of three or four characters each."""
UNIT = re.compile(rf"([{HAN_OR_KANA}])\s*|([{SOUTH_EAST_ASIAN}])\s*|[^\s{HAN_OR_KANA}{SOUTH_EAST_ASIAN}]+\s*")
"""A word, or a character of a script without spaces between words, with the spaces that follow."""
LONGEST_PHRASE = 30
MIN_REPEATS = 4


@dataclass(frozen=True)
class Score:
    """How sure a model is of one segment of text."""

    logprob: float
    """Mean log-probability of its tokens."""
    no_speech: float
    """Probability that there is no speech."""
    compression: float
    """Ratio of its bytes before and after gzip."""
    temperature: float = 0.0
    """Temperature at which its tokens were sampled."""

    @property
    def confidence(self) -> Confidence:
        """The same, for readers of the text."""
        return Confidence(self.logprob, self.no_speech, self.compression, self.temperature)

    @property
    def doubtful(self) -> bool:
        """Whether another attempt is worth its time."""
        return not self.invented and (self.repetitive or self.logprob < MIN_LOGPROB)

    @property
    def repetitive(self) -> bool:
        """Whether it keeps saying the same thing."""
        return self.compression > MAX_COMPRESSION

    @property
    def invented(self) -> bool:
        """Whether it is text for sound without speech."""
        guessed = self.no_speech > MAX_NO_SPEECH and self.logprob < MIN_LOGPROB
        return guessed or (self.no_speech > UNLIKELY_SPEECH and self.logprob < UNSURE_LOGPROB)


def max_tokens(seconds: float) -> int:
    """Return the most tokens that `seconds` of speech can hold; decoding stops there, and so does a loop."""
    return min(MAX_TOKENS, MIN_TOKENS + int(TOKENS_PER_SECOND * seconds))


def remove_loops(text: str, seconds: float) -> str:
    """Remove the repetitions from a text that nobody could have spoken in `seconds`.

    A phrase of up to 30 words (or characters, where words have no spaces between them) that occurs four or more times
    in a row is kept once. Text at a speed at which people speak is left alone, whatever it repeats.
    """
    units = list(UNIT.finditer(text))
    if sum(map(_shortest_seconds, units)) <= max(seconds, 0.5):
        return text
    stripped = [unit[0].rstrip() for unit in units]
    kept: list[str] = []
    at = 0
    while at < len(units):
        size, repeats = _loop_at(stripped, at)
        at += size * repeats
        kept += (unit[0] for unit in units[at - size : at])
    return "".join(kept).strip()


def _shortest_seconds(unit: re.Match[str]) -> float:
    return HAN_OR_KANA_SECONDS if unit[1] else SOUTH_EAST_ASIAN_SECONDS if unit[2] else WORD_SECONDS


def _loop_at(words: list[str], at: int) -> tuple[int, int]:
    """Return the length of the phrase at a position and how often it is repeated; (1, 1) when there is no loop."""
    for size in range(1, LONGEST_PHRASE + 1):
        phrase, repeats = words[at : at + size], 1
        while words[at + repeats * size : at + (repeats + 1) * size] == phrase:
            repeats += 1
        if repeats >= MIN_REPEATS:
            return size, repeats
    return 1, 1


def is_prompt_echo(text: str, prompt: str) -> bool:
    """Whether a text is only a piece of the prompt: at least three consecutive words of it, or both of two."""
    spoken, expected = _words(text), _words(prompt)
    return len(spoken) >= min(3, max(2, len(expected))) and f" {' '.join(spoken)} " in f" {' '.join(expected)} "


def _words(text: str) -> list[str]:
    return re.sub(r"[^\w' ]", " ", text.lower()).split()
