"""What is said: random sequences of words, and sentences of a small grammar."""

import random

from tools.demo_model import vocabulary as v

_RULES: dict[str, tuple[str, ...]] = {
    "SENTENCE": (
        "NOUN_PHRASE LINK QUALITY",
        "NOUN_PHRASE LINK very QUALITY",
        "NOUN_PHRASE LINK not QUALITY TIME",
        "NOUN_PHRASE LINK in the PLACE",
        "PRONOUN MODAL VERB the THING",
        "PRONOUN MODAL VERB the THING TIME",
        "PRONOUN MODAL not VERB your THING",
        "PRONOUN MODAL VERB with OWNER PERSON",
        "PRONOUN MODAL VERB OWNER THING and OWNER THING",
        "OWNER PERSON MODAL VERB the QUALITY THING",
        "OWNER PERSON has NUMBER QUALITY THING",
        "ADVERB PRONOUN MODAL VERB the THING",
        "please VERB the THING from the PLACE",
        "please VERB OWNER THING TIME",
        "COMMAND the TECHNICAL TECHNICAL",
        "COMMAND the QUALITY TECHNICAL now",
        "the COLOUR THING LINK in the PLACE",
        "the COLOUR THING and the COLOUR THING",
        "where LINK OWNER THING",
        "where LINK the PLACE",
        "when will OWNER PERSON VERB",
        "what LINK in the QUALITY THING",
        "why LINK the THING QUALITY",
        "how QUALITY LINK the PLACE",
        "there LINK NUMBER PERSON in the PLACE",
        "there was WEATHER in the PLACE TIME",
        "this LINK the ADJECTIVE PLACE of OWNER PERSON",
        "that LINK not OWNER THING but OWNER THING",
        "the WEATHER was very QUALITY TIME",
        "turn left at the PLACE and walk home",
        "turn right at the next PLACE",
        "number NUMBER NUMBER NUMBER",
        "she LINK at home and he LINK at school",
        "they are QUALITY and we are QUALITY",
    ),
    "NOUN_PHRASE": ("the THING", "OWNER THING", "OWNER PERSON", "the QUALITY THING", "the COLOUR THING", "this PLACE"),
    "OWNER": ("my", "your", "our", "the"),
    "LINK": ("is", "was"),
    "ADJECTIVE": ("first", "last", "other", "QUALITY"),
    "MODAL": ("can", "will", "must"),
    "PRONOUN": ("you", "we", "they", "she", "he"),
    "ADVERB": ("now", "soon", "today", "tomorrow", "yesterday"),
    "TIME": v.TIMES,
    "NUMBER": v.NUMBERS,
    "COMMAND": ("start", "stop", "pause", "play", "record", "open", "close"),
    "COLOUR": v.COLOURS,
    "TECHNICAL": v.TECHNICAL,
    "VERB": v.VERBS,
    "PERSON": v.PEOPLE,
    "THING": v.THINGS,
    "PLACE": v.PLACES,
    "WEATHER": v.WEATHER,
    "QUALITY": v.QUALITIES,
}

LENGTHS = (1, 1, 2, 2, 3, 3, 4, 4, 5, 6, 7, 8, 9, 10, 11, 12)
"""Numbers of words that a random sequence has, each as likely."""


def sentence(rng: random.Random) -> list[str]:
    """Return a sentence of the grammar as its words."""
    return _expand("SENTENCE", rng)


def _expand(symbol: str, rng: random.Random) -> list[str]:
    if symbol not in _RULES:
        return [symbol]
    return [word for part in rng.choice(_RULES[symbol]).split() for word in _expand(part, rng)]


def sequence(rng: random.Random, words: tuple[str, ...] = v.CONTENT_WORDS, length: int | None = None) -> list[str]:
    """Return `length` of the words drawn at random, as many as LENGTHS say by default."""
    return rng.choices(words, k=length or rng.choice(LENGTHS))


def text(rng: random.Random) -> list[str]:
    """Return what an utterance of the training says: a sentence, or words of the whole or the core vocabulary."""
    kind = rng.random()
    if kind < 0.3:
        return sentence(rng)
    return sequence(rng, v.CORE_WORDS if kind < 0.5 else v.CONTENT_WORDS)
