"""Which words of a draft can be shown: two policies. benchmarks/live_quality.py compares them."""

from __future__ import annotations

from typing import Protocol

from whisper_byoc.speech.engine import Draft, DraftWord

__all__ = ["POLICIES", "Agreement", "Attention", "Policy"]

MARGIN_SECONDS = 0.3
"""What was heard so close to the end of the sound may be half a word."""


class Policy(Protocol):
    """Looks at the drafts of one utterance, one after the other."""

    def show(self, draft: Draft, seconds: float) -> str:
        """Give the words to show of a draft of so many seconds of sound."""
        ...


class Attention:
    """Attention-guided: words that the decoder heard well before the end of the sound (AlignAtt's idea)."""

    def show(self, draft: Draft, seconds: float) -> str:
        """Give the words before the first one that was heard too late."""
        shown = []
        for word in draft.words:
            if word.until > seconds - MARGIN_SECONDS:
                break
            shown.append(word)
        return Draft(tuple(shown), draft.language).text


class Agreement:
    """LocalAgreement-2: the words with which the last two drafts begin alike."""

    def __init__(self) -> None:
        self._before: tuple[DraftWord, ...] = ()

    def show(self, draft: Draft, seconds: float) -> str:
        """Give the common beginning."""
        agreed = []
        for old, new in zip(self._before, draft.words, strict=False):
            if old.text != new.text:
                break
            agreed.append(new)
        self._before = draft.words
        return Draft(tuple(agreed), draft.language).text


POLICIES: dict[str, type[Attention] | type[Agreement]] = {"attention": Attention, "agreement": Agreement}
