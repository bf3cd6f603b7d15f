"""What a check has found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Finding", "State", "absent", "fail", "ok"]

State = Literal["ok", "--", "FAIL"]


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    check: str
    state: State
    """Fine; not there, and nobody said it should be; or broken."""
    detail: str
    advice: str = ""
    """What to do, in one sentence."""


def ok(check: str, detail: str) -> Finding:
    """All is well."""
    return Finding(check, "ok", detail)


def absent(check: str, detail: str, advice: str) -> Finding:
    """It is not there, which may be as its owner wants it."""
    return Finding(check, "--", detail, advice)


def fail(check: str, detail: str, advice: str) -> Finding:
    """It must be mended."""
    return Finding(check, "FAIL", detail, advice)
