"""Which words of a draft are shown."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whisper_byoc.speech.engine import Draft, DraftWord
from whisper_byoc.speech.live import POLICIES, UNSTABLE_END, UNSTABLE_SECONDS, Agreement, Attention, heard_well


def draft(text, step=0.5):
    """Words that were heard half a second apart."""
    return Draft(tuple(DraftWord(f" {word}", (n + 1) * step) for n, word in enumerate(text.split())), "en")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(3.0, "one two three"), (1.5 + UNSTABLE_SECONDS, "one two three"), (1.5, "one two"), (0.5, "")],
)
def test_what_was_heard_well_before_the_end(seconds, text):
    assert Attention().stable_text(heard_well(draft("one two three"), seconds)) == text


def test_nothing_counts_behind_the_first_word_that_was_heard_too_late():
    words = (DraftWord(" one", 0.5), DraftWord(" two", 1.9), DraftWord(" three", 1.0))
    assert heard_well(Draft(words, "en"), 2.0).text == "one"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("printed book.", "printed book"),
        ("and so...", "and so"),
        ("and so \u2026", "and so"),
        ("in the exhi-", "in the"),
        ("well-known arts,", "well-known arts,"),
        ("is it old?", "is it old?"),
        ("", ""),
    ],
)
def test_no_half_word_and_no_dots_at_the_end(text, shown):
    assert UNSTABLE_END.sub("", text) == shown


def test_agreement_shows_what_two_drafts_begin_with():
    policy = Agreement()
    assert policy.stable_text(draft("one two")) == ""
    assert policy.stable_text(draft("one two tree")) == "one two"
    assert policy.stable_text(draft("one two three four")) == "one two"
    assert policy.stable_text(draft("one two three four")) == "one two three four"
    assert policy.stable_text(draft("won two three four")) == ""


def test_utterances_do_not_know_of_each_other():
    first, second = Agreement(), Agreement()
    first.stable_text(draft("one"))
    assert second.stable_text(draft("one")) == ""


@pytest.mark.parametrize("policy", POLICIES)
def test_nothing_heard_nothing_shown(policy):
    policy = POLICIES[policy]()
    assert policy.stable_text(Draft((), "en")) == ""
    assert policy.stable_text(Draft((), "en")) == ""


@pytest.mark.parametrize("policy", POLICIES)
def test_punctuation_and_scripts_without_blanks_are_joined_as_they_were_written(policy):
    for pieces, text in (
        ((" Yes", ",", " I", " do", "."), "Yes, I do."),
        (("今", "天", "很", "好"), "今天很好"),
        ((" caf", "é"), "café"),
    ):
        policy_of_one = POLICIES[policy]()
        heard = Draft(tuple(DraftWord(piece, 0.1) for piece in pieces), "en")
        assert heard.text == text
        policy_of_one.stable_text(heard)
        assert policy_of_one.stable_text(heard) == text


@pytest.mark.parametrize("policy", POLICIES)
@given(drafts=st.lists(st.lists(st.sampled_from("abc"), max_size=6).map(" ".join), max_size=6))
def test_what_is_shown_is_how_the_draft_begins(policy, drafts):
    shown = POLICIES[policy]()
    for text in drafts:
        assert text.startswith(shown.stable_text(draft(text)))
