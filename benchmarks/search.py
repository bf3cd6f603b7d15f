"""The largest number that passes, in few tries."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Search"]


@dataclass
class Search:
    """Looks for the largest number, up to a bound, that passes: 1, 2, 4, …, then halfway between pass and fail."""

    most: int
    passed: int = 0
    failed: int | None = None

    @property
    def next(self) -> int | None:
        """The next number to try; None when the largest is found, within 5 %."""
        if self.failed is None:
            return None if self.passed >= self.most else min(max(1, 2 * self.passed), self.most)
        return None if self.failed - self.passed <= max(1, self.passed // 20) else (self.passed + self.failed) // 2

    def tell(self, number: int, *, passed: bool) -> None:
        """Say how it went."""
        if passed:
            self.passed = number
        else:
            self.failed = number
