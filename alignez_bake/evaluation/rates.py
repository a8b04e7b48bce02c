"""Rates with their uncertainty, and how much of a gap is closed."""

from __future__ import annotations

import math
from dataclasses import dataclass

from alignez_bake.errors import BadInputError

_Z = 1.959963984540054  # 97.5 % quantile of the normal distribution


@dataclass(frozen=True)
class Rate:
    """A share of trials, with its 95 % interval.

    Attributes:
        successes: how many trials succeeded.
        total: how many there were, at least 1.
        low: lower end of the Wilson score interval (E. B. Wilson, 1927), in [0, 1].
        high: its upper end.
    """

    successes: int
    total: int
    low: float
    high: float

    @property
    def value(self) -> float:
        """The share itself, in [0, 1]."""
        return self.successes / self.total

    def as_json(self) -> dict[str, float | int]:
        """The rate with its interval and counts."""
        return {
            "value": self.value,
            "successes": self.successes,
            "total": self.total,
            "low": self.low,
            "high": self.high,
        }


def rate(successes: int, total: int) -> Rate:
    """The rate of `successes` in `total` independent trials.

    The Wilson interval stays within [0, 1] and is of use at 0 and at `total` too.

    Raises:
        BadInputError: no trials, or more successes than trials.
    """
    if not 0 <= successes <= total or total < 1:
        raise BadInputError(f"{successes} successes in {total} trials are no rate")
    share = successes / total
    scale = 1 + _Z**2 / total
    middle = (share + _Z**2 / (2 * total)) / scale
    half = _Z / scale * math.sqrt(share * (1 - share) / total + _Z**2 / (4 * total**2))
    low = 0.0 if successes == 0 else middle - half
    high = 1.0 if successes == total else middle + half
    return Rate(successes, total, low, high)


def gap_closed(base: float, ours: float, tuned: float) -> float | None:
    """How much of the way from the base to a tuned model an edit goes: 100 · (ours - base) / (tuned - base).

    AlignEZ's metric (arXiv 2406.03642). Show the three figures beside it: a small gap makes it meaningless.

    Args:
        base: rate or score of the base.
        ours: of the edited model.
        tuned: of the tuned model.

    Returns:
        Per cent; above 100 beyond the tuned model, below 0 for a loss. None where there is no gap.
    """
    return None if tuned == base else 100 * (ours - base) / (tuned - base)
