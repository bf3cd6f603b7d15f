"""Sound whose text may continue the previous sentence: the window begins with the previous sound, whose text is given.

Alone, the model takes whatever it hears for whole sentences. After a text that the new sound does not continue, such as
another speaker's, it stops early or begins again; decoding the new sound alone as well reveals this.
"""

import re

import numpy as np

from whisper_byoc.speech.engine import Before, IsCancelled
from whisper_byoc.speech.fast.alignment import (
    FRAMES_PER_POSITION,
    TimedSegment,
    align_words,
    leave_pauses,
    token_places,
)
from whisper_byoc.speech.fast.decoding import Steps, Wish, decode
from whisper_byoc.speech.fast.mel import FRAMES_PER_SECOND
from whisper_byoc.speech.fast.model import FastModel
from whisper_byoc.speech.fast.windows import Request, Scored, Windows, score_of, sentences, unheard
from whisper_byoc.speech.hallucination import HAN_OR_KANA, SOUTH_EAST_ASIAN

UNIT = re.compile(rf"[\d{HAN_OR_KANA}{SOUTH_EAST_ASIAN}]|[^\W\d_{HAN_OR_KANA}{SOUTH_EAST_ASIAN}]+")
"""A word, a digit, or a character of a script that has no spaces between words."""
MARKS = 8
"""Decoder places that tokens without text may take."""
DIFFERENCE = 0.2
"""The two texts may differ by this share of the words of the text decoded alone, or by one word. Without this limit, 10
to 63 % of the words of thirty speakers in turn were wrong; with it, no more than when decoded alone."""


def transcribe_behind(
    model: FastModel, windows: Windows, before: Before, begin: float, request: Request, is_cancelled: IsCancelled
) -> Steps[list[Scored]]:
    """Return the segments of new sound, which begins at `begin` (seconds) in the window; none if they are doubtful.

    `windows` has both sounds; segment times are on its clock. Raises `Cancelled`.
    """
    tokenizer, options = model.tokenizer, request.options
    start, said = tokenizer.start(options.language, options.task), tokenizer.prompt(before.text)
    prompt = tokenizer.prompt(options.context, options.glossary)
    if len(prompt) + len(said) + request.limit > model.dims.n_text_ctx - MARKS:
        return []
    wish = Wish(start, request.limit, prompt, timestamps=False, may_be_empty=True, beam=options.beam or 1, prefix=said)
    sound = windows.sound(0, full=request.attempts[0].full)
    decoded = yield from decode(sound, tokenizer, model.dims.n_text_ctx, wish, is_cancelled)
    score = score_of(decoded, tokenizer)
    if not decoded.ended or score.doubtful or score.invented:
        return []
    places = token_places(sound, decoded.queries, model.alignment_heads, windows.frames // FRAMES_PER_POSITION)
    if model.follows_sound and unheard(
        windows, (round(begin * FRAMES_PER_SECOND), windows.frames), decoded, places, tokenizer
    ):
        return []
    span = begin, windows.frames / FRAMES_PER_SECOND
    ends, pauses = np.maximum.accumulate(places).tolist(), windows.pauses or ()
    segments = sentences(decoded.tokens, ends, tokenizer, options.language, span, pauses)
    if options.words:
        yield from align_words(
            sound, tokenizer, model.alignment_heads, [TimedSegment(0.0, begin, said), *segments],
            start=start, language=options.language, frames=windows.frames, offset=0.0, last_end=0.0,
        )  # fmt: skip
        leave_pauses(segments, pauses)
    return [Scored(each, tokenizer.decode(each.tokens), score) for each in segments]


def agree(alone: str, behind: str) -> bool:
    """Whether a text decoded after another has about as many words as the same sound decoded alone."""
    expected, found = (len(UNIT.findall(text)) for text in (alone, behind))
    return min(expected, found) > 0 and abs(expected - found) <= max(1, DIFFERENCE * expected)
