"""Text that was invented, that loops, or that is the prompt."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whisper_byoc.speech.hallucination import MAX_TOKENS, UNIT, Score, is_prompt_echo, max_tokens, remove_loops


@pytest.mark.parametrize(
    ("text", "seconds", "kept"),
    [
        ("no no no", 1.0, "no no no"),
        ("no no no no no no", 1.0, "no no no no no no"),  # six words a second
        ("no " * 40, 3.0, "no"),
        ("thank you " * 20, 4.0, "thank you"),
        ("he said " + "and so on " * 12 + "at last", 2.0, "he said and so on at last"),
        ("a b a b a b c d e f g h", 1.0, "a b a b a b c d e f g h"),  # three times is no loop
        ("row row row your boat " * 3, 10.0, None),
        ("very " * 3 + "fast words that nobody can say", 0.5, "very very very fast words that nobody can say"),
        ("one two three four five six seven eight nine ten eleven twelve " * 4, 2.0,
         "one two three four five six seven eight nine ten eleven twelve"),
        ("谢谢" * 20, 1.0, "谢"),  # no blanks between words
        ("谢谢谢谢", 0.5, "谢谢谢谢"),
        ("はい、" + "ご視聴ありがとうございました。" * 6, 3.0, "はい、ご視聴ありがとうございました。"),
        ("ขอบคุณ" * 12, 2.0, "ขอบคุณ"),
        ("ขอบคุณ" * 4, 2.0, None),  # twelve characters a second are nothing in Thai
        ("네 " * 40, 2.0, "네"),  # Korean has blanks
        ("", 1.0, ""),
        ("word", 0.0, "word"),
    ],
)  # fmt: skip
def test_loops_are_cut_only_where_nobody_speaks_so_fast(text, seconds, kept):
    assert remove_loops(text, seconds) == (text if kept is None else kept)


@given(st.lists(st.sampled_from("abcd谢はข"), max_size=60), st.floats(0, 30), st.sampled_from(("", " ")))
def test_cutting_loops_leaves_every_word_once_and_in_order(words, seconds, blank):
    kept = remove_loops(blank.join(words), seconds)
    words = [unit[0].strip() for unit in UNIT.finditer(blank.join(words))]
    kept = [unit[0].strip() for unit in UNIT.finditer(kept)]
    assert set(kept) == set(words)
    rest = iter(words)
    assert all(word in rest for word in kept)


@pytest.mark.parametrize(
    ("text", "prompt", "echo"),
    [
        ("Glossary: Livepeer, Arbitrum.", "Glossary: Livepeer, Arbitrum.", True),
        ("livepeer arbitrum orchestrator", "Glossary: Livepeer, Arbitrum, Orchestrator, Gateway.", True),
        ("arbitrum orchestrator", "Glossary: Livepeer, Arbitrum, Orchestrator.", False),  # two words may be said
        ("Glossary: Anna.", "Glossary: Anna.", True),  # all of a short prompt
        ("hello Anna", "Hello, Anna!", True),
        ("Anna", "Anna", False),  # one word may be said
        ("livepeer orchestrator gateway", "Glossary: Livepeer, Arbitrum, Orchestrator, Gateway.", False),
        ("we use livepeer arbitrum orchestrator", "Livepeer, Arbitrum, Orchestrator", False),
        ("ivepeer arbitrum orchestrat", "Livepeer, Arbitrum, Orchestrator", False),  # whole words only
        ("anything at all", "", False),
        ("", "Livepeer, Arbitrum, Orchestrator", False),
    ],
)
def test_an_echo_is_a_piece_of_the_prompt_and_nothing_else(text, prompt, echo):
    assert is_prompt_echo(text, prompt) is echo


def test_the_cap_grows_with_the_sound():
    assert max_tokens(0.0) == 16
    assert max_tokens(1.0) == 28
    assert max_tokens(10.0) == 136
    assert max_tokens(30.0) == max_tokens(3600.0) == MAX_TOKENS == 224


@pytest.mark.parametrize(
    ("score", "doubtful", "invented"),
    [
        (Score(-0.2, 0.1, 1.2), False, False),
        (Score(-1.1, 0.1, 1.2), True, False),
        (Score(-0.2, 0.1, 2.5), True, False),
        (Score(-0.2, 0.9, 1.2), False, False),  # it is sure of its text, whatever it thinks of the sound
        (Score(-1.1, 0.7, 1.2), False, True),
        (Score(-1.1, 0.7, 3.0), False, True),
        (Score(-0.92, 0.95, 1.2), False, True),
        (Score(-0.65, 0.75, 1.2), False, False),
        (Score(-0.92, 0.65, 1.2), False, False),
        (Score(-1.0, 0.6, 2.4), False, False),  # openai-whisper's limits themselves are fine
    ],
)
def test_scores(score, doubtful, invented):
    assert (score.doubtful, score.invented) == (doubtful, invented)
