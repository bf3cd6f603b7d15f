"""Which words of a draft can be shown: two policies. benchmarks/live_quality.py compares them."""

from __future__ import annotations

from typing import Protocol

from whisper_byoc.speech.engine import Draft

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
            shown.append(word.text)
        return " ".join(shown)


class Agreement:
    """LocalAgreement-2: the words with which the last two drafts begin alike."""

    def __init__(self) -> None:
        self._before: list[str] = []

    def show(self, draft: Draft, seconds: float) -> str:
        """Give the common beginning."""
        words = [word.text for word in draft.words]
        agreed = []
        for old, new in zip(self._before, words, strict=False):
            if old != new:
                break
            agreed.append(new)
        self._before = words
        return " ".join(agreed)


POLICIES: dict[str, type[Attention] | type[Agreement]] = {"attention": Attention, "agreement": Agreement}
