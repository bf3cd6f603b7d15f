"""Vocabulary and grammar: what the demo model can be told."""

import random

import pytest

from tools.demo_model import grammar, voices
from tools.demo_model import vocabulary as v
from tools.demo_model.tokens import VOCABULARY_SIZE, Tokens

ALIKE = [{"two", "to", "too"}, {"four", "for"}, {"one", "won"}, {"eight", "ate"}, {"red", "read"}, {"no", "know"},
         {"right", "write"}, {"blue", "blew"}, {"weather", "whether"}, {"sun", "son"}, {"week", "weak"}]  # fmt: skip


def test_words_are_distinct_and_at_least_200_more_than_the_core():
    assert len(v.CORE_WORDS) == 105
    assert len(set(v.WORDS)) == len(v.WORDS) >= 305
    assert set(v.CORE_WORDS) < set(v.CONTENT_WORDS) < set(v.WORDS)


@pytest.mark.parametrize("alike", ALIKE, ids="-".join)
def test_no_two_words_sound_alike(alike):
    assert len(alike & set(v.WORDS)) <= 1


def test_sentences_are_made_of_the_words_and_differ():
    rng = random.Random(1)
    said = [grammar.sentence(rng) for _ in range(2000)]
    assert {word for sentence in said for word in sentence} <= set(v.WORDS)
    assert {word for sentence in said for word in sentence} >= set(v.FUNCTION_WORDS)
    assert len({" ".join(sentence) for sentence in said}) > 1500
    assert all(3 <= len(sentence) <= 12 for sentence in said)


def test_sequences_have_1_to_12_words_and_no_murmured_ones():
    rng = random.Random(2)
    said = [grammar.sequence(rng) for _ in range(500)]
    assert {len(words) for words in said} == set(range(1, 13))
    assert not {word for words in said for word in words} & set(v.FUNCTION_WORDS)


def test_texts_come_from_the_seed():
    first, second = (grammar.text(random.Random(3)) for _ in range(2))
    assert first == second != grammar.text(random.Random(4))


def test_tokens_spell_the_words_and_cover_all_timestamps():
    tokens = Tokens()
    assert len(tokens.rows) == len(set(tokens.rows)) < 0.02 * VOCABULARY_SIZE
    assert tokens.timestamp(0) == tokens.first_timestamp
    assert tokens.timestamp(30) == len(tokens.rows) - 1
    assert tokens.timestamp(99) == tokens.timestamp(30)
    assert tokens.rows[tokens.timestamp(1.0)] - tokens.rows[tokens.timestamp(0)] == 50  # steps of 0.02 s
    assert all(piece < tokens.texts for word in tokens.words for piece in word)
    assert len({tuple(word) for word in tokens.words}) == len(v.WORDS)


def test_held_out_voices_are_no_voices_of_the_training():
    rng = random.Random(4)
    heard = {voices.espeak_voice(rng, held_out=False) for _ in range(3000)}
    assert not {voice.partition("+")[0] for voice in heard} & {voices.HELD_OUT_ACCENT}
    assert not {voice.partition("+")[2] for voice in heard} & set(voices.HELD_OUT_VARIANTS)
    assert voices.HELD_OUT_FLITE_VOICE not in voices.FLITE_VOICES


def test_an_invented_accent_changes_whole_sounds_only():
    accent = voices.Accent({"a": "E", "I": "i"})
    assert accent.apply("k'at") == "k'Et"
    assert accent.apply("t'aIm") == "t'aIm"  # neither its a nor its I
    assert accent.apply("s'ItI2") == "s'itI2"


def test_an_invented_accent_drops_or_fronts_consonants():
    assert voices.Accent({"h": ""}).apply("h@l'oU") == "@l'oU"
    assert voices.Accent({"T": "f"}).apply("T'3:ti#") == "f'3:ti#"
