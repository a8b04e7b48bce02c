"""Resampling of queries, by which intervals over answers are found.

Answers to one query are alike, so they are drawn together or not at all (percentile bootstrap, B. Efron, 1979).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Float64Array = NDArray[np.float64]

_TAIL: Final = 2.5
_PER_CENT: Final = 100
_BLOCK: Final = 4_000_000  # entries of a block of weights: 32 MB once they are multiplied


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval."""

    value: float
    low: float
    high: float

    def as_json(self) -> dict[str, float]:
        """The figure and both ends."""
        return {"value": self.value, "low": self.low, "high": self.high}

    def times(self, factor: float) -> Estimate:
        """In another unit; the factor is above 0."""
        return Estimate(self.value * factor, self.low * factor, self.high * factor)


@dataclass(frozen=True)
class QueryDraws:
    """Queries drawn with replacement, as many as there are; figures of one object are paired: they see the same draws.

    Attributes:
        queries: how many there are.
        seed: of numpy's generator.
        draws: how many.
    """

    queries: int
    seed: int
    draws: int

    def means(self, sums: Float64Array, counts: Float64Array) -> Float64Array:
        """The mean over each draw's values.

        Args:
            sums: float64 [queries], of each query's values.
            counts: float64 [queries], how many those are.

        Returns:
            float64 [draws]; NaN of a draw without any value.
        """
        with np.errstate(invalid="ignore"):
            return np.asarray(self._drawn(sums) / self._drawn(counts))

    def _drawn(self, of_queries: Float64Array) -> Float64Array:
        """The sum over each draw's queries, [queries] -> [draws]."""
        return np.concatenate([weights @ of_queries for weights in self._weights])

    @cached_property
    def _weights(self) -> list[NDArray[np.int16]]:
        """How often each draw has each query, in blocks [some draws, queries]."""
        generator = np.random.default_rng(self.seed)
        rows = max(1, _BLOCK // self.queries)
        even = np.full(self.queries, 1 / self.queries)
        return [
            generator.multinomial(self.queries, even, size=min(rows, self.draws - start)).astype(np.int16)
            for start in range(0, self.draws, rows)
        ]


def interval(drawn: Float64Array, *, among: int = 1) -> tuple[float, float]:
    """The ends that leave out 2.5 % of the draws at each side; draws that are not finite do not count.

    Of many figures the best one is good by luck too. With `among` of them each interval leaves out 5 % / among, so
    that with 95 % all of them hold what they should (Bonferroni), whichever is looked at in the end.

    Args:
        drawn: float64 [draws], the figure of each draw.
        among: how many figures there are to choose from.
    """
    tail = _TAIL / among
    low, high = np.percentile(drawn[np.isfinite(drawn)], (tail, _PER_CENT - tail))
    return float(low), float(high)
